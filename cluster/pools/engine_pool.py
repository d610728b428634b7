"""The pool of inference engines: started together, moved from version to version together, replaced one by one.

An engine is in rotation only while it serves the published policy version: one that dies or fails an update leaves the
rotation at once, and its replacement serves after a verified refit, never before. One that cannot be replaced, because
its restarts are used up or its host is gone, is missed: the others serve, while enough of them are left.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from milepost.actors.engine import environment
from milepost.cluster.base.exits import DependencyLost
from milepost.cluster.base.restarts import RestartBudget
from milepost.cluster.hosts.places import Place
from milepost.cluster.hosts.ray_start import last_line
from milepost.cluster.pools.engine_process import EngineActor, EngineSpec
from milepost.cluster.pools.engine_slot import EngineSlot, sampling_seed
from milepost.cluster.pools.engines import Rotation
from milepost.cluster.pools.weights import Delivery, Digests, Seconds, agree
from milepost.learner.timing import timed

T = TypeVar("T")
logger = logging.getLogger(__name__)
_MAX_CALLS = 100_000
"""Under way in an engine's actor: probes and updates must never queue behind the requests of many episodes."""
_PROBE_WAIT_S = 1.0
"""How long a call waits for answers: who calls has more to do, and the next call looks again."""


class EnginePool:
    """All engines of a run: start, publish weights to them, probe them, replace the dead."""

    def __init__(self, spec: EngineSpec, place: Place, note: Callable[[str], None] = logger.warning) -> None:
        """`note` is told of engines that are missed, and of their return."""
        self._spec = spec
        self._place = place
        self._note = note
        self._slots: list[EngineSlot] = []
        self._published: Delivery | None = None
        self._digests: Digests = {}
        """Of the weights published, as an engine that holds them told them."""
        self._updating = asyncio.Lock()
        self._awake, self.asleep = asyncio.Event(), asyncio.Event()
        """Of GPUs that engines and ranks share: whether engines, and whether ranks, may compute there."""
        self._awake.set()
        if not spec.sleeps:
            self.asleep.set()
        self._budget = RestartBudget(spec.restarts.max_per_engine, spec.restarts.window_s)

    @property
    def restarts(self) -> int:
        """Replacements so far."""
        return self._budget.total

    async def start(self) -> None:
        """Start all engines side by side. Raises DependencyLost with the cause if one does not serve in time."""
        slots = [EngineSlot(index, self._spec.version) for index in range(self._spec.config.num_engines)]
        for slot in slots:
            slot.handle = self._spawn(slot)
        self._slots = slots
        await asyncio.gather(*(self._begin(slot) for slot in slots))

    async def _begin(self, slot: EngineSlot) -> None:
        try:
            await self._bring_up(slot)
        except DependencyLost as error:
            raise DependencyLost(f"engine {slot.index} {error}") from error

    def _spawn(self, slot: EngineSlot) -> Any:
        seed = sampling_seed(self._spec.seed, engine=slot.index, start=slot.starts, version=self._spec.version)
        slot.starts += 1
        return self._launch(replace(self._spec, seed=seed), slot.index)

    def _launch(self, spec: EngineSpec, index: int) -> Any:
        actor = ray.remote(EngineActor).options(
            max_concurrency=_MAX_CALLS,
            runtime_env={"env_vars": environment(self._spec.config)},
            **self._place.options(index),
        )
        return actor.remote(spec)

    async def _bring_up(self, slot: EngineSlot) -> None:
        timeout = self._spec.config.start_timeout_s
        try:
            async with asyncio.timeout(timeout):
                slot.version = await slot.handle.start.remote()
        except TimeoutError:
            raise DependencyLost(f"does not serve after engine.start_timeout_s = {timeout:g}: see its log") from None
        except RayError as error:
            cause = str(error).strip().splitlines()[-1]
            raise DependencyLost(f"could not start from {self._spec.model}: {cause}") from error
        slot.serving = True
        self._budget.came_up(slot.index)

    @property
    def rotation(self) -> Rotation:
        """Engines in rotation, and whether another one is coming."""
        return Rotation(self.handles, self.is_replacing)

    @property
    def handles(self) -> list[Any]:
        """Engines in rotation."""
        return [slot.handle for slot in self._slots if slot.serving]

    @property
    def served(self) -> dict[int, int | None]:
        """The policy version that each engine serves, by its index; None while it is not in rotation."""
        return {slot.index: slot.version if slot.serving else None for slot in self._slots}

    @property
    def metrics_ports(self) -> dict[int, int]:
        """Where engines in rotation serve vLLM's own metrics, on the loopback interface of their host."""
        return {slot.index: slot.metrics_port for slot in self._slots if slot.serving and slot.metrics_port}

    async def sleep(self) -> None:
        """Have the engines leave their GPUs to the ranks until the next `publish`, where both share them.

        One that does not is replaced, as is one that dies meanwhile: after that publication.
        """
        if self.asleep.is_set():
            return
        if starting := [slot.restart for slot in self._slots if slot.restart is not None]:
            await asyncio.wait(starting, timeout=self._spec.config.start_timeout_s)
        self._awake.clear()
        await asyncio.gather(*(self._told(s, s.handle.sleep.remote(), "stays awake") for s in self._slots if s.serving))
        self.asleep.set()

    async def publish(self, weights: Delivery, *, rollback: bool = False) -> Seconds:
        """Move every engine to `weights`: deliver, compare digests, commit, resume. Failing engines are replaced.

        `rollback`: the version may be an older one. Returns seconds by part. Raises DependencyLost if none is left.
        """
        seconds: Seconds = {}
        async with self._updating:
            self._published = weights
            if self._spec.sleeps:
                self.asleep.clear()
            slots = [slot for slot in self._slots if slot.serving or slot.waits_for_weights]
            timeout_s = self._spec.config.update_timeout_s
            delivered = await weights.deliver([slot.handle for slot in slots], timeout_s, seconds)
            self._digests = next((digests for digests in delivered if digests is not None), {})
            verified = []
            for slot, digests in zip(slots, delivered, strict=True):
                if digests is None or not agree(digests, self._digests):
                    self._quarantine(slot, f"its weights of version {weights.version} could not be verified")
                else:
                    verified.append(slot)
            with timed(seconds, "commit"):
                await asyncio.gather(*(self._commit(slot, weights, rollback) for slot in verified))
            self._awake.set()
        if not self.handles and not (self.is_replacing and weights.repeatable):
            raise DependencyLost(f"no engine took the weights of version {weights.version}")
        return seconds

    @property
    def is_replacing(self) -> bool:
        """Whether an engine is being started again, or waited for until a host has room."""
        return any(slot.is_expected for slot in self._slots)

    async def _commit(self, slot: EngineSlot, weights: Delivery, rollback: bool) -> None:
        call = slot.handle.commit.remote(weights.version, rollback)
        if (version := await self._told(slot, call, f"commit of version {weights.version} failed")) is not None:
            slot.version, slot.serving, slot.waits_for_weights = version, True, False

    async def _told(self, slot: EngineSlot, call: Awaitable[T], complaint: str) -> T | None:
        """What an engine answers; one that does not is replaced, for that `complaint`."""
        try:
            async with asyncio.timeout(self._spec.config.update_timeout_s):
                return await call
        except (RayError, TimeoutError) as error:
            self._quarantine(slot, f"{complaint}: {last_line(error)}")
            return None

    async def probe(self) -> list[float]:
        """Ask every engine in rotation how it is; one that died, or answers no probe or no request, is replaced.

        Returns the seconds that each of them was busy, as far as it said.
        """
        self._look_after_restarts()
        asked = [slot for slot in self._slots if slot.serving]
        for slot in asked:
            slot.ask()
        probes = [slot.probe for slot in asked if slot.probe is not None]
        if probes:
            await asyncio.wait(probes, timeout=_PROBE_WAIT_S)
        for slot in asked:
            if slot.serving and (complaint := slot.complaint(self._spec.config)) is not None:
                self._quarantine(slot, complaint)
        return [slot.busy_s for slot in asked if slot.serving]

    async def busy_s(self) -> float:
        """Seconds that the busiest engine has generated since it started; a replaced one counts from 0."""
        return max(await self.probe(), default=0.0)

    def _look_after_restarts(self) -> None:
        """Try again what did not come up, and what could not be started when it was lost; say what is back."""
        for slot in self._slots:
            if slot.restart is not None and slot.restart.done():
                failed, slot.restart = slot.restart.exception(), None
                if failed is not None and not isinstance(failed, DependencyLost):
                    raise failed
                if failed is not None:
                    self._quarantine(slot, str(failed))
            elif slot.restart is not None and self._place.lost_host(slot.index) is not None:
                slot.restart.cancel()  # Ray has seen later than we did that it was lost with its host
                slot.restart = None
                self._quarantine(slot, "died")
            elif slot.loss:
                self._restart(slot)
            if slot.serving and slot.is_missed:
                slot.is_missed = False
                self._note(f"engine {slot.index} serves again: {self._how_many}")

    @property
    def _how_many(self) -> str:
        return f"{len(self.handles)} of {len(self._slots)} engines serve"

    def _quarantine(self, slot: EngineSlot, reason: str) -> None:
        """Out of rotation at once, and replaced. Raises DependencyLost where that leaves too few engines."""
        slot.serving = slot.waits_for_weights = False
        slot.probe, slot.busy_s, slot.metrics_port = None, 0.0, None
        if slot.restart is not None and not slot.restart.done():
            return  # `_replace` itself is told by `serving`
        logger.warning("engine %d out of rotation: %s", slot.index, reason)
        ray.kill(slot.handle)
        slot.loss = reason
        self._restart(slot)

    def _restart(self, slot: EngineSlot) -> None:
        """Start it again where there is room for it and it has a restart left; else it is missed."""
        limits = self._spec.restarts
        if (host := self._place.lost_host(slot.index)) is not None:
            slot.roomless_since = slot.roomless_since or time.monotonic()
            slot.rests = time.monotonic() - slot.roomless_since >= limits.room_timeout_s
            within = f" within restarts.room_timeout_s = {limits.room_timeout_s:g}" if slot.rests else ""
            return self._miss(slot, f"its host {host} is gone and Ray has no room for it{within}")
        slot.roomless_since = None
        pause_s = self._budget.spend(slot.index)
        slot.rests = pause_s is None
        if pause_s is None:
            used_up = f"restarts.max_per_engine = {limits.max_per_engine} in {limits.window_s:g} s is used up"
            return self._miss(slot, used_up)
        slot.loss = ""
        logger.warning("engine %d is started again in %g s", slot.index, pause_s)
        slot.restart = asyncio.create_task(self._replace(slot, pause_s))

    def _miss(self, slot: EngineSlot, cause: str) -> None:
        """Go on without an engine, and say so once. Raises DependencyLost where too few are left."""
        there = sum(not slot.rests for slot in self._slots)
        if there < self._spec.restarts.min_engines:
            raise DependencyLost(
                f"engine {slot.index} {slot.loss}; {cause}, and {there} engines are left: milepost train --resume goes "
                "on once more can be started"
            )
        if not slot.is_missed:
            slot.is_missed = True
            self._note(f"engine {slot.index} {slot.loss}; {cause}: {self._how_many}")

    async def _replace(self, slot: EngineSlot, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        await self._awake.wait()
        slot.handle, slot.waits_for_weights = self._spawn(slot), False
        await self._bring_up(slot)
        published = self._published
        if published is None or published.version == slot.version:
            return
        slot.serving = False
        if not published.repeatable:
            slot.waits_for_weights = True
            return
        async with self._updating:
            latest = self._published or published
            (digests,) = await latest.deliver([slot.handle], self._spec.config.update_timeout_s, {})
            if digests is None or not agree(digests, self._digests):
                raise DependencyLost(f"was replaced but refuses the weights of version {latest.version}")
            await self._commit(slot, latest, rollback=True)
        if not slot.serving:
            raise DependencyLost(f"was replaced but does not serve version {latest.version}")
        logger.warning("engine %d back in rotation at version %d", slot.index, slot.version)

    async def stop(self) -> None:
        """Shut vLLM down in order, then end the actors."""
        for slot in self._slots:
            if slot.restart is not None:
                slot.restart.cancel()
            try:
                async with asyncio.timeout(10):
                    await slot.handle.shutdown.remote()
            except (RayError, TimeoutError) as error:
                logger.warning("engine %d did not shut down by itself: %s", slot.index, last_line(error))
            ray.kill(slot.handle)
