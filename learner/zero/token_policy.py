"""The policy as the module that training runs: token ids in, log-probs and entropies of chosen tokens out.

Where the family is known (`milepost.learner.zero.families`) logits are made chunk by chunk; for others the model's own
code makes them, all at once. With a value head it is also the critic of a shared trunk. Rows are padded on the right
and attention is causal, so no mask is needed. Knows nothing of ranks or optimizers.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from milepost.learner.batch.pack import MicroBatch
from milepost.learner.batch.prediction import Layout, predict
from milepost.learner.loss.loss import token_logprobs
from milepost.learner.zero.families import logit_rule
from milepost.learner.zero.output_layer import OutputLayer
from milepost.learner.zero.tree_attention import tree_options


class Scores(NamedTuple):
    """Of K tokens, `[K]` each."""

    logprobs: Tensor
    entropies: Tensor
    values: Tensor | None
    """None without a value head."""


class ValueHead(nn.Module):
    """A linear map from hidden states to one number."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, width, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(1, dtype=dtype))

    def forward(self, hidden: Tensor) -> Tensor:
        """`[K, width]` -> `[K]`, in float32 whatever comes in."""
        return nn.functional.linear(hidden.float(), self.weight.float(), self.bias.float()).squeeze(-1)


class TokenPolicy(nn.Module):
    """A causal language model, and a value head if it is `valued`. Its output layer is replaced by an `OutputLayer`."""

    PREFIX: Final = "policy."
    """Stands before the names of the model's own parameters."""

    def __init__(self, policy: Any, *, valued: bool = False) -> None:
        super().__init__()
        self.policy = policy
        self.head = ValueHead(policy.config.hidden_size, policy.dtype) if valued else None
        rule, layer = logit_rule(policy.config), policy.get_output_embeddings()
        if rule is not None and type(layer) is nn.Linear:
            policy.set_output_embeddings(OutputLayer(layer, rule))

    def forward(
        self, *, layout: Layout, at: Tensor, targets: Tensor, temperature: float, entropy_gradient: bool
    ) -> Scores:
        """Scores of the tokens `targets`, predicted at the positions `at` of the layout, row after row.

        `at` is `[K]`, `targets` `[T]` with T <= K: only the first T positions are asked for logits, all K for
        estimates. Entropies carry a gradient only with `entropy_gradient`.
        """
        layer, asked = self.policy.get_output_embeddings(), at[: len(targets)]
        if isinstance(layer, OutputLayer):
            hidden = last_hidden(self.policy.base_model, layout, at)
            scoring = {"temperature": temperature, "entropy_gradient": entropy_gradient}
            found = layer(hidden[: len(targets)], targets, **scoring)
        else:
            hidden, logits = self._whole_logits(layout.input_ids, at, asked)
            found = token_logprobs(logits, targets, temperature, entropy_gradient=entropy_gradient)
        logprobs, entropies = found
        return Scores(logprobs, entropies, values=None if self.head is None else self.head(hidden))

    def _whole_logits(self, input_ids: Tensor, at: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states `[K, width]` at `at` and logits `[T, V]` at `asked`, from the model's own forward pass."""
        length = input_ids.shape[1]
        kept, where = torch.unique(asked % length, return_inverse=True)
        outputs = self.policy(input_ids=input_ids, use_cache=False, logits_to_keep=kept, output_hidden_states=True)
        # the last of these is what the output layer reads
        return outputs.hidden_states[-1].flatten(0, 1)[at], outputs.logits[asked // length, where]


def last_hidden(trunk: Any, layout: Layout, at: Tensor) -> Tensor:
    """`[K, width]`: the last hidden states at the positions `at` of the layout, row after row."""
    tree: dict[str, Any] = {}
    if layout.branches is not None:
        tree = {"position_ids": layout.position_ids, **tree_options(layout.branches, layout.input_ids.device)}
    hidden: Tensor = trunk(input_ids=layout.input_ids, use_cache=False, **tree).last_hidden_state
    return hidden.flatten(0, 1)[at]


def token_scores(
    model: Any, batch: MicroBatch, temperature: float, *, entropy_gradient: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-probs, entropies and, with a value head, estimates `[B, L]` at the trained tokens; 0 elsewhere.

    `model` is a `TokenPolicy`, or runs one.
    """
    prediction = predict(batch)
    scores = model(
        layout=prediction.layout,
        at=prediction.at,
        targets=prediction.targets,
        temperature=temperature,
        entropy_gradient=entropy_gradient,
    )
    values = None if scores.values is None else prediction.placed(scores.values)
    return prediction.placed(scores.logprobs), prediction.placed(scores.entropies), values


def token_values(model: Any, batch: MicroBatch) -> Tensor:
    """The estimates alone, with a value head: logits are made of one token."""
    prediction = predict(batch)
    targets, nothing = prediction.targets[:1], {"temperature": 1.0, "entropy_gradient": False}
    scores = model(layout=prediction.layout, at=prediction.at, targets=targets, **nothing)
    return prediction.placed(scores.values)
