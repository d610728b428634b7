"""Adapters under the real DeepSpeed engine on gloo, one process per rank: what is trained, saved and loaded."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from rank_process import config, launch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("rank_environment")]
LORA = {"rank": 4, "alpha": 8.0}
ADAPTERS = 2 * 4 * (64 + 2 * 48 + 64 + 3 * 96)
"""Numbers in the adapters: 2 layers of rank 4, whose q, k and v, o, and three of the MLP have so many ins and outs."""


def adapters_job(folder: Path, model: Path, ranks: int, stage: int, **learner: Any) -> dict[str, Any]:
    job = {"config": config(ranks, stage, **learner), "max_tokens": 60, "save": str(folder / "saved")}
    return {**job, "model": model, "module": "lora_rank", "lora": LORA, "base": "b1"}


@pytest.fixture(scope="module")
def one_rank(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """ZeRO-1 on one rank, rows padded."""
    folder = tmp_path_factory.mktemp("one")
    return launch("adapters", folder, **adapters_job(folder, model, 1, 1, packing="padded"))[0]


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
    # at most 16 bytes a trained number (weights, their masters, two moments), and what the files say of themselves
    shards = list((tmp_path / "saved" / "policy").glob("*.pt"))
    assert shards
    assert sum(path.stat().st_size for path in shards) < 16 * ADAPTERS + 40_000 * len(shards)
    peft_reads_what_was_saved(tmp_path / "saved" / "policy", model)
    if ranks == 1:
        return
    for before, after in zip(reports, launch("return", tmp_path, **job), strict=True):
        assert after["fresh"] != after["loaded"]
        assert after["next_loss"] == before["next_loss"]
        other_rank, other_base = after["refused"]
        assert other_rank.startswith("ZeroError: ")
        assert "'rank': 2" in other_rank
        assert other_base.startswith("LoraError: the adapters in")
        assert not any("\n" in refusal for refusal in after["refused"])


def peft_reads_what_was_saved(folder: Path, model: Path) -> None:
    read = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), folder)
    saved = load_file(folder / "adapter_model.safetensors")
    loaded = {name.replace(".default", ""): tensor for name, tensor in read.named_parameters() if "lora_" in name}
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in loaded.items())
