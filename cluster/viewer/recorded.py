"""Reads a folder of recorded trajectories through DuckDB, as Parquet lies there. Nothing is written.

Rows of episodes are held in memory, and read again when files came or went; turns are read from their files, of few
episodes, except by a search for text, which looks through all of them. Of an episode that was judged again or after its
row was written, the later row counts, as for `milepost show`; the earlier one is still found by its number. Files that
a run is still writing are not there yet; one that a going run removes while it is read is read around.
"""

from __future__ import annotations

import glob
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.trajectories.parts import parts_of
from milepost.cluster.trajectories.recording import EVALUATION
from milepost.cluster.trajectories.table import FORMAT, FORMAT_KEY
from milepost.cluster.viewer.filters import ENVIRONMENT, Filters

Row = dict[str, Any]
_Parts = list[tuple[int, Path, Path]]
_SETTINGS: Final[dict[str, str | bool | int | float | list[str]]] = {
    "autoinstall_known_extensions": False,  # from a network
    "autoload_known_extensions": False,
    "temp_directory": "",  # else it may write beside the reader
}
_UNREADABLE: Final = (duckdb.IOException, duckdb.InvalidInputException, duckdb.OperationalError, duckdb.DataError)
_OTHER_FORMAT: Final = (
    "SELECT file_name FROM parquet_kv_metadata(?) GROUP BY file_name "
    "HAVING count(*) FILTER (key = ?::BLOB AND value = ?::BLOB) = 0"
)
_LATER_COUNTS: Final = (
    f"CREATE TABLE episodes AS SELECT * FROM rows QUALIFY group_id = '{EVALUATION}' "
    'OR episode = max(episode) OVER (PARTITION BY group_id, "index")'
)
_STEP: Final = (
    "episode, turn, anchor, next_anchor, action, reward, progress, credit, advantage, len(response_ids) AS num_tokens"
)
NOT_THERE: Final = (
    "holds no trajectories: none is recorded where trajectories.max_bytes = 0, and a run that has just begun shows the "
    "first ones after half a minute"
)


@dataclass(frozen=True, slots=True)
class Found:
    """A page of a listing."""

    rows: list[Row]
    total: int
    """Episodes on all pages."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What there is to choose from: value -> number of episodes, the most frequent first."""

    fate: dict[str, int]
    outcome: dict[str, int]
    split: dict[str, int]
    env: dict[str, int]
    cohort: dict[str, int]


class Recorded:
    """The episodes of one folder. Methods raise ConfigError where it holds none, or one that cannot be read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._opened: tuple[_Parts, duckdb.DuckDBPyConnection] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no file is there yet."""
        return not parts_of(self._folder)

    def choices(self) -> Choices:
        """How many episodes there are of every kind."""
        kinds = {"fate": "fate", "outcome": "outcome", "split": "split", "env": ENVIRONMENT, "cohort": "cohort"}
        counted = self._rows(
            f"SELECT {', '.join(f'{kind} AS {name}' for name, kind in kinds.items())}, count(*) AS number "
            "FROM episodes GROUP BY ALL"
        )
        found: dict[str, dict[str, int]] = {name: {} for name in kinds}
        for row in sorted(counted, key=lambda row: -int(row["number"])):
            for name, counts in found.items():
                if row[name]:
                    counts[row[name]] = counts.get(row[name], 0) + row["number"]
        return Choices(**{name: dict(sorted(of.items(), key=lambda x: -x[1])) for name, of in found.items()})

    def listed(self, wanted: Filters, scores: Mapping[int, Mapping[str, float | None]], *, size: int) -> Found:
        """The page that is asked for, of `size` episodes; `scores` are those of an episode's index, by name."""
        condition, values = wanted.condition(scores)
        rows = self._rows(
            f"WITH found AS MATERIALIZED (SELECT episode FROM episodes WHERE {condition}) "
            "SELECT *, (SELECT count(*) FROM found) AS total FROM episodes SEMI JOIN found USING (episode) "
            f"ORDER BY {wanted.sql_order} LIMIT {size} OFFSET {(wanted.page - 1) * size}",
            values,
        )
        return Found(rows, rows[0]["total"] if rows else 0)

    def judged(self, learner_version: int) -> list[Row]:
        """Every episode on which the update of a policy version had a verdict, group by group."""
        return self._rows(
            'SELECT * FROM episodes WHERE learner_version = ? ORDER BY group_id, "index"', [learner_version]
        )

    def group(self, group_id: str) -> list[Row]:
        """The episodes of a group by their index. Raises ConfigError where there is none."""
        rows = self._rows('SELECT * FROM episodes WHERE group_id = ? ORDER BY "index", episode', [group_id])
        if not rows:
            raise ConfigError(f"no group {group_id!r} in {self._folder}; milepost show lists what there is")
        return rows

    def widest_groups(self, number: int) -> list[str]:
        """The groups of the newest update with several returns whose returns differ most, at most `number`."""
        rows = self._rows(
            "SELECT group_id, learner_version, stddev_pop(reward) AS spread FROM episodes "
            f"WHERE outcome IS NOT NULL AND group_id <> '{EVALUATION}' GROUP BY ALL "
            "ORDER BY spread > 0 DESC, learner_version DESC NULLS LAST, spread DESC, group_id LIMIT ?",
            [number],
        )
        return [row["group_id"] for row in rows]

    def episode(self, number: int) -> Row:
        """The episode of that number, also where a later row counts. Raises ConfigError where there is none."""
        rows = self._rows("SELECT * FROM rows WHERE episode = ?", [number])
        if not rows:
            raise ConfigError(f"no episode {number} in {self._folder}; milepost show lists what there is")
        return rows[0]

    def beside(self, episode: Row) -> list[Row]:
        """The episodes that an episode is compared with, itself among them, by their index.

        Those of its group; of one that was played to evaluate, those of its task that the same policy played.
        """
        if episode["group_id"] != EVALUATION:
            others = self.group(episode["group_id"])
            return [episode if row["index"] == episode["index"] else row for row in others]
        same = ("group_id", "env", "env_name", "seed", "split", "options", "oldest_version")
        return self._rows(
            f"SELECT * FROM rows WHERE {' AND '.join(f'{name} IS NOT DISTINCT FROM ?' for name in same)} "
            'ORDER BY "index", episode',
            [episode[name] for name in same],
        )

    def counting(self, episode: Row) -> int:
        """Number of the row that counts of an episode which may have several."""
        if episode["group_id"] == EVALUATION:
            return int(episode["episode"])
        same = [episode["group_id"], episode["index"]]
        found = self._rows('SELECT max(episode) AS later FROM rows WHERE group_id = ? AND "index" = ?', same)
        return int(found[0]["later"])

    def steps(self, episodes: Sequence[int]) -> dict[int, list[Row]]:
        """Episode -> its turns in order, without texts and tokens but with `num_tokens`, their number."""
        found: dict[int, list[Row]] = {number: [] for number in episodes}
        condition = "episode BETWEEN ? AND ? AND list_contains(?::BIGINT[], episode)"
        for row in self._turns(_STEP, condition, [min(episodes), max(episodes), list(episodes)]):
            found[row["episode"]].append(row)
        return found

    def turns(self, episode: int) -> list[Row]:
        """The turns of an episode in order, with all their columns."""
        return self._turns("*", "episode = ?", [episode])

    def _turns(self, columns: str, condition: str, values: list[Any]) -> list[Row]:
        return self._rows(f"SELECT {columns} FROM turns WHERE {condition} ORDER BY episode, turn", values)

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[Row]:
        """What a query of `rows`, `episodes` and `turns` says."""
        while True:
            parts = parts_of(self._folder)
            if not parts:
                raise ConfigError(f"{self._folder} {NOT_THERE}")
            try:
                told = self._tables(parts).execute(query, list(values))
                names = [column[0] for column in told.description or ()]
                return [dict(zip(names, row, strict=True)) for row in told.fetchall()]
            except _UNREADABLE as error:
                if parts_of(self._folder) == parts:
                    raise ConfigError(f"{self._folder} cannot be read: {_first_line(error)}") from error
                # else a going run had no more room for a file, and removed it meanwhile

    def _tables(self, parts: _Parts) -> duckdb.DuckDBPyConnection:
        """A cursor of this call's own on the files."""
        with self._lock:
            if self._opened is None or self._opened[0] != parts:
                self._opened = parts, _opened(parts)
            return self._opened[1].cursor()


def _opened(parts: _Parts) -> duckdb.DuckDBPyConnection:
    """The tables of the files. Raises ConfigError for one of another format."""
    tables = duckdb.connect(":memory:", config=_SETTINGS)
    for name, paths in (("rows", [path for _, path, _ in parts]), ("turns", [path for _, _, path in parts])):
        files = [glob.escape(str(path)) for path in paths]
        foreign = tables.execute(_OTHER_FORMAT, [files, FORMAT_KEY, FORMAT]).fetchone()
        if foreign is not None:
            raise ConfigError(f"{foreign[0]}: not of format {FORMAT.decode()}; read it with another program")
        tables.read_parquet(files).create_view(name)
    tables.execute(_LATER_COUNTS)
    return tables


def _first_line(error: duckdb.Error) -> str:
    line = str(error).splitlines()[0]
    return f"{line}; delete that file and the one beside it of its number, or look at another run"
