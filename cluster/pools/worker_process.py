"""What runs in a rollout worker's process: its tokenizer and threads, its source of groups and its sink of episodes.

It takes groups from the ledger under a lease and puts finished episodes into the buffer. What it does not look after is
its own end: `milepost.cluster.pools.workers` replaces it.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformers import AutoTokenizer

from milepost.actors.agents.agent_episode import AgentHost, run_agent_episode
from milepost.actors.agents.config import AgentConfig
from milepost.actors.agents.endpoint import Endpoint
from milepost.actors.agents.program import load_program
from milepost.actors.agents.replies import Replies
from milepost.actors.engine import EngineConfig, SamplingConfig
from milepost.actors.episode import run_episode
from milepost.actors.resources import Limits, RolloutResources
from milepost.actors.tool_reading import ToolReaders
from milepost.actors.user_code import count_if_hung
from milepost.actors.worker import ActorConfig, Play, Worker
from milepost.cluster.base.remains import end_with_this_process
from milepost.cluster.base.restarts import RestartConfig
from milepost.cluster.pools.engines import Rotation, RoutedEngines
from milepost.cluster.pools.ledger_source import BufferSink, LedgerSource, untransportable
from milepost.cluster.replay.buffer import BufferConfig, TrajectoryBuffer
from milepost.cluster.replay.client import connect
from milepost.cluster.replay.ledger import Ledger
from milepost.cluster.replay.task_success import TaskSuccess
from milepost.cluster.replay.wire import WireError, encode
from milepost.cluster.trajectories.recording import EVALUATION, Batch, RecordingQueue
from milepost.envs.dialogue import Dialogue
from milepost.envs.scenarios import ScenarioConfig, ScenarioSet
from milepost.envs.types import Task
from milepost.reward.reward import load_reward

_MOST_THREADS = 256
"""In a call at the same time: where calls compute, each of them takes as many times as long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """What every worker of a run is started with."""

    run_id: str
    redis_url: str
    model: Path
    env: Sequence[ScenarioConfig]
    agent: AgentConfig
    actors: ActorConfig
    engine: EngineConfig
    sampling: SamplingConfig
    buffer: BufferConfig
    reward_path: str
    group_size: int
    restarts: RestartConfig

    @property
    def concurrent_episodes(self) -> int:
        """Episodes that a worker plays side by side."""
        return self.actors.concurrent_groups * self.group_size


def resources_for(spec: WorkerSpec, engines: RoutedEngines) -> RolloutResources:
    """What episodes share: tokenizer, reward, limits, threads. Raises what a bad path or template raises."""
    tokenizer = AutoTokenizer.from_pretrained(spec.model, trust_remote_code=False)
    dialogue = Dialogue(tokenizer, spec.actors.system_prompt)
    names = {"tool_parser": spec.actors.tool_parser, "reasoning_parser": spec.actors.reasoning_parser}
    return RolloutResources(
        engine=engines,
        dialogue=dialogue,
        readers=ToolReaders(tokenizer, dialogue, **names),
        decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
        places=threading.Semaphore(spec.actors.env_threads or min(spec.concurrent_episodes, _MOST_THREADS)),
        limits=Limits(
            max_turns=spec.actors.max_turns,
            env_timeout_s=spec.actors.env_timeout_s,
            episode_timeout_s=spec.actors.episode_timeout_s,
            max_observation_chars=spec.actors.max_observation_chars,
            max_prompt_tokens=spec.engine.max_model_len - spec.sampling.max_tokens,
            window_turns=spec.actors.window_turns,
        ),
        reward=load_reward(spec.reward_path) if spec.reward_path else None,
    )


def agent_host(spec: WorkerSpec, resources: RolloutResources, endpoint: Endpoint) -> AgentHost:
    """What the episodes of the run's agent program share. Raises what a bad path raises."""
    assert isinstance(resources.dialogue, Dialogue)
    return AgentHost(
        program=load_program(spec.agent, partial(count_if_hung, resources)),
        endpoint=endpoint,
        layout=resources.dialogue,
        read=Replies(resources.readers, resources.decode, resources.dialogue.control_tokens).read,
        max_tokens=spec.agent.max_tokens,
        places=asyncio.Semaphore(spec.agent.concurrent_episodes),
    )


class WorkerActor:
    """One worker process."""

    def __init__(self, spec: WorkerSpec, name: str, number: int, rotation: Rotation, *, records: bool) -> None:
        end_with_this_process()
        self._spec = spec
        self._engines = RoutedEngines(
            rotation,
            worker=number,
            request_timeout_s=spec.engine.request_timeout_s,
            start_timeout_s=spec.engine.start_timeout_s,
        )
        self._resources = resources_for(spec, self._engines)
        self._recordings = RecordingQueue()
        self._resources.recorder = self._recordings if records else None
        self._play_one: Play = partial(run_episode, self._resources)
        self._endpoint: Endpoint | None = None
        if spec.agent.name:
            self._endpoint = Endpoint()
            self._play_one = partial(
                run_agent_episode, agent_host(spec, self._resources, self._endpoint), self._resources
            )
        client = connect(spec.redis_url)
        self._worker = Worker(
            self._resources,
            self._play_one,
            LedgerSource(
                Ledger(client, spec.run_id),
                TaskSuccess(client, spec.run_id),
                ScenarioSet(spec.env),
                owner=name,
                group_size=spec.group_size,
                lease_s=spec.buffer.lease_s,
            ),
            BufferSink(TrajectoryBuffer(client, spec.run_id, spec.buffer), self._recordings),
            concurrent_groups=spec.actors.concurrent_groups,
        )
        self._played = 0

    async def run(self) -> int:
        """Play groups until stopped; returns the number of environment calls that hung."""
        await self._open()
        return await self._worker.run(renew_every_s=self._spec.buffer.lease_s / 3)

    async def play(self, tasks: list[tuple[int, Task]]) -> list[bytes]:
        """Play each task once under its number, outside the ledger: evaluation. What came of it, encoded."""
        await self._open()
        gate = asyncio.Semaphore(self._spec.concurrent_episodes)

        async def one(index: int, task: Task) -> bytes:
            async with gate:
                result = await self._play_one(task=task, group_id=EVALUATION, index=index)
            self._played += 1
            try:
                return encode(result, max_bytes=self._spec.buffer.max_entry_bytes)
            except WireError as error:
                return encode(untransportable(result, error))

        return list(await asyncio.gather(*(one(index, task) for index, task in tasks)))

    async def _open(self) -> None:
        """Have the endpoint listen, where agents need one."""
        if self._endpoint is not None:
            await self._endpoint.start()

    async def played(self) -> int:
        """Episodes that `play` has ended so far."""
        return self._played

    async def take_recordings(self) -> Batch:
        """The episodes that ended since it was last asked."""
        return self._recordings.take()

    async def set_rotation(self, rotation: Rotation) -> None:
        """The engines now in rotation."""
        self._engines.set_rotation(rotation)

    async def stop(self) -> None:
        """Take no new groups."""
        self._worker.stop()

    async def ping(self) -> int:
        """The process id; also the health probe."""
        return os.getpid()
