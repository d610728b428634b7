"""A run that trains adapters: what travels, what is saved, how it goes on, and that engines serve what was learnt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from milepost.learner.zero import checkpoint
from tests.system.driving import START_S, Driver, write_config

pytestmark = pytest.mark.sweep


@pytest.mark.timeout(600)
def test_a_run_trains_publishes_saves_and_resumes_adapters_alone(
    tmp_path: Path, tiny_policy: Path, start: Callable[..., Driver]
) -> None:
    run = {"iterations": 3, "checkpoint_every": 1, "keep_checkpoints": 1}
    adapters = {"lora": {"rank": 2, "alpha": 16.0}, "loss": {"kl_coef": 0.01}, "learner": {"lr": 1e-2}}
    config = write_config(tmp_path, tiny_policy, run=run, **adapters)
    assert (first := start("train", config)).end(START_S) == 0, first.said()
    resumed = start("train", config, "--resume", "latest", "--set", "run.iterations=5")
    assert resumed.end(START_S) == 0, resumed.said()

    records = resumed.records()
    assert [record.iteration for record in records] == [1, 2, 3, 4, 5]
    assert all(record.parity is not None and record.parity < 1e-3 for record in records)
    whole = (tiny_policy / "model.safetensors").stat().st_size
    assert all(record.publish_bytes is not None and record.publish_bytes < whole / 10 for record in records)
    saved = checkpoint.newest_valid(resumed.folder.checkpoints)
    assert saved is not None
    assert saved.manifest.record.iteration == 5
    shards = [file.size for name, file in saved.manifest.files.items() if name.startswith("zero/")]
    assert sum(shards) < whole / 2, "optimizer state of the whole policy takes three times its weights"

    policy = AutoModelForCausalLM.from_pretrained(resumed.folder.policy)
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_policy), resumed.folder.policy / "adapter"
    )
    ids = torch.arange(5, 40)[None]
    with torch.no_grad():
        merged, beside, base = policy(ids).logits, adapted(ids).logits, adapted.get_base_model()
        with adapted.disable_adapter():
            before = base(ids).logits
    assert (merged - beside).abs().max() < 1e-4
    assert (merged - before).abs().max() > 1e-2, "five updates moved the policy"
