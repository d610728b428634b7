"""What engines are asked for parity: when they answer, and what a rank makes of an engine that does not."""

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError

from milepost.actors.engine import Completion
from milepost.cluster.pools import weights
from milepost.cluster.pools.engine_process import EngineActor
from milepost.cluster.pools.weights import answered
from milepost.envs.types import VersionSpan


def completion(version: int) -> Completion:
    span = VersionSpan(version=version, start=0, end=1)
    return Completion(response_ids=[7], logprobs=[-0.5], versions=[span], stopped=True)


def actor(update_s: float) -> Any:
    """An engine's actor at version 3, over an engine that says which version answered, in how many tokens at most."""

    async def generate(_: list[int], at_most: int | None = None) -> tuple[int, int | None]:
        return engine.version, at_most

    async def commit(version: int, **_: bool) -> None:
        engine.version = version

    engine = SimpleNamespace(version=3, generate=generate, commit=commit)
    made: Any = EngineActor.__new__(EngineActor)
    made._engine, made._paused, made._in_flight, made._busy_s, made._unanswered, made._since = engine, False, 0, 0, 0, 0
    made._committed, made._update_s = asyncio.Condition(), update_s
    return made


def test_an_engine_answers_with_the_version_it_is_asked_for_as_soon_as_it_is_committed_and_shortly() -> None:
    async def ask() -> None:
        engine = actor(60)
        early = asyncio.create_task(engine.answer_as(4, [1]))
        assert await engine.answer_as(3, [1]) == (3, 16)
        await asyncio.sleep(0.02)
        assert not early.done()
        await engine.commit(4, False)
        assert await early == (4, 16)
        await engine.commit(2, True)
        assert await engine.answer_as(2, [1]) == (2, 16), "after a rollback"

    asyncio.run(ask())


def test_an_engine_to_which_the_version_never_comes_says_so() -> None:
    async def ask() -> None:
        waiting: Coroutine[Any, Any, Completion] = actor(0.02).answer_as(4, [1])
        with pytest.raises(TimeoutError):
            await waiting

    asyncio.run(ask())


def test_an_engine_that_is_lost_or_refuses_gives_no_turn_and_the_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [
        completion(4),
        RayActorError(),
        RayTaskError("answer_as", "trace", TimeoutError()),
        completion(4),
    ]

    def get(answer: Any) -> Completion:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(weights.ray, "get", get)
    turns = answered([([1, number], answer) for number, answer in enumerate(answers)])
    assert [(turn.prompt_ids, turn.response_ids, turn.logprobs) for turn in turns] == [
        ([1, 0], [7], [-0.5]),
        ([1, 3], [7], [-0.5]),
    ]
