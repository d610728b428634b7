"""Whether a worker's event loop turns: one that does not is killed, for its own deadlines cannot pass.

User code can hold the interpreter (a regular expression that backtracks for ever, a loop in C), and then the process
plays nothing, renews nothing and ends no call of its own. Not promised: that a machine under a load that stops the loop
for so long is told from such code.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from milepost.cluster.hosts.ray_start import last_line

logger = logging.getLogger(__name__)
_START_UP_S = 60.0
"""Until the first answer: a worker imports for long."""
_GRACE_S = 2.0
"""Beyond what a call into user code may take."""
_EVERY_S = 0.5
_LOOK_EVERY_S = 0.25


class Pulse:
    """Asks one worker twice a second, by `ping`; calls `kill` where no answer comes in `limit_s` and a little."""

    def __init__(
        self, name: str, ping: Callable[[], Awaitable[int]], kill: Callable[[], None], *, limit_s: float
    ) -> None:
        self._name, self._ping, self._kill, self._limit_s = name, ping, kill, limit_s
        self.has_answered = False
        self._beating = asyncio.ensure_future(self._beat())

    def stop(self) -> None:
        """Ask no more."""
        self._beating.cancel()

    async def _beat(self) -> None:
        while True:
            limit_s = self._limit_s + (_GRACE_S if self.has_answered else _START_UP_S)
            ping = asyncio.ensure_future(self._ping())
            if not await _came(ping, limit_s):
                logger.warning("%s did not answer within %g s; killing it", self._name, limit_s)
                self._kill()
                ping.cancel()
                return
            if (error := ping.exception()) is not None:
                logger.info("%s has no pulse any more: %s", self._name, last_line(error))
                return  # it has ended, and the pool sees that by itself
            self.has_answered = True
            await asyncio.sleep(_EVERY_S)


async def _came(ping: asyncio.Future[int], limit_s: float) -> bool:
    """Wait for `ping`, no longer than `limit_s` of time in which this process was running itself."""
    waited = 0.0
    while not ping.done() and waited < limit_s:
        before = time.monotonic()
        await asyncio.wait({ping}, timeout=_LOOK_EVERY_S)
        waited += min(time.monotonic() - before, 2 * _LOOK_EVERY_S)  # a frozen driver has not been waiting
    return ping.done()
