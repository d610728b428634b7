"""Plays one episode and shows it while it happens. Nothing is recorded, and nothing is learnt from it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from milepost.actors.agents.agent_episode import AgentHost, run_agent_episode
from milepost.actors.agents.endpoint import Endpoint
from milepost.actors.agents.program import Access, AgentPathError, Program, load_program, result_of, task_of
from milepost.actors.episode import run_episode
from milepost.actors.episode_thread import first_line
from milepost.actors.resources import Limits, RolloutResources
from milepost.cluster.base.exits import ConfigError, DependencyLost, Exit
from milepost.cluster.live.partners import Partner
from milepost.cluster.live.plan import Plan
from milepost.cluster.live.spoken import SpokenCalls, SpokenEpisode
from milepost.cluster.live.view import View
from milepost.cluster.live.watched import Onlooker, WatchedEndpoint, WatchedEngine
from milepost.envs import chance
from milepost.envs.types import Failure, Outcome, Trajectory
from milepost.reward.reward import Reward, RewardError, load_reward

E = TypeVar("E", bound=Endpoint)
_GROUP = "play"
_UNBOUNDED = 2**62
_LONG_S = 1e9
"""For people, who may take their time."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How an episode came out."""

    outcome: Outcome
    reward: float


async def play_spoken(plan: Plan, partner: Partner | None, view: View) -> Ending:
    """Play with answers of `partner`, or of the environment's expert.

    Raises ConfigError or DependencyLost where the episode cannot be finished, and what the partner raises.
    """
    if plan.agent.name:
        assert partner is not None
        return await _run_program(plan, SpokenCalls(partner), view)
    episode = SpokenEpisode(view=view, partner=partner, system_prompt=plan.settings.actors.system_prompt)
    resources = RolloutResources(
        engine=episode,
        dialogue=episode.layout,
        decode=episode.layout.decode,
        readers=episode,
        places=threading.Semaphore(),
        limits=replace(_limits(plan, max_prompt_tokens=_UNBOUNDED), episode_timeout_s=_LONG_S),
        observer=episode,
        reward=_reward(plan),
    )
    return await _run_env(plan, resources, episode)


async def play_sampled(plan: Plan, model: Path, view: View) -> Ending:
    """Play with an engine of ours on the folder `model`. Raises ConfigError, DependencyLost."""
    from milepost.cluster.live.own_engine import started  # heavy front doors

    program, reward = _program(plan) if plan.agent.name else None, _reward(plan)
    async with started(model, plan.settings) as own:
        onlooker = Onlooker(view=view)
        resources = RolloutResources(
            engine=own.engine if program else WatchedEngine(own.engine, own.decode, view),
            dialogue=own.dialogue,
            decode=own.decode,
            readers=own.readers,
            places=threading.Semaphore(),
            limits=_limits(plan, max_prompt_tokens=own.max_prompt_tokens),
            observer=onlooker,
            reward=reward,
        )
        if program is None:
            return await _run_env(plan, resources, onlooker)
        async with _listening(WatchedEndpoint(view)) as endpoint:
            host = AgentHost(
                program=program,
                endpoint=endpoint,
                layout=own.dialogue,
                read=own.replies.read,
                max_tokens=plan.agent.max_tokens,
                places=asyncio.Semaphore(),
            )
            result = await run_agent_episode(host, resources, task=plan.task, group_id=_GROUP, index=0)
        return _ending(plan, result)


async def _run_env(plan: Plan, resources: RolloutResources, onlooker: Onlooker) -> Ending:
    try:
        result = await run_episode(resources, task=plan.task, group_id=_GROUP, index=0)
    finally:
        await asyncio.to_thread(onlooker.has_closed.wait, resources.limits.env_timeout_s)
    return _ending(plan, result)


async def _run_program(plan: Plan, calls: SpokenCalls, view: View) -> Ending:
    """Run an agent program whose calls nobody samples. Raises ConfigError where it ends without a result."""
    told = task_of(plan.task, group_id=_GROUP, index=0, episode_seed=chance.episode_seed(plan.task.seed, _GROUP, 0))
    program = _program(plan)
    async with _listening(WatchedEndpoint(view)) as endpoint:
        key = endpoint.open(calls)
        try:
            result = result_of(await program.play(told, Access(url=endpoint.url, key=key)))
        except Exception as error:  # what a program says may be anything
            raise calls.lost or ConfigError(f"{plan.agent.name}: {first_line(error)}") from error
    if calls.lost is not None:  # and the program took it for an answer
        raise calls.lost
    solved = result.success if result.success is not None else result.reward > 0
    return Ending("success" if solved else "failure", result.reward)


def _program(plan: Plan) -> Program:
    try:
        return load_program(plan.agent, lambda _: None)
    except AgentPathError as error:
        raise ConfigError(f"play: {error}") from error


@contextlib.asynccontextmanager
async def _listening(endpoint: E) -> AsyncIterator[E]:
    await endpoint.start()
    try:
        yield endpoint
    finally:
        await endpoint.stop()


def _reward(plan: Plan) -> Reward | None:
    """The config's reward, if there is one. Raises ConfigError."""
    try:
        return load_reward(plan.reward_path) if plan.reward_path else None
    except RewardError as error:
        raise ConfigError(f"play: {error}") from error


def _limits(plan: Plan, *, max_prompt_tokens: int) -> Limits:
    actors = plan.settings.actors
    return Limits(
        max_turns=actors.max_turns,
        env_timeout_s=actors.env_timeout_s,
        episode_timeout_s=actors.episode_timeout_s,
        max_observation_chars=actors.max_observation_chars,
        max_prompt_tokens=max_prompt_tokens,
        window_turns=actors.window_turns,
    )


def _ending(plan: Plan, result: Trajectory | Failure) -> Ending:
    """How an episode came out. Raises ConfigError, or DependencyLost, where it failed."""
    if isinstance(result, Trajectory):
        return Ending(result.outcome, result.reward)
    kind: type[Exit] = ConfigError if result.boundary in ("env", "reward") else DependencyLost
    raise kind(f"{plan.task.env}: turn {result.turn} failed with {result.error}: {result.message}")
