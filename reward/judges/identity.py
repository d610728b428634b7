"""Whether a judge is the one that its file pins: weights, prompt, family, and the model that its server serves.

Not promised: that a server serves the folder that it names, or that a declared digest is that of what it serves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from milepost.reward.judges import server
from milepost.reward.judges.config import JudgeConfig, JudgeRefused
from milepost.reward.judges.prompt import prompt_sha256


class JudgeAway(Exception):
    """The server of a judge does not answer."""


async def verify(config: JudgeConfig, policy_family: str, digest: Callable[[Path], str]) -> None:
    """Compare a judge with its pins, its family with the policy's, and both with what its server says.

    `digest` is that of all files of a folder. Raises JudgeRefused with a line for each pin that is missing or
    differs, and JudgeAway.
    """
    if wrong := list(_pins(config, digest)):
        raise JudgeRefused("\n".join(f"judge {config.name}: {line}" for line in wrong))
    family = family_of(config)
    if same_family(family, policy_family) and not config.allow_same_family:
        raise JudgeRefused(
            f"judge {config.name}: it is a {family} and the policy a {policy_family}, of one family: a judge likes "
            "what its own kind writes; take another one, or set allow_same_family = true"
        )
    try:
        _compare(config, await server.models(config))
    except (server.NoAnswer, server.Unanswerable) as error:
        raise JudgeAway(f"judge {config.name}: {error}; start its server, or correct base_url") from error


def family_of(config: JudgeConfig) -> str:
    """The model type of the judge, as its weights say, else as it is declared. Raises JudgeRefused."""
    return model_type(Path(config.weights)) if config.weights else config.family


def model_type(folder: Path) -> str:
    """What config.json of a model folder says. Raises JudgeRefused."""
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise JudgeRefused(f"{folder}/config.json tells no model_type ({error}); give a model folder") from error


def same_family(one: str, other: str) -> bool:
    """Whether two model types begin with the same word.

    >>> same_family("qwen3_moe", "Qwen2"), same_family("llama", "mistral")
    (True, False)
    """
    first, second = (re.match(r"[a-z]*", kind.lower()) for kind in (one, other))
    return bool(first and second and first[0] == second[0])


def _pins(config: JudgeConfig, digest: Callable[[Path], str]) -> Iterator[str]:
    found = digest(Path(config.weights)) if config.weights else ""
    for key, pinned, there in (
        ("weights_digest", config.weights_digest, found or config.weights_digest),
        ("prompt_sha256", config.prompt_sha256, prompt_sha256(config)),
    ):
        if pinned == there and pinned:
            continue
        if not there:
            yield f"{key}: there is no folder to hash: declare the digest or the commit of the weights"
        elif not pinned:
            yield f'{key}: not pinned; once you trust it, write {key} = "{there}"'
        else:
            yield f"{key}: the file pins {pinned}, found is {there}: another judge; undo the change, or pin it anew"


def _compare(config: JudgeConfig, listed: list[dict[str, object]]) -> None:
    """Raises JudgeRefused where the server does not list the model, serves another folder, or tells another digest."""
    entry = next((each for each in listed if each.get("id") == config.model), None)
    if entry is None:
        names = ", ".join(str(each.get("id")) for each in listed[:5])
        raise JudgeRefused(f"judge {config.name}: model: the server has no {config.model!r}, but {names or 'nothing'}")
    told = entry.get("digest")
    if told is not None and str(told).removeprefix("sha256:") != config.weights_digest:
        raise JudgeRefused(
            f"judge {config.name}: weights_digest: the file pins {config.weights_digest}, the server tells {told}"
        )
    if config.weights and Path(str(entry.get("root", ""))).resolve() != Path(config.weights).resolve():
        raise JudgeRefused(
            f"judge {config.name}: weights: the server says that it serves {entry.get('root')!r}, not "
            f"{config.weights}; start it on that folder (vllm serve FOLDER), or declare its family in place of weights"
        )
