"""The lines of `metrics.jsonl`: what one iteration and one evaluation measured, and how to read them back.

`milepost.cluster.runlog.metrics` writes them. Reading forgives what a killed driver leaves (a torn last line) and what
a resumed run repeats; it forgives nothing else.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from milepost.cluster.base.exits import ConfigError
from milepost.envs.types import Split
from milepost.reward.evaluators.summary import CohortSuccess

Number = float | None
"""A measured value; None where it was not finite or not measured."""


class EnvRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One environment's part of an iteration; None for what cannot be said of no finished episode."""

    episodes: int
    """Finished episodes."""
    success: Number = None
    """Share of them."""
    success_low: Number = None
    success_high: Number = None
    """Bounds of the 95 % Wilson interval."""
    reward_mean: Number = None
    reward_std_within: Number = None
    """Root of the mean variance of the return inside a group."""
    zero_variance_share: Number = None
    turns_mean: Number = None
    invalid_share: Number = None
    """Share of turns without a valid action."""
    groups_trained: int
    groups_filtered: int
    verdicts: dict[str, int] = {}
    """Groups by the filter's reason to keep or drop them."""
    episodes_failed: int = 0
    first_error: str = ""
    """What the first episode that failed died of: boundary, error, message; empty if none did."""


class IterationRecord(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="iteration", tag_field="kind"
):
    """One iteration of training. Counts are the iteration's; restarts and `nonfinite_total` since the driver began."""

    iteration: int
    """1 for the first: the number of finished iterations."""
    policy_version: int
    time_s: Number
    """Seconds since training began."""
    success: Number
    """Share of the iteration's finished episodes that reached the goal."""
    reward_mean: Number
    reward_std_within: Number
    """Root of the mean variance of the return inside a group."""
    reward_std_between: Number = None
    """Root of the variance of the groups' mean returns."""
    zero_variance_share: Number
    episodes: int
    """Finished episodes."""
    turns_mean: Number
    generate_s: Number = None
    """Mean seconds of a turn in the engine."""
    env_s: Number = None
    """Mean seconds of a turn in the environment."""
    tool_calls: int = 0
    """Turns that called a tool, as their environment reports."""
    invalid_share: Number
    """Share of turns without a valid action."""
    cut_share: Number = None
    """Share of responses that were cut at `sampling.max_tokens`."""
    context_full_share: Number = None
    """Share of finished episodes that ended because their next prompt did not fit into `engine.max_model_len`."""
    tokens: int
    """Sampled tokens."""
    tokens_per_s: Number
    groups_trained: int
    groups_filtered: int
    groups_stale: int
    episodes_failed: int
    staleness_mean: Number
    """Policy versions between sampling (oldest token) and training."""
    staleness_max: int
    mixed_version_share: Number
    """Share of responses sampled by more than one policy version."""
    loss: Number
    kl: Number
    entropy: Number
    clip_low: Number
    clip_high: Number
    grad_norm: Number
    advantage_abs_p99: Number
    ess: Number
    """Effective sample size of the importance weights, as a share of the tokens."""
    parity: Number
    """Mean absolute difference between the engines' and the learner's log-probs on tokens of the version that was
    trained, before its first step.
    """
    wait_s: Number
    """Seconds the learner waited for groups."""
    train_s: Number
    commit_s: Number = None
    """Seconds to commit the update, with its checkpoint where one was due."""
    publish_s: Number
    """Seconds until the learner might go on: to gather the new weights, and before that to wait for the last ones to
    arrive; with `max_staleness = 0` and over NCCL, until every engine serves them.
    """
    transfer_s: dict[str, Number] = {}
    """Seconds of the publication that ended last, by part: gather (to a file), fetch (hash), pause, load, verify
    (digests), commit; of the engines, the slowest.
    """
    publish_bytes: int | None = None
    """Bytes of the new weights, or adapters, on their way to the host of each engine; None over NCCL."""
    check_s: Number = None
    """Seconds to measure mutual information, beyond `wait_s`, beside which it is measured."""
    both_busy_share: Number
    """Share of the iteration in which rollouts and training ran at the same time."""
    buffer_groups: int
    """Ready for the learner."""
    buffer_bytes: int
    buffer_oldest_s: Number = None
    """Age of the oldest ready group."""
    groups_open: int = 0
    """In play."""
    groups_unsettled: int = 0
    """Consumed, and in no checkpoint yet."""
    nonfinite_total: int
    engines_serving: int | None = None
    """Engines in rotation at its end."""
    engine_restarts: int
    worker_restarts: int
    learner_restarts: int
    ledger: dict[str, int] = {}
    """Episodes by ledger state."""
    repetition: Number = None
    """How much responses repeat across different prompts, in [0, 1]."""
    mutual_information: Number = None
    """Of the last update's prompts and responses under the version that was trained, in nats; measured every
    `collapse.information_every` iterations.
    """
    value_loss: Number = None
    explained_variance: Number = None
    """Of the returns by the critic."""
    verdicts: dict[str, int] = {}
    """Groups by the filter's reason to keep or drop them."""
    samples: int = 0
    """Token sequences that the update trained on."""
    prefix_breaks: int = 0
    """How often a turn's prompt did not continue the turn before, so that a sample of its own began."""
    padding_share: Number = None
    """Of the token positions that passed through the model."""
    update_s: dict[str, Number] = {}
    """Seconds of `train_s` by phase: credit, measure, pack, proximal, update, critic, and the rest as `other`."""
    update: dict[str, Number] = {}
    """Whatever else the learner measured in the update, by name: coverage of the credit, off-policy mismatch, rates."""
    selection_bias: dict[str, Number] = {}
    """How far trained episodes are from all that were played, by field, in standard deviations."""
    cohorts: dict[str, CohortSuccess] = {}
    """Of the finished episodes that have a cohort, by its name."""
    envs: dict[str, EnvRecord] = {}
    """By name of the environment, where environments have names; one without an episode is left out."""


class EvalRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="eval", tag_field="kind"):
    """One evaluation of the policy on one split."""

    iteration: int
    """Finished iterations; 0 before training."""
    policy_version: int
    split: Split
    time_s: Number
    success: float
    success_low: float
    success_high: float
    """Bounds of the 95 % Wilson interval."""
    episodes: int
    invalid_share: Number = None
    cut_share: Number = None
    context_full_share: Number = None
    """These three as in `IterationRecord`."""
    turns_p50: int | None = None
    turns_p99: int | None = None
    """Nearest-rank quantiles of the turns of an episode, however it ended."""
    sampled_tokens_mean: Number = None
    prompt_tokens_mean: Number = None
    """Tokens of an episode: sampled, and read as prompts over all its turns, cached ones included."""
    cohorts: dict[str, CohortSuccess] = {}
    """Of the episodes that have a cohort, by its name."""
    envs: dict[str, CohortSuccess] = {}
    """By name of the environment, where environments have names."""
    failed: dict[str, str] = {}
    """Environments that were left out because their episodes went on failing, with what the first one died of."""


Record = IterationRecord | EvalRecord


def read_records(path: Path) -> list[Record]:
    """All records of a run in order; a torn last line is left out.

    A resumed run plays iterations again: a record replaces everything the file said about its own and later iterations.
    A missing file is a run without records. Raises ConfigError with the line number for a damaged line elsewhere.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is torn or empty
    except FileNotFoundError:
        return []
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        try:
            record = msgspec.json.decode(line, type=Record)
        except msgspec.DecodeError as error:
            raise ConfigError(f"{path}, line {number}: {error}; repair or delete the line") from error
        later: list[Record] = []
        while records and records[-1].iteration >= record.iteration:
            later.append(records.pop())
        records.extend(old for old in reversed(later) if not _is_replaced(old, record))
        records.append(record)
    return records


def iterations(records: list[Record]) -> list[IterationRecord]:
    """The training records, in order."""
    return [record for record in records if isinstance(record, IterationRecord)]


def evals(records: list[Record], split: Split) -> list[EvalRecord]:
    """The evaluations of one split, in order."""
    return [record for record in records if isinstance(record, EvalRecord) and record.split == split]


def _is_replaced(old: Record, new: Record) -> bool:
    if isinstance(new, EvalRecord):
        return isinstance(old, EvalRecord) and old.split == new.split and old.iteration >= new.iteration
    return old.iteration > new.iteration or (isinstance(old, IterationRecord) and old.iteration == new.iteration)
