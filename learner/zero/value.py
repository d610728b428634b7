"""The critic as a network of its own: a trunk that starts as the policy's, and a value head.

The estimate for a token is what the head says at the position before it, as the policy's log-prob is: when the token
is sampled the critic has seen its context and nothing of the token itself. The head computes in float32 and starts at
zero, so an untrained critic says 0 everywhere and leaves a shared trunk alone (`TokenPolicy` with a head is a critic on
the policy's trunk). Knows nothing of ranks or optimizers.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from milepost.learner.batch.pack import MicroBatch
from milepost.learner.batch.prediction import Layout, predict
from milepost.learner.zero.token_policy import ValueHead, last_hidden


class Critic(nn.Module):
    """A trunk of its own, which starts as the policy's, and a value head."""

    def __init__(self, policy: Any) -> None:
        """Take the trunk of `policy`, a model that `load_policy` gave."""
        super().__init__()
        self.trunk = policy.base_model
        self.head = ValueHead(policy.config.hidden_size, policy.dtype)

    def forward(self, *, layout: Layout, at: Tensor) -> Tensor:
        """Estimates `[K]` at the positions `at` `[K]` of the layout, row after row."""
        return self.head(last_hidden(self.trunk, layout, at))  # type: ignore[no-any-return]


def critic_values(critic: Any, batch: MicroBatch) -> Tensor:
    """Estimates `[B, L]` before each of the trained tokens; 0 elsewhere. `critic` is a `Critic`, or runs one."""
    prediction = predict(batch)
    return prediction.placed(critic(layout=prediction.layout, at=prediction.at))
