"""Text transcripts of an environment's own expert, for the warm-up of a small model.

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
from milepost.envs.contract import Demonstrator, build_env, observe_reset, observe_step
from milepost.envs.plain_values import ContractError
from milepost.envs.types import Task
from milepost.learner.first_policy.countdown import Countdown

logger = logging.getLogger(__name__)
_MAX_TURNS = 100


class DemonstrationError(ValueError):
    """An environment cannot be demonstrated."""


class DemonstratedTurn(msgspec.Struct, frozen=True, kw_only=True):
    """An observation and what the expert said to it."""

    observation: str
    answers: list[str]
    """Independent draws; the first one was played."""
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
                _require_demonstrator(envs[task.env_name], task.env)
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


def _require_demonstrator(env: object, path: str) -> None:
    if not isinstance(env, Demonstrator):
        raise DemonstrationError(
            f"environment {path} has no method demonstration(rng, noise), so no model can be warmed up on it; give it "
            'one, or set model.source = "folder" and model.path to a model that speaks its format'
        )


def _transcript(
    env: Any, task: Task, later: int, rng: random.Random, *, noise: float, draws: int
) -> list[DemonstratedTurn]:
    try:
        reset = observe_reset(chance.reset(env, seed=task.seed, later=later))
        return list(_turns(env, reset.observation, rng, noise=noise, draws=draws))
    except ContractError:
        raise
    except (Exception, SystemExit, GeneratorExit) as error:  # a user's environment may raise anything
        raise DemonstrationError(
            f"environment {task.env} raised {type(error).__name__} in a demonstration with seed {task.seed}: {error}; "
            "try `milepost check-env`"
        ) from error


def _turns(env: Any, observation: str, rng: random.Random, *, noise: float, draws: int) -> Iterator[DemonstratedTurn]:
    total = 0.0
    for _ in range(_MAX_TURNS):
        answers = [env.demonstration(rng, noise) for _ in range(draws)]
        if not all(isinstance(answer, str) and answer for answer in answers):
            raise ContractError(f"demonstration must return text that is not empty, it returned {answers[0]!r}")
        step = observe_step(env.step(answers[0]), answers[0])
        total += step.reward
        solved = step.success if step.success is not None else step.terminated and total > 0
        yield DemonstratedTurn(observation=observation, answers=answers, solved=solved)
        if step.terminated or step.truncated or step.success:
            return
        observation = step.observation
