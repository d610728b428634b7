"""The folder in memory through which weights reach the engines."""

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from milepost.cluster.pools import weights as weights_module
from milepost.cluster.pools.weights import FileDelivery, WeightFolder
from milepost.learner import timing


@pytest.fixture(autouse=True)
def _memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_module, "_SHARED_MEMORY", tmp_path)


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

        return SimpleNamespace(**{part: call(part) for part in ("pause", "load", "digests")})

    spent: dict[str, float] = {}
    delivery = FileDelivery(path=Path("weights"), sha256="", version=1)
    engines = [engine(pause=1.0, load=4.0, digests=0.5), engine(pause=2.0, load=3.0, digests=0.25)]
    assert asyncio.run(delivery.deliver(engines, 60, spent)) == [{}, {}]
    assert spent == {"pause": 2.0, "load": 4.0, "verify": 0.5}
