"""What there is to look at: the runs that were asked for, and the suites that their policies were played on.

A run's key is its id; that of a suite's results is `<run>:<folder of the results>`. Where no run was named, all of the
folder of runs count, those that begin meanwhile included.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.evaluation.places import EVALUATIONS, FILE
from milepost.cluster.runlog import runs
from milepost.cluster.runlog.records import Record, read_records
from milepost.cluster.runlog.runs import RunFolder
from milepost.cluster.viewer.recorded import Recorded

Scores = dict[int, dict[str, float | None]]
"""Index of an episode -> its scores by name."""


@dataclass(frozen=True, slots=True)
class Source:
    """Episodes of one folder: those of a run, or those of a suite that its policy was played on."""

    key: str
    run: RunFolder
    recorded: Recorded
    results: Path | None = None
    """Where the numbers of a suite are."""

    def records(self) -> list[Record]:
        """The run's iterations and evaluations. Raises ConfigError for a damaged line."""
        return read_records(self.run.metrics)

    @property
    def state(self) -> str:
        """What the run was doing when its driver last reported, or how it ended. Raises ConfigError."""
        status = self.run.read_status()
        if status is None:
            return "its driver has not reported yet"
        return f"{status.phase}, {status.iteration} of {status.iterations} iterations"

    def scores(self) -> Scores:
        """What evaluators said of a suite's episodes; empty of a run's. Raises ConfigError for a damaged file."""
        if self.results is None:
            return {}
        from milepost.cluster.evaluation import store  # heavy front door: torch

        scenarios = store.read(self.results).scenarios
        return {
            # Episodes are numbered scenario by scenario, then once more from the first one on.
            played.number * len(scenarios) + place: {
                **msgspec.to_builtins(played.native),
                **{f"lexical {name}": value for name, value in played.lexical.items()},
            }
            for place, scenario in enumerate(scenarios)
            for played in scenario.episodes
        }


class Sources:
    """The runs to look at. Methods raise ConfigError, with what there is, for one that is not there."""

    def __init__(self, runs_dir: Path, named: Sequence[str]) -> None:
        """`named` are runs as a user names them; none of them for all in `runs_dir`. Raises ConfigError."""
        self._runs_dir = runs_dir
        self._named = {folder.path: folder for folder in (runs.find(runs_dir, name) for name in named)}
        self._known: dict[str, Source] = {}
        ids = Counter(folder.run_id for folder in self._named.values())
        if twice := [str(path) for path, folder in self._named.items() if ids[folder.run_id] > 1]:
            raise ConfigError(f"{' and '.join(twice)} have one id; view them one after the other")
        if not named and not runs.list_runs(runs_dir):
            runs.find(runs_dir, "latest")  # says what is missing

    @property
    def is_chosen(self) -> bool:
        """Whether runs were named."""
        return bool(self._named)

    def check(self) -> None:
        """Read the runs that were named. Raises ConfigError where one cannot be read."""
        for source in self.all() if self._named else []:
            source.records()
            if not source.recorded.is_empty:
                source.recorded.choices()

    def all(self) -> list[Source]:
        """The runs as they were named; where none was, all that there are, newest first."""
        there = [RunFolder((self._runs_dir / name).resolve()) for name in runs.list_runs(self._runs_dir)[::-1]]
        folders = list(self._named.values()) or there
        return [self._source(folder.run_id, folder, folder.trajectories, None) for folder in folders]

    def run(self, run_id: str) -> Source:
        """One of them by its id."""
        for source in self.all():
            if source.key == run_id:
                return source
        raise ConfigError(f"no run {run_id!r} is viewed here; there are: {', '.join(s.key for s in self.all())}")

    def get(self, key: str) -> Source:
        """A run or a suite's results by key."""
        run_id, _, played = key.partition(":")
        if not played:
            return self.run(run_id)
        for source in self.suites(self.run(run_id)):
            if source.key == key:
                return source
        raise ConfigError(
            f"run {run_id} was played on no suite {played!r}; milepost eval {run_id} --suite FILE does that"
        )

    def suites(self, of: Source) -> list[Source]:
        """The results of suites that a run's policy was played on, oldest first."""
        found = sorted(of.run.path.glob(f"{EVALUATIONS}/*/{FILE}"))
        return [self._source(f"{of.run.run_id}:{f.parent.name}", of.run, f.parent / "trajectories", f) for f in found]

    def _source(self, key: str, run: RunFolder, folder: Path, results: Path | None) -> Source:
        if key not in self._known or self._known[key].run != run:
            self._known[key] = Source(key, run, Recorded(folder), results)
        return self._known[key]
