"""A response token by token: the text of each, what it counted for, and the shade that shows it.

Token ids become text by the tokenizer that lies with the run's saved policy. A run that has saved none yet, or a
tokenizer that cannot be read, leaves the ids. A character that several tokens make stands at the last of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from milepost.cluster.runlog.runs import RunFolder

Measure = Literal["logprob", "advantage", "credit"]
_TOKENIZER: Final = "tokenizer.json"
_SURPRISES: Final = (0.05, 0.2, 0.5, 1.0, 2.0, 4.0)
"""Nats from which on a token that was sampled is one shade stronger."""
SHADES: Final = 5
"""Of a value in either direction."""


@dataclass(frozen=True, slots=True)
class Token:
    """One sampled token."""

    text: str
    shade: str
    """A class of the style sheet: s0 to s6 by surprise; p1 to p5, n1 to n5 or z by size and sign."""
    told: str
    """All that is known of it, for people."""


def tokenizer_of(run: RunFolder) -> Tokenizer | None:
    """The tokenizer of a run's policy; None where no policy was saved yet, or not with one that can be read."""
    saved = sorted(run.checkpoints.glob(f"*/policy/{_TOKENIZER}"))[-1:]
    for path in (run.policy / _TOKENIZER, run.start / _TOKENIZER, *saved):
        if path.is_file():
            return _read(path)
    return None


def _read(path: Path) -> Tokenizer | None:
    try:
        return Tokenizer.from_file(str(path))
    except Exception:  # the library raises nothing narrower
        return None


def texts(ids: Sequence[int], tokenizer: Tokenizer | None) -> list[str]:
    """One text per id; of a character that is not finished yet an empty one."""
    if tokenizer is None:
        return [f"⟨{token}⟩" for token in ids]
    stream = DecodeStream(skip_special_tokens=False)
    return [stream.step(tokenizer, token) or "" for token in ids]


def values(turn: dict[str, Any], measure: Measure, credit: float | None) -> list[float | None]:
    """What each token of a stored turn counts for; `credit` is the turn's by the strategy that is looked at."""
    number = len(turn["response_ids"])
    if measure == "logprob":
        return list(turn["logprobs"])
    if measure == "credit":
        return [credit] * number
    return list(turn["token_advantages"] or [turn["advantage"]] * number)


def tokens(
    turn: dict[str, Any], measure: Measure, found: Sequence[float | None], largest: float, tokenizer: Tokenizer | None
) -> list[Token]:
    """The response of a stored turn.

    Args:
        found: one value per token.
        largest: the size that gets the strongest shade.
    """
    ids, versions = turn["response_ids"], _versions(turn)
    return [
        Token(
            text=text,
            shade=surprise(value) if measure == "logprob" else signed(value, largest),
            told=" · ".join(
                [
                    f"token {k}: id {ids[k]}",
                    f"log-prob {turn['logprobs'][k]:.3f}",
                    *([f"{measure} {value:+.4g}"] if measure != "logprob" and value is not None else []),
                    f"policy version {versions[k]}",
                    "trained on" if turn["trained"] else "not trained on",
                ]
            ),
        )
        for k, (text, value) in enumerate(zip(texts(ids, tokenizer), found, strict=True))
    ]


def _versions(turn: dict[str, Any]) -> list[int]:
    """The policy version of each token."""
    return [span["version"] for span in turn["versions"] for _ in range(span["start"], span["end"])]


def surprise(logprob: float | None) -> str:
    """The shade of a token by how improbable it was.

    >>> surprise(-0.01), surprise(-0.7), surprise(-9.0)
    ('s0', 's3', 's6')
    """
    return "z" if logprob is None else f"s{sum(-logprob >= edge for edge in _SURPRISES)}"


def signed(value: float | None, largest: float) -> str:
    """The shade of a value between -`largest` and `largest`.

    >>> signed(0.5, 1.0), signed(-1.0, 1.0), signed(0.0, 1.0), signed(None, 1.0), signed(0.001, 1.0)
    ('p3', 'n5', 'z', 'z', 'p1')
    """
    if not value or not largest:
        return "z"
    return f"{'p' if value > 0 else 'n'}{min(SHADES, max(1, round(SHADES * abs(value) / largest + 0.4)))}"
