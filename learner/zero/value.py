"""The critic as a network: a value head on a trunk of its own, or on the policy's.

The estimate for a token is what the head says at the position before it, as the policy's log-prob is: when the token
is sampled the critic has seen its context and nothing of the token itself. The head computes in float32 and starts at
zero, so an untrained critic says 0 everywhere and leaves a shared trunk alone. Knows nothing of ranks or optimizers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from milepost.learner.batch.pack import MicroBatch
from milepost.learner.zero.policy import load_policy, placed, placed_logprobs, predicting_columns


class ValueHead(nn.Module):
    """A linear map from hidden states to one number."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, width))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, hidden: Tensor) -> Tensor:
        """`[B, K, width]` -> `[B, K]`, in float32 whatever comes in."""
        return nn.functional.linear(hidden.float(), self.weight.float(), self.bias.float()).squeeze(-1)


class Critic(nn.Module):
    """A trunk of its own, which starts as the policy's, and a value head."""

    def __init__(self, folder: Path) -> None:
        """Load the trunk from the policy's folder. Raises what `load_policy` raises."""
        super().__init__()
        policy = load_policy(folder)
        self.trunk = policy.base_model
        self.head = ValueHead(policy.config.hidden_size)

    def forward(self, *, input_ids: Tensor, attention_mask: Tensor, values_at: Tensor) -> Tensor:
        """Estimates `[B, K]` at the K columns `values_at`."""
        hidden = self.trunk(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        return self.head(hidden[:, values_at])  # type: ignore[no-any-return]


class ValuedOutput(NamedTuple):
    """What a policy with a value head answers."""

    logits: Tensor
    """`[B, K, V]` at the columns that were asked for."""
    values: Tensor
    """`[B, K']` at the columns that were asked for."""


class ValuedPolicy(nn.Module):
    """The policy and a value head on its trunk. `PREFIX` stands before the names of the policy's own parameters."""

    PREFIX = "policy."

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy
        self.head = ValueHead(policy.config.hidden_size)

    def forward(
        self, *, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: Tensor, values_at: Tensor, use_cache: bool
    ) -> ValuedOutput:
        """Logits at the columns `logits_to_keep` and estimates at the columns `values_at`."""
        outputs = self.policy(
            input_ids=input_ids,
            attention_mask=attention_mask,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            output_hidden_states=True,
        )
        # the last of these is what the output layer reads
        return ValuedOutput(outputs.logits, self.head(outputs.hidden_states[-1][:, values_at]))


def valued_logprobs(
    policy: Any, batch: MicroBatch, temperature: float, *, entropy_gradient: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs, entropies and estimates `[B, L]` of a `ValuedPolicy` at the trained tokens, in one pass."""
    columns = predicting_columns(batch)
    outputs = _run(policy, batch, logits_to_keep=columns, values_at=columns)
    logprobs, entropies = placed_logprobs(
        outputs.logits, columns, batch, temperature=temperature, entropy_gradient=entropy_gradient
    )
    return logprobs, entropies, placed(outputs.values, columns, batch)


def critic_values(critic: Any, batch: MicroBatch) -> Tensor:
    """Estimates `[B, L]` of a `Critic` before each of the trained tokens; elsewhere they mean nothing."""
    columns = predicting_columns(batch)
    values = critic(input_ids=batch.input_ids, attention_mask=batch.attention_mask, values_at=columns)
    return placed(values, columns, batch)


def shared_values(policy: Any, batch: MicroBatch) -> Tensor:
    """The same of a `ValuedPolicy`; of the logits only one column is computed."""
    columns = predicting_columns(batch)
    return placed(_run(policy, batch, logits_to_keep=columns[:1], values_at=columns).values, columns, batch)


def _run(policy: Any, batch: MicroBatch, **columns: Tensor) -> ValuedOutput:
    return policy(  # type: ignore[no-any-return]
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **columns
    )
