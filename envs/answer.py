"""The answer format of our own environments: one choice in one pair of `<answer>` tags, anything else around it."""

from __future__ import annotations

import re
from collections.abc import Sequence

_ANSWER = re.compile(r"<answer>([^<]*)</answer>", re.IGNORECASE)


def read_answer(response: str, choices: Sequence[str]) -> str | None:
    """The one of `choices` (lower case) that `response` answers, whatever its case.

    None if there is no answer, more than one, or one that is not among the choices.
    """
    found = _ANSWER.findall(response)
    if len(found) != 1 or response.lower().count("<answer>") != 1:
        return None
    answer = found[0].strip().lower()
    return answer if answer in choices else None


def write_answer(choice: str) -> str:
    """A response that answers `choice` and says nothing else."""
    return f"<answer>{choice}</answer>"
