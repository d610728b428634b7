"""What vLLM is said to serve is what its own registry says."""

import pytest

from milepost.actors.installed_vllm import _registered, is_served


def test_the_tables_read_from_its_source_are_those_that_the_registry_has() -> None:
    from vllm.model_executor.models.registry import ModelRegistry  # seconds: what is_served does without

    assert _registered() == set(ModelRegistry.get_supported_archs())


@pytest.mark.parametrize(
    ("architecture", "served"),
    [
        ("GPT2LMHeadModel", True),
        ("HeliumForCausalLM", True),  # through transformers' code
        ("GPTNeoForCausalLM", False),  # which computes its attention in one way only
        ("T5ForSomethingElse", False),
    ],
)
def test_an_architecture_is_served_by_own_code_or_through_transformers(architecture: str, served: bool) -> None:
    assert is_served(architecture) == served
