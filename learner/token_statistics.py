"""Entropies, values and log-probs of whole groups under the current weights, brought back to the turns credit reads.

Entropies, a critic's estimates and the worth of the history are read off the same samples the learner trains on. Each
rank measures its share; the sum over ranks is whole everywhere, so credit stays redundant and equal on all ranks. Runs
only where a strategy or a modulator asks for it. Numbers are those of the weights at the start of the update.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Final

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from milepost.envs.types import Group
from milepost.learner.batch import pack
from milepost.learner.batch.pack import MicroBatch
from milepost.learner.batch.sample import Sample, samples
from milepost.learner.credit.assignment import CreditGroup, CreditTurn, Floats, Need
from milepost.learner.training import TrainingBackend

STATISTICS: Final[frozenset[Need]] = frozenset({"critic", "entropy", "history_gain"})
"""Needs that cost a forward pass."""

Rows = Sequence[Sequence[Sample]]
"""The samples of each micro-batch, one per row; none for a dummy."""


class TokenIndex:
    """Where every sampled token of a batch of groups stands in an array `[N]`: by group, trajectory, turn, token."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self._starts: dict[tuple[str, int, int], int] = {}
        self.num_tokens = 0
        for group in groups:
            for trajectory in group.trajectories:
                for number, turn in enumerate(trajectory.turns):
                    self._starts[group.group_id, trajectory.index, number] = self.num_tokens
                    self.num_tokens += len(turn.response_ids)

    def places(self, sample: Sample) -> NDArray[np.int64]:
        """Where the sampled tokens of `sample` stand, whose turns need not follow on each other. Raises KeyError."""
        turns, lengths = np.unique(sample.turn_index[sample.loss_mask], return_counts=True)
        starts = [self._starts[sample.group_id, sample.index, int(turn)] for turn in turns]
        return np.concatenate([np.arange(a, a + n) for a, n in zip(starts, lengths, strict=True)])

    def flat(self, rows: Rows, found: Sequence[Tensor]) -> Floats:
        """`[N]`: the numbers `[B, L]` of each micro-batch at the sampled tokens of its rows; 0 for all other tokens."""
        result = np.zeros(self.num_tokens)
        for members, values in zip(rows, found, strict=True):
            for row, sample in enumerate(members):
                numbers = values[row, : len(sample)].double().cpu().numpy()
                result[self.places(sample)] = numbers[sample.loss_mask]
        return result

    def spread(self, rows: Rows, batches: Sequence[MicroBatch], values: Floats) -> list[Tensor]:
        """The inverse: `[B, L]` in float32 for each micro-batch, which collates `rows`; 0 where nothing is sampled."""
        found = []
        for members, batch in zip(rows, batches, strict=True):
            along = torch.zeros(batch.loss_mask.shape)
            for row, sample in enumerate(members):
                along[row, batch.loss_mask[row]] = torch.from_numpy(values[self.places(sample)]).float()
            found.append(along)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class TokenStatistics:
    """Numbers `[N]` in the order of `index`, None where nobody asked."""

    index: TokenIndex
    logprobs: Floats | None
    entropies: Floats | None
    values: Floats | None
    """The critic's estimate before each token."""
    history_gains: Floats | None
    """Log-prob in the full context less the one without goal and history; 0 in turns without history."""

    def values_of(self, rows: Rows, batches: Sequence[MicroBatch]) -> list[Tensor] | None:
        """The estimates `[B, L]` for micro-batches of the same tokens."""
        return None if self.values is None else self.index.spread(rows, batches, self.values)

    def logprobs_of(self, rows: Rows, batches: Sequence[MicroBatch]) -> list[Tensor] | None:
        """The log-probs `[B, L]` for micro-batches of the same tokens."""
        return None if self.logprobs is None else self.index.spread(rows, batches, self.logprobs)

    def filled(self, credit_groups: Sequence[CreditGroup]) -> list[CreditGroup]:
        """The groups that were measured, in their order, with what was measured in their turns."""
        position, result = 0, []
        for credit_group in credit_groups:
            trajectories = []
            for trajectory in credit_group.trajectories:
                turns = []
                for turn in trajectory.turns:
                    turns.append(self._filled(turn, slice(position, position + turn.num_tokens)))
                    position += turn.num_tokens
                trajectories.append(replace(trajectory, turns=tuple(turns)))
            result.append(replace(credit_group, trajectories=tuple(trajectories)))
        return result

    def _filled(self, turn: CreditTurn, own: slice) -> CreditTurn:
        if self.entropies is not None:
            turn = msgspec.structs.replace(turn, entropy=float(self.entropies[own].mean()))
        if self.history_gains is not None:
            turn = msgspec.structs.replace(turn, history_gain=float(self.history_gains[own].mean()))
        if self.values is not None:
            values = tuple(self.values[own].tolist())
            turn = msgspec.structs.replace(turn, value=values[0], token_values=values)
        return turn


def compute_token_statistics(
    backend: TrainingBackend,
    groups: Sequence[Group],
    *,
    needs: AbstractSet[Need],
    temperature: float,
    max_tokens: int,
) -> TokenStatistics:
    """Run the passes that `needs` asks for over all tokens of `groups`; the same result on every rank.

    Collective. Log-probs are of the distribution at `temperature`; a micro-batch holds at most `max_tokens` tokens.
    """
    index = TokenIndex(groups)
    pool = [s for group in groups for t in group.trajectories for s in samples(t, [0.0] * len(t.turns))]
    rows = _rows(backend, pool, max_tokens)
    batches = [pack.collate(batch, backend.packing) for batch in rows]
    logprobs = entropies = values = gains = None
    if needs & {"entropy", "history_gain"}:
        found = backend.token_statistics(batches, temperature=temperature)
        logprobs = backend.all_sum_array(index.flat(rows, [own for own, _ in found]))
        entropies = backend.all_sum_array(index.flat(rows, [entropy for _, entropy in found]))
    if "critic" in needs:
        values = backend.all_sum_array(index.flat(rows, backend.token_values(batches)))
    if logprobs is not None and "history_gain" in needs:
        alone = [part for sample in pool for part in stripped(sample)]
        rows = _rows(backend, alone, max_tokens)
        batches = [pack.collate(batch, backend.packing) for batch in rows]
        without = backend.token_logprobs(batches, temperature=temperature)
        gains = np.zeros(index.num_tokens)
        bare = backend.all_sum_array(index.flat(rows, without))
        for sample in alone:
            places = index.places(sample)
            gains[places] = (logprobs - bare)[places]
    return TokenStatistics(index, logprobs, entropies, values, gains)


def stripped(sample: Sample) -> list[Sample]:
    """Each later turn of `sample` with a context of what was appended since the previous response, and one token more.

    Goal and history go with everything before. The first token of the sequence stays: models attend to it whatever it
    says, and many are never trained without it; a single token carries neither goal nor history. The first turn of a
    sample has no history that could be told from its observation (or its context was rewritten), so it yields nothing.

    Ours: the published method (STAPO, arXiv 2607.04963) removes goal and history; how is not public.
    """
    found = []
    turns = np.unique(sample.turn_index[sample.loss_mask])
    for previous, number in pairwise(turns):
        before = np.flatnonzero(sample.turn_index == previous)[-1]
        end = np.flatnonzero(sample.turn_index == number)[-1]
        kept = np.concatenate([[0], np.arange(before + 1, end + 1)])
        arrays = {f.name: getattr(sample, f.name)[kept] for f in fields(sample) if f.name not in ("group_id", "index")}
        found.append(replace(sample, **arrays))
    return found


def _rows(backend: TrainingBackend, pool: Sequence[Sample], max_tokens: int) -> list[tuple[Sample, ...]]:
    """This rank's share of `pool`, by micro-batch; no micro-batch where there is nothing to measure."""
    if not pool:
        return []
    size, packing = backend.world_size, backend.packing
    return pack.plan(pool, num_ranks=size, max_tokens=max_tokens, packing=packing)[backend.rank]
