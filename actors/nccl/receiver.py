"""An engine worker's end of a broadcast: vLLM's NCCL backend under a deadline, able to join one group after another.

vLLM's own waits without end for a sender or another engine that is gone, and does not take a second update after one
that broke off half-way.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from vllm.distributed.weight_transfer.nccl_common import worker_init_process_group
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLWeightTransferEngine,
    NCCLWeightTransferInitInfo,
    NCCLWeightTransferUpdateInfo,
)

from milepost.actors.nccl.waiting import BrokenGroupError, begin, breaking


@dataclass(kw_only=True)
class GroupInit(NCCLWeightTransferInitInfo):  # type: ignore[misc]
    """What a worker is told of the group: as vLLM's, and how long it may wait."""

    timeout_s: float


class NcclReceiver(NCCLWeightTransferEngine):  # type: ignore[misc]
    """Worker side of `nccl`."""

    init_info_cls = GroupInit

    _timeout_s = 0.0
    _is_half_loaded = False

    def init_transfer_engine(self, init_info: GroupInit) -> None:
        """Join a group, in place of an earlier one. Raises BrokenGroupError where it does not form in time."""
        self.shutdown()
        self._timeout_s = init_info.timeout_s
        self.packed = init_info.packed
        self.packed_buffer_size_bytes = init_info.packed_buffer_size_bytes
        self.packed_num_buffers = init_info.packed_num_buffers
        joining = begin(lambda: worker_init_process_group(init_info, self.parallel_config))
        try:
            group = joining.result(self._timeout_s)
        except TimeoutError:
            joining.add_done_callback(_destroy)
            raise BrokenGroupError(f"the group did not form within {self._timeout_s:g} s") from None
        if group.disabled:
            raise BrokenGroupError("vLLM found no NCCL library, so nothing can be received")
        self.model_update_group = group

    def start_weight_update(self) -> None:
        """Get ready to receive. What a broken update has left half loaded is closed first, and then overwritten."""
        if self._is_half_loaded:
            self.finish_weight_update()
        super().start_weight_update()
        self._is_half_loaded = True

    def receive_weights(self, update_info: NCCLWeightTransferUpdateInfo) -> None:
        """Receive and load. Raises BrokenGroupError at the deadline; the group is destroyed then."""
        with breaking(self.model_update_group, Future(), self._timeout_s):
            super().receive_weights(update_info)

    def finish_weight_update(self) -> None:
        """Everything was received, or will not be any more."""
        super().finish_weight_update()
        self._is_half_loaded = False


def _destroy(joining: Future[Any]) -> None:
    """Leave a group that formed when nobody waited for it any more."""
    if joining.exception() is None:
        joining.result().destroy()
