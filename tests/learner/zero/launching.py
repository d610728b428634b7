"""Start learner ranks on a small model, each in a process of its own, and read what they saw."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import rank_process
import torch
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
VOCAB = 64


def save_model(folder: Path) -> Path:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        attention_dropout=0.3,  # must not matter: the engine switches it off
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 128}')
    return folder


@contextmanager
def environment_of_ranks() -> Iterator[None]:
    """What the ranks' parent process is started with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parents[2])]))
        patch.setenv("DS_ACCELERATOR", "cpu")
        yield


def launch(
    mode: str, folder: Path, *, model: Path, wait_for: int = 2, module: str = "zero_rank", **job: Any
) -> list[dict[str, Any]]:
    """Run `mode` on every rank; the reports of the first `wait_for` ranks, the others are killed."""
    folder.mkdir(parents=True, exist_ok=True)
    children = []
    for rank in range(job["config"]["ranks"]):
        path = folder / f"{mode}{rank}.json"
        path.write_text(json.dumps({**job, "model": str(model), "rank": rank, "store": str(folder / mode)}))
        children.append((rank_process.begin(module, mode, path), path))
    try:
        return [report(child, path) for child, path in children[:wait_for]]
    finally:
        for child, _ in children:
            child.kill()
            child.join()


def report(child: BaseProcess, path: Path) -> dict[str, Any]:
    child.join(timeout=120)
    assert child.exitcode == 0, f"{path.name}: {Path(f'{path}.err').read_text()[-3000:]}"
    return json.loads(Path(f"{path}.out").read_text())


def config(ranks: int, stage: int, **more: Any) -> dict[str, Any]:
    return {"ranks": ranks, "zero_stage": stage, "lr": 3e-3, "warmup_steps": 1, "collective_timeout_s": 60, **more}
