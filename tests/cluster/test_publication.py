"""New weights on their way into the engines while the learner goes on, on parts that answer as they are told."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

from milepost.cluster.base.exits import DependencyLost
from milepost.cluster.histories import GroupHistories
from milepost.cluster.pools.learners import LearnerLost
from milepost.cluster.publication import Publisher
from milepost.cluster.recovery import Progress, Recovery
from milepost.cluster.runlog import runs
from milepost.cluster.system import System


class Parts:
    """Engines that load until `loaded` is set, and what the ledger and the folder of weights were told."""

    def __init__(self, *, beside_training: bool, repeatable: bool = True) -> None:
        self.loaded, self.told, self.repeatable = asyncio.Event(), [], repeatable
        self.broken: Exception | None = None
        parts: Any = self
        self.publisher = Publisher(
            learners=parts, engines=SimpleNamespace(publish=self.load), ledger=parts, weights=parts,  # type: ignore
            beside_training=beside_training,
        )  # fmt: skip

    async def delivery(self, version: int) -> Any:
        self.told.append(f"gathered {version}")
        return SimpleNamespace(version=version, repeatable=self.repeatable, num_bytes=9)

    async def load(self, delivery: Any, *, rollback: bool) -> dict[str, float]:
        await self.loaded.wait()
        if self.broken:
            raise self.broken
        self.told.append(f"loaded {delivery.version}" + " again" * rollback)
        return {"load": 1.0}

    async def set_versions(self, *, published: int) -> None:
        self.told.append(f"published {published}")

    def keep_only(self, version: int) -> None:
        self.told.append(f"kept {version}")


def run(check: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def in_time() -> None:
        async with asyncio.timeout(10):
            await check()

    asyncio.run(in_time())


async def is_waiting(task: "asyncio.Task[None]") -> bool:
    done, _ = await asyncio.wait({task}, timeout=0.05)
    return not done


def test_the_learner_goes_on_while_engines_load_and_a_version_is_published_once_they_hold_it() -> None:
    async def check() -> None:
        parts = Parts(beside_training=True)
        await parts.publisher.publish(1)
        arrival = asyncio.create_task(parts.publisher.arrived())
        assert await is_waiting(arrival)
        assert parts.told == ["gathered 1"]
        parts.loaded.set()
        await arrival
        assert parts.told == ["gathered 1", "loaded 1", "published 1", "kept 1"]
        assert parts.publisher.seconds.keys() == {"gather", "load"}

    run(check)


def test_the_next_version_is_not_gathered_before_the_last_one_has_arrived() -> None:
    async def check() -> None:
        parts = Parts(beside_training=True)
        await parts.publisher.publish(1)
        second = asyncio.create_task(parts.publisher.publish(2))
        assert await is_waiting(second)
        assert parts.told == ["gathered 1"]
        parts.loaded.set()
        await second
        await parts.publisher.arrived()
        assert parts.told[:5] == ["gathered 1", "loaded 1", "published 1", "kept 1", "gathered 2"]

    run(check)


@pytest.mark.parametrize(
    ("parts", "rollback"),
    [({"beside_training": False}, False), ({"beside_training": True, "repeatable": False}, False),
     ({"beside_training": True}, True)],
)  # fmt: skip
def test_on_policy_over_nccl_and_after_a_rollback_it_waits_for_the_engines(
    parts: dict[str, bool], rollback: bool
) -> None:
    async def check() -> None:
        waited = Parts(**parts)
        task = asyncio.create_task(waited.publisher.publish(1, rollback=rollback))
        assert await is_waiting(task)
        waited.loaded.set()
        await task
        assert waited.told[-2:] == ["published 1", "kept 1"]

    run(check)


def test_what_ends_a_publication_beside_training_is_seen_by_who_looks_and_by_the_next_one() -> None:
    async def check() -> None:
        parts = Parts(beside_training=True)
        parts.broken = DependencyLost("no engine took the weights of version 1")
        await parts.publisher.publish(1)
        parts.publisher.look()
        parts.loaded.set()
        await asyncio.sleep(0.05)
        for _ in range(2):
            with pytest.raises(DependencyLost, match="version 1"):
                parts.publisher.look()
        for call in (parts.publisher.arrived, lambda: parts.publisher.publish(2)):
            with pytest.raises(DependencyLost, match="version 1"):
                await call()
        assert parts.told == ["gathered 1"]

    run(check)


def test_at_the_end_what_is_under_way_is_given_up_and_nothing_counts_as_published() -> None:
    async def check() -> None:
        parts = Parts(beside_training=True)
        await parts.publisher.end()
        await parts.publisher.publish(1)
        await parts.publisher.end()
        parts.loaded.set()
        await asyncio.sleep(0.05)
        assert parts.told == ["gathered 1"]

    run(check)


def test_a_publication_that_fails_beside_training_ends_the_run_also_while_nobody_waits_for_it() -> None:
    async def check() -> None:
        system: Any = System.__new__(System)
        system.publisher = SimpleNamespace(look=Mock(side_effect=DependencyLost("no engine took the weights")))
        with pytest.raises(DependencyLost, match="no engine took"):
            await system._tend_parts()

    run(check)


def test_a_learner_that_is_lost_comes_back_after_the_weights_under_way_and_before_those_of_its_checkpoint(
    tmp_path: Path,
) -> None:
    async def check() -> None:
        parts, folder = AsyncMock(), runs.create(tmp_path, "lost")
        parts.ledger.version.return_value, parts.folder = 0, folder
        parts.ledger.balance.return_value = SimpleNamespace(issued_total=0)
        progress = Progress(folder, iteration=3, version=3)
        await Recovery(parts, Mock(), progress, GroupHistories(None)).recover(LearnerLost("a rank died"))
        order = [name for name, *_ in parts.mock_calls if name not in ("ledger.version", "ledger.balance")]
        assert order == [
            "ledger.pause", "publisher.arrived", "learners.recover", "ledger.set_versions", "publisher.publish",
            "ledger.resume",
        ]  # fmt: skip
        parts.publisher.publish.assert_awaited_once_with(0, rollback=True)

    run(check)
