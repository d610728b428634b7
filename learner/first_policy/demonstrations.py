"""Transcripts of an environment's own expert, for the warm-up of a small model.

The expert is noisy, so transcripts visit bad states too. In every state it is asked several times: the first answer is
played, all of them together estimate what a noisy expert would say there. Not promised: that an environment returns;
the caller bounds time.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from milepost.envs import chance
from milepost.envs.contract import Demonstrator, Reset, build_env, observe_reset, observe_step
from milepost.envs.messages import AssistantMessage, Said, ToolSchema, action_of
from milepost.envs.plain_values import ContractError
from milepost.envs.types import Task
from milepost.learner.first_policy.countdown import Countdown

logger = logging.getLogger(__name__)
_MAX_TURNS = 100


class DemonstrationError(ValueError):
    """An environment cannot be demonstrated."""


class DemonstratedTurn(msgspec.Struct, frozen=True, kw_only=True):
    """An observation and what the expert said to it."""

    observation: Said
    answers: list[str] | list[AssistantMessage]
    """Independent draws; the first one was played. Messages where the environment has tools, else texts."""
    tools: tuple[ToolSchema, ...] = ()
    """What the policy may call, the same in all turns of a transcript."""
    solved: bool = False
    """Whether the first one solved the task."""


def demonstrate(
    tasks: Sequence[Task], *, episodes: int, noise: float, draws: int, seed: int, progress: Callable[[str], None]
) -> list[list[DemonstratedTurn]]:
    """Transcripts of `episodes` episodes, taking `tasks` in turn; an episode is cut after 100 turns.

    Tasks of one `env_name` are played in one environment, built from the options of the first of them.

    With probability `noise` a draw is a uniformly random action. Equal arguments give equal transcripts where the
    environments are deterministic. Raises `DemonstrationError` if one of them has no `demonstration` or raises, and
    `EnvPathError` if it cannot be built.
    """
    if not tasks:
        raise DemonstrationError("the warm-up needs at least one training task; raise env.train_size")
    envs: dict[str, Any] = {}
    transcripts, clock = [], Countdown("warm-up", episodes, progress)
    try:
        for task in tasks:
            if task.env_name not in envs:
                envs[task.env_name] = build_env(task.env, task.options)
                require_demonstrator(envs[task.env_name], task.env)
        for episode in range(episodes):
            task = tasks[episode % len(tasks)]
            rng = random.Random(f"{seed}/{episode}")
            later = chance.episode_seed(task.seed, "demonstration", episode)
            transcripts.append(_transcript(envs[task.env_name], task, later, rng, noise=noise, draws=draws))
            clock.done(episode + 1, "demonstrations")
    finally:
        for env in envs.values():
            _close(env)
    return transcripts


def _close(env: Any) -> None:
    """What close() raises changes nothing about the transcripts."""
    try:
        env.close()
    except (Exception, SystemExit, GeneratorExit) as error:  # a user's environment may raise anything
        logger.warning("environment close() raised %s: %s", type(error).__name__, error)


def require_demonstrator(env: object, path: str) -> None:
    """Raises `DemonstrationError` where `env`, an environment or its class, gives no demonstrations."""
    if not isinstance(env, Demonstrator):
        raise DemonstrationError(
            f"environment {path} has no method demonstration(rng, noise), so no model can be warmed up on it; give it "
            'one, or set model.source = "folder" and model.path to a model that speaks its format'
        )


def _transcript(
    env: Any, task: Task, later: int, rng: random.Random, *, noise: float, draws: int
) -> list[DemonstratedTurn]:
    try:
        reset = observe_reset(chance.reset(env, seed=task.seed, later=later), env)
        return list(_turns(env, reset, rng, noise=noise, draws=draws))
    except ContractError:
        raise
    except (Exception, SystemExit, GeneratorExit) as error:  # a user's environment may raise anything
        raise DemonstrationError(
            f"environment {task.env} raised {type(error).__name__} in a demonstration with seed {task.seed}: {error}; "
            "try `milepost check-env`"
        ) from error


def _turns(env: Any, reset: Reset, rng: random.Random, *, noise: float, draws: int) -> Iterator[DemonstratedTurn]:
    said, total = reset.said, 0.0
    for _ in range(_MAX_TURNS):
        answers: Any = [_answer(env.demonstration(rng, noise), reset.tools) for _ in range(draws)]
        played = answers[0]
        step = observe_step(env.step(played), played if isinstance(played, str) else action_of(played))
        total += step.reward
        solved = step.success if step.success is not None else step.terminated and total > 0
        yield DemonstratedTurn(observation=said, answers=answers, tools=reset.tools, solved=solved)
        if step.terminated or step.truncated or step.success:
            return
        said = step.said


def _answer(shown: object, tools: Sequence[ToolSchema]) -> str | AssistantMessage:
    """A demonstration as the environment takes it; raises `ContractError`."""
    if isinstance(shown, AssistantMessage):
        if not tools:
            raise ContractError("demonstration returned a message of the policy; an environment without tools has text")
        if shown.content.strip() or shown.tool_calls:
            return shown
    elif isinstance(shown, str) and shown:
        return AssistantMessage(content=shown) if tools else shown
    raise ContractError(f"demonstration must return text that is not empty, it returned {shown!r}")
