"""What a judge's answer must be, and how it is read: exactly that, or it is no judgement.

The schema that is sent to the server and the check of what comes back are one type. An answer carries the nonce of its
request, which nothing that was said before the request can know: a verdict copied from an episode is none. What is
well-formed is then held against the episode's facts. Not promised: that a well-formed, consistent score is right.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from milepost.envs.types import Outcome
from milepost.reward.judges.config import Criterion, complaints
from milepost.reward.judges.quoting import Transcript

_MOST_EVIDENCE = 8


class Malformed(ValueError):
    """An answer is not what was asked for; another one may be."""


class Judgement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of one episode by one judge."""

    weights_digest: str
    prompt_sha256: str
    scores: dict[str, float] = {}
    """Of each criterion, in [0, 1]; empty where the judgement failed."""
    evidence: dict[str, list[int]] = {}
    """Numbers of the turns that each score rests on."""
    failure: str = ""
    """Why there is no score."""
    contradicted: bool = False
    """Whether it failed since it said of the episode what the environment knows to be otherwise."""


class Answer(BaseModel):
    """What is read of an answer; the type of one request says what its scores are, and adds its nonce."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    outcome: Outcome
    scores: Any

    def of(self, criterion: str) -> tuple[Sequence[int], int]:
        """Evidence and score."""
        found = getattr(self.scores, criterion)
        return found.evidence, found.score


def answer_type(criteria: Mapping[str, Criterion], nonce: str, num_turns: int) -> type[Answer]:
    """The type of an answer about an episode of `num_turns` turns; its JSON schema is what the server is sent."""
    turn = Annotated[int, Field(ge=0, le=num_turns - 1)]
    evidence = Annotated[list[turn], Field(min_length=1, max_length=_MOST_EVIDENCE)]
    scored: dict[str, Any] = {
        name: (_closed(f"Scored_{name}", evidence=evidence, score=Annotated[int, Field(ge=c.low, le=c.high)]), ...)
        for name, c in criteria.items()
    }
    scores = create_model("Scores", __config__=Answer.model_config, **scored)
    fixed = Literal[nonce]  # type: ignore[valid-type]
    return create_model("Verdict", __base__=Answer, nonce=(fixed, ...), scores=(scores, ...))


def _closed(name: str, **fields: Any) -> type[BaseModel]:
    told: dict[str, Any] = {field: (kind, ...) for field, kind in fields.items()}
    return create_model(name, __config__=Answer.model_config, **told)


def read_answer(text: str, wanted: type[Answer]) -> Answer:
    """Raises Malformed for anything but one JSON object of the schema, each key once."""
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
        return wanted.model_validate(found)
    except ValidationError as error:
        raise Malformed("; ".join(complaints(error, "answer"))[:300]) from error
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not one JSON object alone: {error}; it begins {text[:60]!r}") from error


def contradiction(
    answer: Answer, transcript: Transcript, shown: Collection[int], criteria: Mapping[str, Criterion]
) -> str:
    """What the answer says of the episode that is not so; "" where nothing is.

    Another outcome than the environment reported; evidence that was not shown; a score above the lowest whose evidence
    is a turn in which the agent wrote neither a letter nor a digit.
    """
    if answer.outcome != transcript.outcome:
        return f"it says outcome {answer.outcome}, the environment reported {transcript.outcome}"
    for name, criterion in criteria.items():
        turns, score = answer.of(name)
        for turn in turns:
            if turn not in shown:
                return f"{name}: its evidence is turn {turn}, which it was not shown"
            if score > criterion.low and not any(character.isalnum() for character in transcript.turns[turn].agent):
                return f"{name}: its evidence is turn {turn}, in which the agent wrote nothing"
    return ""


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"a key stands twice among {[key for key, _ in pairs]}")
    return found


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")
