"""The parts of a running system, started in order and stopped in reverse: Redis, Ray, learners, engines, workers.

What is started here ends with this process: Redis and vLLM's children by the kernel, Ray's by Ray. Local mode and a
cluster differ only in where Redis and Ray come from.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from milepost.cluster.base.exits import ConfigError, DependencyLost
from milepost.cluster.base.failure_streak import FailureStreak
from milepost.cluster.base.weight_folders import WeightFolder
from milepost.cluster.hosts.check import require_hosts
from milepost.cluster.hosts.places import Places, hosts
from milepost.cluster.hosts.ray_start import RayStart
from milepost.cluster.placement.adapters import require_adapters
from milepost.cluster.placement.hosts import installed_build
from milepost.cluster.placement.plan import Placement, engines_sleep, place
from milepost.cluster.pools.engine_pool import EnginePool
from milepost.cluster.pools.engine_process import EngineSpec
from milepost.cluster.pools.learner_process import LearnerSpec
from milepost.cluster.pools.learners import LearnerPool
from milepost.cluster.pools.trial import Trial, require_updates
from milepost.cluster.pools.worker_process import WorkerSpec
from milepost.cluster.pools.workers import WorkerPool
from milepost.cluster.preflight import check_dialogue, judge_model
from milepost.cluster.publication import Publisher
from milepost.cluster.replay import redis_server
from milepost.cluster.replay.buffer import TrajectoryBuffer
from milepost.cluster.replay.client import BufferRefused, Client, check_server, connect
from milepost.cluster.replay.ledger import Ledger
from milepost.cluster.replay.own_redis import keep_from_expiry
from milepost.cluster.replay.redis_server import RedisServer
from milepost.cluster.runlog.runs import RunFolder
from milepost.cluster.settings.config import RunConfig, config_hash
from milepost.cluster.trajectories.recording import Batch
from milepost.envs.dialogue import Dialogue
from milepost.envs.scenarios import ScenarioSet
from milepost.learner.loss.objective import Objective
from milepost.learner.recipe import Recipe

logger = logging.getLogger(__name__)
_HOPELESS_GROUPS = 8
_TEND_EVERY_S = 1.0
_TRIAL_PROMPTS = 8


@dataclass(slots=True)
class System:
    """Everything that runs. Built by `start`; `stop` ends it and may be called at any point of the start."""

    config: RunConfig
    folder: RunFolder
    scenarios: ScenarioSet
    redis: Client = field(init=False)
    ledger: Ledger = field(init=False)
    buffer: TrajectoryBuffer = field(init=False)
    engines: EnginePool = field(init=False)
    learners: LearnerPool = field(init=False)
    workers: WorkerPool = field(init=False)
    weights: WeightFolder = field(init=False)
    publisher: Publisher = field(init=False)
    redis_process: RedisServer | None = None
    note: Callable[[str], None] = logger.warning  # is told of what this waits for
    record: Callable[[Batch], None] | None = None  # is given what workers tell of their episodes
    _ray_metrics_port: int | None = field(default=None, init=False)
    _failing: FailureStreak = field(init=False)
    _ending: AsyncExitStack = field(default_factory=AsyncExitStack)  # of what was started so far, last started first

    def __post_init__(self) -> None:
        self._failing = FailureStreak(
            episodes=_HOPELESS_GROUPS * self.config.run.group_size, give_up_after_s=self.config.actors.give_up_after_s
        )

    async def start(
        self, model: Path, version: int, *, learner: LearnerSpec | None, phase: Callable[[str], None]
    ) -> None:
        """Start all parts on the policy in `model`, called `version`.

        Raises ConfigError for what the user can mend, DependencyLost for a part that does not come up.
        """
        judge_model(self.config, model, trained=learner is not None)
        dialogue = await asyncio.to_thread(check_dialogue, self.config, model, self.scenarios)
        phase("starting Redis")
        url = await self._start_redis()
        phase("starting Ray")
        ray = RayStart(self.config.run.ray_address)
        self._ending.push_async_callback(ray.end)
        await ray.begin()
        trains = learner is not None
        models = [model, *([learner.model] if learner else [])]
        await require_hosts(models, redis_url=url if trains else None, run=self.folder.path if trains else None)
        placement = place(self.config, hosts(), installed_build(), learns=learner is not None, is_final=ray.is_own)
        places, sleeps = await self._reserve(placement), engines_sleep(self.config, placement)
        phase("starting the engine and the learner" if learner else "starting the engine")
        spec = EngineSpec(
            model=model,
            base=learner.model if learner and learner.lora.rank else None,
            version=version,
            config=self.config.engine,
            sampling=self.config.sampling,
            stop_token_ids=tuple(dialogue.stop_token_ids),
            seed=self.config.run.seed,
            restarts=self.config.restarts,
            sleeps=sleeps,
        )
        self.engines = EnginePool(spec, places.engines, self.note)
        self._ray_metrics_port = ray.metrics_port
        self._ending.push_async_callback(self.engines.stop)
        if learner:
            self.weights = WeightFolder(self.folder.run_id)
            self._ending.callback(self.weights.close)
            self.learners = LearnerPool(replace(learner, shares_gpu=sleeps), self.weights, places.ranks)
            self._ending.push_async_callback(self.learners.stop)
            self.publisher = Publisher(
                learners=self.learners,
                engines=self.engines,
                ledger=self.ledger,
                weights=self.weights,
                beside_training=self.config.run.max_staleness > 0,
            )
            self._ending.push_async_callback(self.publisher.end)
        rest = self._start_rest(learner, self._worker_spec(url, model), places)
        if placement.shares_gpus:  # the engine measures what it finds free
            await rest
            await self.engines.start()
        else:
            await _side_by_side([self.engines.start(), rest])
        if learner and self.config.engine.transfer != "nccl":
            phase("trying an update of the weights")
            await require_updates(self._trial(model, version, dialogue, sleeps=sleeps), self.engines, self.weights)
        await self.workers.tend(self.engines.rotation)

    async def _reserve(self, placement: Placement) -> Places:
        """Reserve what the run takes of Ray, and say where that is less than whole CPUs and GPUs."""
        if placement.shares_gpus:
            shared = sum(part.gpus < 1 for part in placement.ranks)
            self.note(f"there are too few GPUs for each part: {shared} hold an engine and a learner rank each")
        if (share := placement.workers[0].cpus) < 1:
            self.note(f"Ray has fewer CPUs than the run has processes: each takes {share:g} of one")
        room_timeout_s = self.config.restarts.room_timeout_s
        places = Places(placement, self.folder.run_id, room_timeout_s=room_timeout_s, note=self.note)
        self._ending.callback(places.release)
        await places.reserved(self.config.engine.start_timeout_s)
        return places

    async def _start_rest(self, learner: LearnerSpec | None, spec: WorkerSpec, places: Places) -> None:
        """The learner, then the workers: both are there before the engine is, which takes longest."""
        if learner:
            await self.learners.start()
        self.workers = WorkerPool(spec, self.ledger, self.engines.rotation, self.record, places.workers)
        self._ending.push_async_callback(self.workers.stop)

    def _trial(self, model: Path, version: int, dialogue: Dialogue, *, sleeps: bool) -> Trial:
        return Trial(
            model=model,
            version=version,
            prompts=[dialogue.opening(" ".join(map(str, range(k)))) for k in range(1, 1 + _TRIAL_PROMPTS)],
            temperature=self.config.sampling.temperature,
            limit=self.config.learner.parity_limit,
            timeout_s=self.config.engine.update_timeout_s,
            transfer=self.config.engine.transfer,
            sleeps=sleeps,
        )

    async def _start_redis(self) -> str:
        config = self.config.buffer
        try:
            if not config.url_env:
                self.redis_process = redis_server.start(self.folder.redis, maxmemory_bytes=config.maxmemory_bytes)
                self._ending.callback(self.redis_process.stop)
            url = self.redis_process.url if self.redis_process else config.url
            self.redis = connect(url, patience_s=self.config.run.stall_timeout_s, note=self.note)
            self._ending.push_async_callback(self.redis.aclose)
            await check_server(self.redis, maxmemory_bytes=config.maxmemory_bytes)
            self.ledger = Ledger(self.redis, self.folder.run_id)
            self.buffer = TrajectoryBuffer(self.redis, self.folder.run_id, config)
            run = self.config.run
            await self.ledger.configure(
                groups_per_update=run.groups_per_iteration, max_staleness=run.max_staleness, limits=config
            )
        except BufferRefused as error:
            raise ConfigError(str(error)) from error
        return url

    def _worker_spec(self, url: str, model: Path) -> WorkerSpec:
        return WorkerSpec(
            run_id=self.folder.run_id,
            redis_url=url,
            model=model,
            env=self.config.envs,
            agent=self.config.agent,
            actors=self.config.actors,
            engine=self.config.engine,
            sampling=self.config.sampling,
            buffer=self.config.buffer,
            reward_path=self.config.reward.path,
            group_size=self.config.run.group_size,
            restarts=self.config.restarts,
        )

    @property
    def metrics_ports(self) -> dict[str, int]:
        """Where a Ray of our own and its engines serve metrics of their own, on loopback; empty before they run."""
        if self._ray_metrics_port is None:
            return {}
        engines = {f"engine-{index}": port for index, port in self.engines.metrics_ports.items()}
        return {"ray": self._ray_metrics_port, **engines}

    async def tend(self) -> None:
        """Care without end: probe engines, replace what died, give lost groups out again. Raises DependencyLost."""
        keys = keep_from_expiry(self.redis, self.folder.run_id, expiry_s=self.config.buffer.expiry_s)
        await _side_by_side([self._tend_redis(), keys, self._tend_parts()])

    async def _tend_redis(self) -> None:
        """By itself: all else may be waiting for Redis to come back."""
        while self.redis_process is not None:
            if not self.redis_process.alive:
                logger.warning("redis-server ended; starting it again on its append-only file")
                self.redis_process.revive()
            await asyncio.sleep(_TEND_EVERY_S)

    async def _tend_parts(self) -> None:
        while True:
            self.publisher.look()
            await self.engines.probe()
            await self.workers.tend(self.engines.rotation)
            await self.ledger.reclaim()
            await self.buffer.close_overdue()
            await self._give_up_on_hopeless()
            await asyncio.sleep(_TEND_EVERY_S)

    async def _give_up_on_hopeless(self) -> None:
        """End a run in which episodes do nothing but fail: waiting would change nothing and says nothing."""
        counts = (await self.ledger.balance()).counts
        failed = (counts["env_failed"], counts["infra_failed"])
        good = sum(counts.values()) - sum(failed) - counts["issued"] - counts["running"]
        streak = self._failing.see(
            good=good, by_env=failed[0], by_infra=failed[1], is_excused=self.engines.is_replacing
        )
        if streak is not None:
            cause = f"{streak}; the last one: {await self.ledger.last_failure()}"
            raise ConfigError(cause) if streak.by_env else DependencyLost(cause)

    async def stop(self) -> None:
        """End everything that was started, in reverse order; no process of ours is left."""
        await self._ending.aclose()


async def _side_by_side(starts: list[Coroutine[Any, Any, None]]) -> None:
    """Await all; the first failure is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for start in starts:
                group.create_task(start)
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors


def learner_spec(config: RunConfig, folder: RunFolder, model: Path, first: Path | None) -> LearnerSpec:
    """What the learner ranks of a run are started with: the policy in `model`, or adapters on the run's `first` one.

    Raises ConfigError where that one has no layers for adapters.
    """
    base = first if config.lora.rank else None
    if base is not None:
        require_adapters(base, config.lora)
    return LearnerSpec(
        run_id=folder.run_id,
        model=base or model,
        reference=first if config.loss.kl_coef > 0 and base is None else None,
        lora=config.lora,
        recipe=Recipe(
            learner=config.learner,
            credit=config.credit,
            filter=config.filter,
            objective=Objective(loss=config.loss, offpolicy=config.offpolicy, entropy=config.entropy),
            critic=config.critic,
            temperature=config.sampling.temperature,
        ),
        seed=config.run.seed,
        checkpoints=folder.checkpoints,
        keep_checkpoints=config.run.keep_checkpoints,
        config_hash=config_hash(config),
        transfer=config.engine.transfer,
        workers_per_engine=config.engine.tensor_parallel_size,
        restarts=config.restarts,
    )
