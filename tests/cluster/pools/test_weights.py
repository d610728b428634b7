"""The folder in memory through which weights reach the engines."""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from milepost.actors.nccl.waiting import Sent
from milepost.cluster.base import weight_folders
from milepost.cluster.base.weight_folders import WeightFolder
from milepost.cluster.pools.weights import FileDelivery, NcclDelivery, agree
from milepost.learner import timing


@pytest.fixture(autouse=True)
def _memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_folders, "_SHARED_MEMORY", tmp_path)


def test_what_a_killed_driver_left_is_removed_and_nothing_that_is_held(tmp_path: Path) -> None:
    others = [tmp_path / "milepost-of-somebody", tmp_path / "else-1", tmp_path / "milepost-run-log-7"]
    for folder in others[:2]:
        folder.mkdir()
    others[2].write_text("a file")
    living, killed = WeightFolder("living"), WeightFolder("killed")
    os.close(killed._lock)  # as the kernel does at the end of a process
    WeightFolder("new")
    assert not killed.path.exists()
    assert all(folder.exists() for folder in [living.path, *others])


def test_only_the_published_version_stays_until_the_folder_is_closed(tmp_path: Path) -> None:
    weights = WeightFolder("run")
    assert weights.path.stat().st_mode & 0o777 == 0o700
    for version in (1, 2):
        weights.file(version).write_bytes(b"weights")
    weights.keep_only(2)
    assert [file.name for file in weights.path.iterdir()] == ["v2.safetensors"]
    weights.close()
    assert list(tmp_path.iterdir()) == []


def test_the_seconds_of_a_delivery_are_those_of_its_slowest_engine_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)

    def engine(**seconds: float) -> Any:
        def call(part: str) -> SimpleNamespace:
            async def spend(*_: object) -> dict[str, str]:
                nonlocal now
                now += seconds[part]
                return {}

            return SimpleNamespace(remote=spend)

        return SimpleNamespace(**{part: call(part) for part in ("verify", "pause", "load", "digests")})

    spent: dict[str, float] = {}
    delivery = FileDelivery(path=Path("weights"), sha256="", version=1)
    engines = [
        engine(verify=0.5, pause=1.0, load=4.0, digests=0.5),
        engine(verify=1.5, pause=2.0, load=3.0, digests=0.25),
    ]
    assert asyncio.run(delivery.deliver(engines, 60, spent)) == [{}, {}]
    assert spent == {"fetch": 1.5, "pause": 2.0, "load": 4.0, "verify": 0.5}


def test_no_engine_is_paused_while_another_one_still_fetches_and_one_that_cannot_fetch_is_not_paused_at_all() -> None:
    told: list[str] = []

    def engine(number: int) -> Any:
        def call(part: str) -> SimpleNamespace:
            async def tell(*_: object) -> dict[str, str]:
                if part == "verify":
                    await asyncio.sleep(0.01 * number)
                told.append(f"{part} {number}")
                if (part, number) == ("verify", 1):
                    raise RayActorError
                return {"of": str(number)}

            return SimpleNamespace(remote=tell)

        return SimpleNamespace(**{part: call(part) for part in ("verify", "pause", "load", "digests")})

    delivery = FileDelivery(path=Path("weights"), sha256="", version=1)
    delivered = asyncio.run(delivery.deliver([engine(number) for number in range(3)], 60, {}))
    assert told[:3] == ["verify 0", "verify 1", "verify 2"]
    assert set(told[3:]) == {f"{part} {number}" for part in ("pause", "load", "digests") for number in (0, 2)}
    assert delivered == [{"of": "0"}, None, {"of": "2"}]


def test_engines_agree_where_no_tensor_that_both_told_of_differs() -> None:
    whole, sample = {"0:embed": "a", "0:norm": "b"}, {"0:norm": "b"}
    assert agree(whole, whole)
    assert agree(whole, sample), "one that was just started tells of all its tensors"
    assert agree(sample, whole)
    assert not agree(whole, {"0:norm": "c"})
    assert not agree({"0:norm": "c"}, whole)


def broadcast(*answers: Sent, lost_before: int | None = None) -> tuple[list[list[int]], list[dict[str, str] | None]]:
    """Deliver to engines 0 to 3 while broadcasts end like `answers`; to whom each went, and what was delivered."""
    asked: list[list[int]] = []

    def engine(number: int) -> Any:
        async def pause() -> None:
            if number == lost_before:
                raise RayActorError

        async def digests(_: int) -> dict[str, str]:
            return {"of": str(number)}

        return SimpleNamespace(
            number=number, pause=SimpleNamespace(remote=pause), digests=SimpleNamespace(remote=digests)
        )

    async def send(engines: Sequence[Any], _: float) -> Sent:
        asked.append([engine.number for engine in engines])
        return answers[len(asked) - 1]

    delivery = NcclDelivery(send=send, version=3)
    return asked, asyncio.run(delivery.deliver([engine(number) for number in range(4)], 60, {}))


def test_a_broadcast_that_breaks_is_repeated_once_with_the_engines_that_survived_it() -> None:
    asked, delivered = broadcast(Sent([True, False, True, True], "lost"), Sent([True] * 3))
    assert asked == [[0, 1, 2, 3], [0, 2, 3]]
    assert delivered == [{"of": "0"}, None, {"of": "2"}, {"of": "3"}]
    asked, delivered = broadcast(Sent([True] * 4, "a bad moment"), Sent([True] * 4, "another"))
    assert (len(asked), delivered) == (2, [None] * 4)
    asked, delivered = broadcast(Sent([False] * 4, "all lost"))
    assert (len(asked), delivered) == (1, [None] * 4)


def test_an_engine_that_is_lost_before_the_broadcast_is_not_in_its_group() -> None:
    asked, delivered = broadcast(Sent([True] * 3), lost_before=3)
    assert asked == [[0, 1, 2]]
    assert delivered == [{"of": "0"}, {"of": "1"}, {"of": "2"}, None]
