"""The trackers of a run, each on a thread of its own: the run never waits for one and never ends by one.

One that raises, or does not keep up, is dropped for the rest of the run, and `problems` says so. At the end each has a
few seconds for what it has not taken yet.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from milepost.cluster.runlog.records import Record
from milepost.cluster.runlog.runs import RunFolder
from milepost.cluster.trackers.config import TrackersConfig, require_packages
from milepost.cluster.trackers.numbers import numbers_of
from milepost.cluster.trackers.tracker import Tracked, Tracker

logger = logging.getLogger(__name__)
_WAITING = 1000
_LAST_WORDS_S = 30.0
Numbers = tuple[int, dict[str, float]]


class Trackers:
    """What the configuration names; nothing before `begin`. Its methods return at once, `close` aside."""

    def __init__(self, config: TrackersConfig) -> None:
        self._config = config
        self._feeds: list[_Feed] = []

    def begin(self, folder: RunFolder, parameters: Mapping[str, Any], iteration: int) -> None:
        """Open them for a run of which `iteration` iterations are done; `parameters` are its settings.

        Raises ConfigError where a package is missing.
        """
        require_packages(self._config)
        run = Tracked(run_id=folder.run_id, folder=folder.path, parameters=parameters, iteration=iteration)
        self._feeds = [_Feed(name, partial(_opened, name, self._config, run)) for name in self._config.wanted]

    def record(self, record: Record) -> None:
        """Tell them what was measured."""
        for feed in self._feeds:
            feed.put((record.iteration, numbers_of(record)))

    @property
    def problems(self) -> list[str]:
        """What is to be said of those that were dropped."""
        return [feed.problem for feed in self._feeds if feed.problem]

    def close(self) -> None:
        """Let them take what waits, within 30 s in all, and end."""
        until = time.monotonic() + _LAST_WORDS_S
        for feed in self._feeds:
            feed.end()
        for feed in self._feeds:
            feed.wait(until - time.monotonic())


class _Feed:
    """One tracker and the thread that talks to it."""

    def __init__(self, name: str, opened: Callable[[], Tracker]) -> None:
        self.problem = ""
        self._name, self._opened = name, opened
        self._waiting: queue.Queue[Numbers | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def put(self, numbers: Numbers | None) -> None:
        if not self.problem:
            try:
                self._waiting.put_nowait(numbers)
            except queue.Full:
                self._drop("it does not keep up")

    def end(self) -> None:
        self.put(None)

    def wait(self, seconds: float) -> None:
        self._thread.join(max(0.0, seconds))
        if self._thread.is_alive():
            self._drop(f"it did not end within {_LAST_WORDS_S:g} s")

    def _work(self) -> None:
        try:
            tracker = self._opened()
            while not self.problem and (numbers := self._waiting.get()) is not None:
                tracker.log(*numbers)
            tracker.end()
        except (Exception, SystemExit) as error:  # whatever a package of others does, the run goes on
            self._drop(f"{type(error).__name__}: {error}".splitlines()[0], error)

    def _drop(self, why: str, error: BaseException | None = None) -> None:
        if not self.problem:
            self.problem = f"{self._name} is not told of the run any more ({why}); the run goes on"
            logger.warning("%s", self.problem, exc_info=error)


def _opened(name: str, config: TrackersConfig, run: Tracked) -> Tracker:
    """Packages are imported here: each is an extra, and takes its time."""
    if name == "tensorboard":
        from milepost.cluster.trackers.tensorboard import TensorBoard

        return TensorBoard(run)
    if name == "mlflow":
        from milepost.cluster.trackers.mlflow import MLflow

        return MLflow(run, config.mlflow)
    from milepost.cluster.trackers.wandb import WeightsAndBiases

    return WeightsAndBiases(run, config.wandb or "offline")
