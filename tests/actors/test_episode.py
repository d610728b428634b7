"""An episode ends as a Trajectory or as a Failure that names the boundary it crossed, and takes no other one along."""

import asyncio
import math
from typing import Any

import msgspec
import pytest

from milepost.actors.engine import Completion, EngineError
from milepost.envs.dialogue import Dialogue
from milepost.envs.types import Failure, Trajectory
from tests.actors.episode_rig import (
    BROKEN,
    HERE,
    ScriptedEngine,
    completion,
    failure,
    hung_calls,
    play,
    resources,
    task,
    trajectory,
)

BROKEN_ENVS: dict[str, tuple[Any, str, str, int]] = {
    "reset": (task(f"{BROKEN}:RaisesInReset"), "RuntimeError", "broken in reset", 0),
    "step": (task(f"{BROKEN}:RaisesInStep"), "RuntimeError", "broken in step", 0),
    "no text": (task(f"{BROKEN}:ReturnsNoText"), "ContractError", "step: observation must be text (str)", 0),
    "nan": (task(f"{BROKEN}:NanReward"), "ContractError", "step: reward must be finite, found nan", 0),
    "huge": (
        task(f"{BROKEN}:Pays", amount=1e308),
        "ContractError",
        "step: the rewards of an episode add up to 1e+308",
        0,
    ),
    "huge together": (task(f"{BROKEN}:Pays", amount=9e11), "ContractError", "add up to 1.8e+12 in magnitude", 2),
    "constructor": (task(f"{HERE}:RaisesInConstructor"), "KeyError", "RaisesInConstructor cannot be built", 0),
    "options": (task(goal=3), "TypeError", "unexpected keyword argument 'goal'", 0),
    "path": (task(f"{BROKEN}:NoSuchEnv"), "DottedPathError", "has no 'NoSuchEnv'", 0),
    "no env": (task("json:JSONDecoder"), "EnvPathError", "not a subclass of gymnasium.Env", 0),
    "exit": (task(f"{HERE}:Raises", kind="SystemExit"), "SystemExit", "3", 0),
    "interrupt": (task(f"{HERE}:Raises", kind="KeyboardInterrupt"), "KeyboardInterrupt", "", 0),
    "exhausted": (task(f"{HERE}:Raises", kind="StopIteration"), "StopIteration", "", 0),
    "cancelled": (task(f"{HERE}:Raises", kind="AsyncCancelledError"), "CancelledError", "mine", 0),
    "cancelled job": (task(f"{HERE}:Raises", kind="CancelledError"), "CancelledError", "theirs", 0),
    "its own timeout": (task(f"{HERE}:Raises", kind="TimeoutError"), "TimeoutError", "my own", 0),
    "unreadable": (task(f"{HERE}:Raises", kind="Unreadable"), "Unreadable", "(its message cannot be read)", 0),
    "bad file name": (task(f"{HERE}:Raises", kind="OSError"), "OSError", "no file '?'", 0),
    "surrogate in reset": (task(f"{HERE}:LoneSurrogate", where="reset"), "ContractError", "half a character at 0", 0),
    "surrogate in step": (task(f"{HERE}:LoneSurrogate", where="step"), "ContractError", "half a character at 0", 0),
    "forged turn": (task(f"{HERE}:ForgesATurn"), "ObservationError", "would forge a turn", 1),
    "no room": (
        task(f"{HERE}:Lengthy", first=500),
        "ContractError",
        "the first prompt has 1017 tokens, engine.max_model_len",
        0,
    ),
    "no bound": (task(f"{HERE}:Lengthy", words=5001), "ContractError", "step: the observation has 10002 characters", 0),
}


@pytest.mark.parametrize("name", BROKEN_ENVS)
def test_what_an_environment_does_wrongly_ends_its_episode_at_the_env_boundary(name: str, dialogue: Dialogue) -> None:
    broken, error, message, turn = BROKEN_ENVS[name]

    async def one() -> Failure:
        async with resources(dialogue) as here:
            found = failure(await play(here, broken, index=5))
            assert here.hung == 0
            return found

    found = asyncio.run(one())
    assert (found.boundary, found.error, found.turn) == ("env", error, turn)
    assert message in found.message
    assert (found.task, found.group_id, found.index) == (broken, "g", 5)


def test_broken_and_hanging_episodes_leave_the_others_in_their_process_alone(dialogue: Dialogue) -> None:
    broken = [entry[0] for entry in BROKEN_ENVS.values()]

    async def many() -> tuple[list[Trajectory | Failure], list[Trajectory | Failure]]:
        async with resources(dialogue, env_timeout_s=3) as here:
            hanging = [asyncio.create_task(play(here, task(f"{HERE}:HangsInStep"))) for _ in range(2)]
            ill = asyncio.gather(*(play(here, one) for one in broken * 3))
            healthy = await asyncio.gather(*(play(here, task(), index) for index in range(100)))
            assert [failure(await one).error for one in hanging] == ["TimeoutError"] * 2
            return healthy, await ill

    healthy, ill = asyncio.run(many())
    assert [trajectory(result).index for result in healthy] == list(range(100))
    assert {trajectory(result).outcome for result in healthy} == {"success"}
    assert [failure(result).error for result in ill] == [entry[1] for entry in BROKEN_ENVS.values()] * 3


def test_an_episode_records_what_was_seen_said_and_reached(dialogue: Dialogue) -> None:
    said = iter(["up", "nonsense", "up"])

    async def one() -> Trajectory:
        async with resources(dialogue, engine=ScriptedEngine(dialogue, lambda _: next(said))) as here:
            return trajectory(await play(here, task(target=2), index=4))

    found = asyncio.run(one())
    assert (found.task, found.group_id, found.index, found.outcome) == (task(target=2), "g", 4, "success")
    assert [(t.anchor, t.action, t.next_anchor, t.reward, t.progress) for t in found.turns] == [
        ("0", "up", "1", 0.0, 0.5),
        ("1", None, "1", 0.0, 0.5),
        ("1", "up", "2", 1.0, 1.0),
    ]
    assert found.turns[0].prompt_ids == dialogue.opening("0")
    assert [t.response_ids for t in found.turns] == [dialogue.response(text) for text in ("up", "nonsense", "up")]
    for before, after in zip(found.turns, found.turns[1:], strict=False):
        sofar = before.prompt_ids + before.response_ids
        assert after.prompt_ids == sofar + dialogue.continuation(before.next_anchor, closed=True)
    assert all(set(t.logprobs) == {-0.5} and t.versions[0].version == 3 for t in found.turns)


@pytest.mark.parametrize(
    ("options", "cohort"),
    [
        ({}, ""),
        ({"said": "map 7"}, "map 7"),
        ({"cohort": "easy"}, "easy"),
        ({"cohort": "easy", "said": "map 7"}, "map 7"),
        ({"cohort": "easy", "said": ""}, ""),
    ],
)
def test_an_episode_is_of_the_cohort_that_its_environment_says_or_else_its_options(
    options: dict[str, str], cohort: str, dialogue: Dialogue
) -> None:
    async def two() -> list[Trajectory | Failure]:
        async with resources(dialogue) as here:
            return [await play(here, task(f"{HERE}:{name}", **options)) for name in ("SaysItsCohort", "FailsInACohort")]

    played, failed = asyncio.run(two())
    assert (trajectory(played).cohort, failure(failed).cohort) == (cohort, cohort)


def test_an_episode_that_fails_before_its_reset_is_of_the_cohort_of_its_options(dialogue: Dialogue) -> None:
    async def one() -> Trajectory | Failure:
        async with resources(dialogue) as here:
            return await play(here, task(f"{BROKEN}:RaisesInReset", cohort="easy"))

    assert failure(asyncio.run(one())).cohort == "easy"


def test_a_close_that_raises_changes_nothing(dialogue: Dialogue) -> None:
    async def one() -> Trajectory | Failure:
        async with resources(dialogue) as here:
            return await play(here, task(f"{HERE}:RaisesInClose"))

    assert trajectory(asyncio.run(one())).outcome == "success"


class Says:
    """An engine that gives or raises what it is made with."""

    def __init__(self, answer: Completion | EngineError) -> None:
        self.answer = answer

    async def generate(self, prompt_ids: list[int]) -> Completion:
        assert prompt_ids
        if isinstance(self.answer, Completion):
            return self.answer
        raise self.answer


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (EngineError("no completion within 60 s"), "EngineError", "no completion within 60 s"),
        (completion([7, 8], logprob=math.nan), "ValueError", "a log-prob is not finite"),
        (completion([7, 8], logprob=-math.inf), "ValueError", "a log-prob is not finite"),
        (completion([]), "ValueError", "at least one prompt token and one response token"),
        (msgspec.structs.replace(completion([7, 8]), logprobs=[-0.5]), "ValueError", "1 log-probs for 2 response"),
        (msgspec.structs.replace(completion([7, 8]), versions=[]), "ValueError", "version spans do not cover the 2"),
    ],
)
def test_what_the_engine_does_wrongly_ends_the_episode_at_the_engine_boundary(
    answer: Completion | EngineError, error: str, message: str, dialogue: Dialogue
) -> None:
    async def one() -> Failure:
        async with resources(dialogue, engine=Says(answer)) as here:
            return failure(await play(here, task()))

    found = asyncio.run(one())
    assert (found.boundary, found.error, found.turn) == ("engine", error, 0)
    assert message in found.message


def raises(*_: object) -> list[float]:
    raise LookupError("no such judge")


def exits(*_: object) -> list[float]:
    raise SystemExit(1)


def interrupts(*_: object) -> list[float]:
    raise KeyboardInterrupt


def hangs(*_: object) -> list[float]:
    hung_calls.hang()
    return []


@pytest.mark.parametrize(
    ("reward", "error", "message"),
    [
        (raises, "RewardError", "reward of trajectory g/0: LookupError: no such judge"),
        (lambda t, _: [1.0] * (len(t.turns) + 1), "RewardError", "expected one number, or a list of 3 numbers"),
        (lambda t, _: [math.nan] * len(t.turns), "RewardError", "turn 0 must be finite, found nan"),
        (exits, "RewardError", "reward of trajectory g/0: SystemExit: 1"),
        (interrupts, "KeyboardInterrupt", ""),
        (hangs, "TimeoutError", "reward did not return within actors.env_timeout_s = 1"),
    ],
)
def test_what_a_reward_does_wrongly_ends_the_episode_at_the_reward_boundary(
    reward: Any, error: str, message: str, dialogue: Dialogue
) -> None:
    async def one() -> Failure:
        async with resources(dialogue, reward=reward, env_timeout_s=1 if reward is hangs else 5) as here:
            found = failure(await play(here, task()))
            assert (here.hung, hung_calls.now) == ((1, 1) if reward is hangs else (0, 0))
            return found

    found = asyncio.run(one())
    assert (found.boundary, found.error, found.turn) == ("reward", error, 3)
    assert message in found.message


def test_a_reward_replaces_the_environments_numbers_and_not_its_outcome(dialogue: Dialogue) -> None:
    async def one() -> Trajectory | Failure:
        async with resources(dialogue, reward=lambda t, _: [-1.0] * len(t.turns)) as here:
            return await play(here, task())

    found = trajectory(asyncio.run(one()))
    assert (found.reward, found.outcome) == (-3.0, "success")
