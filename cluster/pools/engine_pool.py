"""The pool of inference engines: started together, moved from version to version together, replaced one by one.

An engine is in rotation only while it serves the published policy version: one that dies or fails an update leaves the
rotation at once, and its replacement serves after a verified refit, never before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from milepost.actors.engine import Completion, environment
from milepost.cluster.base.exits import DependencyLost
from milepost.cluster.pools.engines import EngineActor, EngineSpec, last_line, sampling_seed
from milepost.cluster.pools.weights import Delivery
from milepost.envs.types import Turn

logger = logging.getLogger(__name__)
_MAX_CALLS = 100_000
"""Under way in an engine's actor: probes and updates must never queue behind the requests of many episodes."""
_PROBE_TIMEOUT_S = 10.0


@dataclass(slots=True)
class _Slot:
    index: int
    version: int
    handle: Any = None
    starts: int = 0
    serving: bool = False
    waits_for_weights: bool = False
    """Up, but on old weights that only the next publication can replace."""
    restart: asyncio.Task[None] | None = None


class EnginePool:
    """All engines of a run: start, publish weights to them, probe them, replace the dead."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._slots: list[_Slot] = []
        self._published: Delivery | None = None
        self._updating = asyncio.Lock()
        self.restarts = 0

    async def start(self) -> None:
        """Start all engines side by side. Raises DependencyLost with the cause if one does not serve in time."""
        self._slots = [_Slot(i, self._spec.version) for i in range(self._spec.config.num_engines)]
        for slot in self._slots:
            slot.handle = self._spawn(slot)
        await asyncio.gather(*(self._bring_up(slot) for slot in self._slots))

    def _spawn(self, slot: _Slot) -> Any:
        seed = sampling_seed(self._spec.seed, engine=slot.index, start=slot.starts, version=self._spec.version)
        slot.starts += 1
        return self._launch(replace(self._spec, seed=seed))

    def _launch(self, spec: EngineSpec) -> Any:
        gpus = self._spec.config.tensor_parallel_size if ray.cluster_resources().get("GPU") else 0
        actor = ray.remote(EngineActor).options(
            num_cpus=1,
            num_gpus=gpus,
            max_concurrency=_MAX_CALLS,
            runtime_env={"env_vars": environment(self._spec.config)},
        )
        return actor.remote(spec)

    async def _bring_up(self, slot: _Slot) -> None:
        timeout = self._spec.config.start_timeout_s
        try:
            async with asyncio.timeout(timeout):
                slot.version = await slot.handle.start.remote()
        except TimeoutError:
            raise DependencyLost(
                f"engine {slot.index} does not serve after engine.start_timeout_s = {timeout:g}: see its log"
            ) from None
        except RayError as error:
            cause = str(error).strip().splitlines()[-1]
            raise DependencyLost(f"engine {slot.index} could not start from {self._spec.model}: {cause}") from error
        slot.serving = True

    @property
    def handles(self) -> list[Any]:
        """Engines in rotation."""
        return [slot.handle for slot in self._slots if slot.serving]

    async def publish(self, weights: Delivery, *, rollback: bool = False) -> None:
        """Move every engine to `weights`: deliver, compare digests, commit, resume. Failing engines are replaced.

        `rollback`: the learner went back to a checkpoint, so the version may be an older one. Raises DependencyLost
        if no engine is left in rotation.
        """
        async with self._updating:
            self._published = weights
            slots = [slot for slot in self._slots if slot.serving or slot.waits_for_weights]
            delivered = await weights.deliver([slot.handle for slot in slots], self._spec.config.update_timeout_s)
            reference = next((digests for digests in delivered if digests is not None), None)
            for slot, digests in zip(slots, delivered, strict=True):
                if digests is None or digests != reference:
                    self._quarantine(slot, f"its weights of version {weights.version} could not be verified")
                else:
                    await self._commit(slot, weights, rollback)
        if not self.handles and not self._replacing:
            raise DependencyLost(f"no engine took the weights of version {weights.version}")

    @property
    def _replacing(self) -> bool:
        return any(slot.restart is not None for slot in self._slots)

    async def _commit(self, slot: _Slot, weights: Delivery, rollback: bool) -> None:
        try:
            async with asyncio.timeout(self._spec.config.update_timeout_s):
                slot.version = await slot.handle.commit.remote(weights.version, rollback)
            slot.serving, slot.waits_for_weights = True, False
        except (RayError, TimeoutError) as error:
            self._quarantine(slot, f"commit of version {weights.version} failed: {last_line(error)}")

    async def sample(self, prompts: Sequence[list[int]]) -> list[Turn]:
        """Every engine in rotation answers every prompt, for no environment; an engine that is lost answers nothing."""
        calls = [
            (prompt, slot.handle.generate.remote(prompt)) for slot in self._slots if slot.serving for prompt in prompts
        ]
        answers = await asyncio.gather(*(_answer(call) for _, call in calls))
        return [_turn(prompt, answer) for (prompt, _), answer in zip(calls, answers, strict=True) if answer is not None]

    async def probe(self) -> list[float]:
        """Ask every engine in rotation how long it was busy, in seconds; one that does not answer is replaced."""
        for slot in self._slots:
            if slot.restart is not None and slot.restart.done():
                slot.restart.result()
                slot.restart = None
        found = []
        for slot in [slot for slot in self._slots if slot.serving]:
            try:
                async with asyncio.timeout(_PROBE_TIMEOUT_S):
                    found.append(await slot.handle.busy_s.remote())
            except RayActorError as error:
                self._quarantine(slot, f"died: {last_line(error)}")
            except TimeoutError:
                self._quarantine(slot, f"did not answer a probe within {_PROBE_TIMEOUT_S:g} s")
        return found

    async def busy_s(self) -> float:
        """Seconds that the busiest engine has generated since it started; a replaced one counts from 0."""
        return max(await self.probe(), default=0.0)

    def _quarantine(self, slot: _Slot, reason: str) -> None:
        slot.serving = False
        if slot.restart is not None and not slot.restart.done():
            return  # `_replace` itself is told by `serving`
        self.restarts += 1
        if self.restarts > self._spec.config.max_restarts:
            raise DependencyLost(f"engine {slot.index} {reason}; engine.max_restarts is used up")
        logger.warning("engine %d out of rotation: %s; replacing it", slot.index, reason)
        ray.kill(slot.handle)
        slot.restart = asyncio.create_task(self._replace(slot))

    async def _replace(self, slot: _Slot) -> None:
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
            (digests,) = await latest.deliver([slot.handle], self._spec.config.update_timeout_s)
            if digests is None:
                raise DependencyLost(f"engine {slot.index} was replaced but refuses the weights of {latest.version}")
            await self._commit(slot, latest, rollback=True)
        if not slot.serving:
            raise DependencyLost(f"engine {slot.index} was replaced but does not serve version {latest.version}")
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


async def _answer(call: Awaitable[Completion]) -> Completion | None:
    try:
        return await call
    except RayError as error:
        logger.warning("an engine did not answer a parity prompt: %s", last_line(error))
        return None


def _turn(prompt: list[int], answer: Completion) -> Turn:
    return Turn(
        prompt_ids=prompt,
        response_ids=answer.response_ids,
        logprobs=answer.logprobs,
        versions=answer.versions,
        anchor="",
        next_anchor="",
        action=None,
        reward=0.0,
    )
