"""A trajectory as the learner trains on it: token sequences with a mask over what the policy sampled.

While each turn's prompt continues the previous prompt and response token by token, the turns share one sequence, so an
episode of T turns costs O(T) tokens and not O(T^2). Where the context was windowed or rewritten, a new sample starts.
Token ids and log-probs are those the inference engine returned; nothing is decoded or encoded again here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from milepost.envs.types import Task, Trajectory, Turn

NO_VERSION = -1
"""Version of a token that no policy sampled."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Arrays of one length L. Raises ValueError if lengths differ or the first token counts as sampled."""

    group_id: str
    index: int
    token_ids: NDArray[np.int64]
    loss_mask: NDArray[np.bool_]
    """True only where the policy sampled the token; prompts, observations and templates are False."""
    advantages: NDArray[np.float32]
    rollout_logprobs: NDArray[np.float32]
    """Of the sampled tokens, as the inference engine returned them; 0 elsewhere."""
    versions: NDArray[np.int64]
    """Policy version that sampled the token; `NO_VERSION` elsewhere."""
    turn_lengths: NDArray[np.int64]
    """How many tokens the policy sampled in the token's turn; 0 where it sampled none."""

    def __post_init__(self) -> None:
        arrays = (self.loss_mask, self.advantages, self.rollout_logprobs, self.versions, self.turn_lengths)
        lengths = [array.shape for array in arrays]
        if any(shape != self.token_ids.shape for shape in lengths):
            raise ValueError(f"sample {self.group_id}/{self.index}: arrays of {lengths}, tokens {self.token_ids.shape}")
        if self.loss_mask[0]:
            raise ValueError(f"sample {self.group_id}/{self.index}: the first token has no context to be sampled from")

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def num_trained(self) -> int:
        """Number of tokens that the policy sampled."""
        return int(self.loss_mask.sum())


def samples(trajectory: Trajectory, step_advantages: Sequence[float] | NDArray[np.floating]) -> list[Sample]:
    """One sample per run of append-only turns: a trajectory of one sample has no prefix break.

    Args:
        step_advantages: `[T]`, one per turn; every sampled token of the turn gets it.

    Raises:
        ValueError: not one finite advantage per turn.

    Source: token-in token-out with step-native records, as in StepPO (arXiv 2604.18401).
    """
    advantages = np.asarray(step_advantages, dtype=np.float32)
    where = f"trajectory {trajectory.group_id}/{trajectory.index}"
    if advantages.shape != (len(trajectory.turns),):
        raise ValueError(f"{where}: advantages of shape {advantages.shape} for {len(trajectory.turns)} turns")
    if not np.isfinite(advantages).all():
        raise ValueError(f"{where}: an advantage is not finite: {advantages.tolist()}")
    starts = [k for k in range(len(trajectory.turns)) if k == 0 or not _appends(*trajectory.turns[k - 1 : k + 1])]
    ends = [*starts[1:], len(trajectory.turns)]
    return [_merge(trajectory, trajectory.turns[a:b], advantages[a:b]) for a, b in zip(starts, ends, strict=True)]


def lone_samples(turns: Sequence[Turn]) -> list[Sample]:
    """One sample per turn with no advantage: for comparing log-probs, where only the tokens matter."""
    task = Task(env="", seed=0, split="train")
    lone = [Trajectory(task=task, group_id="", index=0, turns=[turn], outcome="truncated") for turn in turns]
    return [sample for trajectory in lone for sample in samples(trajectory, [0.0])]


def _appends(turn: Turn, following: Turn) -> bool:
    """Whether the following prompt starts, bit by bit, with this turn's prompt and response."""
    before = turn.prompt_ids + turn.response_ids
    return following.prompt_ids[: len(before)] == before


def _merge(trajectory: Trajectory, turns: Sequence[Turn], advantages: NDArray[np.float32]) -> Sample:
    length = len(turns[-1].prompt_ids) + len(turns[-1].response_ids)
    sample = Sample(
        group_id=trajectory.group_id,
        index=trajectory.index,
        token_ids=np.array(turns[-1].prompt_ids + turns[-1].response_ids, dtype=np.int64),
        loss_mask=np.zeros(length, dtype=np.bool_),
        advantages=np.zeros(length, dtype=np.float32),
        rollout_logprobs=np.zeros(length, dtype=np.float32),
        versions=np.full(length, NO_VERSION, dtype=np.int64),
        turn_lengths=np.zeros(length, dtype=np.int64),
    )
    for turn, advantage in zip(turns, advantages, strict=True):
        start = len(turn.prompt_ids)
        sampled = slice(start, start + len(turn.response_ids))
        sample.loss_mask[sampled] = True
        sample.advantages[sampled] = advantage
        sample.rollout_logprobs[sampled] = turn.logprobs
        sample.turn_lengths[sampled] = len(turn.response_ids)
        for span in turn.versions:
            sample.versions[start + span.start : start + span.end] = span.version
    return sample
