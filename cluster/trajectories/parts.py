"""Parquet files of episodes and of their turns, in pairs: `episodes-<first>.parquet` and `turns-<first>.parquet`.

A pair is named by the number of its first episode. While it is written it has another name; it becomes readable when it
is full, or old enough, and at the end. The oldest pairs are deleted where all of them take more than their bound. What
a killed writer left unfinished is removed by the next one, which goes on counting where the last whole pair ended.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from milepost.cluster.trajectories.table import EPISODES, TURNS, Columns, Row, schema, table

_PART_BYTES = 32 * 1024**2
_PARTS_KEPT = 8
"""Pairs that the bound has room for, at least: one that is full is not all there is."""
_ROW_GROUP_BYTES = 4 * 1024**2
_TOKEN_BYTES = 16
"""What a token takes in rows that wait: two lists, of ids and of log-probs."""
_FIRST_S, _LONGEST_S = 30.0, 600.0
_UNFINISHED = ".part"


class Parts:
    """The files of one run, and the pair that is being written. Methods raise OSError where the disk refuses."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._part_bytes = min(_PART_BYTES, max_bytes // _PARTS_KEPT)
        folder.mkdir(mode=0o700, exist_ok=True)
        _remove_unfinished(folder)
        self.next_number = _next_number(folder)
        self._interval_s = _FIRST_S
        self._open: _Pair | None = None

    def add(self, episode: Row, turns: list[Row], num_tokens: int) -> None:
        """One more episode, whose number is `next_number`; `num_tokens` are those of its prompts and responses."""
        if self._open is None:
            self._open = _Pair(self._folder, self.next_number)
        self._open.add(episode, turns, num_tokens)
        self.next_number += 1
        if self._open.num_bytes >= self._part_bytes:
            self.finish()

    @property
    def wait_s(self) -> float | None:
        """Seconds until the pair that is being written is to be finished; None where there is none."""
        return None if self._open is None else max(0.0, self._open.began + self._interval_s - time.monotonic())

    def finish(self) -> None:
        """Make what was added readable, and delete the oldest pairs beyond the bound."""
        if self._open is not None:
            pair, self._open = self._open, None
            pair.finish()
            self._interval_s = min(2 * self._interval_s, _LONGEST_S)
            self._prune()

    def abandon(self) -> None:
        """Give up the pair that is being written, and take its files away."""
        if self._open is not None:
            self._open.close_quietly()
        with contextlib.suppress(OSError):
            _remove_unfinished(self._folder)

    def _prune(self) -> None:
        whole = parts_of(self._folder)
        sizes = [episodes.stat().st_size + turns.stat().st_size for _, episodes, turns in whole]
        total = sum(sizes)
        for (_, episodes, turns), size in zip(whole[:-1], sizes, strict=False):
            if total > self._max_bytes:
                episodes.unlink()  # before its turns: what is listed can be read
                turns.unlink()
                total -= size


class _Pair:
    """Two files that are being written, from the episode numbered `first` on."""

    def __init__(self, folder: Path, first: int) -> None:
        self.began = time.monotonic()
        self._paths = tuple(folder / f"{name}-{first:012d}.parquet" for name in ("turns", "episodes"))
        self._files: list[BinaryIO] = []
        self._writers: list[pq.ParquetWriter] = []
        self._rows: tuple[list[Row], list[Row]] = ([], [])
        self._waiting_bytes = 0
        for path, columns in self._with_columns():
            self._files.append(_unfinished(path).open("wb"))
            self._writers.append(pq.ParquetWriter(self._files[-1], schema(columns), compression="zstd"))

    def _with_columns(self) -> Iterator[tuple[Path, Columns]]:
        return zip(self._paths, (TURNS, EPISODES), strict=True)

    @property
    def num_bytes(self) -> int:
        """What it takes on the disk so far; rows that wait are not counted."""
        return sum(file.tell() for file in self._files)

    def add(self, episode: Row, turns: list[Row], num_tokens: int) -> None:
        self._rows[0].extend(turns)
        self._rows[1].append(episode)
        self._waiting_bytes += _TOKEN_BYTES * num_tokens
        if self._waiting_bytes >= _ROW_GROUP_BYTES:
            self._write()

    def finish(self) -> None:
        """Turns get their name first: episodes without turns would be read."""
        self._write()
        for writer, file, path in zip(self._writers, self._files, self._paths, strict=True):
            writer.close()
            file.close()
            _unfinished(path).replace(path)

    def close_quietly(self) -> None:
        for closing in (*self._writers, *self._files):
            with contextlib.suppress(
                OSError, pa.ArrowException, ValueError
            ):  # it may still hold what the disk does not take
                closing.close()

    def _write(self) -> None:
        for writer, rows, (_, columns) in zip(self._writers, self._rows, self._with_columns(), strict=True):
            writer.write_table(table(rows, columns))
            rows.clear()
        self._waiting_bytes = 0


def parts_of(folder: Path) -> list[tuple[int, Path, Path]]:
    """Number of the first episode, episodes and turns of every pair that is whole, oldest first."""
    found = [(_first_of(path), path, _turns_of(path)) for path in sorted(folder.glob("episodes-*.parquet"))]
    return [part for part in found if part[2].is_file()]


def _first_of(episodes: Path) -> int:
    return int(episodes.stem.partition("-")[2])


def _turns_of(episodes: Path) -> Path:
    return episodes.with_name(episodes.name.replace("episodes", "turns", 1))


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}{_UNFINISHED}")


def _remove_unfinished(folder: Path) -> None:
    """Files that never got their name, and turns whose episodes did not get theirs."""
    for path in folder.glob(f".*.parquet{_UNFINISHED}"):
        path.unlink()
    for path in folder.glob("turns-*.parquet"):
        if not path.with_name(path.name.replace("turns", "episodes", 1)).is_file():
            path.unlink()


def _next_number(folder: Path) -> int:
    whole = parts_of(folder)
    return whole[-1][0] + int(pq.read_metadata(whole[-1][1]).num_rows) if whole else 0
