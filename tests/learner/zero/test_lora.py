"""Adapters under the real DeepSpeed engine on gloo, one process per rank: what is trained, saved and loaded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import config, environment_of_ranks, launch, save_model
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

LORA = {"rank": 4, "alpha": 8.0}
ADAPTERS = 2 * 4 * (64 + 2 * 48 + 64 + 3 * 96)
"""Numbers in the adapters: 2 layers of rank 4, whose q, k and v, o, and three of the MLP have so many ins and outs."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", autouse=True)
def rank_environment() -> Iterator[None]:
    with environment_of_ranks():
        yield


def adapters_job(folder: Path, model: Path, ranks: int, stage: int, **learner: Any) -> dict[str, Any]:
    job = {"config": config(ranks, stage, **learner), "max_tokens": 60, "save": str(folder / "saved")}
    return {**job, "model": model, "module": "lora_rank", "lora": LORA, "base": "b1"}


@pytest.fixture(scope="module")
def one_rank(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """ZeRO-1 on one rank, rows padded."""
    folder = tmp_path_factory.mktemp("one")
    return launch("adapters", folder, **adapters_job(folder, model, 1, 1, packing="padded"))[0]


@pytest.mark.services
@pytest.mark.parametrize(("stage", "ranks", "again"), [(0, 1, False), (2, 2, True), (3, 2, True)])
def test_adapters_alone_are_trained_saved_and_loaded_under_every_stage(
    stage: int, ranks: int, again: bool, model: Path, one_rank: dict[str, Any], tmp_path: Path
) -> None:
    job = adapters_job(tmp_path, model, ranks, stage, gradient_checkpointing=again)
    reports = launch("adapters", tmp_path, **job)
    for report in reports:
        assert report["names"] == one_rank["names"] == [name for name, _ in report["shapes"]]
        assert sum(rows * columns for _, (rows, columns) in report["shapes"]) == ADAPTERS
        for (reference, policy), moved in zip(report["gaps"], (False, True, True), strict=True):
            assert reference < 1e-6, "without its adapters the policy is the one that training began with"
            assert (policy > 1e-4) is moved, "B is zero at first, and learns"
        for step, expected in zip(report["steps"], one_rank["steps"], strict=True):
            assert step == pytest.approx(expected, rel=1e-5, abs=1e-5)
    # 12 bytes a trained number under ZeRO (its own float32, and two moments), and what the files say of themselves
    shards = [path for path in (tmp_path / "saved" / "policy").glob("*.pt")]
    assert sum(path.stat().st_size for path in shards) < 16 * ADAPTERS + 40_000 * len(shards)
    returned = launch("return", tmp_path, **job)
    for before, after in zip(reports, returned, strict=True):
        assert after["fresh"] != after["loaded"]
        assert after["next_loss"] == before["next_loss"]


@pytest.mark.services
def test_another_rank_or_another_base_is_refused_and_peft_reads_what_was_saved(model: Path, tmp_path: Path) -> None:
    job = adapters_job(tmp_path, model, 1, 2)
    launch("adapters", tmp_path, **job)
    (other_rank,) = launch("refused", tmp_path, **job | {"lora": {"rank": 2}})
    assert other_rank["error"].startswith("ZeroError: ")
    assert "'rank': 4" in other_rank["error"]
    (other_base,) = launch("refused", tmp_path, **job | {"base": "b2"})
    assert other_base["error"].startswith("LoraError: the adapters in")
    assert "\n" not in other_base["error"]
    (whole,) = launch("refused", tmp_path, **job | {"lora": {}, "base": ""})
    assert "resume with the same" in whole["error"]

    read = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), tmp_path / "saved" / "policy")
    saved = load_file(tmp_path / "saved" / "policy" / "adapter_model.safetensors")
    loaded = {name: tensor for name, tensor in read.named_parameters() if "lora_" in name}
    assert {name.replace(".default", "") for name in loaded} == saved.keys()
    assert all(torch.equal(tensor, saved[name.replace(".default", "")]) for name, tensor in loaded.items())
