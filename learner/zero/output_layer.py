"""Log-probs and entropies from hidden states, chunk by chunk: the logits of all tokens never exist at once.

A chunk of tokens passes through the output layer, its logits become two numbers a token, and the backward pass computes
them again. So memory holds the logits of one chunk in the model's data type, and of some 32 tokens in float32, however
many tokens there are. Under ZeRO-3 all of it is one call of one module: its parameters are gathered once a pass, so
ranks may have different numbers of chunks. Not promised: less time; the layer runs once more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from milepost.learner.loss.loss import token_logprobs

CHUNK_TOKENS: Final = 1024
"""Rows of one matrix product: enough for its full speed."""
_BLOCK_TOKENS: Final = 32
"""Rows whose numbers are in float32 at once, several times over."""


@dataclass(frozen=True, slots=True)
class LogitRule:
    """What a family makes of its output layer's numbers: `scale`, then `softcap * tanh(logits / softcap)`."""

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, numbers: Tensor) -> Tensor:
        """Logits in float32, shaped as they come.

        >>> LogitRule(scale=0.5, softcap=3.0)(torch.tensor([0.0, 1e9]))
        tensor([0., 3.])
        """
        logits = numbers.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


class OutputLayer(nn.Linear):
    """A model's output layer, with the very parameters of the one in whose place it stands."""

    def __init__(self, layer: nn.Linear, rule: LogitRule) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self._rule = rule

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor | None = None,
        *,
        temperature: float = 1.0,
        entropy_gradient: bool = False,
    ) -> Any:
        """Without `targets` what the layer says; with them log-probs and entropies `[K]` as `token_logprobs` has them.

        Args:
            hidden: `[K, width]` where there are targets, else of any shape.
            targets: `[K]`, the token that each hidden state should predict.
        """
        if targets is None:
            return super().forward(hidden)
        scoring = _Scoring(self._rule, temperature, entropy_gradient)
        parameters = (self.weight, self.bias)
        return _ChunkedLogprobs.apply(hidden, *parameters, targets, scoring)  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class _Scoring:
    rule: LogitRule
    temperature: float
    entropy_gradient: bool

    def __call__(self, numbers: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.rule(numbers)
        return token_logprobs(logits, targets, self.temperature, entropy_gradient=self.entropy_gradient)

    def gradient(self, numbers: Tensor, targets: Tensor, given: Sequence[Tensor]) -> Tensor:
        """What the gradients `given` of log-probs, and of entropies where they have one, say to `numbers`."""
        with torch.enable_grad():
            leaf = numbers.detach().requires_grad_()
            found = self(leaf, targets)
        return torch.autograd.grad(found[: len(given)], leaf, given)[0]


class _ChunkedLogprobs(torch.autograd.Function):
    """Saves its inputs alone. Under ZeRO-3 `weight` is whole in both passes: saved is the parameter, not its data."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scoring: _Scoring
    ) -> tuple[Tensor, Tensor]:
        logprobs, entropies = torch.empty(2, len(targets), dtype=torch.float32, device=hidden.device)
        for rows in _slices(len(targets), CHUNK_TOKENS):
            numbers = nn.functional.linear(hidden[rows], weight, bias)
            for part in _slices(len(numbers), _BLOCK_TOKENS):
                logprobs[rows][part], entropies[rows][part] = scoring(numbers[part], targets[rows][part])
            del numbers  # before the next chunk makes its own
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.scoring = scoring
        if not scoring.entropy_gradient:
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        wanted = gradients if ctx.scoring.entropy_gradient else gradients[:1]
        to_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        # in float32: sums over many chunks lose digits in half precision
        to_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        to_bias = torch.zeros_like(bias, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        for rows in _slices(len(targets), CHUNK_TOKENS):
            numbers = nn.functional.linear(hidden[rows], weight, bias)
            for part in _slices(len(numbers), _BLOCK_TOKENS):
                numbers[part] = ctx.scoring.gradient(
                    numbers[part], targets[rows][part], [gradient[rows][part] for gradient in wanted]
                )
            if to_hidden is not None:
                to_hidden[rows] = numbers @ weight
            if to_weight is not None:
                to_weight += numbers.t() @ hidden[rows]
            if to_bias is not None:
                to_bias += numbers.sum(0)
            del numbers
        return to_hidden, _as(to_weight, weight), _as(to_bias, bias), None, None


def _as(gradient: Tensor | None, parameter: Tensor) -> Tensor | None:
    return None if gradient is None else gradient.to(parameter.dtype)


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(first, first + size) for first in range(0, length, size))
