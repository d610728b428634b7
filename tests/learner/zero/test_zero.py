"""The real DeepSpeed engine on gloo, one process per rank."""

from pathlib import Path
from typing import Any

import pytest
from rank_process import config, launch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("rank_environment")]


@pytest.fixture(scope="module")
def reference(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """ZeRO-1 on one rank, all samples in one micro-batch of padded rows, and nothing between gradient and step."""
    job = {"config": config(1, 1, packing="padded"), "max_tokens": 1000, "looks": False}
    return launch("engine", tmp_path_factory.mktemp("ref"), model=model, **job)[0]


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


@pytest.mark.parametrize(
    ("stage", "ranks", "packing"),
    [(0, 2, "tree"), (1, 2, "padded"), (2, 1, "tree"), (2, 2, "tree"), (3, 1, "tree")],
)
def test_stage_ranks_micro_batches_and_packing_do_not_change_the_losses(
    stage: int, ranks: int, packing: str, reference: dict[str, Any], model: Path, tmp_path: Path
):
    job = {"config": config(ranks, stage, packing=packing), "max_tokens": 40}
    check_engine(launch("engine", tmp_path, model=model, **job), reference)


@pytest.mark.parametrize(
    ("what", "stage", "ranks"),
    [("offload_optimizer", 1, 2), ("offload_optimizer", 2, 1), ("offload_optimizer", 3, 2), ("offload_param", 3, 2)],
)
def test_what_deepspeed_keeps_on_the_host_makes_the_same_steps_and_forgets_refused_ones(
    what: str, stage: int, ranks: int, reference: dict[str, Any], model: Path, tmp_path: Path
):
    offload = {"zero_optimization": {what: {"device": "cpu"}}}
    job = {"config": config(ranks, stage, deepspeed=offload), "max_tokens": 40}
    check_engine(launch("engine", tmp_path, model=model, **job), reference)


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


OBJECTIVES: dict[str, dict[str, Any]] = {
    "default": {"loss": {}, "offpolicy": {}, "entropy": {}},
    "turn ratio, row mean": {
        "loss": {"ratio": "turn", "aggregation": "sequence_token_mean", "clip_low": 3e-4, "clip_high": 4e-4},
        "offpolicy": {"rejection_band": (0.9, 1.1)},
        "entropy": {},
    },
    "row sum, entropy band": {
        "loss": {"aggregation": "sequence_token_sum_norm", "max_length": 32},
        "offpolicy": {"importance": "sequence"},
        "entropy": {"coef": 0.1, "band": (0.99, 1.02), "smoothing": 20.0},
    },
}


def test_trees_split_over_two_ranks_have_the_gradient_of_padded_rows_on_one(model: Path, tmp_path: Path):
    found = {}
    for ranks, max_tokens, packing in ((1, 1000, "padded"), (2, 40, "tree")):
        file = tmp_path / f"{ranks}.safetensors"
        job = {"config": config(ranks, 2, packing=packing), "max_tokens": max_tokens, "gradients": str(file)}
        reports = launch("split", tmp_path / str(ranks), model=model, objectives=OBJECTIVES, **job)
        assert (reports[0]["micro_batches"] == 1) is (ranks == 1)
        found[ranks] = load_file(file)
    assert found[1].keys() == found[2].keys()
    for name in OBJECTIVES:
        gradients = [(found[1][key], found[2][key]) for key in found[1] if key.startswith(f"{name}|")]
        assert max(float(one.abs().max()) for one, _ in gradients) > 1e-3
        assert max(float((one - two).abs().max()) for one, two in gradients) < 1e-6


def test_a_frozen_rank_ends_the_step_at_the_deadline(model: Path, tmp_path: Path):
    job = {"config": config(2, 2, collective_timeout_s=5), "max_tokens": 60}
    (report,) = launch("frozen", tmp_path, model=model, wait_for=1, **job)
    assert 4 < report["waited_s"] < 60, "rank 0 gives up at its deadline, not at torch's of half an hour"
    assert report["error"]


def test_an_update_trains_refuses_and_skips_on_all_ranks_alike(model: Path, tmp_path: Path):
    job = {"config": config(2, 2, max_tokens_per_micro_batch=60)}
    ours, theirs = launch("loop", tmp_path, model=model, module="loop_rank", **job)
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
    assert report["stale"] == [minibatches, pytest.approx(2.5e-4, abs=1e-5)], "only the probe is of the version trained"
    assert report["changed"]
    assert report["breaks"] == 0


def critic_job(folder: Path, model: Path, *, trunk: str, stage: int, ranks: int, **more: Any) -> list[dict[str, Any]]:
    packing = more.pop("packing", "tree")
    settings = config(ranks, stage, minibatches=2, max_tokens_per_micro_batch=60, packing=packing)
    job = {"config": settings, "save": str(folder / "saved")}
    return launch("critic", folder, model=model, module="loop_rank", trunk=trunk, **job, **more)


@pytest.fixture(scope="module")
def critics(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Both kinds of critic with ZeRO-1 on one rank, whose rows are padded."""
    folders = {trunk: tmp_path_factory.mktemp(trunk) for trunk in ("own", "shared")}
    job = {"stage": 1, "ranks": 1, "packing": "padded"}
    return {trunk: critic_job(folder, model, trunk=trunk, **job)[0] for trunk, folder in folders.items()}


def check_critic(report: dict[str, Any], trunk: str) -> None:
    losses = [update["value_loss"] for update in report["updates"]]
    assert losses[2] < losses[0]
    assert set(report["untrained"]) == {0.0}
    first = report["updates"][0]
    assert first["steps"] == 2
    assert ("critic_grad_norm" in first) is (trunk == "own")
    assert {"measure", "proximal"} < set(first["phases"])
    assert report["again"] == report["updates"][2], "a loaded checkpoint goes on, critic included"
    assert "resume with the same" in report["mismatch"]
    assert report["policy_moved"]


def test_a_critic_learns_and_resumes_on_both_kinds_of_trunk(critics: dict[str, dict[str, Any]]):
    for trunk, report in critics.items():
        check_critic(report, trunk)


@pytest.mark.parametrize(("trunk", "stage", "ranks"), [("own", 2, 2), ("own", 3, 2), ("shared", 3, 2)])
def test_stage_and_ranks_change_neither_values_nor_what_is_measured(
    trunk: str, stage: int, ranks: int, critics: dict[str, dict[str, Any]], model: Path, tmp_path: Path
):
    names = [name for name, _ in AutoModelForCausalLM.from_pretrained(model).named_parameters()]
    for report in critic_job(tmp_path, model, trunk=trunk, stage=stage, ranks=ranks):
        check_critic(report, trunk)
        for name, numbers in critics[trunk]["measured"].items():
            assert report["measured"][name] == pytest.approx(numbers, abs=1e-5)
        for update, wanted in zip(report["updates"], critics[trunk]["updates"], strict=True):
            assert update.pop("losses") == pytest.approx(wanted["losses"], abs=1e-4)
            assert update.pop("phases") == wanted["phases"]
            assert update == pytest.approx({name: wanted[name] for name in update}, rel=1e-3, abs=1e-4)
        assert report["names"] == names == [name for name, _ in report["shapes"]]
    saved = load_file(tmp_path / "saved" / "policy" / "model.safetensors")
    assert set(saved) == set(names), "the value head is no part of the policy"


def test_in_its_warm_up_only_the_critic_learns_and_more_steps_teach_it_more(
    critics: dict[str, dict[str, Any]], model: Path, tmp_path: Path
):
    critic = {"warmup_updates": 1, "epochs": 3}
    (report,) = critic_job(tmp_path, model, trunk="own", stage=1, ranks=1, critic=critic, packing="padded")
    first, second, _ = report["updates"]
    assert not report["policy_moved"]
    assert [first["steps"], second["steps"]] == [0, 2]
    assert first["critic_grad_norm"] > 0
    once = critics["own"]["updates"]
    assert first["value_loss"] == once[0]["value_loss"], "measured in the first epoch alone"
    assert second["value_loss"] < once[1]["value_loss"] < once[0]["value_loss"]
