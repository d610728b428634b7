"""Groups of trajectories out of ATIF documents, of ours and of other tools, so that they can be scored.

What belongs to one task is told by `extra.task_id`, by the `result.json` of a Harbor trial, in a file of several
documents by `session_id`, else by the folder. Rewards are those of the steps, else one at the end: of the document's
final metrics, or of a Harbor trial's verifier. Documents are read one at a time; what is kept of them has no tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final, cast, get_args

import msgspec

from milepost.cluster.workbench.atif import Document, decode, text_in
from milepost.cluster.workbench.atif_turns import Reading, number
from milepost.envs.types import Outcome
from milepost.learner.credit.assignment import CreditGroup, CreditTrajectory
from milepost.learner.credit.interchange import Malformed, Numbered, Refused, lines

_MARK: Final = b'"ATIF-v'
"""What every document holds: the beginning of its schema version."""
_FINAL: Final = "final_metrics.extra"


@dataclass(frozen=True, slots=True)
class MalformedDocument(Malformed):
    """A document that is no trajectory to score. `line` is its place among what was found."""

    where: str
    """Its file, and its line where the file holds several."""

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.where, self.field, self.reason)))


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A document of an episode that broke off: it has no outcome, so it cannot be compared."""

    where: str


class _Verified(msgspec.Struct, frozen=True):
    rewards: dict[str, float] | None = None


class _Trial(msgspec.Struct, frozen=True):
    """What Harbor writes beside the trajectory of a trial, as far as it matters here."""

    task_name: str
    verifier_result: _Verified | None = None

    @property
    def reward(self) -> float | None:
        """The verifier's one reward, or the one of that name."""
        rewards = (self.verifier_result.rewards if self.verifier_result else None) or {}
        return rewards.get("reward", next(iter(rewards.values())) if len(rewards) == 1 else None)


@dataclass(frozen=True, slots=True)
class _Text:
    """The text of one document."""

    path: Path
    line: int | None
    """Its line in a file of several documents."""
    text: bytes | None
    """None where it is too long to be read."""

    @property
    def where(self) -> str:
        return str(self.path) if self.line is None else f"{self.path}, line {self.line}"


def is_atif(path: Path) -> bool:
    """Whether a file, or a file below a folder, holds ATIF documents. Raises OSError where one can't be read."""
    return any(True for _ in _texts(path))


def read(path: Path) -> Iterator[Numbered | MalformedDocument | Unfinished]:
    """What is wrong with documents, then every group, in a file or below a folder.

    Raises OSError where a file can't be read.
    """
    groups: dict[str, list[tuple[Path, CreditTrajectory]]] = {}
    told: list[tuple[Path, MalformedDocument | Unfinished]] = []
    used: set[Path] = set()
    for count, found in enumerate(_texts(path), start=1):
        reading, own = Reading(found.path), found.path.resolve()
        try:
            document = decode(found.text)
            trajectory = _trajectory(document, reading)
            if trajectory is None:
                told.append((own, Unfinished(found.where)))
            else:
                groups.setdefault(_task(document, found), []).append((own, trajectory))
        except Refused as refused:
            told.append((own, MalformedDocument(count, refused.field, refused.reason, found.where)))
        used.update(reading.used)
    yield from (each for own, each in told if own not in used)
    for place, (task_id, members) in enumerate(groups.items(), start=1):
        whole = tuple(trajectory for own, trajectory in members if own not in used)
        if whole:
            yield Numbered(-place, CreditGroup(task_id, whole))  # below 0: documents count from 1


def _texts(path: Path) -> Iterator[_Text]:
    """Every document below `path`, in the order of file names; other files are passed over."""
    below = [path] if path.is_file() else sorted(p for p in path.rglob("*.json*") if p.is_file())
    for file in below:
        if file.suffix == ".jsonl":
            yield from _texts_by_line(file)
        elif (file.suffix == ".json" or file == path) and _MARK in ((text := text_in(file)) or _MARK):
            yield _Text(file, None, text)


def _texts_by_line(path: Path) -> Iterator[_Text]:
    """All lines but blank ones of a file whose first one is a document."""
    with path.open("rb") as file:
        written = ((k, line) for k, line in enumerate(lines(file), start=1) if line is None or line.strip())
        first = next(written, None)
        if first is not None and _MARK in (first[1] or b""):
            yield from (_Text(path, k, line) for k, line in chain([first], written))


def _trajectory(document: Document, reading: Reading) -> CreditTrajectory | None:
    """The trajectory; None where its episode broke off. Raises Refused."""
    turns = reading.turns(document)
    final: dict[str, Any] = {}
    for each in reading.chain:
        final |= (each.extra or {}) | ((each.final_metrics.extra if each.final_metrics else None) or {})
    if final.get("outcome", "") is None:
        return None
    if not reading.has_rewards:
        turns[-1] = msgspec.structs.replace(turns[-1], reward=_reward(final, reading.path))
    outcome, is_told = _outcome(final, sum(turn.reward for turn in turns))
    try:
        return CreditTrajectory(outcome, tuple(turns), is_told)
    except ValueError as error:
        raise Refused("steps", str(error)) from error


def _reward(final: dict[str, Any], path: Path) -> float:
    trial = _trial(path)
    found = number(final, "reward", "final_metrics")
    found = trial.reward if found is None and trial else found
    if found is None:
        raise Refused(f"{_FINAL}.reward", "no step has a reward in its extra, so the trajectory must have one here")
    return found


def _outcome(final: dict[str, Any], reward: float) -> tuple[Outcome, bool]:
    """The outcome, and whether the document says it."""
    told, success = final.get("outcome"), final.get("success")
    if told is not None and told not in get_args(Outcome):
        raise Refused(f"{_FINAL}.outcome", f"expected one of {', '.join(get_args(Outcome))}, got {told!r}")
    if success is not None and not isinstance(success, bool):
        raise Refused(f"{_FINAL}.success", f"expected true or false, got {success!r}")
    by_reward: Outcome = "success" if (reward > 0 if success is None else success) else "failure"
    is_told = (told is not None or success is not None) and final.get("success_reported", True) is not False
    return cast(Outcome, told or by_reward), is_told


def _task(document: Document, found: _Text) -> str:
    told = (document.extra or {}).get("task_id")
    if told is not None and not isinstance(told, str):
        raise Refused("extra.task_id", f"expected a text, got {type(told).__name__}")
    if told:
        return str(told)
    if trial := _trial(found.path):
        return trial.task_name
    return (document.session_id if found.line is not None else None) or str(found.path.parent)


def _trial(path: Path) -> _Trial | None:
    """Of the Harbor trial in whose folder, or in whose folder `agent`, a trajectory lies; None where there is none."""
    for folder in (path.parent, path.parent.parent):
        result = folder / "result.json"
        if result.is_file():
            try:
                return msgspec.json.decode(result.read_bytes(), type=_Trial)
            except msgspec.DecodeError:  # another program's
                continue
    return None
