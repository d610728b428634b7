"""How adapters join their base: by hand, against peft, and what is refused."""

import doctest
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from milepost.actors.lora import adapters
from milepost.actors.lora.adapters import (
    AdapterError,
    AdapterFacts,
    Adapters,
    facts_in,
    identity,
    merged,
    weight_files,
)
from milepost.actors.lora.saved_policy import write_merged
from milepost.actors.transfer import FileInit, FileTransfer, FileUpdate

LAYER = "base_model.model.model.layers.0.mlp.up_proj"
WEIGHT = "model.layers.0.mlp.up_proj.weight"


def base_in(folder: Path, *, shift: float = 0.0) -> Path:
    """A model of two files: one that an adapter joins, and one with the rest."""
    folder.mkdir()
    files = {
        "model-1.safetensors": {WEIGHT: torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0 + shift]])},
        "model-2.safetensors": {"model.norm.weight": torch.tensor([7.0, 8.0], dtype=torch.bfloat16)},
    }
    for name, tensors in files.items():
        safetensors.torch.save_file(tensors, folder / name)
    index = {"weight_map": {tensor: name for name, tensors in files.items() for tensor in tensors}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"torch_dtype": "bfloat16", "model_type": "llama"}))
    (folder / "tokenizer.json").write_text("{}")
    return folder


TENSORS = {
    f"{LAYER}.lora_A.weight": torch.tensor([[1.0, -1.0]]),
    f"{LAYER}.lora_B.weight": torch.tensor([[2.0], [0.0], [1.0]]),
}
JOINED = [[1.0 + 1.0, 2.0 - 1.0], [3.0, 4.0], [5.0 + 0.5, 6.0 - 0.5]]
"""The weight, and half of [2, 0, 1] times [1, -1]."""


def written(folder: Path, base: str) -> Path:
    path = folder / "adapters.safetensors"
    safetensors.torch.save_file(TENSORS, path, metadata=AdapterFacts(1, 0.5, base).metadata())
    return path


def transfer_on(base: Path | None) -> FileTransfer:
    """The worker's side without vLLM around it: what it stages is looked at before a model is touched."""
    side = FileTransfer.__new__(FileTransfer)
    side.init_transfer_engine(FileInit(str(base or "")))
    return side


def test_an_adapter_joins_its_own_tensor_and_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    base = base_in(tmp_path / "base")
    side = transfer_on(base)
    side.receive_weights(FileUpdate(str(written(tmp_path, identity(base)))))
    staged = dict(side._staged or ())
    assert staged[WEIGHT].tolist() == JOINED
    assert staged["model.norm.weight"].tolist() == [7.0, 8.0]
    assert staged["model.norm.weight"].dtype == torch.bfloat16
    assert staged.keys() == {WEIGHT, "model.norm.weight"}


def test_whole_weights_are_staged_as_they_are(tmp_path: Path) -> None:
    safetensors.torch.save_file({WEIGHT: torch.ones(2)}, tmp_path / "whole.safetensors")
    side = transfer_on(None)
    side.receive_weights(FileUpdate(str(tmp_path / "whole.safetensors")))
    assert {name: tensor.tolist() for name, tensor in side._staged or ()} == {WEIGHT: [1.0, 1.0]}
    assert facts_in(tmp_path / "whole.safetensors") is None


def test_adapters_of_another_base_are_refused_before_anything_is_staged(tmp_path: Path) -> None:
    theirs, ours = base_in(tmp_path / "theirs", shift=0.5), base_in(tmp_path / "ours")
    side = transfer_on(ours)
    with pytest.raises(AdapterError, match=rf"adapters of the base {identity(theirs)}, and .*ours is {identity(ours)}"):
        side.receive_weights(FileUpdate(str(written(tmp_path, identity(theirs)))))
    assert side._staged is None
    with pytest.raises(AdapterError, match="was told of no base"):
        transfer_on(None).receive_weights(FileUpdate(str(written(tmp_path, identity(ours)))))


def test_an_adapter_that_has_no_tensor_to_join_is_refused_by_name(tmp_path: Path) -> None:
    tensors = {name.replace("up_proj", "c_attn"): tensor for name, tensor in TENSORS.items()}
    with pytest.raises(AdapterError, match=r"its files hold no tensor model\.layers\.0\.mlp\.c_attn\.weight") as error:
        Adapters(base_in(tmp_path / "base"), tensors, 0.5)
    assert "\n" not in str(error.value)


def test_a_base_is_known_by_its_numbers_however_they_are_spread_over_files(tmp_path: Path) -> None:
    spread, one = base_in(tmp_path / "spread"), tmp_path / "one"
    one.mkdir()
    tensors = {name: t for path in weight_files(spread) for name, t in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(tensors, one / "model.safetensors")
    assert identity(one) == identity(spread)
    assert identity(base_in(tmp_path / "other", shift=1e-3)) != identity(spread)


def test_a_saved_policy_is_a_plain_folder_of_one_data_type(tmp_path: Path) -> None:
    base, folder = base_in(tmp_path / "base"), tmp_path / "policy"
    write_merged(
        base, Adapters(base, TENSORS, 0.5), dtype=torch.float32, copied=("tokenizer.json", "vocab.txt"), folder=folder
    )
    there = {name: t for path in weight_files(folder) for name, t in safetensors.torch.load_file(path).items()}
    assert there[WEIGHT].tolist() == JOINED
    assert {tensor.dtype for tensor in there.values()} == {torch.float32}
    assert json.loads((folder / "config.json").read_text()) == {"dtype": "float32", "model_type": "llama"}
    assert sorted(path.name for path in folder.iterdir()) == [
        *("config.json", "model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json"),
        "tokenizer.json",
    ]


def test_the_worked_example_holds() -> None:
    assert doctest.testmod(adapters) == (0, 1)


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_merged_weights_compute_what_adapters_beside_them_do(rank: int, ins: int, outs: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    weight, a, b = (torch.randn(shape, generator=draw) for shape in ((outs, ins), (rank, ins), (outs, rank)))
    x, scale = torch.randn(5, ins, generator=draw), 2.0 / rank
    beside = x @ weight.T + scale * ((x @ a.T) @ b.T)
    assert torch.allclose(x @ merged(weight, a, b, scale).T, beside, atol=1e-5)
    half = merged(weight.bfloat16(), a.bfloat16(), b.bfloat16(), scale)
    assert half.dtype == torch.float32
