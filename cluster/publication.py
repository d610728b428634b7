"""New weights brought into the engines, beside the next update where that may be.

The learner's ranks are needed only until a version's weights are gathered. Where groups may be older than the newest
weights (`run.max_staleness` above 0) and no rank takes part in the rest, the driver goes on to the next groups while
engines verify and load. One version is under way at a time. Not promised: that engines serve a version before `arrived`
has returned.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from milepost.cluster.base.weight_folders import WeightFolder
from milepost.cluster.pools.engine_pool import EnginePool
from milepost.cluster.pools.learners import LearnerPool
from milepost.cluster.pools.weights import Delivery, Seconds
from milepost.cluster.replay.ledger import Ledger
from milepost.learner.timing import timed


@dataclass(slots=True, kw_only=True)
class Publisher:
    """Of one run whose parts are up."""

    learners: LearnerPool
    engines: EnginePool
    ledger: Ledger
    weights: WeightFolder
    beside_training: bool
    """Whether the next update may begin while engines load."""
    seconds: Seconds = field(default_factory=dict)
    """By part, of the publication that ended last."""
    num_bytes: int | None = None
    """Of the newest weights, on their way to each host; None where only the learner knows."""
    _under_way: asyncio.Task[None] | None = None

    async def publish(self, version: int, *, rollback: bool = False) -> None:
        """Bring the learner's weights, called `version`, into every engine; then groups are admitted for them.

        Returns as soon as the learner may go on. `rollback`: the version may be older than what the engines hold, and
        this returns when they hold it. Raises what ended an earlier publication.
        """
        await self.arrived()
        seconds: Seconds = {}
        with timed(seconds, "gather"):
            delivery = await self.learners.delivery(version)
        self.num_bytes = delivery.num_bytes
        bringing = self._bring(delivery, seconds, rollback)
        if self.beside_training and delivery.repeatable and not rollback:
            self._under_way = asyncio.create_task(bringing)
        else:
            await bringing

    async def _bring(self, delivery: Delivery, seconds: Seconds, rollback: bool) -> None:
        seconds |= await self.engines.publish(delivery, rollback=rollback)
        await self.ledger.set_versions(published=delivery.version)
        self.weights.keep_only(delivery.version)
        self.seconds = seconds

    async def arrived(self) -> None:
        """Wait until the engines hold the version that was published last. Raises what ended its publication."""
        if self._under_way is not None:
            await asyncio.shield(self._under_way)

    def look(self) -> None:
        """Raises what ended a publication that nobody waits for."""
        if self._under_way is not None and self._under_way.done():
            self._under_way.result()

    async def end(self) -> None:
        """Give up what is under way."""
        if self._under_way is not None:
            self._under_way.cancel()
            await asyncio.gather(self._under_way, return_exceptions=True)
