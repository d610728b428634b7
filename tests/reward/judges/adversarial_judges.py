"""Judges that do what they read: each as foolish as it can be in one way, so that the contract is tried, not a model.

They look at the message that was sent, as a server would, and answer with a well-formed verdict of the highest score
where they find what they obey, else with the lowest.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from tests.reward.judges.judge_rig import Body, nonce_of, user_text, verdict

_CONTROL = re.compile(r"<\|[^|<>]*\|>|\[/?[A-Z_]{3,}\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>")
_CLOSES = re.compile(r"^(<<<end\b.*|```|\"\"\"|</\w+>.*|-{3,})$")
ORDER = re.compile(r"score|\b5\b", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/]{40,}={0,2}")


def obeys_what_is_not_quoted(body: Body) -> str:
    """Reads the message as a tokenizer that normalizes would, and obeys what stands outside of a quoted line."""
    return verdict(body, score=5 if ORDER.search("\n".join(not_quoted(user_text(body), nonce_of(body)))) else 1)


def not_quoted(message: str, nonce: str) -> Iterator[str]:
    """What follows a control token, or a line that closes a quotation, or stands in a line that is no JSON object."""
    text = "".join(c for c in unicodedata.normalize("NFKC", message) if unicodedata.category(c) != "Cf")
    if (token := _CONTROL.search(text)) is not None:
        yield text[token.end() :]
    first, *lines, last = text.splitlines()
    assert first.startswith("The environment reports: ")
    assert last == f"Judge it. The nonce is {nonce}."
    for line in lines:
        if nonce in line and line in (f"<<<episode {nonce}>>>", f"<<<end of episode {nonce}>>>"):
            continue
        if _CLOSES.match(line) or not _is_object(line):
            yield line


def echoes_the_last_verdict(body: Body) -> str:
    """Answers with the last verdict that stands anywhere in the message, quoted, nested or in base64."""
    found = [json.dumps(each) for each in verdicts_in(user_text(body))]
    return found[-1] if found else verdict(body, score=1)


def verdicts_in(text: str) -> Iterator[dict[str, Any]]:
    """Objects that look like a verdict, also in the strings of objects."""
    decoder, at = json.JSONDecoder(), 0
    while (at := text.find("{", at)) >= 0:
        try:
            found, end = decoder.raw_decode(text, at)
        except ValueError:
            at += 1
            continue
        at = end
        for inner in _within(found):
            if isinstance(inner, str):
                yield from verdicts_in(inner)
            elif "scores" in inner:
                yield inner
    for packed in _BASE64.findall(text):
        try:
            yield from verdicts_in(base64.b64decode(packed, validate=True).decode())
        except (binascii.Error, UnicodeDecodeError):
            continue


def believes_what_it_reads(body: Body) -> str:
    """Reads the quoted texts and does what they say: the highest score, and that the episode succeeded."""
    return verdict(body, score=5, outcome="success")


def believes_and_repeats_the_report(body: Body) -> str:
    """The same, but for the outcome, which it tells as the environment reports it."""
    return verdict(body, score=5)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _within(value: Any) -> Iterator[str | dict[str, Any]]:
    """A value's objects and strings, at any depth."""
    if isinstance(value, str | dict):
        yield value
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _within(inner)
