"""An episode as a judge is shown it: quoted, so that nothing said in it can end the quotation or be read as a command.

Every text is one JSON string on a line of its own between two delimiters with a random nonce. Inside a string, what
could be a delimiter, a control token of a chat template (`<|im_start|>`, `[INST]`, `</s>`, in ASCII or in characters
that Unicode's compatibility forms make of them) or hidden (zero-width, bidirectional, tag characters) is written as
an escape. A long episode is shortened in its middle; what is left out is counted outside of the strings, where no text
of the episode reaches.

Not promised: that a model which reads an instruction in a quoted string does not follow it.
"""

from __future__ import annotations

import json
import string
import unicodedata
from collections.abc import Sequence
from typing import Final

import msgspec

from milepost.envs.types import Outcome

_PLAIN: Final = frozenset(string.ascii_letters + string.digits + string.punctuation + " ") - set('"\\<[')
_HIDDEN: Final = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs"})
_RULES_SHOWN, _RULE_CHARS = 10, 100


class TranscriptTurn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One exchange."""

    agent: str
    """What the policy wrote."""
    environment: str = ""
    """What came of it."""
    broken_rules: tuple[str, ...] = ()
    """As the environment names them."""


class Transcript(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A finished episode as text, with what the environment reports of it. Raises ValueError without turns."""

    task: str
    outcome: Outcome
    turns: tuple[TranscriptTurn, ...]

    def __post_init__(self) -> None:
        if not self.turns:
            raise ValueError("a transcript needs at least one turn")


def delimiters(nonce: str) -> tuple[str, str]:
    """The lines before and after an episode."""
    return f"<<<episode {nonce}>>>", f"<<<end of episode {nonce}>>>"


def quoted(transcript: Transcript, max_chars: int) -> tuple[list[str], frozenset[int]]:
    """Lines of at most about `max_chars` characters in all, and the numbers of the turns that are shown.

    The task, the first turns and the last ones are shown, the longest texts without their middle.
    """
    limit = max(100, max_chars // 8)
    task = _line('"task"', transcript.task, limit)
    turns = [_turn(number, turn, limit) for number, turn in enumerate(transcript.turns)]
    sizes = [sum(map(len, lines)) for lines in turns]
    room = max_chars - len(task)
    if sum(sizes) <= room:
        return [task, *(line for lines in turns for line in lines)], frozenset(range(len(turns)))
    head = _fitting(sizes, room // 2)
    tail = min(_fitting(sizes[::-1], room // 2), len(turns) - head)
    gap = range(head, len(turns) - tail)
    left_out = json.dumps({"left_out": {"turns": len(gap), "from": gap.start, "to": gap.stop - 1}})
    shown = [line for lines in turns[: gap.start] for line in lines]
    shown += [left_out, *(line for lines in turns[gap.stop :] for line in lines)]
    return [task, *shown], frozenset(range(len(turns))) - frozenset(gap)


def _fitting(sizes: Sequence[int], room: int) -> int:
    """How many of them fit, at least one."""
    used = 0
    for count, size in enumerate(sizes):
        used += size
        if count and used > room:
            return count
    return len(sizes)


def _turn(number: int, turn: TranscriptTurn, limit: int) -> list[str]:
    lines = [_line(f'"agent", "turn": {number}', turn.agent, limit)]
    if turn.environment:
        lines.append(_line(f'"environment", "turn": {number}', turn.environment, limit))
    lines += [_line(f'"broken rule", "turn": {number}', rule, _RULE_CHARS) for rule in turn.broken_rules[:_RULES_SHOWN]]
    return lines


def _line(by: str, text: str, limit: int) -> str:
    """A text as one line of JSON; a long one as its beginning and its end, with how much lies between."""
    pieces = [escaped(text, at) for at in range(len(text))]
    if sum(map(len, pieces)) <= limit:
        return f'{{"by": {by}, "text": "{"".join(pieces)}"}}'
    head, tail = _most(pieces, limit * 3 // 4), _most(pieces[::-1], limit // 4)
    begin, end = "".join(pieces[:head]), "".join(pieces[len(pieces) - tail :])
    return f'{{"by": {by}, "text": "{begin}", "left_out_characters": {len(pieces) - head - tail}, "text_end": "{end}"}}'


def _most(pieces: Sequence[str], room: int) -> int:
    used = 0
    for count, piece in enumerate(pieces):
        used += len(piece)
        if used > room:
            return count
    return len(pieces)


def escaped(text: str, at: int) -> str:
    """The character at a place as it stands in a JSON string; one that could be more than text as an escape.

    >>> "".join(escaped("<|im_end|>[/INST] [1]", at) for at in range(21))
    '\\\\u003c|im_end|>\\\\u005b/INST] [1]'
    """
    character = text[at]
    if character in _PLAIN:
        return character
    is_token = character == "[" and text[at + 1 : at + 2] in tuple(string.ascii_uppercase + "/")
    if is_token or character == "<" or _could_be_more(character):
        return json.dumps(character)[1:-1] if ord(character) > 126 else f"\\u{ord(character):04x}"
    return json.dumps(character, ensure_ascii=False)[1:-1]


def _could_be_more(character: str) -> bool:
    """Hidden, or one of which a tokenizer that normalizes makes a bracket."""
    if character == "\n" or character == "\t":
        return False
    is_hidden = unicodedata.category(character) in _HIDDEN or "VARIATION SELECTOR" in unicodedata.name(character, "")
    return is_hidden or (not character.isascii() and bool(set(unicodedata.normalize("NFKD", character)) & set("<[|")))
