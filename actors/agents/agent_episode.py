"""Plays one episode of an agent program: it ends as a Trajectory or as a Failure, like one of an environment.

A program that raises, hangs or says no reward ends its own episode as a Failure of its boundary; so does one that never
calls the endpoint, for then there is nothing to learn from. A program that stops because a limit refused it a call was
cut off: its episode is truncated, with no reward.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from milepost.actors.agents.calls import EpisodeCalls, Read
from milepost.actors.agents.endpoint import Endpoint
from milepost.actors.agents.lineages import ConversationLayout, Lineages
from milepost.actors.agents.program import Access, AgentFailed, Program, Result, result_of, task_of
from milepost.actors.episode_thread import EpisodeThread, first_line
from milepost.actors.resources import RolloutResources
from milepost.actors.user_code import answered, ask_reward, count_if_hung, overdue
from milepost.envs import chance
from milepost.envs.plain_values import ContractError
from milepost.envs.types import Boundary, Failure, Outcome, Task, Trajectory, Turn
from milepost.reward.reward import RewardError, TurnText


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentHost:
    """What the agent episodes of one process share, beside `RolloutResources`."""

    program: Program
    endpoint: Endpoint
    layout: ConversationLayout
    read: Read
    max_tokens: int
    places: asyncio.Semaphore
    """One for each program that may run at a time."""


class _Failed(Exception):
    def __init__(self, boundary: Boundary, error: BaseException) -> None:
        super().__init__(boundary)
        self.boundary: Boundary = boundary
        self.error = error


async def run_agent_episode(
    host: AgentHost, resources: RolloutResources, *, task: Task, group_id: str, index: int
) -> Trajectory | Failure:
    """Play `task` once. Never raises for what a program, a reward or an engine does; only cancellation passes."""
    calls = EpisodeCalls(
        engine=resources.engine,
        lineages=Lineages(host.layout),
        read=host.read,
        max_calls=resources.limits.max_turns,
        max_prompt_tokens=resources.limits.max_prompt_tokens,
        max_tokens=host.max_tokens,
    )
    told = task_of(task, group_id=group_id, index=index, episode_seed=chance.episode_seed(task.seed, group_id, index))
    try:
        async with host.places:
            started = time.monotonic()
            result = await _play(host, resources, calls, told)
        trajectory = Trajectory(
            task=task,
            group_id=group_id,
            index=index,
            turns=_turns(calls, result.reward if result else 0.0),
            outcome=_outcome(result),
            seconds=time.monotonic() - started,
            cohort=task.cohort,
            success_reported=result is not None and result.success is not None,
        )
        scored = await _scored(resources, trajectory, calls.texts())
        return resources.recorded(scored, scored.turns, None)
    except _Failed as failed:
        boundary, error = failed.boundary, failed.error
    failure = Failure(
        task=task,
        group_id=group_id,
        index=index,
        boundary=boundary,
        error=type(error).__name__,
        message=first_line(error),
        turn=calls.count,
        cohort=task.cohort,
    )
    return resources.recorded(failure, [] if boundary == "engine" else calls.turns(0.0), None)


async def _play(
    host: AgentHost, resources: RolloutResources, calls: EpisodeCalls, told: dict[str, Any]
) -> Result | None:
    """The program's result; None where a limit cut it off. Raises _Failed."""
    limit = resources.limits.episode_timeout_s
    key = host.endpoint.open(calls)
    try:
        async with asyncio.timeout(limit):
            said = await host.program.play(told, Access(url=host.endpoint.url, key=key))
        result = result_of(said)
    except TimeoutError:
        waited = TimeoutError(f"the agent did not end within actors.episode_timeout_s = {limit:g}")
        raise _Failed("env", waited) from None
    except RuntimeError as error:  # the system gives no more threads; what a program raises is an AgentFailed
        raise _Failed("infra", error) from error
    except (AgentFailed, ContractError) as error:
        if calls.engine_error is not None:
            raise _Failed("engine", calls.engine_error) from error
        if not (calls.is_cut and calls.count):
            raise _Failed("env", error) from error
        return None
    finally:
        host.endpoint.close(key)
    if not calls.count:
        raise _Failed("env", AgentFailed("the agent ended without one call to the endpoint, so nothing can be learnt"))
    return result


def _turns(calls: EpisodeCalls, reward: float) -> list[Turn]:
    try:
        return calls.turns(reward)
    except ValueError as error:  # the reward was checked already: what is left is the engine's
        raise _Failed("engine", error) from error


def _outcome(result: Result | None) -> Outcome:
    if result is None:
        return "truncated"
    solved = result.success if result.success is not None else result.reward > 0
    return "success" if solved else "failure"


async def _scored(resources: RolloutResources, trajectory: Trajectory, texts: list[TurnText]) -> Trajectory:
    """`trajectory` with the rewards of the run's reward function, where there is one. Raises _Failed."""
    if resources.reward is None:
        return trajectory
    limit = resources.limits.env_timeout_s
    thread = EpisodeThread()
    job = thread.submit(partial(ask_reward, resources, trajectory, texts), resources.places)
    thread.end()
    try:
        async with asyncio.timeout(limit):
            asked = await asyncio.shield(asyncio.wrap_future(job))
    except TimeoutError:
        count_if_hung(resources, job)
        raise _Failed("reward", overdue("reward", limit)) from None
    except RewardError as error:
        raise _Failed("reward", error) from error
    scored, raised = (asked, None) if isinstance(asked, Trajectory) else await answered(resources, asked)
    if raised is not None:
        raise _Failed("reward", raised) from raised
    result: Trajectory = scored
    return result
