"""Weights through an object store that may go wrong; tests/system/test_two_hosts.py sends them through a real one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.exceptions import ObjectLostError

from milepost.cluster.base import weight_folders
from milepost.cluster.base.weight_folders import open_shared
from milepost.cluster.pools import stored_weights
from milepost.cluster.pools.stored_weights import LostChunkError, fetch, put
from milepost.cluster.pools.weights import chosen_way

FOLDER = "milepost-test-engines-1"
BLOB = bytes(range(256)) * 10


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(weight_folders, "_SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(stored_weights, "CHUNK_BYTES", 1000)
    open_shared.cache_clear()
    yield tmp_path
    open_shared.cache_clear()


class Store:
    """Ray's object store as far as it may go wrong: what each chunk gives, time after time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stored: list[np.ndarray] = []
        self.given: dict[int, list[object]] = {}
        self.asked: list[int] = []
        monkeypatch.setattr(ray, "put", self._put)
        monkeypatch.setattr(ray, "get", self._get)

    def _put(self, part: np.ndarray) -> int:
        self.stored.append(part.copy())
        return len(self.stored) - 1

    def _get(self, number: int, timeout: float) -> object:  # noqa: ARG002
        self.asked.append(number)
        answer = self.given[number].pop(0) if self.given.get(number) else self.stored[number]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    return Store(monkeypatch)


def test_weights_travel_in_hashed_chunks_and_each_host_fetches_them_once(store: Store, memory: Path) -> None:
    stored = put(BLOB, folder=FOLDER)
    assert [len(part) for part in store.stored] == [1000, 1000, 560]
    assert stored.sha256[2] == hashlib.sha256(BLOB[2000:]).hexdigest()
    path = fetch(stored)
    assert (path.parent, path.read_bytes()) == (memory / FOLDER, BLOB)
    assert fetch(stored) == path
    assert store.asked == [0, 1, 2], "the second engine of a host finds the file"
    newer = fetch(put(BLOB[::-1], folder=FOLDER))
    assert newer != path
    assert [file.name for file in (memory / FOLDER).glob("*.safetensors")] == [newer.name], "one version at a time"


@pytest.mark.parametrize("bad", [np.zeros(1000, np.uint8), ObjectLostError("ab", None, "")])
def test_a_chunk_that_is_wrong_or_lost_is_fetched_once_more_and_then_refused(
    store: Store, memory: Path, bad: object
) -> None:
    stored = put(BLOB, folder=FOLDER)
    store.given[1] = [bad]
    assert fetch(stored).read_bytes() == BLOB
    assert store.asked == [0, 1, 1, 2]
    other = put(BLOB[1:], folder=FOLDER)
    store.given[3] = [bad, bad]
    with pytest.raises(LostChunkError, match="chunk 1 of 3 of the weights did not arrive: "):
        fetch(other)
    assert not list((memory / FOLDER).glob("*.safetensors"))
    assert fetch(other).read_bytes() == BLOB[1:], "what a failed attempt left is in nobody's way"


def test_a_host_without_room_says_so(store: Store) -> None:
    stored = put(BLOB, folder=FOLDER)
    store.given[0] = [OSError(28, "No space left on device")]
    with pytest.raises(OSError, match="has no room for the weights: give it more"):
        fetch(stored)


def test_weights_of_several_hosts_take_the_object_store_unless_something_else_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}, {"Alive": False}])
    assert [chosen_way("auto"), chosen_way("nccl")] == ["file", "nccl"]
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}, {"Alive": False}, {"Alive": True}])
    assert [chosen_way("auto"), chosen_way("file")] == ["object_store", "file"]


def test_a_folder_that_a_living_process_shares_is_not_taken_for_a_leftover(memory: Path) -> None:
    open_shared(FOLDER)
    (memory / "milepost-old-engines-3").mkdir()
    open_shared("milepost-other-engines-2")
    assert {path.name for path in memory.iterdir()} == {FOLDER, "milepost-other-engines-2"}
