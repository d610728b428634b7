"""Memory of a GPU where an engine sleeps while a rank trains, against numbers computed by hand."""

import json
from pathlib import Path

import pytest

from milepost.cluster.placement import dry_run
from milepost.cluster.placement.memory import total
from milepost.cluster.placement.size import size_of_folder
from milepost.learner.lora import LoraConfig
from tests.cluster.placement.test_memory import ONE, hardware, run_on, told_of


def test_an_engine_that_sleeps_leaves_its_gpu_to_the_rank_and_keeps_its_weights_on_the_host(
    tmp_path: Path,
) -> None:
    """P = 1.437696 Gi parameters of the 1.5B; the rank takes 30.867 GiB, and keeps 28.310 between its passes."""
    (tmp_path / "config.json").write_text(json.dumps(told_of("Qwen2.5-1.5B")))
    size, config = size_of_folder(tmp_path, LoraConfig()), run_on(ONE)
    in_turn = config.model_copy(update={"run": config.run.model_copy(update={"max_staleness": 0})})
    where, accounts = dry_run.plan(in_turn, size, hardware(ONE))
    assert where[1] == "an engine and a learner rank share a GPU, of which one sleeps"
    sums = {account.title: total(account.items) for account in accounts[:2]}
    shared = "each of 1 GPUs with an engine and a rank"
    # activations 2 x 8192 x (28 x 1536 + 8 x 1536 + 2 x 256 + 4 x 8960) = 1.3984 GiB,
    # log-probs (2 x 1024 + 4 x 1536) x 151936 = 1.1592 GiB
    expected = {
        f"{shared}, while the engine samples": 0.25 * 80 + 30.867 - 1.3984 - 1.1592,
        f"{shared}, while the rank trains": 30.867 + 3,
    }
    assert sums == pytest.approx(expected, abs=2e-3)
    # 1 - 28.310 / 80; what only a pass takes is no way out of what lies there between them
    assert accounts[0].way_out.startswith("engine.gpu_memory_utilization may be 0.65 at most beside this rank; ")
    assert "offload_optimizer" in accounts[0].way_out
    assert "max_tokens_per_micro_batch" in accounts[1].way_out
    host = {item.what: item.gib for item in accounts[2].items}
    assert host["weights of 1 engines while they sleep"] == pytest.approx(2 * 1.437696, abs=1e-5)
    kept_awake = in_turn.model_copy(
        update={"engine": in_turn.engine.model_copy(update={"vllm": {"enable_sleep_mode": False}})}
    )
    for awake in (config, kept_awake):
        where, _ = dry_run.plan(awake, size, hardware(ONE))
        assert where[1] == "an engine and a learner rank share a GPU, both in memory at once"
