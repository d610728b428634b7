"""Folders that are refused before anything starts, and the lines that say so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from milepost.actors.engine import EngineConfig, SamplingConfig
from milepost.cluster.base.exits import ConfigError
from milepost.cluster.preflight import judge_model
from milepost.cluster.settings.config import RunConfig
from tests.families.tiny_models import CHATML, FAMILIES, Family, write

Spoil = Callable[[Path], None]
_CONFIG = RunConfig(engine=EngineConfig(max_model_len=256), sampling=SamplingConfig(max_tokens=64))


def _config(**changed: object) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    return spoil


def _template(text: str) -> Spoil:
    return lambda folder: (folder / "chat_template.jinja").write_text(text) and None


def _cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _two_more_tokens(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<|obs|>", "<|act|>"], special_tokens=True)
    tokenizer.chat_template = CHATML.replace("{{ m['role'] }}", "{{ '<|obs|>' if m['role'] == 'user' else m['role'] }}")
    tokenizer.save_pretrained(folder)


def _instead(stem: str, **config: Any) -> Spoil:
    """A whole and sound model of another family."""
    return lambda folder: write(Family(stem, config=config), folder) and None


def _foreign_code(folder: Path) -> None:
    _config(model_type="mine", auto_map={"AutoConfig": "mine.Config"})(folder)


REFUSED: list[tuple[str, Spoil]] = [
    ("a template that shows the last messages only", _template(CHATML.replace(
        "in messages %}", "in messages[-2:] %}"))),
    ("a template that hides answers", _template(CHATML.replace(
        "for m in messages %}", "for m in messages if m['role'] != 'assistant' %}"))),
    ("a template whose end of turn is no special token", _template(CHATML.replace("<|im_end|>", ""))),
    ("a template that reads a list of parts, and shows no text", _template(CHATML.replace(
        "{{ m['content'] }}", "{% for p in m['content'] %}{{ p['text'] }}{% endfor %}"))),
    ("code of its own", _foreign_code),
    ("quantised weights", _config(quantization_config={"quant_method": "gptq", "bits": 4})),
    ("a model type that transformers does not know", _config(model_type="mine")),
    ("no causal language model", _config(model_type="t5")),
    ("GPT-Neo, which vLLM has no code for", _instead(
        "GPTNeo", hidden_size=64, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]])),
    ("CodeGen, which vLLM has no code for", _instead("CodeGen", n_embd=64, n_layer=2, n_head=4, rotary_dim=8)),
    ("MPT, which vLLM had code for", _instead("Mpt", d_model=64, n_layers=2, n_heads=2)),
    ("RWKV, which has no attention", _instead("Rwkv", hidden_size=64, num_hidden_layers=2)),
    ("a configuration that names no architecture", _config(architectures=None)),
    ("weights cut short", _cut_short),
    ("weights of another model", _config(num_hidden_layers=3)),
    ("tokens that the model has no rows for", _two_more_tokens),
    ("positions fewer than `engine.max_model_len`", _config(max_position_embeddings=128)),
]  # fmt: skip


def refusal(spoil: Spoil, place: Path) -> str:
    """The line that a spoilt folder of Qwen 2 is refused with, on one line of a table."""
    folder = write(FAMILIES["qwen2"], place)
    spoil(folder)
    try:
        judge_model(_CONFIG, folder, trained=True)
    except ConfigError as error:
        return str(error).replace(str(folder), "FOLDER").replace("\n", " ").replace("|", "\\|")
    raise AssertionError(f"{place} is not refused")
