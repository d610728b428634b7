"""A local engine as the judge: vLLM's own server on a tiny random model; a grammar keeps its answers to the schema."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from milepost.cluster.base.ports import free_port
from milepost.cluster.runlog.saved_policy import digest
from milepost.reward.judges.config import JudgeConfig, JudgeRefused
from milepost.reward.judges.identity import verify
from milepost.reward.judges.judge import Judge
from tests.reward.judges.judge_rig import MODEL, judge_config, transcript

pytestmark = [pytest.mark.sweep, pytest.mark.timeout(600)]
_STARTS_WITHIN_S = 400
_ROOM = 8192


@pytest.fixture(scope="module")
def weights(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny policy, told that it has room for a judge's prompt: its tokens are hardly more than letters."""
    folder = tmp_path_factory.mktemp("judge") / "weights"
    shutil.copytree(tiny_policy, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": _ROOM}))
    return folder


@pytest.fixture(scope="module")
def url(weights: Path) -> Iterator[str]:
    port = free_port()
    options = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", MODEL]
    options += ["--max-model-len", str(_ROOM), "--max-num-seqs", "4", "--dtype", "float32", "--enforce-eager"]
    options += ["--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}']
    log = weights.parent / "server.log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(weights), *options],
            stdout=out,
            stderr=out,
            env=os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"},
        )
        try:
            _wait(server, f"http://127.0.0.1:{port}/v1", log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait(60)


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until = time.monotonic() + _STARTS_WITHIN_S
    while time.monotonic() < until and server.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/models", timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    pytest.fail(f"the server did not start: {log.read_text(errors='replace')[-2000:]}")


def config_of(url: str, weights: Path) -> JudgeConfig:
    pinned = {"weights": str(weights), "family": "", "weights_digest": digest(weights)}
    return judge_config(url, **pinned, deadline_s=120, retries=0, max_tokens=200)


def test_a_local_engine_is_verified_by_its_folder_and_gives_answers_of_the_schema(url: str, weights: Path) -> None:
    config = config_of(url, weights)

    async def judged() -> list[str]:
        await verify(config, "qwen3", digest)
        until = asyncio.get_running_loop().time() + 300
        episodes = [transcript(f"I look under mat {k}.", "I stop.") for k in range(6)]
        return [each.failure for each in await Judge(config).judge_all(episodes, until)]

    # A random model says anything about the outcome; whatever it says is of the schema.
    assert {failure for failure in asyncio.run(judged()) if not failure.startswith("it says outcome ")} <= {""}


def test_other_bytes_in_the_folder_are_another_judge(url: str, weights: Path) -> None:
    config = config_of(url, weights)
    (weights / "generation_config.json").write_text("{}")
    with pytest.raises(JudgeRefused, match=f"weights_digest: the file pins {config.weights_digest}, found is "):
        asyncio.run(verify(config, "qwen3", digest))
