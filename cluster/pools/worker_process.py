"""What runs in a rollout worker's process: its tokenizer and threads, where its groups come from, where episodes go.

It takes groups from the ledger under a lease and puts finished episodes into the buffer. What it does not look after is
its own end: `milepost.cluster.pools.workers` replaces it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from milepost.actors.engine import EngineConfig, SamplingConfig
from milepost.actors.episode import Limits, RolloutResources, run_episode
from milepost.actors.worker import ActorConfig, Ticket, Worker
from milepost.cluster.pools.engines import RoutedEngine
from milepost.cluster.replay.buffer import BufferConfig, TrajectoryBuffer
from milepost.cluster.replay.client import BufferUnavailable, connect
from milepost.cluster.replay.ledger import Ledger
from milepost.cluster.replay.wire import WireError
from milepost.envs.dialogue import Dialogue
from milepost.envs.scenarios import ScenarioConfig, ScenarioSet
from milepost.envs.types import Failure, Task, Trajectory
from milepost.reward.reward import load_reward

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """What every worker of a run is started with."""

    run_id: str
    redis_url: str
    model: Path
    env: ScenarioConfig
    actors: ActorConfig
    engine: EngineConfig
    sampling: SamplingConfig
    buffer: BufferConfig
    reward_path: str
    group_size: int


def resources_for(spec: WorkerSpec, engine: RoutedEngine) -> RolloutResources:
    """What episodes share: tokenizer, reward, limits, threads. Raises what a bad path or template raises."""
    tokenizer = AutoTokenizer.from_pretrained(spec.model, trust_remote_code=False)
    return RolloutResources(
        engine=engine,
        dialogue=Dialogue(tokenizer, spec.actors.system_prompt),
        decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
        executor=ThreadPoolExecutor(spec.actors.env_threads, thread_name_prefix="env"),
        limits=Limits(
            max_turns=spec.actors.max_turns,
            env_timeout_s=spec.actors.env_timeout_s,
            episode_timeout_s=spec.actors.episode_timeout_s,
            max_prompt_tokens=spec.engine.max_model_len - spec.sampling.max_tokens,
            window_turns=spec.actors.window_turns,
        ),
        reward=load_reward(spec.reward_path) if spec.reward_path else None,
    )


class LedgerSource:
    """Groups as the ledger gives them out: first those that a lost worker left behind, then new ones."""

    def __init__(self, ledger: Ledger, spec: WorkerSpec, owner: str) -> None:
        self._ledger = ledger
        self._spec = spec
        self._owner = owner
        self._scenarios = ScenarioSet(spec.env)

    async def next_group(self) -> Ticket | None:
        """A group to play, or None while admission is closed or Redis away."""
        try:
            return await self._next()
        except BufferUnavailable as error:
            logger.warning("no new groups: %s", error)
            return None

    async def _next(self) -> Ticket | None:
        lease_s = self._spec.buffer.lease_s
        left = await self._ledger.adopt(self._owner, lease_s)
        if left is not None:
            return Ticket(group_id=left.group_id, task=left.task, indices=tuple(left.missing))
        sequence = await self._ledger.next_sequence(self._owner)
        task = self._scenarios.schedule(sequence)
        group_id = f"g{sequence:08d}"
        size = self._spec.group_size
        if not await self._ledger.issue(task=task, group_id=group_id, size=size, owner=self._owner, lease_s=lease_s):
            return None
        return Ticket(group_id=group_id, task=task, indices=tuple(range(size)))

    async def renew(self, group_ids: list[str]) -> None:
        """Extend the leases of groups under way; one that runs out meanwhile is given to another worker."""
        try:
            await self._ledger.renew(group_ids, self._owner, self._spec.buffer.lease_s)
        except BufferUnavailable as error:
            logger.warning("leases not renewed: %s", error)


class BufferSink:
    """Finished episodes into the buffer, waiting while it is full."""

    def __init__(self, buffer: TrajectoryBuffer) -> None:
        self._buffer = buffer

    async def put(self, result: Trajectory | Failure) -> None:
        """Store one result; a trajectory that is too large becomes a failure of its environment.

        Raises BufferUnavailable at the deadline, naming what it waited for.
        """
        try:
            await self._buffer.put_with_backpressure(result)
        except WireError as error:
            failure = Failure(
                task=result.task,
                group_id=result.group_id,
                index=result.index,
                boundary="env",
                error=type(error).__name__,
                message=f"{error}; raise buffer.max_entry_bytes, or shorten episodes and observations",
                turn=len(result.turns) if isinstance(result, Trajectory) else 0,
                cohort=result.cohort,
            )
            await self._buffer.put_with_backpressure(failure)


class WorkerActor:
    """One worker process."""

    def __init__(self, spec: WorkerSpec, name: str, engines: list[Any]) -> None:
        self._spec = spec
        self._engine = RoutedEngine(engines, request_timeout_s=spec.engine.request_timeout_s)
        self._resources = resources_for(spec, self._engine)
        client = connect(spec.redis_url)
        self._worker = Worker(
            self._resources,
            LedgerSource(Ledger(client, spec.run_id), spec, name),
            BufferSink(TrajectoryBuffer(client, spec.run_id, spec.buffer)),
            concurrent_groups=spec.actors.concurrent_groups,
        )
        self._played = 0

    async def run(self) -> int:
        """Play groups until stopped; returns the number of environment calls that hung."""
        return await self._worker.run(renew_every_s=self._spec.buffer.lease_s / 3)

    async def play(self, tasks: list[tuple[int, Task]], concurrency: int) -> list[Trajectory | Failure]:
        """Play each task once under its number, outside the ledger: evaluation."""
        gate = asyncio.Semaphore(concurrency)

        async def one(index: int, task: Task) -> Trajectory | Failure:
            async with gate:
                result = await run_episode(self._resources, task=task, group_id="eval", index=index)
            self._played += 1
            return result

        return list(await asyncio.gather(*(one(index, task) for index, task in tasks)))

    async def played(self) -> int:
        """Episodes that `play` has ended so far."""
        return self._played

    async def set_engines(self, engines: list[Any]) -> None:
        """The engines now in rotation."""
        self._engine.set_handles(engines)

    async def stop(self) -> None:
        """Take no new groups."""
        self._worker.stop()

    async def ping(self) -> int:
        """The process id; also the health probe."""
        return os.getpid()
