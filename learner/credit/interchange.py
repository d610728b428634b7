"""The interchange format of credit: one group of trajectories per line of JSON, from a run of ours or another system.

    {"task_id": "t", "trajectories": [{"outcome": "success", "turns": [
        {"anchor": "A", "action": "x", "next_anchor": "B", "reward": 1.0, "num_tokens": 3}]}]}

A trajectory may also have `success_reported`: false where its outcome was guessed from its rewards or is for people
alone; then credit goes by returns. A turn may also have `invalid`, `progress`, `entropy`, `history_gain`, `value` and
`token_values`, as in `CreditTurn`. Where `invalid` is true, `action` may be missing or null, and is not looked at.
Nothing else is accepted: a misspelt field is refused, not ignored. Files are read line by line and never held whole.
What earlier groups of a task met (`CreditGroup.history`) is not part of the format.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, TypeVar

import msgspec

from milepost.envs.types import Outcome
from milepost.learner.credit.assignment import INVALID, CreditGroup, CreditTrajectory, CreditTurn

T = TypeVar("T")
MAX_LINE_BYTES = 64 * 1024 * 1024
"""A longer line is refused unread: it is a file that is not JSON lines, and would fill the memory."""

_PATH_MARK = " - at `$"
_LONGEST_REASON = 300


class _TurnLine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    anchor: str
    action: str | None = None
    next_anchor: str
    reward: float
    invalid: bool = False
    num_tokens: int = 1
    progress: float | None = None
    entropy: float | None = None
    history_gain: float | None = None
    value: float | None = None
    token_values: tuple[float, ...] | None = None


class _TrajectoryLine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    outcome: Outcome
    turns: Annotated[list[_TurnLine], msgspec.Meta(min_length=1)]
    success_reported: bool = True


class _GroupLine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    task_id: Annotated[str, msgspec.Meta(min_length=1)]
    trajectories: Annotated[list[_TrajectoryLine], msgspec.Meta(min_length=1)]


_DECODER = msgspec.json.Decoder(_GroupLine)


@dataclass(frozen=True, slots=True)
class Numbered:
    """A group and the line it stands in."""

    line: int
    """1 for the first."""
    group: CreditGroup


@dataclass(frozen=True, slots=True)
class Malformed:
    """A line that is no group."""

    line: int
    field: str
    """Where in the line, e.g. `trajectories[0].turns[2].reward`; empty if it is the line as a whole."""
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.field}: {self.reason}" if self.field else f"line {self.line}: {self.reason}"


class Refused(ValueError):
    """A line is not a group in the interchange format."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field
        self.reason = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}..."


def decode(line: bytes) -> CreditGroup:
    """The group that one line of JSON spells. Raises Refused with the field and the reason.

    >>> decode(b'{"task_id": "t", "trajectories": []}')
    Traceback (most recent call last):
    milepost.learner.credit.interchange.Refused: trajectories: Expected `array` of length >= 1
    """
    found = strictly(_DECODER, line)
    return CreditGroup(found.task_id, tuple(_trajectory(t, i) for i, t in enumerate(found.trajectories)))


def strictly(decoder: msgspec.json.Decoder[T], text: bytes) -> T:
    """What `decoder` makes of JSON. Raises Refused with the field and the reason.

    >>> strictly(msgspec.json.Decoder(dict[str, int]), b'{"a": 1}')
    {'a': 1}
    """
    try:
        return decoder.decode(text)
    except UnicodeDecodeError as error:
        raise Refused("", f"not UTF-8: {error.reason} in byte {error.start} of a text") from error
    except msgspec.DecodeError as error:
        reason, _, path = str(error).partition(_PATH_MARK)
        raise Refused(path.removesuffix("`").removeprefix("."), reason) from error
    except RecursionError as error:
        raise Refused("", "nested too deeply") from error


def encode(group: CreditGroup) -> bytes:
    """One line of JSON without its newline; `decode` gives the group back, less its history.

    >>> group = CreditGroup.from_walks("A x B success", "A <invalid> A failure")
    >>> decode(encode(group)) == group
    True
    """
    return msgspec.json.encode(
        _GroupLine(
            task_id=group.task_id,
            trajectories=[
                _TrajectoryLine(
                    outcome=t.outcome,
                    turns=[_turn_line(turn) for turn in t.turns],
                    success_reported=t.success_reported,
                )
                for t in group.trajectories
            ],
        )
    )


def read(path: Path, *, is_growing: bool = False) -> Iterator[Numbered | Malformed]:
    """Every line of a file in order, as a group or as what is wrong with it; blank lines are passed over.

    Args:
        is_growing: someone may be writing the file or was killed doing so; a last line without its end is left out.

    Raises:
        OSError: the file can't be read.
    """
    with path.open("rb") as file:
        for number, line in enumerate(lines(file), start=1):
            if line is None:
                yield Malformed(number, "", f"longer than {MAX_LINE_BYTES >> 20} MiB; write one group per line")
            elif is_growing and not line.endswith(b"\n"):
                return
            elif line.strip():
                yield _numbered(number, line)


def lines(file: BinaryIO) -> Iterator[bytes | None]:
    r"""Lines with their ends; None for one that is longer than `MAX_LINE_BYTES`, which is not read.

    >>> import io
    >>> list(lines(io.BytesIO(b"[1]\n[2]")))
    [b'[1]\n', b'[2]']
    """
    while line := file.readline(MAX_LINE_BYTES):
        if len(line) < MAX_LINE_BYTES or line.endswith(b"\n"):
            yield line
            continue
        yield None
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES)


def _numbered(number: int, line: bytes) -> Numbered | Malformed:
    try:
        return Numbered(number, decode(line))
    except Refused as refused:
        return Malformed(number, refused.field, refused.reason)


def _trajectory(found: _TrajectoryLine, index: int) -> CreditTrajectory:
    field = f"trajectories[{index}]"
    turns = []
    for t, turn in enumerate(found.turns):
        try:
            turns.append(_turn(turn))
        except ValueError as error:
            raise Refused(f"{field}.turns[{t}]", str(error)) from error
    try:
        return CreditTrajectory(found.outcome, tuple(turns), found.success_reported)
    except ValueError as error:
        raise Refused(f"{field}.turns", str(error)) from error


def _turn(found: _TurnLine) -> CreditTurn:
    if found.action is None and not found.invalid:
        raise ValueError("action is missing; only a turn with invalid = true has none")
    return CreditTurn(
        anchor=found.anchor,
        action=INVALID if found.invalid or found.action is None else found.action,
        next_anchor=found.next_anchor,
        reward=found.reward,
        invalid=found.invalid,
        num_tokens=found.num_tokens,
        progress=found.progress,
        entropy=found.entropy,
        history_gain=found.history_gain,
        value=found.value,
        token_values=found.token_values,
    )


def _turn_line(turn: CreditTurn) -> _TurnLine:
    return _TurnLine(
        anchor=turn.anchor,
        action=None if turn.invalid else turn.action,
        next_anchor=turn.next_anchor,
        reward=turn.reward,
        invalid=turn.invalid,
        num_tokens=turn.num_tokens,
        progress=turn.progress,
        entropy=turn.entropy,
        history_gain=turn.history_gain,
        value=turn.value,
        token_values=turn.token_values,
    )
