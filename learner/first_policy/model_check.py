"""Whether a folder holds a model that can be trained and served, judged by its files before anything starts.

Read are configuration, tokenizer and the headers of the weights; the weights themselves are not, so a large model takes
no longer than a small one. Code from the folder is never run. Not promised: that the engine serves every family that
passes; docs/models.md lists those that were tried.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from milepost.envs.dialogue import Dialogue

_SCALED_ALREADY = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")
"""Kinds of rotary scaling whose max_position_embeddings is the extended context (as vLLM 0.32 reads them)."""
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_NAMED = 3
"""How many of many names an error shows."""


class ModelError(ValueError):
    """A folder is not a model that can be trained."""


@dataclass(frozen=True, slots=True)
class CheckedModel:
    """A folder that passed."""

    family: str
    """transformers' model type, e.g. `qwen3`."""
    architectures: tuple[str, ...]
    """Classes that config.json names, e.g. `Qwen3ForCausalLM`; by them an engine chooses its code."""
    parameters: int
    appends: bool
    """Whether its chat template leaves earlier turns as they were."""
    positions: float
    """The longest context that it was made for, in tokens; infinite where it names none."""
    config: Any
    """transformers' configuration of it."""


def check_model(folder: Path, *, context_tokens: int, system_prompt: str = "") -> CheckedModel:
    """Compare configuration, weights and tokenizer of `folder` with each other and with `engine.max_model_len`.

    Raises `ModelError` with one line, and `TemplateError` where the chat template cannot serve.
    """
    require_model(folder)
    with _silent_transformers():
        config = _load_config(folder)
        _require_whole_files(folder)
        model = _load_shapes(folder, config)
        tokenizer = load_tokenizer(folder)
    positions = _require_positions(config, tokenizer, context_tokens)
    rows = model.get_input_embeddings().weight.shape[0]
    dialogue = Dialogue(tokenizer, system_prompt)
    _require_rows(tokenizer, dialogue, rows)
    parameters = sum(tensor.numel() for tensor in model.parameters())
    return CheckedModel(
        family=config.model_type,
        architectures=tuple(config.architectures or ()),
        parameters=parameters,
        appends=dialogue.appends,
        positions=positions,
        config=config,
    )


def require_model(folder: Path) -> None:
    """Raises `ModelError`, saying what is missing, unless `folder` holds a model, its weights and its tokenizer."""
    if not folder.is_dir():
        way_out = "set model.path to a Hugging Face folder"
        if _HUB_NAME.fullmatch(str(folder)):
            way_out = (
                "nothing is downloaded (all parts run with HF_HUB_OFFLINE=1): if that is its name on a hub, get it "
                f"first, `hf download {folder} --local-dir DIR`, and set model.path = DIR"
            )
        raise ModelError(f"model: there is no folder {folder}; {way_out}")
    wanted = {
        "config.json": ["config.json"],
        "a tokenizer (tokenizer.json or tokenizer.model)": ["tokenizer.json", "tokenizer.model"],
        "weights (*.safetensors; pickled weights are refused)": ["*.safetensors"],
    }
    missing = [what for what, patterns in wanted.items() if not any(any(folder.glob(p)) for p in patterns)]
    if missing:
        raise ModelError(f"model: {folder} lacks {', '.join(missing)}; save the model with save_pretrained")


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in `folder`. Raises `ModelError` if its files cannot be read, ask for code of their own, or hold no
    chat template.
    """
    try:
        with _silent_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # files of others: transformers and tokenizers raise many kinds
        _refuse_code(folder / "tokenizer_config.json")
        raise ModelError(
            f"model: the tokenizer files in {folder} cannot be read ({_in_short(error)}); copy them again, or save "
            "the tokenizer with save_pretrained"
        ) from error
    if tokenizer.chat_template is None:
        raise ModelError(
            f"model: the tokenizer in {folder} has no chat template, as those of base models: take the model's "
            "instruct variant, or write chat_template.jinja into the folder"
        )
    return tokenizer


def _load_config(folder: Path) -> Any:
    path = folder / "config.json"
    told = _read_json(path)
    kind = told.get("model_type")
    if told.get("quantization_config"):
        method = told["quantization_config"].get("quant_method", "quantised")
        raise ModelError(
            f"model: the weights in {folder} are quantised ({method}), which cannot be trained; take the model in "
            "float32 or bfloat16"
        )
    if kind not in CONFIG_MAPPING:
        _refuse_code(path)
        raise ModelError(f"model: {path} names the model type {kind!r}, which the installed transformers does not know")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(f"model: {path} names the model type {kind!r}, which is no causal language model")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the values are anybody's, and each family judges its own
        raise ModelError(f"model: {path} cannot be used ({_in_short(error)}); copy it again") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_bytes())
    except ValueError as error:
        raise ModelError(f"model: {path} is not JSON ({_in_short(error)}); copy it again") from error
    if not isinstance(told, dict):
        raise ModelError(f"model: {path} holds no JSON object; copy it again")
    return told


def _refuse_code(path: Path) -> None:
    """Raises `ModelError` where `path`, which transformers has no class of its own for, names one in the folder."""
    if path.is_file() and "auto_map" in _read_json(path):
        raise ModelError(
            f"model: {path} asks to run code from the folder, which is refused; take a model whose classes "
            "transformers has"
        )


def _require_whole_files(folder: Path) -> None:
    """Raises `ModelError` for a weight file that was cut short, or that the index names and the folder lacks."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = set(_read_json(index).get("weight_map", {}).values())
        missing = sorted(name for name in named if not (folder / name).is_file())
        if missing:
            raise ModelError(f"model: {folder} lacks {_listed(missing)}, which {index.name} names; copy them again")
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"model: {path} is not a whole safetensors file ({_in_short(error)}); copy it again, without Git's "
                "pointer files"
            ) from error


def _load_shapes(folder: Path, config: Any) -> Any:
    """The model without its numbers. Raises `ModelError` for tensors that are missing or of another shape."""
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            device_map="meta",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except Exception as error:  # each family's own code builds it from values that are anybody's
        raise ModelError(
            f"model: {folder} cannot be built as {config.model_type} ({_in_short(error)}); compare config.json with "
            "the weights"
        ) from error
    if found["missing_keys"]:
        raise ModelError(
            f"model: the weights in {folder} lack {_listed(sorted(found['missing_keys']))}, which config.json asks "
            "for; copy all files of one model"
        )
    if found["mismatched_keys"]:
        shown = [f"{name} is {list(is_)}, not {list(asked)}" for name, is_, asked in sorted(found["mismatched_keys"])]
        raise ModelError(
            f"model: the weights in {folder} are not those that config.json describes: {_listed(shown)}; copy all "
            "files of one model"
        )
    _require_equal_heads(folder, model)
    return model


def _require_equal_heads(folder: Path, model: Any) -> None:
    """Raises `ModelError` for weights that config.json ties, and that the files hold twice and differing.

    The learner would take both and the engine one. Only such tensors are read.
    """
    where = {name: path for path in folder.glob("*.safetensors") for name in _names(path)}
    for name, other in model.all_tied_weights_keys.items():
        if name in where and other in where and not torch.equal(_read(where, name), _read(where, other)):
            raise ModelError(
                f"model: config.json in {folder} ties {name} to {other}, but the weights of the two differ; set "
                "tie_word_embeddings to false in it"
            )


def _names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def _read(where: dict[str, Path], name: str) -> torch.Tensor:
    with safe_open(where[name], framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor


def _require_positions(config: Any, tokenizer: Any, context_tokens: int) -> float:
    """The model's longest context. Raises `ModelError` where the engine's is longer, by the engine's own rule."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None) or float("inf")
    rope = getattr(config, "rope_parameters", None) or {}
    for scaling in [rope] if "rope_type" in rope else [each for each in rope.values() if isinstance(each, dict)]:
        if scaling.get("rope_type") not in _SCALED_ALREADY and "gemma3" not in config.model_type:
            positions *= scaling.get("factor") or 1.0
    limit = float(min(positions, tokenizer.model_max_length))
    if context_tokens > limit:
        where = "tokenizer_config.json's model_max_length" if limit < positions else "config.json"
        raise ModelError(
            f"model: engine.max_model_len = {context_tokens} is more than the model's {limit:.0f} positions ({where}); "
            f"set engine.max_model_len = {limit:.0f} or less"
        )
    return limit


def _require_rows(tokenizer: Any, dialogue: Dialogue, rows: int) -> None:
    """Raises `ModelError` where text or the chat template encodes to a token that the embedding has no row for.

    Tokens that are flagged special and that the template does not write may lack one: observations cannot hold them.
    """
    flagged = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    written = set(dialogue.opening("")) | set(dialogue.continuation("", closed=False)) | set(dialogue.stop_token_ids)
    without = [i for i in sorted(tokenizer.get_vocab().values()) if i >= rows and (i not in flagged or i in written)]
    if without:
        shown = [repr(token) for token in tokenizer.convert_ids_to_tokens(without)]
        raise ModelError(
            f"model: the tokenizer knows {_listed(shown)}, for which the model's embedding of {rows} rows has none; "
            "call resize_token_embeddings(len(tokenizer)) and save both again"
        )


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _in_short(error: Exception) -> str:
    """The beginning of an error on one line; transformers and pydantic write many."""
    return " ".join(str(error).split())[:160] or type(error).__name__


@contextmanager
def _silent_transformers() -> Iterator[None]:
    """Without transformers' reports and bars: what they tell is judged here, and said in one line."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
