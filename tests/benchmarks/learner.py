"""Episodes per CPU second of one learner rank's step, rows padded against prefix trees: `make bench-learner`.

Two workloads, 8 episodes to a group: short ones, like FrozenLake as text (a prompt of 91 tokens, 2 to 8 turns), and
long prompts (2,000 tokens, 8 turns). A turn is an answer in a fixed format around one of four moves, and an observation
that depends on the moves so far. The model is a random Llama of 3.3 M parameters; a step is what the learner makes of
samples: planning, collating, log-probs, the objective, its gradient, AdamW. Left out are credit and DeepSpeed. Both
packings take turns in one process on one thread, and the ratio is that of the medians of CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final, get_args

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from milepost.learner.batch.pack import Packing, Passed, collate, plan
from milepost.learner.batch.sample import NO_TURN, Sample
from milepost.learner.config import LearnerConfig
from milepost.learner.loss.entropy import num_turns
from milepost.learner.loss.loss import Policies, denominator
from milepost.learner.loss.objective import Entropies, Objective, objective_terms
from milepost.learner.zero.policy import load_policy
from milepost.learner.zero.token_policy import TokenPolicy, token_scores

VOCABULARY: Final = 512
GROUP_SIZE: Final = 8
MOVES: Final = 4
OBSERVATION: Final = 20
ANSWER: Final = 15
"""Tokens of an answer around its move."""


@dataclass(frozen=True)
class Workload:
    """What is trained on in one step."""

    groups: int
    prompt: int
    """Tokens."""
    turns: tuple[int, int]
    """Fewest and most of an episode."""

    def samples(self) -> list[Sample]:
        """The same ones at every call."""
        draw = np.random.default_rng(0)
        return [self._episode(group, draw) for group in range(self.groups) for _ in range(GROUP_SIZE)]

    def _episode(self, group: int, draw: np.random.Generator) -> Sample:
        tokens, turns, moves = _tokens(self.prompt, group), [NO_TURN] * self.prompt, list[int]()
        for turn in range(int(draw.integers(self.turns[0], self.turns[1] + 1))):
            moves.append(int(draw.integers(MOVES)))
            added = [*_tokens(ANSWER), moves[-1], *_tokens(OBSERVATION, group, *moves)]
            tokens += added
            turns += [turn] * (ANSWER + 1) + [NO_TURN] * OBSERVATION
        sample = Sample.from_turn_index(turns, advantages=[float(draw.normal())] * len(turns), group_id=f"g{group}")
        sample.token_ids[:] = tokens
        sample.rollout_logprobs[sample.loss_mask] = -np.log(VOCABULARY)
        return sample


WORKLOADS: Final = {"short": Workload(8, 91, (2, 8)), "long prompt": Workload(2, 2000, (8, 8))}


def _tokens(count: int, *of: int) -> list[int]:
    drawn: list[int] = np.random.default_rng([count, *of]).integers(0, VOCABULARY, count).tolist()
    return drawn


class Rank:
    """The policy and its optimizer, with one way to pack."""

    def __init__(self, folder: Path, packing: Packing) -> None:
        self._packing = packing
        self._policy = TokenPolicy(load_policy(folder, packing)).train()
        self._optimizer = torch.optim.AdamW(self._policy.parameters(), lr=1e-6)
        self.passed = Passed(0.0, 0.0)

    def step(self, pool: list[Sample]) -> float:
        """CPU seconds of one step."""
        began, objective = time.process_time(), Objective()
        max_tokens = LearnerConfig().max_tokens_per_micro_batch
        ranks = plan(pool, num_ranks=1, max_tokens=max_tokens, packing=self._packing)
        total = denominator(pool, objective.loss)
        for batch in (collate(members, self._packing) for members in ranks[0]):
            logprobs, entropies, _ = token_scores(self._policy, batch, 1.0)
            seen = Entropies(entropies, None, num_turns(pool))
            policies = Policies(logprobs, logprobs.detach())
            objective_terms(batch, policies, seen, objective=objective, total=total).loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.passed = Passed.of(ranks, self._packing)
        return time.process_time() - began


def measure(steps: int) -> dict[str, dict[str, float]]:
    """Workload -> packing -> episodes per CPU second."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=8,
        max_position_embeddings=4096, tie_word_embeddings=True,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="mp-bench-") as place:
        LlamaForCausalLM(shape).save_pretrained(place)
        ranks = {packing: Rank(Path(place), packing) for packing in get_args(Packing)}
    return {name: _rates(workload, name, ranks, steps) for name, workload in WORKLOADS.items()}


def _rates(workload: Workload, name: str, ranks: Mapping[str, Rank], steps: int) -> dict[str, float]:
    pool, rates = workload.samples(), {}
    for rank in ranks.values():
        rank.step(pool)  # what is made once
    seconds: dict[str, list[float]] = {packing: [] for packing in ranks}
    for _ in range(steps):
        for packing, rank in ranks.items():
            seconds[packing].append(rank.step(pool))
    for packing, rank in ranks.items():
        rates[packing] = len(pool) / median(seconds[packing])
        print(
            f"{name}, {packing}: {rates[packing]:.2f} episodes per CPU second; padding "
            f"{rank.passed.padding_share:.1%} of positions, shared {rank.passed.prefix_share:.1%} of tokens"
        )
    print(f"{name}: tree / padded = {rates['tree'] / rates['padded']:.2f}")
    return rates


def main() -> None:
    """Both workloads; a line for each packing and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each packing (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the rates as one JSON object, too")
    asked = parser.parse_args()
    rates = measure(asked.steps)
    if asked.json:
        print(json.dumps(rates))


if __name__ == "__main__":
    main()
