"""The real DeepSpeed engine on gloo, one process per rank."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

pytestmark = pytest.mark.services

WORKER = Path(__file__).with_name("zero_rank.py")
ROOT = WORKER.parents[2]
VOCAB = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
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


def launch(mode: str, folder: Path, *, model: Path, wait_for: int = 2, **job: Any) -> list[dict[str, Any]]:
    """Run `mode` on every rank; the reports of the first `wait_for` ranks, the others are killed."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    children = []
    for rank in range(job["config"]["ranks"]):
        path = folder / f"{mode}{rank}.json"
        path.write_text(json.dumps({**job, "model": str(model), "rank": rank, "port": port, "out": f"{path}.out"}))
        command = [sys.executable, str(WORKER), mode, str(path)]
        children.append((subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True), path))
    try:
        return [report(child, path) for child, path in children[:wait_for]]
    finally:
        for child, _ in children:
            child.kill()
            child.communicate()


def report(child: subprocess.Popen[str], path: Path) -> dict[str, Any]:
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 0, f"{path.name}: {errors[-3000:]}"
    return json.loads(Path(f"{path}.out").read_text())


def config(ranks: int, stage: int, **more: Any) -> dict[str, Any]:
    return {"ranks": ranks, "zero_stage": stage, "lr": 3e-3, "warmup_steps": 1, "collective_timeout_s": 60, **more}


@pytest.fixture(scope="module")
def reference(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """ZeRO-1 on one rank, all samples in one micro-batch."""
    return launch("engine", tmp_path_factory.mktemp("ref"), model=model, config=config(1, 1), max_tokens=1000)[0]


def check_engine(reports: list[dict[str, Any]], reference: dict[str, Any], tolerance: float = 1e-5) -> None:
    for report in reports:
        assert report["applied"]
        assert report["names"] == reference["names"]
        for step, expected in zip(report["steps"], reference["steps"], strict=True):
            assert step == pytest.approx(expected, rel=tolerance, abs=tolerance)
        assert report["refused"]
        assert report["unchanged"]
        assert not any(applied for applied, _ in report["spoiled"].values())


def test_one_rank_learns_and_survives_what_is_not_finite(reference: dict[str, Any], model: Path):
    check_engine([reference], reference)
    losses = [loss for loss, *_ in reference["steps"]]
    assert len({round(loss, 6) for loss in losses}) == 4
    assert reference["spoiled"]["nan_loss"][1] != reference["spoiled"]["nan_loss"][1]
    assert abs(reference["spoiled"]["nan_gradient"][1]) < 100, "the loss is finite where only the gradient is not"
    assert [lr for *_, lr in reference["steps"]] == pytest.approx([1.5e-3, 3e-3, 3e-3, 3e-3])
    names = [name for name, _ in AutoModelForCausalLM.from_pretrained(model).named_parameters()]
    assert reference["names"] == names


@pytest.mark.parametrize(("stage", "ranks", "max_tokens"), [(0, 2, 60), (1, 2, 60), (2, 1, 40), (2, 2, 40), (3, 1, 40)])
def test_stage_ranks_and_micro_batches_do_not_change_the_losses(
    stage: int, ranks: int, max_tokens: int, reference: dict[str, Any], model: Path, tmp_path: Path
):
    reports = launch("engine", tmp_path, model=model, config=config(ranks, stage), max_tokens=max_tokens)
    check_engine(reports, reference)


def test_zero3_on_two_ranks_resumes_and_its_policy_is_a_plain_model(
    reference: dict[str, Any], model: Path, tmp_path: Path
):
    job = {"config": config(2, 3, gradient_checkpointing=True), "max_tokens": 60, "save": str(tmp_path / "saved")}
    reports = launch("engine", tmp_path, model=model, **job)
    check_engine(reports, reference)
    assert reports[0]["local_after_gather"] == 0, "gathered parameters must be given back"
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "saved" / "policy")
    assert [name for name, _ in policy.named_parameters()] == reference["names"]
    start = AutoModelForCausalLM.from_pretrained(model)
    assert (policy.lm_head.weight - start.lm_head.weight).abs().max() > 1e-4
    assert (tmp_path / "saved" / "policy" / "tokenizer_config.json").is_file()
    resumed = launch("resume", tmp_path, model=model, **job)
    assert [r["next_loss"] for r in resumed] == pytest.approx([r["next_loss"] for r in reports], abs=1e-6)
    assert "resume with the same" in resumed[0]["mismatch"]


def test_bfloat16_stays_near_float32(reference: dict[str, Any], model: Path, tmp_path: Path):
    reports = launch("engine", tmp_path, model=model, config=config(1, 2, dtype="bfloat16"), max_tokens=1000)
    assert reports[0]["applied"]
    assert reports[0]["unchanged"]
    assert [s[0] for s in reports[0]["steps"]] == pytest.approx([s[0] for s in reference["steps"]], abs=0.05)


def test_a_frozen_rank_ends_the_step_at_the_deadline(model: Path, tmp_path: Path):
    job = {"config": config(2, 2, collective_timeout_s=5), "max_tokens": 60}
    (report,) = launch("frozen", tmp_path, model=model, wait_for=1, **job)
    assert 4 < report["waited_s"] < 60, "rank 0 gives up at its deadline, not at torch's of half an hour"
    assert report["error"]


def test_an_update_trains_refuses_and_skips_on_all_ranks_alike(model: Path, tmp_path: Path):
    job = {"config": config(2, 2, max_tokens_per_micro_batch=60)}
    ours, theirs = launch("loop", tmp_path, model=model, **job)
    for minibatches in (1, 2):
        report = ours[str(minibatches)]
        other = theirs[str(minibatches)]
        assert report.pop("different") != other.pop("different")
        assert report == other
        check_updates(report, minibatches)


def check_updates(report: dict[str, Any], minibatches: int) -> None:
    assert report["steps"] == minibatches
    assert report["parity"] < 1e-5
    # with one step the ratio is taken at the very policy it is clipped around
    assert report["metrics"]["ratio_mean"] == pytest.approx(1, abs=1e-12 if minibatches == 1 else 0.2)
    assert report["metrics"]["effective_sample_share"] == pytest.approx(1, abs=1e-4)
    assert report["metrics"]["entropy"] == pytest.approx(4.1, abs=0.2)
    assert "differ by 0.5 nats" in report["parity_error"]
    assert report["probe"] < 1e-5
    assert "differ by 0.5 nats" in report["probe_error"]
    assert report["nothing"] == [0, None, ["zero_variance"] * 3]
    assert report["unchanged"]
    assert report["stale"] == [minibatches, None, pytest.approx(0.5, abs=0.05)]
    assert report["changed"]
    assert report["breaks"] == 0
