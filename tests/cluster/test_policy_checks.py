"""What is measured of the weights that an update made: when, and what that holds up."""

import asyncio
import threading
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from milepost.cluster import run as run_module
from milepost.cluster.base.exits import Diverged
from milepost.cluster.pools.weights import Asked
from milepost.cluster.recovery import Progress
from milepost.cluster.replay.ready import LeasedGroup
from milepost.cluster.replay.wire import EncodedGroup
from milepost.cluster.run import Run
from milepost.cluster.settings.config import RunConfig
from milepost.envs.types import Group
from milepost.learner.health.collapse import CollapseConfig
from milepost.learner.health.repetition import repetition
from tests.cluster.replay.buffer_rig import encoded, task, trajectory


def leased(name: str, said: list[list[int]]) -> LeasedGroup:
    """Two episodes of one turn, each of which says one of `said`."""
    episodes = []
    for index, ids in enumerate(said):
        played = trajectory(name, index, tokens=len(ids))
        episodes.append(
            msgspec.structs.replace(played, turns=[msgspec.structs.replace(played.turns[0], response_ids=ids)])
        )
    group = Group(group_id=name, task=task(), trajectories=episodes)
    return LeasedGroup("1-0", group, encoded(group), 0, 0)


GROUPS = [leased(f"g{k}", [[1, 2, 3, 4], [5, 6, 7, 8] if k else [9, 9, 9, 9]]) for k in range(5)]


class Parts:
    """A run whose parts note what they are asked, in order."""

    def __init__(self, *, parity_is_broken: bool = False) -> None:
        self.told: list[Any] = []
        self.parity_is_broken = parity_is_broken
        run: Any = Run.__new__(Run)
        run._config = RunConfig(collapse=CollapseConfig(information_every=5))
        run._groups, run.progress, run.reporter = GROUPS, Progress(folder=None), self  # type: ignore[arg-type]
        self.asleep = asyncio.Event()
        self.asleep.set()
        run._system = SimpleNamespace(publisher=self, learners=self, engines=self)
        self.run = run

    @property
    def handles(self) -> list[Any]:
        """One engine."""
        return [SimpleNamespace(answer_as=SimpleNamespace(remote=lambda version, _: f"asked for {version}"))]

    async def arrived(self) -> None:
        self.told.append("arrived")

    async def check_parity(self, asked: Asked, version: int) -> None:
        prompts, answers = zip(*asked, strict=True)
        assert list(prompts) == [list(one.group.trajectories[0].turns[0].prompt_ids) for one in GROUPS[:4]]
        self.told.append((*set(answers), version))
        if self.parity_is_broken:
            raise Diverged("learner and engine differ")

    async def evaluation(self, iteration: int, version: int) -> None:
        self.told.append(("evaluated", iteration, version))

    async def mutual_information(self, groups: list[EncodedGroup]) -> float:
        assert groups == [one.encoded for one in GROUPS]
        return 0.25

    @contextmanager
    def measuring(self, what: str) -> Any:
        assert what in ("mutual information", "repetition")
        yield


def test_an_evaluation_waits_for_the_weights_to_arrive_and_for_the_engines_to_be_seen_with_them() -> None:
    parts = Parts()
    parts.run.progress.iteration, parts.run.progress.version = 10, 12
    asyncio.run(parts.run._evaluate())
    assert parts.told == ["arrived", ("asked for 12", 12), ("evaluated", 10, 12)]


def test_engines_that_serve_other_weights_are_not_evaluated() -> None:
    parts = Parts(parity_is_broken=True)
    with pytest.raises(Diverged):
        asyncio.run(parts.run._evaluate())
    assert parts.told == ["arrived", ("asked for 0", 0)]


def test_information_is_measured_for_every_nth_iteration_once_there_was_an_update() -> None:
    parts, found = Parts(), []
    for done in range(11):
        parts.run.progress.iteration = done
        found.append(asyncio.run(parts.run._information()))
    assert found == [None] * 4 + [0.25] + [None] * 4 + [0.25, None], "of iterations 5 and 10"
    parts.run._groups, parts.run.progress.iteration = [], 4
    assert asyncio.run(parts.run._information()) is None


def test_information_waits_until_engines_have_left_the_gpu_that_they_share_with_the_learner() -> None:
    parts = Parts()
    parts.run.progress.iteration = 4
    parts.asleep.clear()

    async def measure() -> None:
        measuring = asyncio.create_task(parts.run._information())
        await asyncio.sleep(0.01)
        assert not measuring.done()
        parts.asleep.set()
        assert await measuring == 0.25

    asyncio.run(measure())


def test_repetition_is_measured_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    measuring: list[threading.Thread] = []

    def measured(responses: Any) -> float:
        measuring.append(threading.current_thread())
        return repetition(responses)

    monkeypatch.setattr(run_module, "repetition", measured)
    found = asyncio.run(Parts().run._repetition([one.group for one in GROUPS[:2]]))
    assert found == 2 / 4, "one of each group's two answers is the other group's, too"
    assert threading.current_thread() not in measuring
