"""Texts as they are shown: control characters written out, and a conversation taken apart at its control tokens.

A prompt is stored as the text of its ids, laid out by a chat template. Three layouts are known: `<|im_start|>role`,
`<|start_header_id|>role<|end_header_id|>` and `<|role|>`. Text of any other is one message.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_CONTROL: Final = re.compile(r"<\|[^|<>\s]{1,40}\|>")
_ROLES: Final = "system|developer|user|assistant|tool|environment|observation"
_OPENING: Final = re.compile(
    rf"<\|(?:im_start\|>(?P<chatml>\w+)\n?|start_header_id\|>(?P<llama>\w+)<\|end_header_id\|>\n*|(?P<plain>{_ROLES})\|>)"
)


@dataclass(frozen=True, slots=True)
class Message:
    """What somebody said."""

    role: str
    """Empty where the text does not say."""
    text: str


def messages(text: str) -> list[Message]:
    r"""The messages of a laid-out text, without control tokens; one that says nothing is left out.

    >>> messages("<|im_start|>user\nWhich way?<|im_end|>\n<|im_start|>assistant\n")
    [Message(role='user', text='Which way?')]
    >>> messages("<|end|><|user|>A <b> c<|end|><|assistant|>")
    [Message(role='user', text='A <b> c')]
    >>> messages("plain")
    [Message(role='', text='plain')]
    """
    openings = list(_OPENING.finditer(text))
    starts = [("", 0, openings[0].start() if openings else len(text))]
    for place, found in enumerate(openings):
        end = openings[place + 1].start() if place + 1 < len(openings) else len(text)
        starts.append((found["chatml"] or found["llama"] or found["plain"], found.end(), end))
    said = [Message(role, _CONTROL.sub("", text[start:end]).strip()) for role, start, end in starts]
    return [message for message in said if message.text]


def pieces(text: str) -> list[tuple[bool, str]]:
    """The text in order, as (whether it is a control token, piece).

    >>> pieces("a<|end|>b")
    [(False, 'a'), (True, '<|end|>'), (False, 'b')]
    """
    found: list[tuple[bool, str]] = []
    end = 0
    for token in _CONTROL.finditer(text):
        found += [(False, text[end : token.start()]), (True, token[0])]
        end = token.end()
    return [(is_control, piece) for is_control, piece in [*found, (False, text[end:])] if piece]


def visible(text: str) -> str:
    r"""Text of anybody's with every character that cannot be seen written out, line ends and tabs aside.

    >>> visible("a\x1b[31mb\n\u202ec")
    'a\\x1b[31mb\n\\u202ec'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
