"""A real HTTP server that speaks the OpenAI API and answers as a test says, and judges that ask it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from milepost.reward.judges.config import Criterion, JudgeConfig
from milepost.reward.judges.judge import Judge
from milepost.reward.judges.prompt import prompt_sha256
from milepost.reward.judges.quoting import Transcript, TranscriptTurn
from milepost.reward.judges.verdict import Judgement

MODEL = "judge-model"
WEIGHTS = "c0" * 32
Body = dict[str, Any]
Answer = Callable[[Body], object]
"""Of a request's body: the text of the model's message, or a `web.Response` in its place."""


@dataclass
class Served:
    """What the server did, and what it says of its model."""

    url: str = ""
    asked: list[Body] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    entry: dict[str, Any] = field(default_factory=lambda: {"id": MODEL, "object": "model", "root": "/models/judge"})
    says_model: str = MODEL
    finish_reason: str = "stop"


@contextlib.contextmanager
def serving(answer: Answer) -> Iterator[Served]:
    """The server, on a thread of its own."""
    served, loop, ready = Served(), asyncio.new_event_loop(), threading.Event()

    async def complete(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        served.asked.append(body)
        served.keys.append(request.headers.get("Authorization"))
        said = answer(body)
        said = await said if asyncio.iscoroutine(said) else said
        if isinstance(said, web.StreamResponse):
            return said
        choice = {"index": 0, "finish_reason": served.finish_reason, "message": {"role": "assistant", "content": said}}
        return web.json_response({"id": "1", "model": served.says_model, "choices": [choice]})

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [served.entry]})

    async def start() -> web.AppRunner:
        app = web.Application()
        app.add_routes([web.post("/v1/chat/completions", complete), web.get("/v1/models", models)])
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        served.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        ready.set()
        return runner

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    starting = asyncio.run_coroutine_threadsafe(start(), loop)
    assert ready.wait(10)
    try:
        yield served
    finally:
        asyncio.run_coroutine_threadsafe(starting.result().cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def judge_config(url: str, **values: Any) -> JudgeConfig:
    """A judge of that server that is pinned as it is."""
    told: dict[str, Any] = {
        "name": "tester",
        "model": MODEL,
        "base_url": url,
        "family": "mistral",
        "weights_digest": WEIGHTS,
        "prompt": "You judge how well an agent reasons.",
        "criteria": {"reasoning_quality": Criterion(ask="How sound is the reasoning?")},
        "retries": 1,
        "deadline_s": 10,
    }
    config = JudgeConfig.model_validate(told | values)
    return config.model_copy(update={"prompt_sha256": prompt_sha256(config)})


TOML = """\
name = "tester"
model = "judge-model"
base_url = "{url}"
family = "mistral"
weights_digest = "{weights}"
prompt_sha256 = "{prompt}"
retries = 0
{more}
prompt = "You judge how well an agent reasons."
[criteria.reasoning_quality]
ask = "How sound is the reasoning?"
"""


def write_judge(folder: Path, url: str, more: str = "", **values: Any) -> Path:
    """A file of that judge; `values` are what `more` says."""
    path = folder / "judge.toml"
    pinned = judge_config(url, retries=0, **values).prompt_sha256
    path.write_text(TOML.format(url=url, weights=WEIGHTS, prompt=pinned, more=more))
    return path


def transcript(*agent: str, outcome: str = "failure", environment: str = "") -> Transcript:
    turns = tuple(TranscriptTurn(agent=text, environment=environment) for text in agent)
    return Transcript(task="Find the key.", outcome=outcome, turns=turns)


def judged(url: str, episode: Transcript | None = None, **values: Any) -> Judgement:
    """One judgement."""
    asked = episode or transcript("I look under the mat.", "I stop.")
    return asyncio.run(Judge(judge_config(url, **values)).judge(asked))


def user_text(body: Body) -> str:
    return str(body["messages"][1]["content"])


def nonce_of(body: Body) -> str:
    nonce: str = body["response_format"]["json_schema"]["schema"]["properties"]["nonce"]["const"]
    return nonce


def outcome_of(body: Body) -> str:
    [outcome] = re.findall(r"\AThe environment reports: (\w+)\.$", user_text(body), re.M)
    return str(outcome)


def verdict(body: Body, score: object = 3, evidence: object = (0,), **changed: object) -> str:
    """The answer that was asked for, with what a test changes."""
    scores = {"reasoning_quality": {"evidence": evidence, "score": score}}
    told = {"nonce": nonce_of(body), "outcome": outcome_of(body), "scores": scores}
    return json.dumps(told | changed)
