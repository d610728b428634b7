"""Rows of tokens as one prefix tree: what several rows begin with is there once.

The tokens are in depth-first order, so a stretch without a fork is a slice, and so is all that descends from it. Rows
without a common beginning are trees of one branch: packed one after another, without padding. Only tokens that are
equal from the first one on are shared; their contexts are then the same, and so is what a causal model says of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Tokens = NDArray[np.int64]
Branch = tuple[int, int, int]
"""start, stop, end: the tokens `[start, stop)` follow one another without a fork, `[stop, end)` descend from them."""


@dataclass(frozen=True, slots=True, eq=False)
class PrefixTree:
    """N distinct tokens of B rows of at most L tokens."""

    token_ids: Tensor
    """`[N]`, depth first."""
    positions: Tensor
    """`[N]`: a token's position in its rows."""
    parents: Tensor
    """`[N]`: the token before it; -1 for the first of a row."""
    nodes: Tensor
    """`[B, L]`: where each token of a row is among the N; 0 at padding."""
    branches: tuple[Branch, ...]

    def to(self, device: torch.device) -> Self:
        """The same tree on another device."""
        ids, positions, parents = (part.to(device) for part in (self.token_ids, self.positions, self.parents))
        return type(self)(ids, positions, parents, self.nodes.to(device), self.branches)


def prefix_tree(rows: Sequence[Tokens]) -> PrefixTree:
    """The tree of `rows`, at least one, none of them empty.

    >>> tree = prefix_tree([np.array([5, 6, 8]), np.array([5, 6, 7])])
    >>> tree.token_ids.tolist(), tree.parents.tolist(), tree.nodes.tolist()
    ([5, 6, 7, 8], [-1, 0, 1, 1], [[0, 1, 3], [0, 1, 2]])
    >>> tree.branches
    ((0, 2, 4), (2, 3, 3), (3, 4, 4))
    """
    nodes = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    ids, positions, parents = [], [], []
    before, count, starts = None, 0, {0}
    for k in in_order(rows):
        length, shared = len(rows[k]), 0 if before is None else shared_prefix(rows[before], rows[k])
        fresh = np.arange(count, count + length - shared)
        nodes[k, shared:length] = fresh
        if before is not None:
            nodes[k, :shared] = nodes[before, :shared]
            if shared < len(rows[before]):  # a fork; else the row goes on where the one before ended
                starts |= {count, int(nodes[before, shared])}
        ids.append(rows[k][shared:])
        positions.append(np.arange(shared, length))
        parents.append(np.concatenate([nodes[k, shared - 1 : shared] if shared else [-1], fresh[:-1]])[: len(fresh)])
        before, count = k, count + len(fresh)
    branches = _branches(sorted(starts), np.concatenate(positions), count)
    return PrefixTree(_flat(ids), _flat(positions), _flat(parents), torch.from_numpy(nodes), branches)


def distinct_tokens(rows: Sequence[Tokens]) -> int:
    """How many tokens the tree of `rows` has.

    >>> distinct_tokens([np.array([5, 6, 8]), np.array([5, 6, 7])])
    4
    """
    ordered = [rows[k] for k in in_order(rows)]
    shared = sum(shared_prefix(a, b) for a, b in pairwise(ordered))
    return sum(map(len, ordered)) - shared


def in_order(rows: Sequence[Tokens]) -> list[int]:
    """Indices of `rows` sorted token by token, so that rows that begin alike are neighbours.

    >>> in_order([np.array([5, 6]), np.array([300]), np.array([5])])
    [2, 0, 1]
    """
    return sorted(range(len(rows)), key=lambda k: rows[k].astype(">i8").tobytes())


def shared_prefix(one: Tokens, other: Tokens) -> int:
    """How many first tokens of two rows are equal.

    >>> shared_prefix(np.array([5, 6, 8]), np.array([5, 6, 7, 9]))
    2
    """
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length


def _flat(parts: Sequence[Tokens]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def _branches(starts: Sequence[int], positions: Tokens, count: int) -> tuple[Branch, ...]:
    ends, above = [count] * len(starts), list[int]()
    for k, start in enumerate(starts):
        while above and positions[starts[above[-1]]] >= positions[start]:
            ends[above.pop()] = start
        above.append(k)
    return tuple(zip(starts, [*starts[1:], count], ends, strict=True))
