"""Playing and talking with a real engine."""

import asyncio
import contextlib
import io
import signal
import subprocess
import sys
import time

import openai
import pytest

from milepost.actors.tool_reading import ToolReaders
from milepost.cluster.live import own_engine, talk
from milepost.cluster.live.own_engine import OwnEngine
from tests.cluster.live.answering import ROOT
from tests.system.driving import MILEPOST, START_S, environment

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("own_folder")]
COUNT = "tests.broken_envs:CountingEnv"


@pytest.fixture
def on_session_engine(engine, dialogue, monkeypatch):
    """The engine of the session in place of one of the command's own; what it was asked, as token ids."""
    tokenizer, prompts = dialogue._tokenizer, []

    class Routed:
        async def generate(self, prompt_ids):
            prompts.append(prompt_ids)
            asked = asyncio.run_coroutine_threadsafe(engine.engine.generate(prompt_ids), engine.loop)
            completion = await asyncio.wrap_future(asked)
            prompts.append(completion.response_ids)
            return completion

    @contextlib.asynccontextmanager
    async def started(model, settings):
        assert own_engine._judged(model, settings).max_model_len == 1024
        yield OwnEngine(
            engine=Routed(),
            dialogue=dialogue,
            readers=ToolReaders(tokenizer, dialogue),
            decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
            max_prompt_tokens=400,
        )

    monkeypatch.setattr(own_engine, "started", started)
    monkeypatch.setattr(talk, "started", started)
    return prompts


def test_a_model_folder_plays_an_environment_turn_by_turn(call, tiny_policy, on_session_engine):
    code, out, _ = call("play", COUNT, "--model", tiny_policy, "--set", "max_steps=2")
    assert code == 0, out
    assert len(on_session_engine) == 4
    assert out.splitlines()[-1] == "truncated, reward 0, 2 turns"
    assert out.count("turn 1 · reward 0 · progress 0% · no valid action · state: the text below") == 1


def test_a_conversation_is_exact_to_the_token_and_reset_forgets_it(call, tiny_policy, on_session_engine, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n/reset\none\n"))
    code, out, _ = call("talk", tiny_policy)
    assert code == 0
    assert out.count("you> ") == 5
    first, said, second, _, anew, _ = on_session_engine
    assert second[: len(first) + len(said)] == first + said
    assert anew == first


@pytest.mark.sweep  # an engine of its own, and a program beside it
def test_a_served_policy_answers_a_client_and_plays_until_ctrl_c(tiny_policy, tmp_path):
    out = tmp_path / "out"
    with out.open("wb") as file:
        command = [*MILEPOST, "talk", str(tiny_policy), "--serve", "--max-tokens", "8"]
        server = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=file, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + START_S
        while "ANTHROPIC_API_KEY" not in out.read_text() and server.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        told = dict(line.removeprefix("export ").split("=", 1) for line in out.read_text().splitlines() if "=" in line)
        url, key = told["OPENAI_BASE_URL"], told["OPENAI_API_KEY"]
        with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as client:
            history = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
            for _ in range(2):  # a key is no episode here: each request stands by itself
                reply = client.chat.completions.create(
                    model="policy", messages=[*history, {"role": "user", "content": "c"}]
                )
                assert 1 <= reply.usage.completion_tokens <= 8
        with (
            openai.OpenAI(base_url=url, api_key="another", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.models.list()
        played = subprocess.run(
            [*MILEPOST, "play", COUNT, "--model", url, "--set", "max_steps=1"],
            cwd=ROOT,
            env=environment() | {"OPENAI_API_KEY": key},
            capture_output=True,
            text=True,
            timeout=START_S,
        )
        assert played.returncode == 0, played.stderr
        assert played.stdout.splitlines()[-1] == "truncated, reward 0, 1 turn"
        server.send_signal(signal.SIGINT)
        assert server.wait(START_S) == 0
        lines = out.read_text().splitlines()
        assert lines[0] == f"starting an engine on {tiny_policy} ..."
        assert all(line.startswith("export ") for line in lines[1:])  # nothing of the libraries
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
