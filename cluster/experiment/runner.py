"""Runs an experiment: one `milepost train` process per cell, one after the other, then a table and its curves.

A cell that fails is reported and the others go on. A stop is passed on to the cell under way, which stops in order;
what has finished is not run again on --resume, what has a checkpoint goes on from it. The results are written anew
after every cell. If this process is killed, the kernel asks its cell to stop. Not promised: that a cell which was
interrupted sees the same episodes as one that was not.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType

import msgspec

from milepost.cluster.base.children import end_with_parent
from milepost.cluster.base.exits import Exit, Stopped, WatchdogExpired
from milepost.cluster.experiment import figure as experiment_figure
from milepost.cluster.experiment import folder as experiment_folder
from milepost.cluster.experiment import plan as experiment_plan
from milepost.cluster.experiment import table as experiment_table
from milepost.cluster.experiment.folder import is_finished
from milepost.cluster.experiment.plan import Cell, Experiment
from milepost.cluster.experiment.table import CellResult
from milepost.cluster.runlog.runs import RunFolder

_POLL_S = 0.5
_KILL_AFTER_S = 60.0


class CellsFailed(Exit):
    """Some cells failed; the code is that of the first one, or 4 where a signal ended it."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code if code > 0 else 4


def describe(path: Path) -> list[str]:
    """The plan in lines, after every cell was checked. Raises ConfigError."""
    experiment = experiment_plan.load(path)
    cells = experiment_plan.plan(experiment, Path("runs") / experiment.name)
    lines = [f"{number:>3}  {cell.name}  {cell.episodes:,} episodes" for number, cell in enumerate(cells, start=1)]
    shape = f"{len(experiment.configs)} configs x {len(experiment.arms)} arms x {len(experiment.seeds)} seeds"
    return [*lines, f"{len(cells)} runs = {shape}"]


def conduct(path: Path, runs_dir: Path, *, resume: bool, say: Callable[[str], None]) -> None:
    """Run every cell that has not finished and write the results; `say` gets a line per cell.

    Raises ConfigError before anything starts, Stopped after a signal, and CellsFailed at the end if cells failed.
    """
    experiment = experiment_plan.load(path)
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}"
    folder = experiment_folder.newest(runs_dir, experiment.name) if resume else runs_dir / f"{stamp}-{experiment.name}"
    cells = experiment_plan.plan(experiment, folder)
    if not resume:
        experiment_folder.make(folder)
    with RunFolder(folder).lock():
        Conductor(experiment, folder, cells, say).run(f"milepost experiment {path} --resume")


class Conductor:
    """One pass over the cells of an experiment. Call it from the main thread: it takes SIGINT and SIGTERM."""

    def __init__(self, experiment: Experiment, folder: Path, cells: Sequence[Cell], say: Callable[[str], None]) -> None:
        self._experiment = experiment
        self._folder = folder
        self._cells = cells
        self._say = say
        self._signals_received = 0
        self._failures: dict[str, tuple[int, str]] = {}
        """Name of a failed cell -> exit code and reason."""
        self._took: list[tuple[str, float]] = []
        """Config and seconds of every cell that this pass finished."""

    def run(self, way_on: str) -> None:
        """Run what has not finished. Raises Stopped (`way_on` says how to go on) and CellsFailed."""
        for cell in self._cells:
            experiment_folder.refuse_change(self._folder, cell)
        self._say(f"{len(self._cells)} runs in {self._folder}")
        with self._signals():
            for number, cell in enumerate(self._cells, start=1):
                if self._signals_received:
                    break
                label = f"[{number}/{len(self._cells)}] {cell.name}"
                if is_finished(self._folder, cell):
                    self._say(f"{label}: finished before")
                    continue
                self._say(f"{label}: {self._one(cell)}{self._left(self._cells[number:])}")
                self.write_results()
        self.write_results()
        self._say(f"results: {self._folder / 'table.md'}")
        if self._signals_received:
            raise Stopped(f"experiment stopped; {way_on}")
        if self._failures:
            name, (code, reason) = next(iter(self._failures.items()))
            raise CellsFailed(f"{len(self._failures)} of {len(self._cells)} runs failed; {name}: {reason}", code)

    def write_results(self) -> None:
        """Write results.json, table.md and curves.svg from what has finished."""
        measures = self._experiment.measures
        results = [self._result(cell) for cell in self._cells]
        page = experiment_table.markdown(self._experiment.name, results, measures)
        found = {
            "experiment": self._folder.name,
            "measures": measures.model_dump(mode="json"),
            "rows": experiment_table.rows(results, measures),
            "cells": results,
        }
        (self._folder / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(found)))
        (self._folder / "table.md").write_text(page, encoding="utf-8")
        curves = experiment_figure.figure(results, measures)
        (self._folder / "curves.svg").write_text(curves, encoding="utf-8")

    def _one(self, cell: Cell) -> str:
        """Run a cell to its end; what to say about it."""
        log = self._folder / "logs" / f"{cell.name}.out"
        log.parent.mkdir(exist_ok=True)  # records that were carried here may come without it
        began = time.monotonic()
        with log.open("ab") as out:
            offset = out.tell()
            code = self._train(experiment_folder.arguments(self._folder, cell), out.fileno())
        took = time.monotonic() - began
        if is_finished(self._folder, cell):
            self._took.append((cell.config, took))
            return f"{self._success(cell)}, {_minutes(took)}"
        if self._signals_received:
            return "stopped"
        reason = _last_word(log, offset, code)
        if took >= self._experiment.cell_timeout_s:
            late = f"it did not end within cell_timeout_s = {self._experiment.cell_timeout_s:g}"
            code, reason = WatchdogExpired.code, f"{late}; raise it, or make the run smaller"
        self._failures[cell.name] = (code, reason)
        return f"FAILED with exit code {code}: {reason}; all it said is in {log}"

    def _train(self, arguments: Sequence[str], out: int) -> int:
        """Exit code of one `milepost train` process. After the cell's timeout it is asked to stop, then killed."""
        process = subprocess.Popen(
            [sys.executable, "-m", "milepost.cluster.cli", "train", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a terminal's Ctrl-C reaches us alone, and we pass it on once
            preexec_fn=end_with_parent,
        )
        deadline = time.monotonic() + self._experiment.cell_timeout_s
        passed_on, asked = 0, False
        while True:
            try:
                return process.wait(_POLL_S)
            except subprocess.TimeoutExpired:
                while passed_on < self._signals_received:
                    self._say("stopping: the run under way stops in order; once more to kill it")
                    process.send_signal(signal.SIGINT)
                    passed_on += 1
                if time.monotonic() > deadline + _KILL_AFTER_S:
                    process.kill()
                elif time.monotonic() > deadline and not asked:
                    process.send_signal(signal.SIGTERM)
                    asked = True

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Count SIGINT and SIGTERM; whoever waits for a cell passes them on."""

        def count(_number: int, _frame: FrameType | None) -> None:
            self._signals_received += 1

        before = {number: signal.signal(number, count) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _result(self, cell: Cell) -> CellResult:
        run = experiment_folder.newest_run(self._folder, cell)
        if run is not None and is_finished(self._folder, cell):
            return experiment_table.measured(cell, run.metrics, run.run_id, self._experiment.measures)
        failure = self._failures.get(cell.name)
        status = "failed" if failure else "stopped" if run else "waiting"
        return CellResult(
            config=cell.config,
            arm=cell.arm,
            seed=cell.seed,
            planned_episodes=cell.episodes,
            status=status,
            reason=failure[1] if failure else "",
            run=run.run_id if run else "",
        )

    def _success(self, cell: Cell) -> str:
        after = self._result(cell).after
        return ", ".join(f"{split} {found.success:.1%}" for split, found in after.items())

    def _left(self, later: Sequence[Cell]) -> str:
        left = seconds_left([cell.config for cell in later if not is_finished(self._folder, cell)], self._took)
        return "" if left is None else f"; about {_minutes(left)} left"


def seconds_left(later: Sequence[str], took: Sequence[tuple[str, float]]) -> float | None:
    """Seconds for the cells of the configs `later`, from `(config, seconds)` of those done; None if that is unknown.

    A config that has not run yet is taken to need the mean of the others.
    """
    if not took or not later:
        return None
    overall = sum(seconds for _, seconds in took) / len(took)
    total = 0.0
    for config in later:
        mine = [seconds for name, seconds in took if name == config]
        total += sum(mine) / len(mine) if mine else overall
    return total


def _last_word(log: Path, offset: int, code: int) -> str:
    """The program's own line about its end: the first one that starts with its name."""
    with log.open("rb") as file:
        file.seek(offset)
        lines = file.read().decode(errors="replace").splitlines()
    said = [line.removeprefix("milepost: ") for line in lines if line.startswith("milepost: ")]
    return said[0] if said else f"it ended with code {code} and said nothing"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min"
