"""The two tables of recorded episodes: their columns, and the rows that one episode becomes.

The only module that names pyarrow's types. `docs/trajectories.md` shows the columns to readers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from milepost.cluster.trajectories.fates import Fate
from milepost.cluster.trajectories.recording import RecordedTurn, Recording
from milepost.learner.episode_credit import EpisodeCredit

FORMAT: Final = b"1"
FORMAT_KEY: Final = b"milepost.trajectories"
Row = tuple[Any, ...]
Columns = tuple[tuple[str, pa.DataType, str], ...]
_TIME: Final = pa.timestamp("ms", tz="UTC")
_IDS: Final = pa.list_(pa.int32())
_FLOATS: Final = pa.list_(pa.float32())
_SPANS: Final = pa.list_(pa.struct([("version", pa.int64()), ("start", pa.int32()), ("end", pa.int32())]))

EPISODES: Final[Columns] = (
    ("episode", pa.int64(), "Number of the episode in the run, in the order of writing; joins the two tables"),
    ("group_id", pa.string(), "Group of the episode; eval where it was played to evaluate"),
    ("index", pa.int32(), "Position in the group, or number of the evaluation's episode"),
    ("fate", pa.string(), "trained, filtered, stale, failed, evaluation, late, dead_letter or pending"),
    ("reason", pa.string(), "Why it was kept or dropped, or what it failed of"),
    ("outcome", pa.string(), "success, failure or truncated; null for a failed episode"),
    ("reward", pa.float64(), "Return: the sum of the turns' rewards"),
    ("num_turns", pa.int32(), "Turns, one that broke off included"),
    ("num_tokens", pa.int32(), "Sampled tokens"),
    ("env", pa.string(), "Path of the environment class"),
    ("env_name", pa.string(), "Name of the environment; empty where the run has one"),
    ("seed", pa.int64(), "Seed of the task"),
    ("split", pa.string(), "train, heldout or ood"),
    ("options", pa.string(), "Options of the task, JSON"),
    ("cohort", pa.string(), "Cohort of the task; empty where it has none"),
    ("success_reported", pa.bool_(), "Whether the environment said if the task is solved"),
    ("oldest_version", pa.int64(), "Smallest policy version that sampled any of its tokens"),
    ("newest_version", pa.int64(), "Largest policy version that sampled any of its tokens"),
    ("learner_version", pa.int64(), "Policy version whose update judged it; null where none did"),
    ("strategy", pa.string(), "Credit strategy of that update"),
    ("trajectory_credit", pa.float64(), "Its trajectory advantage, unweighted"),
    ("seconds", pa.float64(), "Seconds from reset to end"),
    ("recorded_at", _TIME, "When the row was made, by the driver's clock"),
)
"""Name, type and meaning of each column; one row is one episode."""

TURNS: Final[Columns] = (
    ("episode", pa.int64(), "Number of the episode"),
    ("turn", pa.int32(), "Position in the episode, from 0"),
    ("prompt", pa.string(), "Text that was shown since the last response, control tokens included"),
    ("response", pa.string(), "Text that the policy answered, control tokens included"),
    ("tool", pa.string(), "Facts about a tool call as the environment tells them, JSON"),
    ("action", pa.string(), "Canonical action; null where the response held no valid one"),
    ("anchor", pa.string(), "State in which the turn started"),
    ("next_anchor", pa.string(), "State to which it led"),
    ("reward", pa.float64(), "Reward of the turn; null where it broke off"),
    ("progress", pa.float64(), "Share of the way to the goal after the turn, where the environment knows it"),
    ("credit", pa.float64(), "Credit of the turn by the strategy, before modulators and scaling"),
    ("step_credit", pa.float64(), "Its step advantage, unweighted"),
    ("compared", pa.bool_(), "Whether the step advantage rests on a comparison or an estimate of its own"),
    ("advantage", pa.float64(), "What the loss multiplied the tokens with; null where they were not trained on"),
    ("token_advantages", _FLOATS, "One per response token, where the strategy credits tokens"),
    ("trained", pa.bool_(), "Loss mask: whether the policy was trained on the response's tokens"),
    ("versions", _SPANS, "Policy versions that sampled the response: tokens start to end"),
    ("generate_s", pa.float64(), "Seconds that the engine took"),
    ("env_s", pa.float64(), "Seconds that the environment took"),
    ("lineage", pa.int32(), "Conversation of an agent program that it belongs to, from 0"),
    ("parent_lineage", pa.int32(), "Where it begins a lineage: the one it turned away from"),
    ("continues", pa.bool_(), "Whether prompt_ids go on from the turn before and its response"),
    ("prompt_ids", _IDS, "Token ids that were added; the whole prompt where continues is false"),
    ("response_ids", _IDS, "Token ids as sampled"),
    ("logprobs", _FLOATS, "Log-prob of each when it was sampled, in nats"),
)
"""Name, type and meaning of each column; one row is one turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What became of an episode, and what an update made of it where one did."""

    fate: Fate
    reason: str = ""
    learner_version: int | None = None
    strategy: str | None = None
    credit: EpisodeCredit | None = None


def schema(columns: Columns) -> pa.Schema:
    """The schema of a table, with the format's version."""
    return pa.schema([(name, kind) for name, kind, _ in columns], metadata={FORMAT_KEY: FORMAT})


def table(rows: Sequence[Row], columns: Columns) -> pa.Table:
    """Rows as a table. Raises pyarrow's ArrowInvalid or ArrowTypeError for a value that its column does not take."""
    values = zip(*rows, strict=True) if rows else ([] for _ in columns)
    arrays = [pa.array(column, kind) for column, (_, kind, _) in zip(values, columns, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema(columns))


def episode_row(number: int, recording: Recording, judged: Judged) -> Row:
    """One row of `EPISODES`."""
    task, turns = recording.task, recording.turns
    rewards = [turn.reward for turn in turns if turn.reward is not None]
    versions = [span.version for turn in turns for span in turn.versions]
    credit = judged.credit
    return (
        number,
        recording.group_id,
        recording.index,
        judged.fate,
        judged.reason,
        recording.outcome,
        sum(rewards),
        len(turns),
        sum(len(turn.response_ids) for turn in turns),
        task.env,
        task.env_name,
        task.seed,
        task.split,
        json.dumps(task.options, sort_keys=True),
        recording.cohort,
        recording.success_reported,
        min(versions, default=None),
        max(versions, default=None),
        judged.learner_version,
        judged.strategy,
        None if credit is None else credit.trajectory,
        recording.seconds,
        round(1000 * time.time()),
    )


def turn_row(number: int, t: int, turn: RecordedTurn, texts: tuple[str, str], credit: EpisodeCredit | None) -> Row:
    """One row of `TURNS`: turn `t` of episode `number`, whose prompt and response read `texts`."""
    advantages = None if credit is None else credit.advantages
    tokens = None if credit is None else credit.token_advantages
    return (
        number,
        t,
        *texts,
        None if turn.tool is None else json.dumps(turn.tool, sort_keys=True, default=str),
        turn.action,
        turn.anchor,
        turn.next_anchor,
        turn.reward,
        turn.progress,
        None if credit is None else credit.turns[t],
        None if credit is None else credit.steps[t],
        None if credit is None else credit.compared[t],
        None if advantages is None else advantages[t],
        None if tokens is None else tokens[t],
        advantages is not None,
        [(span.version, span.start, span.end) for span in turn.versions],
        turn.generate_s,
        turn.env_s,
        turn.lineage,
        turn.parent_lineage,
        turn.continues,
        turn.prompt_ids,
        turn.response_ids,
        turn.logprobs,
    )
