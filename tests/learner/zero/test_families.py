"""What is said of a family before a run, and what is not."""

from transformers import AutoConfig, LlamaConfig

from milepost.learner.zero.families import logit_rule, remarks_on
from milepost.learner.zero.output_layer import LogitRule


def test_a_family_that_nobody_compared_is_named_before_a_run() -> None:
    (said,) = remarks_on(AutoConfig.for_model("stablelm"))
    assert said.startswith("the learner does not know the family 'stablelm'")
    assert not remarks_on(LlamaConfig())


def test_scale_and_cap_of_logits_come_from_the_configuration() -> None:
    assert logit_rule(AutoConfig.for_model("cohere", logit_scale=0.25)) == LogitRule(scale=0.25)
    assert logit_rule(AutoConfig.for_model("granite", logits_scaling=8.0)) == LogitRule(scale=0.125)
    assert logit_rule(AutoConfig.for_model("gemma2", final_logit_softcapping=30.0)) == LogitRule(softcap=30.0)
    assert logit_rule(AutoConfig.for_model("stablelm")) is None
