"""From samples to micro-batches: tensors of bounded size, the same number on every rank.

Pure planning. What passes through the model is either a prefix tree of a micro-batch's rows, without padding, or the
rows themselves, padded on the right; then they are sorted by length, so that little is padding. The tensors of the loss
are padded in both. Every rank gets about the same load. Ranks without work in a round get a dummy micro-batch, since
under ZeRO-3 all ranks must run the same number of forward and backward passes. Nothing here moves tensors to a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Final, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from milepost.learner.batch.sample import NO_TURN, NO_VERSION, Sample
from milepost.learner.batch.tree import PrefixTree, distinct_tokens, in_order, prefix_tree, shared_prefix

Packing = Literal["tree", "padded"]
"""tree: what rows of a micro-batch begin with alike passes through the model once; padded: every row as it is."""
_PADDING: Final = 0.05
_FULL_SPEED: Final = 2048
"""Tokens from which on a larger micro-batch saves no time worth its padding."""


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """What one forward pass is about: B rows padded on the right to the longest, all tensors `[B, L]`."""

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
    tree: PrefixTree | None = None
    """What passes through the model instead of the rows, where they are packed so."""

    def to(self, device: torch.device) -> Self:
        """The same micro-batch on another device."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: None if part is None else part.to(device) for name, part in parts.items()}
        return type(self)(**moved)


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


def plan(
    samples: Sequence[Sample], *, num_ranks: int, max_tokens: int, packing: Packing = "padded"
) -> list[list[tuple[Sample, ...]]]:
    """Micro-batches `[rank][k]`: which samples each rank trains on in each, the same number k for every rank.

    At most `max_tokens` tokens of a micro-batch pass through the model, padding included; a longer sample gets one of
    its own. Trees keep a group together where it fits. An empty tuple is a dummy. Micro-batches of one round are of
    similar size, the largest come first (memory fails early or not at all).

    Raises:
        ValueError: no sample, no rank or no room for a token.

    >>> batch = [Sample.from_turn_index([-1] + [0] * (length - 1)) for length in (2, 4, 2)]
    >>> ranks = plan(batch, num_ranks=2, max_tokens=4)
    >>> [[[len(sample) for sample in micro_batch] for micro_batch in rank] for rank in ranks]
    [[[4]], [[2, 2]]]
    """
    if not samples or num_ranks < 1 or max_tokens < 1:
        raise ValueError(f"cannot plan {len(samples)} samples for {num_ranks} ranks of {max_tokens} tokens")
    fill = _fill_trees if packing == "tree" else _fill
    batches = _spread(fill(samples, max_tokens), num_ranks, packing)
    batches.sort(key=lambda batch: passed_tokens(batch, packing), reverse=True)
    ranks: list[list[tuple[Sample, ...]]] = [[] for _ in range(num_ranks)]
    load = [0] * num_ranks
    for first in range(0, len(batches), num_ranks):
        # within a round the largest goes to the rank that has least so far
        by_load = sorted(range(num_ranks), key=lambda rank: load[rank])
        chosen = [*batches[first : first + num_ranks], *[()] * num_ranks][:num_ranks]
        for rank, batch in zip(by_load, chosen, strict=True):
            ranks[rank].append(batch)
            load[rank] += passed_tokens(batch, packing)
    return ranks


def passed_tokens(batch: Sequence[Sample], packing: Packing) -> int:
    """Token positions of a forward pass over the batch: distinct tokens, or rows times the longest row.

    >>> rows = [Sample.from_turn_index([-1, 0, 0]), Sample.from_turn_index([-1, 0])]  # all token ids are 0
    >>> passed_tokens(rows, "padded"), passed_tokens(rows, "tree")
    (6, 3)
    """
    if packing == "tree":
        return distinct_tokens([sample.token_ids for sample in batch])
    return len(batch) * max((len(sample) for sample in batch), default=0)


@dataclass(frozen=True, slots=True)
class Passed:
    """What of the micro-batches of all ranks passes through the model."""

    padding_share: float
    """Of the token positions: those that hold no token."""
    prefix_share: float
    """Of the samples' tokens: those that another row passes through the model for them."""

    @classmethod
    def of(cls, ranks: Sequence[Sequence[Sequence[Sample]]], packing: Packing) -> Self:
        """The shares over micro-batches `[rank][k]`; 0 where there are none.

        Rows of 4 and 2 tokens take 2 x 4 positions, of which 2 are padding; as a tree the short one is in the other:

        >>> rows = (Sample.from_turn_index([-1, 0, 0, 0]), Sample.from_turn_index([-1, 0]))
        >>> Passed.of([[rows]], "padded").padding_share, round(Passed.of([[rows]], "tree").prefix_share, 2)
        (0.25, 0.33)
        """
        batches = [batch for rank in ranks for batch in rank]
        passed = sum(passed_tokens(batch, packing) for batch in batches)
        tokens = sum(len(sample) for batch in batches for sample in batch)
        if not tokens:
            return cls(0.0, 0.0)
        return cls(1 - tokens / passed, 0.0) if packing == "padded" else cls(0.0, 1 - passed / tokens)


def collate(batch: Sequence[Sample], packing: Packing = "padded") -> MicroBatch:
    """Pad samples to one micro-batch. No sample gives a dummy: two tokens, and nothing to train on.

    Padding needs no mask: it stands on the right, and attention is causal.

    >>> batch = collate([Sample.from_turn_index([-1, 0, 0]), Sample.from_turn_index([-1, 0])])
    >>> batch.loss_mask.tolist()
    [[False, True, True], [False, True, False]]
    """
    shape = (max(len(batch), 1), max((len(sample) for sample in batch), default=2))
    rows = [sample.token_ids for sample in batch] or [np.zeros(2, dtype=np.int64)]
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
        tree=prefix_tree(rows) if packing == "tree" else None,
    )


def _pad(rows: Sequence[NDArray[np.generic]], shape: tuple[int, int], fill: int | bool | np.float32) -> Tensor:
    padded = np.full(shape, fill)
    for row, values in enumerate(rows):
        padded[row, : len(values)] = values
    return torch.from_numpy(padded)


def _fill(samples: Sequence[Sample], max_tokens: int) -> list[tuple[Sample, ...]]:
    """Cut the samples, longest first, into micro-batches of at most `max_tokens` padded tokens.

    One that is large enough for full speed ends before padding takes more than `_PADDING` of it.
    """
    batches: list[list[Sample]] = []
    held = 0
    for sample in sorted(samples, key=len, reverse=True):
        held += len(sample)
        rows = len(batches[-1]) + 1 if batches else 0
        positions = rows * len(batches[-1][0]) if batches else 0
        wasteful = positions > _FULL_SPEED and held < (1 - _PADDING) * positions
        if not batches or positions > max_tokens or wasteful:
            batches.append([])
            held = len(sample)
        batches[-1].append(sample)
    return [tuple(batch) for batch in batches]


def _fill_trees(samples: Sequence[Sample], max_tokens: int) -> list[tuple[Sample, ...]]:
    """Cut the samples into micro-batches whose groups have at most `max_tokens` distinct tokens, each counted alone.

    Groups that begin alike are neighbours; one that is too large for a micro-batch is cut between samples.
    """
    ordered = [samples[k] for k in in_order([sample.token_ids for sample in samples])]
    groups: dict[str, list[Sample]] = {}
    for sample in ordered:
        groups.setdefault(sample.group_id, []).append(sample)
    batches: list[list[Sample]] = [[]]
    held = 0
    for group in groups.values():
        whole = passed_tokens(group, "tree")
        if held and held + whole > max_tokens:
            batches.append([])
            held = 0
        before: Sample | None = None
        for sample in group:
            more = len(sample) - (0 if before is None else shared_prefix(before.token_ids, sample.token_ids))
            if held and held + more > max_tokens:
                batches.append([])
                held, more = 0, len(sample)
            batches[-1].append(sample)
            held, before = held + more, sample
    return [tuple(batch) for batch in batches]


def _spread(batches: list[tuple[Sample, ...]], num_ranks: int, packing: Packing) -> list[tuple[Sample, ...]]:
    """Halve the largest micro-batches until no rank idles in the last round, as far as rows allow."""
    while len(batches) % num_ranks:
        largest = max(range(len(batches)), key=lambda k: (len(batches[k]) > 1, passed_tokens(batches[k], packing)))
        rows = batches[largest]
        if len(rows) == 1:
            break
        half = _middle(rows, packing)
        batches[largest : largest + 1] = [rows[:half], rows[half:]]
    return batches


def _middle(rows: Sequence[Sample], packing: Packing) -> int:
    """Where to halve a micro-batch: as trees, between two groups if there is more than one."""
    between = [k for k, (a, b) in enumerate(pairwise(rows), start=1) if a.group_id != b.group_id]
    if packing == "padded" or not between:
        return len(rows) // 2
    return min(between, key=lambda k: abs(2 * k - len(rows)))
