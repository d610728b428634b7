"""How a broadcast ends: NCCL knows no deadline, and what it waits for may be gone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sent:
    """How a broadcast ended."""

    alive: list[bool]
    """Of each engine: whether it can join another group."""
    cause: str | None = None
    """Why it broke; None where every engine received everything."""


class BrokenGroupError(Exception):
    """A group of sender and engines that did not form, or through which nothing comes any more."""


def begin(call: Callable[[], T]) -> Future[T]:
    """`call` on a thread that may be left behind, with the caller's device."""
    device = torch.accelerator.current_device_index() if torch.accelerator.is_available() else None
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            if device is not None:  # of a thread, and 0 in a new one
                torch.accelerator.set_device_index(device)
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="nccl", daemon=True).start()
    return outcome


@contextmanager
def breaking(group: Any, broken: Future[None], timeout_s: float) -> Iterator[None]:
    """Destroy `group`, vLLM's communicator, once `broken` is done or after `timeout_s`, if the body still runs.

    vLLM aborts it, so that what waits in it returns and all that follows does nothing.

    Raises:
        BrokenGroupError: that was so.
    """
    ended: Future[None] = Future()

    def watch() -> None:
        wait([broken, ended], timeout=timeout_s, return_when=FIRST_COMPLETED)
        if not ended.done():
            group.destroy()

    thread = threading.Thread(target=watch, name="nccl deadline", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set_result(None)
        thread.join()
    if group.disabled:
        raise BrokenGroupError(f"the broadcast did not come to its end within {timeout_s:g} s")
