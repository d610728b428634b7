"""What engines tell of the weights they hold: which tensors, and what a digest sees."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from milepost.actors.transfer import WeightDigests, digest
from milepost.actors.vllm import VLLMEngine

DTYPES = {torch.float32: torch.int32, torch.bfloat16: torch.int16}


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    dtype=st.sampled_from(list(DTYPES)),
    item=st.integers(0, 1000),
    bit=st.integers(0, 14),
)
def test_every_flipped_bit_is_seen_and_an_equal_copy_is_equal(
    shape: list[int], dtype: torch.dtype, item: int, bit: int
) -> None:
    weights = (torch.arange(1, 1 + torch.Size(shape).numel()) / 7).to(dtype).reshape(shape)
    flipped = weights.clone()
    flipped.view(DTYPES[dtype]).view(-1)[item % weights.numel()] ^= 1 << bit
    assert digest(weights) == digest(weights.clone())
    assert digest(weights) != digest(flipped)


def test_rows_that_changed_places_are_seen_and_so_are_items_of_a_vector() -> None:
    rows, vector = torch.arange(12.0).view(3, 4), torch.arange(12.0)
    assert digest(rows) != digest(rows.roll(1, 0))
    assert digest(vector) != digest(vector.roll(1))
    assert digest(rows) == digest(rows.roll(1, 1)), "this is what one hash per row does not see"


@pytest.fixture(scope="module")
def worker() -> WeightDigests:
    sizes = dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size"), 16)
    heads = dict.fromkeys(("num_attention_heads", "num_key_value_heads"), 2)
    model = LlamaForCausalLM(
        LlamaConfig(num_hidden_layers=4, **sizes, **heads)
    )  # beside them, what lies before and after
    found = WeightDigests()
    found.model_runner = SimpleNamespace(get_model=lambda: model)
    return found


def test_a_sample_holds_whole_layers_and_as_many_turns_as_shares_hold_everything_once(worker: WeightDigests) -> None:
    whole = worker.weight_digests(5, 1)
    assert whole.keys() == {name for name, _ in worker.model_runner.get_model().named_parameters()}
    for shares, turns in ((3, 3), (8, 6)):
        told = [worker.weight_digests(turn, shares) for turn in range(turns)]
        assert all(told), "with fewer layers than shares, every sample holds one"
        assert sorted(name for part in told for name in part) == sorted(whole)
        assert all(part.items() <= whole.items() for part in told)
    assert {name.split(".")[2] for name in worker.weight_digests(1, 3) if ".layers." in name} == {"0", "3"}


def test_an_engine_tells_of_everything_the_first_time_and_every_eighth_version_of_all_its_workers() -> None:
    asked: list[tuple[int, int]] = []

    async def collective_rpc(method: str, args: tuple[int, int]) -> list[dict[str, str]]:
        assert method == "weight_digests"
        asked.append(args)
        return [{"norm": "a"}, {"norm": "b"}]

    engine: Any = VLLMEngine.__new__(VLLMEngine)
    engine._llm, engine._is_undigested = SimpleNamespace(collective_rpc=collective_rpc), True
    for version in (3, 4, 7, 8, 9):
        assert asyncio.run(engine.digests(version)) == {"0:norm": "a", "1:norm": "b"}
    assert asked == [(3, 1), (4, 8), (7, 8), (8, 1), (9, 8)]
