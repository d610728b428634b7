"""What a check trains: the shape of a random model, its rows, what a step on them computes. Loads no DeepSpeed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from milepost.learner.batch.pack import Packing
from milepost.learner.batch.sample import NO_TURN, NO_VERSION, Sample


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder with tied embeddings, and the lengths it is tried at."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int
    lengths: tuple[int, ...]
    """Tokens of a row that is trained on alone."""
    prompt: int
    """Tokens that the rows of a group share."""
    response: int
    """Tokens of a group's longest row after them."""
    rows: int
    repeats: int
    """Timed steps of each kind, after one that is not."""

    def write(self, folder: Path) -> None:
        """A random model in bfloat16, as a Hugging Face folder."""
        torch.manual_seed(3)
        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.feed_forward,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=2 * max(self.lengths),
            tie_word_embeddings=True,
        )
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)

    def row(self, tokens: int, seed: int) -> list[Sample]:
        """One row, of which the policy sampled the second half."""
        ids = np.random.default_rng(seed).integers(0, self.vocabulary, tokens)
        return [_sample(ids, prompt=tokens // 2, advantage=1.0, index=0, vocabulary=self.vocabulary)]

    def group(self, seed: int) -> list[Sample]:
        """Rows that begin alike and differ in length, half of them rewarded."""
        rng = np.random.default_rng(seed)
        shared = rng.integers(0, self.vocabulary, self.prompt)
        found = []
        for k in range(self.rows):
            own = rng.integers(0, self.vocabulary, self.response - k * self.response // (2 * self.rows))
            ids, advantage = np.concatenate([shared, own]), 1.0 if k % 2 else -1.0
            found.append(_sample(ids, prompt=self.prompt, advantage=advantage, index=k, vocabulary=self.vocabulary))
        return found

    def row_flops(self, tokens: int) -> float:
        """Floating-point operations that a training step on `row(tokens)` needs, nothing computed twice.

        Two for each weight and token forward and four backward; attention looks at half of all pairs, for scores and
        for values; the output layer runs where the policy sampled.
        """
        width = self.hidden // self.heads
        projections = 2 * self.hidden * width * (self.heads + self.kv_heads)
        weights = self.layers * (projections + 3 * self.hidden * self.feed_forward)
        attention = self.layers * self.heads * width * tokens**2
        return 6.0 * (weights * tokens + self.vocabulary * self.hidden * (tokens - tokens // 2) + attention)


BIG: Final = Shape(1536, 28, 12, 2, 8960, 151936, (4096, 8192, 16384, 32768), 2000, 512, 8, 3)
"""That of Qwen2.5-1.5B."""
TINY: Final = Shape(32, 2, 2, 1, 64, 64, (16, 32), 12, 6, 4, 1)


WAYS: Final[tuple[Packing, ...]] = get_args(Packing)
"""How the learner can lay rows out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One way in one data type."""

    packing: Packing
    dtype: str
    shape: Shape
    model: Path
    device: str
    folder: Path
    """Of this job: what it saw goes there, and what it saves."""
    is_whole: bool
    """Whether speed, lengths, refusing and saving are tried too."""


def _sample(ids: np.ndarray, *, prompt: int, advantage: float, index: int, vocabulary: int) -> Sample:
    """A row of one turn. Its engine found every token equally likely, as a random model nearly does."""
    sampled = np.arange(len(ids)) >= prompt
    return Sample(
        group_id="g",
        index=index,
        token_ids=ids.astype(np.int64),
        loss_mask=sampled,
        advantages=np.where(sampled, advantage, 0.0).astype(np.float32),
        rollout_logprobs=np.where(sampled, -math.log(vocabulary), 0.0).astype(np.float32),
        versions=np.where(sampled, 0, NO_VERSION),
        turn_lengths=np.where(sampled, sampled.sum(), 0),
        turn_index=np.where(sampled, 0, NO_TURN),
        value_mask=np.zeros(len(ids), dtype=np.bool_),
        value_targets=np.zeros(len(ids), dtype=np.float32),
    )
