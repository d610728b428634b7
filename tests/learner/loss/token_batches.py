"""Micro-batches written out by hand, for arithmetic on tokens."""

import torch

from milepost.learner.batch.pack import MicroBatch
from milepost.learner.batch.sample import NO_TURN


def token_batch(
    *, turns: list[list[int]], advantages: list[list[float]], rollout: list[list[float]] | None = None
) -> MicroBatch:
    """All arguments `[B, L]`; `turns` says which turn sampled a token, NO_TURN that nobody did."""
    index = torch.tensor(turns)
    mask = index != NO_TURN
    lengths = [[row.count(turn) if turn != NO_TURN else 0 for turn in row] for row in turns]
    return MicroBatch(
        input_ids=torch.ones_like(index),
        loss_mask=mask,
        advantages=torch.tensor(advantages),
        rollout_logprobs=torch.zeros(index.shape) if rollout is None else torch.tensor(rollout),
        versions=torch.zeros_like(index),
        turn_lengths=torch.tensor(lengths),
        turn_index=index,
        value_mask=torch.zeros_like(mask),
        value_targets=torch.zeros(index.shape),
    )
