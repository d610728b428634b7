"""New weights on their way from the learner to the engines, as one verified set per policy version.

Sequence: the weights come to each engine's host and are verified -> the engine pauses (requests are kept) -> it loads
them -> digests of the engines are compared -> the version is committed -> requests go on.

`FileDelivery`: the learner writes one file into shared memory, every engine verifies its hash before it touches its
model; the last file stays, because an engine that is replaced catches up from it. `StoredDelivery`: the same for
several hosts, through Ray's object store (`milepost.cluster.pools.stored_weights`). `NcclDelivery`: learner rank 0
broadcasts to all engines over vLLM's own NCCL backend (`milepost.actors.nccl`); an engine that is replaced catches up
with the next version. Nothing here survives the run: checkpoints do.

Which weights an engine samples with is shown by what it is `Asked`: the learner computes those log-probs again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import ray
from ray.exceptions import RayError

from milepost.actors.engine import Completion, Transfer
from milepost.actors.nccl.waiting import Sent
from milepost.cluster.hosts.ray_start import alive_hosts, last_line
from milepost.cluster.pools.stored_weights import StoredWeights
from milepost.envs.types import Turn
from milepost.learner.timing import timed

T = TypeVar("T")
logger = logging.getLogger(__name__)
Digests = dict[str, str]
Seconds = dict[str, float]
"""Wall time by part of a transfer."""
Asked = list[tuple[list[int], "ray.ObjectRef[Completion]"]]
"""Prompts, and where the answers of engines to them will be."""
_BROADCASTS = 2
"""One that breaks is repeated once: an engine was lost, or a network had a bad moment."""


def agree(one: Digests, other: Digests) -> bool:
    """Whether two engines hold the same weights, as far as both told of the same ones."""
    return all(other.get(name, digest) == digest for name, digest in one.items())


class Delivery(Protocol):
    """One policy version's weights and the way they take."""

    @property
    def version(self) -> int:
        """The policy version they are."""
        ...

    @property
    def repeatable(self) -> bool:
        """Whether a single engine can be served later."""
        ...

    @property
    def num_bytes(self) -> int | None:
        """What travels to the host of each engine; None where only the learner knows."""
        ...

    async def deliver(self, engines: list[Any], timeout_s: float, seconds: Seconds) -> list[Digests | None]:
        """Pause the engines and load the weights; digests per engine, None for one that failed and stays paused.

        Notes in `seconds` what the slowest engine took to pause, load and verify.
        """
        ...


class _OneByOne:
    """Deliveries of which engines succeed or fail one by one."""

    version: int
    repeatable: ClassVar[bool] = True

    async def bring(self, engine: Any) -> str:
        """Have the verified weights lie on the engine's host, beside its work; the file they are in there."""
        raise NotImplementedError

    async def deliver(self, engines: list[Any], timeout_s: float, seconds: Seconds) -> list[Digests | None]:
        """As `Delivery.deliver`. Nobody is paused before the slowest engine has what it will load."""
        each: list[Seconds] = [{} for _ in engines]
        paths = await asyncio.gather(
            *(self._tried(timeout_s, self._bring(engine, spent)) for engine, spent in zip(engines, each, strict=True))
        )
        digests = await asyncio.gather(
            *(
                self._tried(timeout_s, self._load(engine, path, spent))
                for engine, path, spent in zip(engines, paths, each, strict=True)
            )
        )
        seconds.update({part: max(spent.get(part, 0.0) for spent in each) for part in set().union(*each)})
        return list(digests)

    async def _bring(self, engine: Any, seconds: Seconds) -> str:
        with timed(seconds, "fetch"):
            return await self.bring(engine)

    async def _load(self, engine: Any, path: str | None, seconds: Seconds) -> Digests | None:
        if path is None:
            return None
        with timed(seconds, "pause"):
            await engine.pause.remote()
        with timed(seconds, "load"):
            await engine.load.remote(path)
        with timed(seconds, "verify"):
            digests: Digests = await engine.digests.remote(self.version)
        return digests

    async def _tried(self, timeout_s: float, step: Coroutine[Any, Any, T]) -> T | None:
        """What a step on one engine returns, None where it fails."""
        try:
            async with asyncio.timeout(timeout_s):
                return await step
        except (RayError, TimeoutError) as error:
            logger.error("an engine refused version %d: %s", self.version, str(error).strip().splitlines()[-1:])
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDelivery(_OneByOne):
    """Weights in one file that lies on the engines' host, and that every engine verifies by itself."""

    path: Path
    sha256: str
    version: int

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size

    async def bring(self, engine: Any) -> str:
        """Have the engine verify the file."""
        await engine.verify.remote(str(self.path), self.sha256)
        return str(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDelivery(_OneByOne):
    """Weights in Ray's object store that every host fetches and verifies once."""

    stored: StoredWeights
    version: int

    @property
    def num_bytes(self) -> int:
        """Size of all chunks."""
        return self.stored.num_bytes

    async def bring(self, engine: Any) -> str:
        """Have the engine fetch them."""
        path: str = await engine.fetch.remote(self.stored)
        return path


def chosen_way(transfer: Transfer) -> Literal["file", "object_store", "nccl"]:
    """How weights travel: as the configuration says, else by what Ray's hosts have in common."""
    if transfer != "auto":
        return transfer
    return "object_store" if len(alive_hosts()) > 1 else "file"


@dataclass(frozen=True, slots=True, kw_only=True)
class NcclDelivery:
    """Weights broadcast to all engines at once: one that is lost breaks it for all, and it is repeated without it."""

    send: Callable[[Sequence[Any], float], Awaitable[Sent]]
    """Joins every learner rank and the engines in one transfer, each part of it with this deadline in seconds."""
    version: int
    repeatable: ClassVar[bool] = False
    num_bytes: ClassVar[None] = None

    async def deliver(self, engines: list[Any], timeout_s: float, seconds: Seconds) -> list[Digests | None]:
        """As `Delivery.deliver`. Raises what means that the learner is lost."""
        with timed(seconds, "pause"):
            paused = await asyncio.gather(*(self._within(timeout_s, engine.pause.remote()) for engine in engines))
        there = [index for index, answer in enumerate(paused) if answer is not None]
        with timed(seconds, "load"):
            there = await self._broadcast(engines, there, timeout_s)
        with timed(seconds, "verify"):
            asked = [self._within(timeout_s, engines[index].digests.remote(self.version)) for index in there]
            told = dict(zip(there, await asyncio.gather(*asked), strict=True))
        return [answer[0] if (answer := told.get(index)) else None for index in range(len(engines))]

    async def _broadcast(self, engines: list[Any], there: list[int], timeout_s: float) -> list[int]:
        """Which engines hold the weights, after at most one repetition with those that survived the first attempt."""
        for _ in range(_BROADCASTS):
            if not there:
                break
            sent = await self.send([engines[index] for index in there], timeout_s)
            if sent.cause is None:
                return there
            there = [index for index, alive in zip(there, sent.alive, strict=True) if alive]
            logger.error(
                "the broadcast of version %d broke, %d engines are left: %s", self.version, len(there), sent.cause
            )
        return []

    async def _within(self, timeout_s: float, call: Awaitable[T]) -> tuple[T] | None:
        """What an engine answered, None where it is lost."""
        try:
            async with asyncio.timeout(timeout_s):
                return (await call,)
        except (RayError, TimeoutError) as error:
            logger.error("an engine was lost on the way to version %d: %s", self.version, error)
            return None


def ask(engines: Sequence[Any], prompts: Sequence[list[int]], version: int) -> Asked:
    """Have every engine answer every prompt in a few tokens, once it serves `version`."""
    return [(prompt, engine.answer_as.remote(version, prompt)) for engine in engines for prompt in prompts]


def answered(asked: Asked) -> list[Turn]:
    """What engines answered, as turns of no environment; waits for it, within their deadlines.

    One that is lost or late gives nothing, to every process alike that waits. Raises ValueError for a log-prob that is
    not finite.
    """
    turns = []
    for prompt, answer in asked:
        try:
            turns.append(lone_turn(prompt, ray.get(answer)))
        except RayError as error:
            logger.warning("an engine did not answer a parity prompt: %s", last_line(error))
    return turns


def lone_turn(prompt: list[int], answer: Completion) -> Turn:
    """A response as a turn of no environment, for comparing log-probs. Raises ValueError for one that is not finite."""
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
