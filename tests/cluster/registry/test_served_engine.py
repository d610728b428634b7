"""`milepost serve` with real vLLM servers, under the load of a real client, over a promotion and a rollback.

    python -m pytest -m sweep -s tests/cluster/registry/test_served_engine.py

prints what docs/serving.md tells.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import openai
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from milepost.cluster.evaluation.store import write
from milepost.cluster.runlog.saved_policy import digest
from milepost.reward.evaluators.signals import nearest_rank
from tests.cluster.evaluation.played_results import results
from tests.cluster.registry.promoted import gate
from tests.system.driving import MILEPOST, ROOT, START_S, environment

pytestmark = [pytest.mark.services, pytest.mark.sweep]
PER_S = 20
TOKENS = 4
ENGINE = [
    *("--enforce-eager", "--max-num-seqs", "32", "--max-model-len", "256", "--dtype", "float32"),
    # As in a run: the model in one process with its scheduler, which takes half the CPU time.
    *("--distributed-executor-backend", "vllm.v1.executor.uniproc_executor.UniProcExecutor"),
]


@dataclass
class Load:
    """What a client asked, answer by answer."""

    url: str
    seconds: list[float] = field(default_factory=list)
    versions: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    told: dict[str, set[str]] = field(default_factory=dict)
    """Version -> what it says greedily."""

    async def run(self, done: asyncio.Event) -> None:
        """Ask `PER_S` times a second, however long answers take, until `done`; then wait for the last answer."""
        asked: set[asyncio.Task[None]] = set()
        async with openai.AsyncOpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=START_S) as client:
            began = time.monotonic()
            while not done.is_set():
                asked.add(asyncio.create_task(self._ask(client, streamed=len(asked) % 2 == 1)))
                await asyncio.sleep(max(0.0, began + len(asked) / PER_S - time.monotonic()))
            await asyncio.gather(*asked)

    async def _ask(self, client: openai.AsyncOpenAI, *, streamed: bool) -> None:
        began = time.monotonic()
        asked = {"model": "policy", "prompt": "Go", "max_tokens": TOKENS, "temperature": 0, "stream": streamed}
        try:
            raw = await client.completions.with_raw_response.create(**asked)
            version, answer = raw.headers["x-milepost-version"], raw.parse()
            if streamed:
                pieces = [piece.choices[0] async for piece in answer]
                text, reason = "".join(piece.text for piece in pieces), pieces[-1].finish_reason
            else:
                text, reason = answer.choices[0].text, answer.choices[0].finish_reason
            assert reason in ("length", "stop"), reason
        except Exception as error:  # whatever it is, it is a request that failed
            self.failed.append(f"{type(error).__name__}: {error}")
            return
        self.seconds.append(time.monotonic() - began)
        self.versions[version] += 1
        self.told.setdefault(version, set()).add(text)


def other_weights(policy: Path, folder: Path) -> Path:
    """The same model with other weights."""
    shutil.copytree(policy, folder)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    torch.manual_seed(1)
    with torch.no_grad():
        for weights in model.parameters():
            weights += 0.1 * torch.randn_like(weights)
    model.save_pretrained(folder)
    return folder


def judged(policy: Path, place: Path) -> Path:
    """Results of a policy that a sound agent played for it."""
    place.mkdir()
    return write(results("sound", episodes=2, source=str(policy), sha256=digest(policy)), place)


@contextlib.contextmanager
def served(folder: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`milepost serve` on the registry in `folder`."""
    with log.open("wb") as out:
        command = [*MILEPOST, "serve", "--port", "0", "--registry", str(folder / "registry"), "--", *ENGINE]
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=out, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


async def milepost(folder: Path, *arguments: object) -> None:
    """Another process changes the registry."""
    command = [*MILEPOST, *map(str, arguments), "--registry", str(folder / "registry")]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment())
    assert await process.wait() == 0


async def said(log: Path, text: str, times: int = 1) -> float:
    """Seconds until the log has `text`, as often as this."""
    began = time.monotonic()
    while log.read_text().count(text) < times:
        assert time.monotonic() - began < START_S, log.read_text()
        assert "milepost: " not in log.read_text(), log.read_text()
        await asyncio.sleep(0.1)
    return time.monotonic() - began


@pytest.mark.timeout(900)
def test_no_request_fails_over_a_promotion_and_a_rollback(tiny_policy: Path, tmp_path: Path) -> None:
    first = judged(tiny_policy, tmp_path / "first")
    second = judged(other_weights(tiny_policy, tmp_path / "other"), tmp_path / "second")
    asked, log = gate(tmp_path), tmp_path / "serve.log"

    async def scenario(process: subprocess.Popen[bytes]) -> Load:
        started_s = await said(log, "version 1 serves")
        children = psutil.Process(process.pid).children(recursive=True)
        load, done = Load(log.read_text().split()[0]), asyncio.Event()
        running = asyncio.create_task(load.run(done))
        await asyncio.sleep(3)
        await milepost(tmp_path, "promote", second, "--gate", asked)
        promoted_s = await said(log, "version 2 serves")
        await said(log, "version 1 has ended")
        assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        await asyncio.sleep(3)
        await milepost(tmp_path, "rollback", "--reason", "a test")
        rolled_back_s = await said(log, "version 1 serves", times=2)
        await said(log, "version 2 has ended")
        await asyncio.sleep(3)
        done.set()
        await running
        count = len(load.seconds) + len(load.failed)
        print(
            f"\n{count} requests, {len(load.failed)} failed; by version {dict(load.versions)}; latency p50 "
            f"{nearest_rank(load.seconds, 0.5):.2f} s, p99 {nearest_rank(load.seconds, 0.99):.2f} s, most "
            f"{max(load.seconds):.2f} s; start {started_s:.0f} s, promotion {promoted_s:.0f} s, rollback "
            f"{rolled_back_s:.0f} s until the version served"
        )
        return load

    asyncio.run(milepost(tmp_path, "promote", first, "--gate", asked))
    with served(tmp_path, log) as process:
        load = asyncio.run(scenario(process))
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, log.read_text()
        _, alive = psutil.wait_procs(children, timeout=30)
        assert not alive
    assert load.failed == []
    assert load.versions.keys() == {"1", "2"}
    assert all(len(texts) == 1 for texts in load.told.values()), "an answer of two versions"
    assert not load.told["1"] & load.told["2"]
    assert sum(load.versions.values()) > 10 * PER_S
