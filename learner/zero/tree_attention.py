"""Causal attention over a prefix tree: each token sees its ancestors and itself, and no mask of N x N exists.

A stretch without a fork attends to itself causally; all that descends from it is one slice and attends to all of it.
Each of these is one call of PyTorch's flash attention, and the parts of a token are put together by their normalisers.
The gradient of a part is that of flash attention given the whole normaliser and output (as in ring attention, arXiv
2310.01889). So the cost is that of the pairs of tokens that see each other. That is how a CPU does it; on a GPU it is
one call of flex attention (`milepost.learner.zero.flex_tree`).
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from transformers import AttentionInterface

from milepost.learner.batch.tree import Branch
from milepost.learner.zero.flex_tree import flex_tree_attention, tree_block_mask

NAME: Final = "prefix_tree"
"""As transformers knows it, once this module is loaded."""
_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def tree_attention(
    _module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: `[1, H, N, D]` -> `[1, N, H, D]`; keys and values may have fewer heads.

    `options` hold what `tree_options` gave to the model, and the family's `scaling`.
    """
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    if (mask := options["prefix_mask"]) is not None:
        return flex_tree_attention(query, key, value, mask, scale).transpose(1, 2), None
    out = _TreeAttention.apply(query, key, value, options["prefix_branches"], scale)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2), None


def tree_options(branches: tuple[Branch, ...], device: torch.device) -> dict[str, Any]:
    """What a model's attention layers are given to find their way in a tree, once for all of them."""
    mask = None if device.type == "cpu" else tree_block_mask(branches, device)
    return {"prefix_branches": branches, "prefix_mask": mask}


AttentionInterface.register(NAME, tree_attention)


class _TreeAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, branches: tuple[Branch, ...], scale: float
    ) -> Tensor:
        out = _like(query)
        normaliser = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        for own, _ in _slices(branches):
            found = _forward(query[own], key[own], value[own], 0.0, True, scale=scale)
            out[own], normaliser[own] = found
        for own, below in _slices(branches):
            if below is not None:
                found = _forward(query[below], key[own], value[own], 0.0, False, scale=scale)
                _merge(out[below], normaliser[below], *found)
        ctx.save_for_backward(query, key, value, out, normaliser)
        ctx.branches, ctx.scale = branches, scale
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, normaliser = ctx.saved_tensors
        gradient = gradient if gradient.stride(-1) == 1 else gradient.contiguous()

        def part(to: Any, of: Any, *, causal: bool) -> Any:
            seen = (query[to], key[of], value[of], out[to], normaliser[to])
            return _backward(gradient[to], *seen, 0.0, causal, scale=ctx.scale)

        to_query, to_key, to_value = _like(query), _like(key), _like(value)
        for own, _ in _slices(ctx.branches):
            to_query[own], to_key[own], to_value[own] = part(own, own, causal=True)
        for own, below in _slices(ctx.branches):
            if below is not None:
                more_query, more_key, more_value = part(below, own, causal=False)
                to_query[below] += more_query
                to_key[own] += more_key
                to_value[own] += more_value
        return to_query, to_key, to_value, None, None


def _slices(branches: tuple[Branch, ...]) -> list[tuple[Any, Any]]:
    """Indices into `[1, H, N, ...]` of each branch and of what descends from it, None where nothing does."""
    every = slice(None)
    return [
        ((every, every, slice(start, stop)), (every, every, slice(stop, end)) if end > stop else None)
        for start, stop, end in branches
    ]


def _merge(out: Tensor, normaliser: Tensor, more: Tensor, more_normaliser: Tensor) -> None:
    """Put what the same queries found among other keys into `out` and its log of the normaliser, in place."""
    total = torch.logaddexp(normaliser, more_normaliser)
    out.mul_((normaliser - total).exp().unsqueeze(-1)).add_(more * (more_normaliser - total).exp().unsqueeze(-1))
    normaliser.copy_(total)


def _like(tensor: Tensor) -> Tensor:
    """`[1, H, N, D]`, not filled, with the heads of a token next to each other in memory, as the model wants them."""
    _, heads, tokens, width = tensor.shape
    return tensor.new_empty(1, tokens, heads, width).transpose(1, 2)
