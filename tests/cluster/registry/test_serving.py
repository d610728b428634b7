"""Following the champion, with a stand-in for vLLM: who answers what while versions change, fail to start and die."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from milepost.cluster.base.exits import DependencyLost
from milepost.cluster.registry import model_server
from milepost.cluster.registry import serving as module
from milepost.cluster.registry.metrics import RegistryMetrics
from milepost.cluster.registry.registry import Registry
from milepost.cluster.registry.serving import Limits, Serving
from milepost.cluster.registry.trail import NotServed
from tests.cluster.registry.promoted import gate, played, promote

WAIT_S = 60.0


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        model_server, "_PROGRAM", (sys.executable, str(Path(__file__).parent / "stand_in.py"), "--model")
    )
    monkeypatch.setattr(module, "_LOOK_EVERY_S", 0.05)


class Service:
    """A registry that is served, and what was said."""

    def __init__(self, folder: Path, *, drain_s: float = WAIT_S) -> None:
        self.folder, self.said = folder, list[str]()
        self.registry = Registry(folder / "registry")
        limits = Limits(start_s=WAIT_S, drain_s=drain_s)
        (sockets := folder / "s").mkdir()
        self.serving = Serving(self.registry, limits, ["--max-num-seqs", "4"], sockets, self.said.append)

    def promote(self, name: str, **config: bool) -> int:
        file = played(self.folder / name, "sound", config=json.dumps(config))
        return promote(self.registry.path, file, gate(self.folder))

    def roll_back(self) -> None:
        with self.registry.lock():
            self.registry.roll_back(None, "slow")

    async def until(self, text: str) -> None:
        """Returns once it was said."""
        async with asyncio.timeout(WAIT_S):
            while not any(text in line for line in self.said):
                await asyncio.sleep(0.02)
        self.said.clear()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[aiohttp.ClientSession]:
        """A client of it."""
        metrics = RegistryMetrics(self.registry, lambda: self.serving.version, window_s=0.0)
        runner = web.AppRunner(self.serving.app(metrics), handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        follow = asyncio.create_task(self.serving.follow())
        try:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as client:
                yield client
        finally:
            follow.cancel()
            await asyncio.wait({follow})
            await runner.cleanup()
            await self.serving.stop()


async def ask(client: aiohttp.ClientSession, **keys: str) -> tuple[int, str, str]:
    """Status, version and text of an answer."""
    async with client.post("/v1/completions", json={"prompt": "ab"} | keys) as answer:
        return answer.status, answer.headers.get("x-milepost-version", ""), await answer.text()


def test_a_request_ends_on_the_version_it_began_with_while_others_go_to_the_new_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        service = Service(tmp_path)
        service.promote("a")
        async with service.running() as client:
            await service.until("version 1 serves")
            go_on = tmp_path / "go_on"
            async with client.post("/v1/completions", json={"prompt": "ab", "until": str(go_on)}) as begun:
                assert await begun.content.readexactly(6) == b"begun "  # it passes on what there is
                service.promote("b")
                await service.until("version 2 serves")
                assert await ask(client) == (200, "2", "begun ('sound',) b")
                service.roll_back()
                await service.until("version 1 serves")
                assert await ask(client) == (200, "1", "begun ('sound',) a")
                go_on.touch()
                assert (begun.headers["x-milepost-version"], begun.headers["x-asked"]) == ("1", "2")
                assert await begun.text() == "('sound',) a"
            await service.until("version 1 has ended")

    asyncio.run(scenario())


def test_a_version_that_does_not_start_leaves_the_old_one_and_a_line_in_the_trail(tmp_path: Path) -> None:
    async def scenario() -> None:
        service = Service(tmp_path)
        service.promote("a")
        async with service.running() as client:
            await service.until("version 1 serves")
            for version, name, config, reason in (
                (2, "b", {"broken": True}, "vLLM ended at its start: ValueError: no room for this model"),
                (3, "c", {"mute": True}, "vLLM does not answer a completion: "),
            ):
                service.promote(name, **config)
                await service.until(f"version {version} could not be served, version 1 goes on: {reason}")
                assert isinstance(event := service.registry.state().entries[-1].event, NotServed)
                assert (event.version, event.reason.startswith(reason)) == (version, True)
                assert (await ask(client))[:2] == (200, "1")
            kept = service.registry.folder(4) / "policy" / "model.safetensors"
            service.promote("d")
            await service.until("version 4 serves")
            service.roll_back()  # to version 3, which does not start this time either
            await service.until("version 3 could not be served, version 4 goes on")
            kept.write_text("changed")
            assert (await ask(client))[1] == "4"
            assert not service.said  # what could not be started is not tried again and again

    asyncio.run(scenario())


def test_where_nothing_can_be_served_it_ends_and_says_why(tmp_path: Path) -> None:
    async def scenario() -> None:
        service = Service(tmp_path)
        service.promote("a", broken=True)
        with pytest.raises(
            DependencyLost, match=r"version 1 could not be served: vLLM ended .* no room .*version-1\.log"
        ):
            await service.serving.follow()

    asyncio.run(scenario())


def test_a_server_that_dies_is_started_again_and_clients_are_told_meanwhile(tmp_path: Path) -> None:
    async def scenario() -> None:
        service = Service(tmp_path)
        service.promote("a")
        async with service.running() as client:
            await service.until("version 1 serves")
            async with client.post("/die") as answer:
                assert answer.status == 502
                assert (await answer.json())["error"]["message"].startswith("vLLM of version 1 gave the request up: ")
            assert (await ask(client))[0] in (502, 503)
            await service.until("version 1 serves")
            assert (await ask(client))[:2] == (200, "1")

    asyncio.run(scenario())


def test_an_old_version_is_ended_at_its_deadline_and_its_answer_breaks_off(tmp_path: Path) -> None:
    async def scenario() -> None:
        service = Service(tmp_path, drain_s=0.0)
        service.promote("a")
        async with service.running() as client:
            await service.until("version 1 serves")
            async with client.post("/v1/completions", json={"prompt": "ab", "until": str(tmp_path / "never")}) as begun:
                assert await begun.content.readexactly(6) == b"begun "
                service.promote("b")
                await service.until("version 1 is ended with 1 requests under way, 0 s after the switch")
                with pytest.raises(aiohttp.ClientPayloadError):
                    await begun.read()

    asyncio.run(scenario())


def test_a_trail_that_was_changed_is_said_once_and_the_version_goes_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        service = Service(tmp_path)
        service.promote("a")
        async with service.running() as client:
            await service.until("version 1 serves")
            trail = service.registry.path / "audit.jsonl"
            trail.write_text(trail.read_text().replace('"version":1', '"version":2'))
            await service.until("entry 1 was changed: ")
            assert (await ask(client))[:2] == (200, "1")
            await asyncio.sleep(0.2)
            assert not service.said
            assert "milepost_serving_version 1.0" in await (await client.get("/metrics")).text()

    asyncio.run(scenario())


def test_metrics_are_vllms_and_ours(tmp_path: Path) -> None:
    async def scenario() -> None:
        service = Service(tmp_path)
        service.promote("a")
        service.promote("b")
        service.roll_back()
        async with service.running() as client:
            await service.until("version 1 serves")
            lines = (await (await client.get("/metrics")).text()).splitlines()
        assert {
            "vllm:requests 1.0",
            "milepost_promotions_total 2.0",
            "milepost_rollbacks_total 1.0",
            "milepost_serving_version 1.0",
            "milepost_champion_version 1.0",
            "milepost_closed_promotions 2.0",
        } <= set(lines)
        assert "milepost_rollback_ratio" in "".join(lines)

    asyncio.run(scenario())


def test_a_version_is_served_as_it_was_played(tmp_path: Path) -> None:
    service = Service(tmp_path)
    service.promote("a")
    folder = service.registry.folder(1)
    told = module.as_evaluated(folder)
    assert told[told.index("--override-generation-config") + 1] == '{"temperature": 1.0}'
    (folder / "resolved.toml").write_text('[engine]\nmax_model_len = 512\ndtype = "bfloat16"\n[env]\npath = "a:B"\n')
    told = module.as_evaluated(folder)
    assert told[told.index("--dtype") + 1] == "bfloat16"
    assert told[told.index("--max-model-len") + 1] == "512"
