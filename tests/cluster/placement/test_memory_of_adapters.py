"""What adapters save of the memory of a learner rank, by hand."""

import json
from pathlib import Path

from milepost.cluster.placement import dry_run, memory
from milepost.cluster.placement.size import size_of_folder
from milepost.cluster.settings.config import RunConfig
from milepost.learner.lora import LoraConfig
from tests.cluster.placement.test_memory import EIGHT, hardware, run_on, told_of


def test_adapters_alone_have_gradients_and_optimizer_state(tmp_path: Path) -> None:
    """Rank 16 in the 8B: 16 x (2 x 8192 of q, o + 2 x 5120 of k, v + 3 x 18432 of the MLP) x 32 = 41,943,040."""
    (tmp_path / "config.json").write_text(json.dumps(told_of("Llama-3-8B")))
    size = size_of_folder(tmp_path, LoraConfig(rank=16))
    assert (size.parameters, size.adapters) == (8_030_261_248, 41_943_040)
    plain = run_on(EIGHT).model_dump()
    config = RunConfig.model_validate(
        plain | {"lora": {"rank": 16}, "loss": {"kl_coef": 0.1}, "buffer": RunConfig().buffer.model_dump()}
    )
    assert {item.what: round(item.gib, 3) for item in memory.rank_items(config, size, on_gpu=True)} == {
        "weights, bfloat16": 3.759,  # 2 (P + A) / 4
        "gradients, float32": 0.039,  # 4 A / 4
        "master weights, float32": 0.039,
        "Adam's moments, float32": 0.078,  # 8 A / 4
        "buckets of ZeRO": 1.941,  # 2 x (A + 1e9)
        "activations (estimate)": 3.406,
        "log-probs (estimate)": 0.245,  # 2 x 1024 x 128256: the output layer has no gradient
    }
    _, accounts = dry_run.plan(config, size, hardware(EIGHT))
    on_host = {item.what: round(item.gib, 2) for item in accounts[-1].items}
    assert on_host["weights on their way: two files, rank 0's copy"] == 0.23  # 3 x 2 A
    assert not [what for what in on_host if what.startswith("models")], "they are split as they are made"
