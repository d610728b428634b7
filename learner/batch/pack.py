"""From samples to micro-batches: padded tensors of bounded size, the same number on every rank.

Pure planning: samples are sorted by length, so that little is padding, and every rank gets about the same load. Ranks
without work in a round get a dummy micro-batch, since under ZeRO-3 all ranks must run the same number of forward and
backward passes. Nothing here moves tensors to a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from milepost.learner.batch.sample import NO_TURN, NO_VERSION, Sample


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """What one forward pass reads: B rows padded on the right to the longest, all tensors `[B, L]`."""

    input_ids: Tensor
    loss_mask: Tensor
    """True only for tokens the policy sampled."""
    advantages: Tensor
    rollout_logprobs: Tensor
    versions: Tensor
    turn_lengths: Tensor
    turn_index: Tensor
    value_mask: Tensor
    """True where a critic is trained."""
    value_targets: Tensor

    def to(self, device: torch.device) -> Self:
        """The same micro-batch on another device."""
        return type(self)(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def minibatches(samples: Sequence[Sample], count: int) -> list[list[Sample]]:
    """Minibatches: samples split over optimizer steps by whole groups, with about equally many trained tokens each.

    Returns at most `count` non-empty lists (fewer if there are fewer groups), in the same order on every rank.

    >>> batch = [Sample.from_turn_index([-1] + [0] * n, group_id=name) for name, n in (("a", 1), ("b", 3), ("c", 2))]
    >>> [[(sample.group_id, sample.num_trained) for sample in part] for part in minibatches(batch, 2)]
    [[('b', 3)], [('c', 2), ('a', 1)]]
    """
    if count < 1:
        raise ValueError(f"{count} minibatches; at least 1 is needed")
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.group_id, []).append(sample)
    load = {name: sum(sample.num_trained for sample in members) for name, members in groups.items()}
    parts: list[list[Sample]] = [[] for _ in range(min(count, len(groups)))]
    filled = [0] * len(parts)
    for name in sorted(groups, key=lambda name: -load[name]):
        least = filled.index(min(filled))
        parts[least].extend(groups[name])
        filled[least] += load[name]
    return parts


def plan(samples: Sequence[Sample], *, num_ranks: int, max_tokens: int) -> list[list[tuple[Sample, ...]]]:
    """Micro-batches `[rank][k]`: which samples each rank trains on in each, the same number k for every rank.

    A micro-batch holds at most `max_tokens` tokens with padding; a longer sample gets one of its own. An empty tuple is
    a dummy. Micro-batches of one round are of similar size, the largest come first (memory fails early or not at all).

    Raises:
        ValueError: no sample, no rank or no room for a token.

    >>> batch = [Sample.from_turn_index([-1] + [0] * (length - 1)) for length in (2, 4, 2)]
    >>> ranks = plan(batch, num_ranks=2, max_tokens=4)
    >>> [[[len(sample) for sample in micro_batch] for micro_batch in rank] for rank in ranks]
    [[[4]], [[2, 2]]]
    """
    if not samples or num_ranks < 1 or max_tokens < 1:
        raise ValueError(f"cannot plan {len(samples)} samples for {num_ranks} ranks of {max_tokens} tokens")
    batches = _spread(_fill(samples, max_tokens), num_ranks)
    batches.sort(key=padded_tokens, reverse=True)
    ranks: list[list[tuple[Sample, ...]]] = [[] for _ in range(num_ranks)]
    load = [0] * num_ranks
    for first in range(0, len(batches), num_ranks):
        # within a round the largest goes to the rank that has least so far
        by_load = sorted(range(num_ranks), key=lambda rank: load[rank])
        chosen = [*batches[first : first + num_ranks], *[()] * num_ranks][:num_ranks]
        for rank, batch in zip(by_load, chosen, strict=True):
            ranks[rank].append(batch)
            load[rank] += padded_tokens(batch)
    return ranks


def padded_tokens(batch: Sequence[Sample]) -> int:
    """Rows times the longest row: what a forward pass over the batch costs.

    >>> padded_tokens([Sample.from_turn_index([-1, 0, 0]), Sample.from_turn_index([-1, 0])])
    6
    """
    return len(batch) * max((len(sample) for sample in batch), default=0)


def padding_share(ranks: Sequence[Sequence[Sequence[Sample]]]) -> float:
    """Share of token positions `[rank][k]` that hold no token; 0 where there are none.

    Rows of 4 and 2 tokens in one micro-batch take 6 of its 2 x 4 positions:

    >>> rows = (Sample.from_turn_index([-1, 0, 0, 0]), Sample.from_turn_index([-1, 0]))
    >>> padding_share([[rows]])
    0.25
    """
    batches = [batch for rank in ranks for batch in rank]
    positions = sum(padded_tokens(batch) for batch in batches)
    return 1 - sum(len(sample) for batch in batches for sample in batch) / positions if positions else 0.0


def collate(batch: Sequence[Sample]) -> MicroBatch:
    """Pad samples to one micro-batch. No sample gives a dummy: two tokens, and nothing to train on.

    Padding needs no mask: it stands on the right, and attention is causal.

    >>> batch = collate([Sample.from_turn_index([-1, 0, 0]), Sample.from_turn_index([-1, 0])])
    >>> batch.loss_mask.tolist()
    [[False, True, True], [False, True, False]]
    """
    shape = (max(len(batch), 1), max((len(sample) for sample in batch), default=2))
    return MicroBatch(
        input_ids=_pad([s.token_ids for s in batch], shape, 0),
        loss_mask=_pad([s.loss_mask for s in batch], shape, False),
        advantages=_pad([s.advantages for s in batch], shape, np.float32(0)),
        rollout_logprobs=_pad([s.rollout_logprobs for s in batch], shape, np.float32(0)),
        versions=_pad([s.versions for s in batch], shape, NO_VERSION),
        turn_lengths=_pad([s.turn_lengths for s in batch], shape, 0),
        turn_index=_pad([s.turn_index for s in batch], shape, NO_TURN),
        value_mask=_pad([s.value_mask for s in batch], shape, False),
        value_targets=_pad([s.value_targets for s in batch], shape, np.float32(0)),
    )


def _pad(rows: Sequence[NDArray[np.generic]], shape: tuple[int, int], fill: int | bool | np.float32) -> Tensor:
    padded = np.full(shape, fill)
    for row, values in enumerate(rows):
        padded[row, : len(values)] = values
    return torch.from_numpy(padded)


def _fill(samples: Sequence[Sample], max_tokens: int) -> list[tuple[Sample, ...]]:
    """Cut the samples, longest first, into micro-batches of at most `max_tokens` padded tokens."""
    longest_first = sorted(samples, key=len, reverse=True)
    batches: list[tuple[Sample, ...]] = []
    while longest_first:
        rows = max(1, max_tokens // len(longest_first[0]))
        batches.append(tuple(longest_first[:rows]))
        longest_first = longest_first[rows:]
    return batches


def _spread(batches: list[tuple[Sample, ...]], num_ranks: int) -> list[tuple[Sample, ...]]:
    """Halve the largest micro-batches until no rank idles in the last round, as far as rows allow."""
    while len(batches) % num_ranks:
        largest = max(range(len(batches)), key=lambda k: (len(batches[k]) > 1, padded_tokens(batches[k])))
        rows = batches[largest]
        if len(rows) == 1:
            break
        half = len(rows) // 2
        batches[largest : largest + 1] = [rows[:half], rows[half:]]
    return batches
