"""Which model architectures the installed vLLM serves and which arguments it takes, told without loading it.

Loading vLLM takes seconds, so both are read from its source. An architecture that is in none of its registry's tables
is served through transformers' own code if that lets others compute its attention, by vLLM's own rule. Not promised:
that vLLM starts with what passes; a run that it does not start with ends before its first iteration.
"""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path

_REGISTRY = Path("model_executor", "models", "registry.py")
_WHOLE = "_VLLM_MODELS"
_ARGUMENTS = Path("engine", "arg_utils.py")
_CLASSES = ("EngineArgs", "AsyncEngineArgs")


def is_served(architecture: str) -> bool:
    """Whether vLLM has code for an architecture, e.g. `Qwen3ForCausalLM`, of its own or through transformers.

    Raises RuntimeError where vLLM is not installed, or its registry has no tables to read.
    """
    if architecture in _registered():
        return True
    import transformers  # heavy: whoever asks for arguments alone does without

    model = getattr(transformers, architecture, None)
    return model is not None and (model.is_backend_compatible() or model._can_set_attn_implementation())


@cache
def argument_names() -> frozenset[str]:
    """The fields of vLLM's `AsyncEngineArgs`. Raises RuntimeError where vLLM is not installed, or has none."""
    path = _source(_ARGUMENTS)
    classes = [node for node in ast.parse(path.read_bytes()).body if isinstance(node, ast.ClassDef)]
    fields = [field for node in classes if node.name in _CLASSES for field in node.body]
    names = [f.target.id for f in fields if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name)]
    if not names:
        raise RuntimeError(f"{path} has no {' and '.join(_CLASSES)}: this vllm is not the one that milepost asks for")
    return frozenset(names)


@cache
def _registered() -> frozenset[str]:
    """The architectures that the registry has code for: the keys of the tables that it puts together."""
    path = _source(_REGISTRY)
    tables = {
        name.id: node.value
        for node in ast.parse(path.read_bytes()).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
        for name in node.targets
        if isinstance(name, ast.Name)
    }
    if _WHOLE not in tables:
        raise RuntimeError(f"{path} has no table {_WHOLE}: this vllm is not the one that milepost asks for")
    parts = [tables[part.id] for part in tables[_WHOLE].values if isinstance(part, ast.Name)]
    return frozenset(str(key.value) for part in parts for key in part.keys if isinstance(key, ast.Constant))


def _source(path: Path) -> Path:
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        raise RuntimeError("vllm is not installed")
    return Path(found.origin).parent / path
