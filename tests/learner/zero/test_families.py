"""What is said of a family before a run, and what is not."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, MistralConfig

from milepost.learner.zero.families import logit_rule, packing_for, remarks_on, tree_obstacle
from milepost.learner.zero.output_layer import LogitRule


def test_a_family_that_nobody_compared_is_named_before_a_run() -> None:
    padded, whole = remarks_on(AutoConfig.for_model("stablelm"), "tree")
    assert "rows are padded" in padded
    assert "nobody compared the family 'stablelm'" in padded
    assert whole.startswith("the learner does not know the family 'stablelm'")
    assert remarks_on(AutoConfig.for_model("stablelm"), "padded") == [whole]
    assert not remarks_on(LlamaConfig(), "tree")


@pytest.mark.parametrize(
    ("config", "because"),
    [
        (MistralConfig(sliding_window=64), "its attention looks back through a window"),
        (AutoConfig.for_model("gemma3_text"), "its attention looks back through a window"),
        (AutoConfig.for_model("gemma2"), "its attention caps its logits"),
        (AutoConfig.for_model("bloom"), "the family 'bloom' computes attention in its own way"),
        (MistralConfig(sliding_window=None), None),
        (AutoConfig.for_model("qwen2"), None),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_a_model_that_cannot_take_a_tree_is_padded(config: Any, because: str | None) -> None:
    assert tree_obstacle(config) == because
    assert packing_for(config, "tree", torch.device("cpu")) == ("padded" if because else "tree")
    assert packing_for(config, "padded", torch.device("cpu")) == "padded"


def test_on_a_gpu_rows_are_padded_unless_trees_are_asked_for() -> None:
    assert packing_for(LlamaConfig(), "auto", torch.device("cpu")) == "tree"
    assert packing_for(LlamaConfig(), "auto", torch.device("cuda", 0)) == "padded"
    assert packing_for(LlamaConfig(), "tree", torch.device("cuda", 0)) == "tree"


def test_scale_and_cap_of_logits_come_from_the_configuration() -> None:
    assert logit_rule(AutoConfig.for_model("cohere", logit_scale=0.25)) == LogitRule(scale=0.25)
    assert logit_rule(AutoConfig.for_model("granite", logits_scaling=8.0)) == LogitRule(scale=0.125)
    assert logit_rule(AutoConfig.for_model("gemma2", final_logit_softcapping=30.0)) == LogitRule(softcap=30.0)
    assert logit_rule(AutoConfig.for_model("stablelm")) is None
