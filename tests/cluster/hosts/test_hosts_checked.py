"""What is asked of each host of a Ray before a run uses it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from milepost.actors.engine import EngineError
from milepost.cluster.base.exits import ConfigError
from milepost.cluster.hosts import check
from milepost.cluster.hosts.check import require_hosts
from milepost.cluster.pools import engine_process
from milepost.cluster.pools.engine_process import EngineActor
from tests.cluster.pools.hosts.pool_rig import SPEC

OPEN = "redis://10.0.0.1:6379/0"


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A head without CPUs and two hosts with some, of which `b` lacks something; the names of those looked at."""
    seen: list[str] = []

    async def look(node: dict[str, Any], _model: Path, marker: Path | None) -> str | None:
        assert marker is None or marker.exists()
        seen.append(node["NodeName"])
        return "does not see it" if node["NodeName"] == "b" else None

    nodes = [
        {"NodeName": name, "Resources": {kind: 1.0}} for name, kind in (("h", "memory"), ("a", "CPU"), ("b", "GPU"))
    ]
    monkeypatch.setattr(check, "alive_hosts", lambda: nodes)
    monkeypatch.setattr(check, "_look_at", look)
    return seen


def require(model: Path, url: str | None = OPEN, run: Path | None = None) -> None:
    asyncio.run(require_hosts([model], redis_url=url, run=run))


def test_every_host_that_can_hold_a_part_is_looked_at_and_what_lacks_is_told_by_host(
    tmp_path: Path, looked_at: list[str]
) -> None:
    with pytest.raises(ConfigError, match=r"^b: does not see it$"):
        require(tmp_path, run=tmp_path)
    assert looked_at == ["a", "b"]
    assert not list(tmp_path.iterdir()), "what was put there to be seen"


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "redis://localhost/0", "unix:///run/redis.sock"])
def test_a_redis_that_only_the_drivers_host_reaches_is_refused(tmp_path: Path, looked_at: list[str], url: str) -> None:
    with pytest.raises(ConfigError, match=r"Ray has 3 hosts, and this run's Redis .* set buffer\.url_env"):
        require(tmp_path, url)
    assert not looked_at


def test_one_host_shares_everything_with_itself(
    tmp_path: Path, looked_at: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "alive_hosts", lambda: [{}])
    require(tmp_path / "gone", "redis://localhost/0", tmp_path / "gone")
    assert not looked_at


def test_a_host_sees_the_model_and_the_runs_folder_or_says_what_it_lacks(tmp_path: Path) -> None:
    marker = tmp_path / "run" / ".seen-1"
    assert "does not see the model" in str(check._lacks([tmp_path], None))
    (tmp_path / "config.json").touch()
    assert check._lacks([tmp_path], None) is None
    assert f"does not see {marker.parent}: run.runs_dir" in str(check._lacks([tmp_path], marker))
    marker.parent.mkdir()
    marker.touch()
    assert check._lacks([tmp_path], marker) is None


def test_an_engine_on_a_host_without_the_package_names_the_host_before_vllm_misses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "entry_points", lambda group: [])  # noqa: ARG005
    monkeypatch.setattr(engine_process.socket, "gethostname", lambda: "hostC")
    with pytest.raises(EngineError, match=r"^hostC: Milepost can be imported but is not installed, .*: install it"):
        EngineActor(SPEC)
    assert "is not installed" in str(check._lacks([tmp_path], None))
