"""Folders that are refused before anything starts, and the lines that say so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from transformers import AutoTokenizer

from milepost.envs.chat_template import TemplateError
from milepost.learner.first_policy.model_check import ModelError, check_model
from tests.families.tiny_models import CHATML, FAMILIES, write

Spoil = Callable[[Path], None]


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
        check_model(folder, context_tokens=256)
    except (ModelError, TemplateError) as error:
        return str(error).replace(str(folder), "FOLDER").replace("\n", " ").replace("|", "\\|")
    raise AssertionError(f"{place} is not refused")
