"""The learner's end of a broadcast, on its rank 0: forms a group with all engines, sends, takes it down when it breaks.

The ranks of a group: 0 is the sender; engine i of n workers each has 1 + i * n to (i + 1) * n. vLLM's own client tells
all engines the same offset, so that more than one engine never meet.

Not promised: that engines hold what was sent, where `Sent.cause` says that it broke; they must not serve then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, wait
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    WeightSource,
    WeightTransferInitRequest,
    WeightTransferUpdatePayload,
    WeightTransferUpdateRequest,
)
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine
from vllm.utils.network_utils import get_open_port

from milepost.actors.nccl.waiting import BrokenGroupError, Sent, begin, breaking

_LAST_WORDS_S = 10.0
"""How long an engine may take to say that it left its group, beyond the deadline of what it still waits for."""


class GatheredSource(WeightSource):  # type: ignore[misc]
    """The learner's full tensors as vLLM's trainer side wants them. All learner ranks gather in step, to the end."""

    def __init__(
        self,
        meta: list[tuple[str, torch.dtype, tuple[int, ...]]],
        gather: Callable[[], Iterator[tuple[str, torch.Tensor]]],
    ) -> None:
        self._meta = [ParamMeta(*entry) for entry in meta]
        self._gather = gather
        self._rest: Iterator[tuple[str, torch.Tensor]] = iter(())
        self._failure: Exception | None = None

    def metadata(self) -> list[ParamMeta]:
        """Name, dtype and full shape of every tensor, in iteration order; transfers nothing."""
        return self._meta

    def begin(self) -> None:
        """One more pass over all tensors begins, which `finish` ends."""
        self._rest, self._failure = self._gather(), None

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        while True:  # and no 'yield from', by which an end of this iteration would end the gathering, too
            try:
                entry = next(self._rest)
            except StopIteration:
                return
            except Exception as error:
                self._failure = error
                raise
            yield entry

    def finish(self) -> None:
        """Gather what nobody took, since the other ranks wait for it. Raises what the gathering raised, if it did."""
        if self._failure is not None:
            raise self._failure
        for _ in self._rest:
            pass


class EngineGroup:
    """The engines of one group as vLLM's trainer side calls them (its `VLLMWeightSyncClient`).

    `engines` are Ray handles of `EngineActor`, or what looks like them.
    """

    def __init__(self, engines: Sequence[Any], *, workers_per_engine: int, timeout_s: float) -> None:
        self.engines = list(engines)
        self.broken: Future[None] = Future()
        """Fails as soon as a call on one engine does: the others of its group then wait for nothing."""
        self._workers = workers_per_engine
        self.timeout_s = timeout_s

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Every engine joins, at an offset of its own."""
        told = [
            init_info | {"rank_offset": 1 + index * self._workers, "timeout_s": self.timeout_s}
            for index in range(len(self.engines))
        ]
        self._each("init_weight_transfer_engine", [WeightTransferInitRequest(init_info=info) for info in told])

    def start_weight_update(self) -> None:
        """Every engine gets ready."""
        self._each("start_weight_update")

    def update_weights(self, update_info: WeightTransferUpdatePayload) -> None:
        """Every engine receives."""
        request = WeightTransferUpdateRequest(update_info=update_info)
        self._each("update_weights", [request] * len(self.engines))

    def finish_weight_update(self) -> None:
        """Every engine has received everything."""
        self._each("finish_weight_update")

    def leave(self) -> list[bool]:
        """Have every engine leave the group; says which of them did."""
        calls = [engine.shutdown_weight_transfer_engine.remote().future() for engine in self.engines]
        wait(calls, timeout=self.timeout_s + _LAST_WORDS_S)
        return [call.done() and call.exception() is None for call in calls]

    def _each(self, method: str, requests: Sequence[object] | None = None) -> None:
        """Call every engine. Raises what the first one that fails raises, or TimeoutError."""
        given: list[tuple[object, ...]] = [(request,) for request in requests] if requests else [()] * len(self.engines)
        calls = [
            getattr(engine, method).remote(*arguments).future()
            for engine, arguments in zip(self.engines, given, strict=True)
        ]
        try:
            done, waiting = wait(calls, timeout=self.timeout_s, return_when=FIRST_EXCEPTION)
            for call in done:
                call.result()
            if waiting:
                raise TimeoutError(f"{len(waiting)} of {len(calls)} engines did not end {method}")
        except Exception as error:
            self.broken.set_exception(error)
            raise


class NcclSender:
    """Sends the learner's weights to whichever engines it is given; the group stays while they stay the same."""

    def __init__(self, source: GatheredSource, *, host: str, workers_per_engine: int) -> None:
        """`host`: address of this rank's node, where all meet."""
        self._source = source
        self._host = host
        self._workers = workers_per_engine
        self._group: EngineGroup | None = None
        self._link: NCCLTrainerWeightTransferEngine | None = None

    def send(self, engines: Sequence[Any], timeout_s: float) -> Sent:
        """Send every tensor to all `engines`, each part within `timeout_s`. A group that breaks is taken down.

        Raises what the learner's own gathering raises.
        """
        self._source.begin()
        try:
            if self._group is None or self._group.engines != list(engines):
                self._form(engines, timeout_s)
            assert self._link is not None
            assert self._group is not None
            self._group.timeout_s = timeout_s
            with breaking(self._link.model_update_group, self._group.broken, timeout_s):
                self._link.send_weights()
            return Sent([True] * len(engines))
        except Exception as error:  # Ray, torch, NCCL and vLLM each have kinds of their own
            self._source.finish()
            return Sent(self._take_down(), f"{type(error).__name__}: {' '.join(str(error).split())}")

    def _form(self, engines: Sequence[Any], timeout_s: float) -> None:
        self._take_down()
        group = EngineGroup(engines, workers_per_engine=self._workers, timeout_s=timeout_s)
        self._group = group
        info = NCCLTrainerInitInfo(
            master_address=self._host,
            master_port=get_open_port(),
            world_size=1 + len(engines) * self._workers,
            rank=0,
        )
        forming = begin(lambda: NCCLTrainerWeightTransferEngine.trainer_init(info, client=group, source=self._source))
        done, _ = wait([forming, group.broken], timeout=timeout_s, return_when=FIRST_COMPLETED)
        if forming not in done:
            forming.add_done_callback(_shut_down)
            if group.broken in done:
                group.broken.result()
            raise BrokenGroupError(f"the group of {info.world_size} ranks did not form within {timeout_s:g} s")
        self._link = forming.result()
        if self._link.model_update_group.disabled:
            raise BrokenGroupError("vLLM found no NCCL library, so nothing can be sent")

    def _take_down(self) -> list[bool]:
        """Leave the group and have its engines leave it; says which of them did."""
        group, link = self._group, self._link
        self._group = self._link = None
        if link is not None:
            link.shutdown()
        return group.leave() if group is not None else []


def _shut_down(forming: Future[NCCLTrainerWeightTransferEngine]) -> None:
    """Leave a group that formed when nobody waited for it any more."""
    if forming.exception() is None:
        forming.result().shutdown()
