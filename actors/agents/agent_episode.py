"""Plays one episode of an agent program: it ends as a Trajectory or as a Failure, like one of an environment.

A program that raises, hangs or says no reward ends its own episode as a Failure of its boundary; so does one that never
calls the endpoint, for then there is nothing to learn from. A program that stops because a limit refused it a call was
cut off: its episode is truncated, with no reward.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from milepost.actors.agents.calls import CONTEXT_FULL, EpisodeCalls, Read
from milepost.actors.agents.endpoint import Endpoint
from milepost.actors.agents.lineages import ConversationLayout, Lineages
from milepost.actors.agents.program import Access, AgentFailed, Program, Result, result_of, task_of
from milepost.actors.engine import Engine
from milepost.actors.episode_thread import first_line
from milepost.actors.resources import RolloutResources
from milepost.actors.stopwatch import Stopwatch
from milepost.actors.user_code import BoundaryError, UserCode
from milepost.envs import chance
from milepost.envs.types import Failure, Outcome, Task, Trajectory, Turn


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


async def run_agent_episode(
    host: AgentHost, resources: RolloutResources, *, task: Task, group_id: str, index: int
) -> Trajectory | Failure:
    """Play `task` once. Never raises for what a program, a reward or an engine does; only cancellation passes."""
    with resources.engine_for_episode() as engine:
        return await _run(engine, host, resources, task=task, group_id=group_id, index=index)


async def _run(
    engine: Engine, host: AgentHost, resources: RolloutResources, *, task: Task, group_id: str, index: int
) -> Trajectory | Failure:
    user = UserCode(resources)
    calls = EpisodeCalls(
        engine=engine,
        lineages=Lineages(host.layout),
        read=host.read,
        decode=resources.decode,
        max_calls=resources.limits.max_turns,
        max_prompt_tokens=resources.limits.max_prompt_tokens,
        max_tokens=host.max_tokens,
    )
    told = task_of(task, group_id=group_id, index=index, episode_seed=chance.episode_seed(task.seed, group_id, index))
    try:
        async with host.places:
            calls.watch = Stopwatch()  # waiting for a place is no part of it
            result = await _play(host, resources, calls, told)
        trajectory = Trajectory(
            task=task,
            group_id=group_id,
            index=index,
            turns=_turns(calls, result.reward if result else 0.0),
            outcome=_outcome(result),
            started_at=calls.watch.started_at,
            seconds=calls.watch.seconds,
            cohort=task.cohort,
            success_reported=result is not None and result.success is not None,
            context_full=result is None and calls.cut_by == CONTEXT_FULL,
        )
        scored = await user.score(trajectory, calls.texts())
        return resources.recorded(scored, scored.turns, None)
    except BoundaryError as failed:
        boundary, error = failed.boundary, failed.error
    finally:
        user.thread.end()
    failure = Failure(
        task=task,
        group_id=group_id,
        index=index,
        boundary=boundary,
        error=type(error).__name__,
        message=first_line(error),
        turn=calls.count,
        started_at=calls.watch.started_at,
        seconds=calls.watch.seconds,
        cohort=task.cohort,
    )
    return resources.recorded(failure, _played(calls), None)


async def _play(
    host: AgentHost, resources: RolloutResources, calls: EpisodeCalls, told: dict[str, Any]
) -> Result | None:
    """The program's result; None where a limit cut it off. Raises BoundaryError."""
    limit = resources.limits.episode_timeout_s
    key = host.endpoint.open(calls)
    try:
        async with asyncio.timeout(limit):
            said = await host.program.play(told, Access(url=host.endpoint.url, key=key))
        result = result_of(said)
    except TimeoutError:
        waited = TimeoutError(f"the agent did not end within actors.episode_timeout_s = {limit:g}")
        raise BoundaryError("env", waited) from None
    except Exception as error:  # what a program says may be anything
        if calls.engine_error is not None:
            raise BoundaryError("engine", calls.engine_error) from error
        if not (calls.cut_by and calls.count):
            raise BoundaryError("env", error) from error
        return None
    finally:
        host.endpoint.close(key)
    if calls.engine_error is not None:
        raise BoundaryError("engine", calls.engine_error)
    if not calls.count:
        raise BoundaryError(
            "env", AgentFailed("the agent ended without one call to the endpoint, so nothing can be learnt")
        )
    return result


def _played(calls: EpisodeCalls) -> list[Turn]:
    """The turns of a failed episode, as far as there are any that can be told."""
    try:
        return calls.turns(0.0)
    except ValueError:  # the engine's, which may be what it failed of
        return []


def _turns(calls: EpisodeCalls, reward: float) -> list[Turn]:
    try:
        return calls.turns(reward)
    except ValueError as error:  # the reward was checked already: what is left is the engine's
        raise BoundaryError("engine", error) from error


def _outcome(result: Result | None) -> Outcome:
    if result is None:
        return "truncated"
    solved = result.success if result.success is not None else result.reward > 0
    return "success" if solved else "failure"
