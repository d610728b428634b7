"""Attention over a prefix tree on a GPU: PyTorch's flex attention, with a mask that is a comparison of two numbers.

Tokens are in depth-first order, so token k is seen by itself and by those behind it up to the end of what descends from
it. Blocks of which nothing is seen are skipped, so the cost is about that of the pairs of tokens that see each other.

Not promised: speed, which was never measured on a GPU. PyTorch computes gradients of flex attention on GPUs only; the
tests compare the forward pass, on a CPU, where it is not compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from milepost.learner.batch.tree import Branch

_BLOCK: Final = 128
"""Tokens, the size that flex attention's kernels like best."""


def tree_block_mask(branches: Sequence[Branch], device: torch.device) -> BlockMask:
    """Who sees whom, of the N tokens of a tree of these branches: `[1, 1, N, N]` in blocks."""
    count = branches[-1][1]
    ends = torch.empty(count, dtype=torch.int64)
    for start, stop, end in branches:
        ends[start:stop] = end
    whole = -(-count // _BLOCK)
    padded = torch.cat([ends, ends[-1:].expand(whole * _BLOCK - count)]).view(whole, _BLOCK)
    first, after = torch.arange(whole) * _BLOCK, (torch.arange(whole) + 1).mul(_BLOCK).clamp(max=count)
    earlier = first[None, :] < first[:, None]
    full = earlier & (padded.amin(1)[None, :] >= after[:, None])
    some = ((earlier & (padded.amax(1)[None, :] > first[:, None])) | torch.eye(whole, dtype=torch.bool)) & ~full
    seen_until = ends.to(device)

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < seen_until[key])

    counts, which, full_counts, full_which = (part.to(device) for part in (*_indexed(some), *_indexed(full)))
    return BlockMask.from_kv_blocks(
        counts, which, full_counts, full_which, BLOCK_SIZE=_BLOCK, mask_mod=sees, seq_lengths=(count, count)
    )


def flex_tree_attention(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scale: float) -> Tensor:
    """`[1, H, N, D]` -> `[1, H, N, D]`; keys and values may have fewer heads."""
    kernel = _compiled() if query.is_cuda else flex_attention
    found: Tensor = kernel(query, key, value, block_mask=mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1])
    return found


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)


def _indexed(kind: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries needs, and which: those first."""
    which = torch.argsort(kind.int(), dim=1, descending=True, stable=True)
    return kind.sum(1).int()[None, None], which.int()[None, None]
