"""Groups of sender and engines: ranks, what is received, how they end and form again when an engine is lost."""

from __future__ import annotations

import time
from concurrent.futures import Future
from functools import partial

import pytest
import torch
from ray.exceptions import RayActorError
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from milepost.actors.nccl import sender as sender_module
from milepost.actors.nccl.sender import NcclSender
from milepost.actors.nccl.waiting import Sent
from tests.actors.nccl.cpu_groups import CpuCommunicator, Handle, Net, source_of, without_gpu

NAMES = ["first.weight", "first.bias", "second.weight", "second.bias"]


@pytest.fixture
def formed(monkeypatch: pytest.MonkeyPatch) -> list[CpuCommunicator]:
    return without_gpu(monkeypatch)


def holds(engine: Handle, net: Net) -> bool:
    return all(torch.equal(theirs[name], 2 * own) for theirs in engine.nets for name, own in net.state_dict().items())


def test_four_engines_of_two_workers_get_ranks_one_to_eight_and_all_weights(formed: list[CpuCommunicator]) -> None:
    net, taken = Net(), list[str]()
    sender = NcclSender(source_of(net, taken), host="127.0.0.1", workers_per_engine=2)
    engines = [Handle(2) for _ in range(4)]
    assert sender.send(engines, 60) == Sent([True] * 4)
    ranks = [[w.weight_transfer_engine.model_update_group.rank for w in engine.llm.workers] for engine in engines]
    assert ranks == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert {group.world_size for group in formed} == {9}
    assert all(holds(engine, net) for engine in engines)

    with torch.no_grad():
        net.first.weight.add_(1.0)
    assert not holds(engines[0], net)
    assert sender.send(engines, 60) == Sent([True] * 4)
    assert all(holds(engine, net) for engine in engines)
    assert len(formed) == 9, "the group stays while its engines do"
    assert taken == NAMES * 2


def lose_at(method: str, engines: list[Handle], lost: int) -> None:
    """Lose one of `engines` as it is called; of `update_weights`, when the others hold a part of the weights."""
    others = [worker.net for index, engine in enumerate(engines) if index != lost for worker in engine.llm.workers]

    def before(called: str) -> None:
        if called != method:
            return
        while called == "update_weights" and not all(net.loads for net in others):
            time.sleep(0.01)
        engines[lost].lose()
        raise RayActorError

    engines[lost].llm.before = before


@pytest.mark.filterwarnings("ignore:Tensor:UserWarning")
@pytest.mark.parametrize(
    ("method", "timeout_s"), [("init_weight_transfer_engine", 1), ("start_weight_update", 60), ("update_weights", 60)]
)
def test_a_group_that_loses_an_engine_ends_everywhere_and_the_others_form_one_that_works(
    formed: list[CpuCommunicator], monkeypatch: pytest.MonkeyPatch, method: str, timeout_s: float
) -> None:
    one_by_one = partial(NCCLTrainerInitInfo, packed_buffer_size_bytes=1)  # the loss finds a layer half loaded
    monkeypatch.setattr(sender_module, "NCCLTrainerInitInfo", one_by_one)
    net, taken = Net(), list[str]()
    sender = NcclSender(source_of(net, taken), host="127.0.0.1", workers_per_engine=2)
    engines = [Handle(2) for _ in range(4)]
    lose_at(method, engines, 2)
    broken = sender.send(engines, timeout_s)
    assert broken.alive == [True, True, False, True]
    assert broken.cause is not None
    assert "RayActorError" in broken.cause
    assert taken == NAMES, "the other ranks gather with the sender to the end, whatever becomes of the group"
    survivors = [engines[0], engines[1], engines[3]]
    assert all(w.weight_transfer_engine.model_update_group is None for e in survivors for w in e.llm.workers)
    assert {group.rank for group in formed if not group.disabled} <= {5, 6}, "those of the lost engine"

    formed.clear()
    assert sender.send(survivors, 60) == Sent([True] * 3)
    assert sorted(group.rank for group in formed) == list(range(7))
    assert all(holds(engine, net) for engine in survivors)


def test_a_worker_that_hangs_ends_the_broadcast_at_the_deadline_and_is_counted_as_lost(
    formed: list[CpuCommunicator], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender_module, "_LAST_WORDS_S", 0.5)
    net = Net()
    sender = NcclSender(source_of(net, []), host="127.0.0.1", workers_per_engine=1)
    engines = [Handle(1), Handle(1)]
    assert sender.send(engines, 60).cause is None
    hung = Future[None]()
    monkeypatch.setattr(
        engines[1].llm.workers[0].weight_transfer_engine, "receive_weights", lambda _: hung.result(timeout=30)
    )
    broken = sender.send(engines, 1)
    assert broken.alive[0]
    assert broken.cause is not None
    hung.set_result(None)
    assert all(group.disabled for group in formed if group.rank < 2)
    assert sender.send(engines[:1], 60) == Sent([True])
    assert holds(engines[0], net)
