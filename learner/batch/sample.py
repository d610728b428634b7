"""Loss-masked token sequences: a trajectory as the learner trains on it, with a mask over what the policy sampled.

While a turn's prompt continues an earlier prompt and response token by token, the turns share one sequence, so an
episode of T turns costs O(T) tokens and not O(T^2). Where the context was windowed or rewritten, or a sub-agent began
one of its own, a new sample starts; its turns may lie between those of another.
Token ids and log-probs are those the inference engine returned; nothing is decoded or encoded again here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

from milepost.envs.types import Task, Trajectory, Turn

Floats = NDArray[np.floating]

NO_VERSION = -1
"""Version of a token that no policy sampled."""
NO_TURN = -1
"""Turn of a token that no policy sampled."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Arrays of one length L. Raises ValueError if lengths differ or the first token counts as sampled."""

    group_id: str
    index: int
    token_ids: NDArray[np.int64]
    loss_mask: NDArray[np.bool_]
    """Loss mask: true only where the policy sampled the token; prompts, observations and templates are False."""
    advantages: NDArray[np.float32]
    rollout_logprobs: NDArray[np.float32]
    """Log-probs in nats of the sampled tokens, as the inference engine returned them; 0 elsewhere."""
    versions: NDArray[np.int64]
    """Policy version that sampled the token; `NO_VERSION` elsewhere."""
    turn_lengths: NDArray[np.int64]
    """How many tokens the policy sampled in the token's turn; 0 where it sampled none."""
    turn_index: NDArray[np.int64]
    """Which turn of its trajectory sampled the token, from 0; `NO_TURN` elsewhere."""
    value_mask: NDArray[np.bool_]
    """True where a critic is trained: on its estimate before the token was sampled."""
    value_targets: NDArray[np.float32]
    """Value targets: what the critic should say there; 0 elsewhere."""

    def __post_init__(self) -> None:
        lengths = [getattr(self, f.name).shape for f in fields(self) if f.name not in ("group_id", "index")]
        if any(shape != self.token_ids.shape for shape in lengths):
            raise ValueError(f"sample {self.group_id}/{self.index}: arrays of {lengths}, tokens {self.token_ids.shape}")
        if self.loss_mask[0]:
            raise ValueError(f"sample {self.group_id}/{self.index}: the first token has no context to be sampled from")

    @classmethod
    def from_turn_index(
        cls,
        turn_index: Sequence[int],
        *,
        advantages: Sequence[float] | None = None,
        rollout_logprobs: Sequence[float] | None = None,
        value_targets: Sequence[float | None] | None = None,
        group_id: str = "g",
    ) -> Self:
        """A sample of L tokens from which turn sampled each (`NO_TURN`: none did), for worked examples.

        Whatever else is not given is 0; a critic is trained where `value_targets` holds a number.

        >>> sample = Sample.from_turn_index([NO_TURN, 0, 0, NO_TURN, 1], advantages=[0.0, 1.0, 1.0, 0.0, -1.0])
        >>> sample.num_trained, sample.turn_lengths.tolist()
        (3, [0, 2, 2, 0, 1])
        """
        turns = np.array(turn_index, dtype=np.int64)
        mask, length = turns != NO_TURN, len(turns)
        targets = [None] * length if value_targets is None else value_targets
        return cls(
            group_id=group_id,
            index=0,
            token_ids=np.zeros(length, dtype=np.int64),
            loss_mask=mask,
            advantages=np.array(advantages or [0.0] * length, dtype=np.float32),
            rollout_logprobs=np.array(rollout_logprobs or [0.0] * length, dtype=np.float32),
            versions=np.where(mask, 0, NO_VERSION),
            turn_lengths=np.where(mask, (turns[:, None] == turns[None, :]).sum(axis=1), 0),
            turn_index=turns,
            value_mask=np.array([target is not None for target in targets]),
            value_targets=np.array([target or 0.0 for target in targets], dtype=np.float32),
        )

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def num_trained(self) -> int:
        """Number of tokens that the policy sampled."""
        return int(self.loss_mask.sum())


def samples(
    trajectory: Trajectory,
    advantages: Sequence[float | Floats] | Floats,
    value_targets: Sequence[Floats] | None = None,
) -> list[Sample]:
    """One sample per lineage of append-only turns: a trajectory of one sample has no prefix break.

    A turn joins the latest lineage whose last prompt and response its own prompt begins with.

    Args:
        advantages: T items, one per turn: a number for all of its tokens, or `[L_t]`, one per token.
        value_targets: T arrays `[n]`, n <= L_t: what a critic should say before each of the turn's first n tokens.

    Raises:
        ValueError: not one advantage per turn, or a number that is not finite.

    Source: token-in token-out with step-native records, as in StepPO (arXiv 2604.18401).

    >>> import msgspec
    >>> from milepost.envs.types import VersionSpan
    >>> first = Turn(
    ...     prompt_ids=[1, 2], response_ids=[3], logprobs=[-0.5], versions=[VersionSpan(version=0, start=0, end=1)],
    ...     anchor="A", action="x", next_anchor="B", reward=0.0,
    ... )
    >>> second = msgspec.structs.replace(first, prompt_ids=[1, 2, 3, 4], anchor="B")  # continues the first
    >>> task = Task(env="", seed=0, split="train")
    >>> whole = Trajectory(task=task, group_id="g", index=0, turns=[first, second], outcome="failure")
    >>> [sample] = samples(whole, [1.0, -1.0])
    >>> sample.token_ids.tolist(), sample.advantages.tolist()
    ([1, 2, 3, 4, 3], [0.0, 0.0, 1.0, 0.0, -1.0])
    """
    turns, where = trajectory.turns, f"trajectory {trajectory.group_id}/{trajectory.index}"
    targets = [np.zeros(0)] * len(turns) if value_targets is None else list(value_targets)
    if len(advantages) != len(turns) or len(targets) != len(turns):
        raise ValueError(f"{where}: {len(advantages)} advantages and {len(targets)} targets for {len(turns)} turns")
    for what in (*advantages, *targets):
        if not np.isfinite(what).all():
            raise ValueError(f"{where}: an advantage or a value target is not finite: {what}")
    return [
        _merge(trajectory, lineage, advantages=[advantages[k] for k in lineage], targets=[targets[k] for k in lineage])
        for lineage in _lineages(turns)
    ]


def lone_samples(turns: Sequence[Turn]) -> list[Sample]:
    """One sample per turn with no advantage: for comparing log-probs, where only the tokens matter.

    >>> from milepost.envs.types import VersionSpan
    >>> turn = Turn(
    ...     prompt_ids=[1, 2], response_ids=[3], logprobs=[-0.5], versions=[VersionSpan(version=0, start=0, end=1)],
    ...     anchor="A", action="x", next_anchor="B", reward=0.0,
    ... )
    >>> [(sample.token_ids.tolist(), sample.rollout_logprobs.tolist()) for sample in lone_samples([turn])]
    [([1, 2, 3], [0.0, 0.0, -0.5])]
    """
    task = Task(env="", seed=0, split="train")
    lone = [Trajectory(task=task, group_id="", index=0, turns=[turn], outcome="truncated") for turn in turns]
    return [sample for trajectory in lone for sample in samples(trajectory, [0.0])]


def _lineages(turns: Sequence[Turn]) -> list[list[int]]:
    """Indices of the turns, in lists within which every turn continues the one before it."""
    lineages: list[list[int]] = []
    for k, turn in enumerate(turns):
        continued = next(
            (lineage for lineage in reversed(lineages) if turns[lineage[-1]].is_continued_by(turn.prompt_ids)), None
        )
        if continued is None:
            lineages.append([k])
        else:
            continued.append(k)
    return lineages


def _merge(
    trajectory: Trajectory, indices: Sequence[int], *, advantages: Sequence[float | Floats], targets: Sequence[Floats]
) -> Sample:
    turns = [trajectory.turns[k] for k in indices]
    length = len(turns[-1].prompt_ids) + len(turns[-1].response_ids)
    sample = Sample(
        group_id=trajectory.group_id,
        index=trajectory.index,
        token_ids=np.concatenate([np.asarray(turns[-1].prompt_ids, np.int64), turns[-1].response_ids]),
        loss_mask=np.zeros(length, dtype=np.bool_),
        advantages=np.zeros(length, dtype=np.float32),
        rollout_logprobs=np.zeros(length, dtype=np.float32),
        versions=np.full(length, NO_VERSION, dtype=np.int64),
        turn_lengths=np.zeros(length, dtype=np.int64),
        turn_index=np.full(length, NO_TURN, dtype=np.int64),
        value_mask=np.zeros(length, dtype=np.bool_),
        value_targets=np.zeros(length, dtype=np.float32),
    )
    for index, turn, advantage, target in zip(indices, turns, advantages, targets, strict=True):
        start = len(turn.prompt_ids)
        sampled = slice(start, start + len(turn.response_ids))
        sample.loss_mask[sampled] = True
        sample.advantages[sampled] = advantage
        sample.rollout_logprobs[sampled] = turn.logprobs
        sample.turn_lengths[sampled] = len(turn.response_ids)
        sample.turn_index[sampled] = index
        sample.value_mask[start : start + len(target)] = True
        sample.value_targets[start : start + len(target)] = target
        for span in turn.versions:
            sample.versions[start + span.start : start + span.end] = span.version
    return sample
