"""Reads recorded trajectories back: which episodes a run has, and one of them with its turns.

An episode that is named twice was judged again, or after its row was written: the later row counts. Files that a run is
still writing are not there yet. What cannot be read is named, with the way out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.trajectories.parts import parts_of
from milepost.cluster.trajectories.recording import EVALUATION
from milepost.cluster.trajectories.table import FORMAT, FORMAT_KEY

_BRIEF = ["episode", "group_id", "index", "fate", "reward", "seed", "outcome"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which episodes to read. What is None or False does not restrict."""

    episode: int | None
    fate: str | None
    task: str | None
    """A group's id, or a task's seed."""
    worst: bool
    """Those of the lowest reward first; the newest first otherwise. A failed one has no reward to compare."""
    count: int


@dataclass(frozen=True, slots=True)
class Episode:
    """One recorded episode: a row of the table of episodes, and its rows of the table of turns."""

    row: dict[str, Any]
    turns: list[dict[str, Any]]


def read(folder: Path, wanted: Wanted) -> list[Episode]:
    """At most `wanted.count` episodes of a run's folder of trajectories.

    Raises ConfigError where there is none, saying what there is, and where a file can't be read.
    """
    parts = parts_of(folder)
    if not parts:
        raise ConfigError(
            f"{folder} holds no trajectories: none is recorded where trajectories.max_bytes = 0, and a run that "
            "has just begun shows the first ones after half a minute"
        )
    there = [(place, row) for place, (_, path, _) in enumerate(parts) for row in _brief(path)]
    found = [(place, row) for place, row in there if _is_wanted(row, wanted)]
    if wanted.episode is None:
        newest = {(row["group_id"], row["index"]): row["episode"] for _, row in there}
        found = [
            (place, row)
            for place, row in found
            if row["group_id"] == EVALUATION or newest[row["group_id"], row["index"]] == row["episode"]
        ]
    if not found:
        raise ConfigError(f"no such episode in {folder}; there are {_listing([row for _, row in there])}")
    found.sort(key=lambda each: (each[1]["reward"] if wanted.worst else 0.0, -each[1]["episode"]))
    return [_episode(parts[place][1], parts[place][2], row["episode"]) for place, row in found[: wanted.count]]


def _is_wanted(row: dict[str, Any], wanted: Wanted) -> bool:
    if wanted.episode is not None:
        return bool(row["episode"] == wanted.episode)
    is_fate = wanted.fate is None or row["fate"] == wanted.fate
    is_task = wanted.task is None or wanted.task in (row["group_id"], str(row["seed"]))
    return is_fate and is_task and not (wanted.worst and row["outcome"] is None)


def _brief(path: Path) -> list[dict[str, Any]]:
    """A file that is gone is one that a going run had no more room for."""
    return list(_table(path, _BRIEF).to_pylist()) if path.exists() else []


def _listing(rows: list[dict[str, Any]]) -> str:
    """For example `episodes 0 to 1203: 1100 trained, 104 evaluation`."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["fate"]] = counts.get(row["fate"], 0) + 1
    kinds = ", ".join(f"{count} {fate}" for fate, count in counts.items())
    return f"episodes {rows[0]['episode']} to {rows[-1]['episode']}: {kinds}" if rows else "none"


def _episode(episodes: Path, turns: Path, number: int) -> Episode:
    wanted = [("episode", "=", number)]
    [row] = _table(episodes, None, wanted).to_pylist()
    return Episode(row, sorted(_table(turns, None, wanted).to_pylist(), key=lambda turn: int(turn["turn"])))


def _table(path: Path, columns: list[str] | None, filters: list[tuple[str, str, int]] | None = None) -> pa.Table:
    try:
        written = (pq.read_schema(path).metadata or {}).get(FORMAT_KEY)
        if written != FORMAT:
            raise ConfigError(
                f"{path}: format {written!r}, this program reads {FORMAT!r}; read it with another program"
            )
        return pq.read_table(path, columns=columns, filters=filters)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{path} cannot be read: {reason}; delete it and the file beside it of that number"
        ) from error
