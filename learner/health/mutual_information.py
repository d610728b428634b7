"""Mutual information of prompts and responses by cross-scoring: whether responses still depend on their prompts.

Template collapse (RAGEN-2, arXiv 2604.06268) leaves the entropy of a response given its prompt high while the response
stops depending on the prompt; only a comparison across prompts shows it. Every response is scored under its own prompt
and under those of other tasks. This file builds the sequences to score, puts the scores into a matrix and estimates;
the scoring itself is the learner's. Ours: the whole response is scored, not only the tokens of its reasoning. A high
value is not health: published runs spike just before they crash.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from milepost.envs.types import Group, Turn
from milepost.learner.batch.sample import Sample, lone_samples

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class CrossSamples:
    """R x N sequences: every response after every prompt. A sample's `group_id` is the response, `index` the prompt."""

    samples: list[Sample]
    own: Ints
    """`[R]`: the prompt that each response was given to."""
    num_prompts: int


def first_turns(groups: Sequence[Group], *, num_prompts: int, num_responses: int) -> list[list[Turn]]:
    """The first turns of up to `num_prompts` groups, up to `num_responses` of each, for `cross_samples`.

    Takes groups in order and leaves out those whose first prompt was already taken; inside a group, turns with another
    prompt than the first trajectory's. With fewer than two prompts left there is nothing to compare: the list is empty.
    """
    taken: dict[tuple[int, ...], list[Turn]] = {}
    for group in groups:
        first = [trajectory.turns[0] for trajectory in group.trajectories]
        if not first or len(taken) == num_prompts or tuple(first[0].prompt_ids) in taken:
            continue
        same = [turn for turn in first if turn.prompt_ids == first[0].prompt_ids]
        taken[tuple(first[0].prompt_ids)] = same[:num_responses]
    return list(taken.values()) if len(taken) >= 2 else []


def cross_samples(turns: Sequence[Sequence[Turn]]) -> CrossSamples:
    """Every response of `turns` after every prompt of `turns`.

    Args:
        turns: N lists of K_i >= 1 turns that answer one prompt; prompts differ between lists, token by token.

    Raises:
        ValueError: fewer than two prompts, a list that is empty or mixes prompts, or a prompt twice.
    """
    prompts = [_prompt(i, answers) for i, answers in enumerate(turns)]
    if len(prompts) < 2:
        raise ValueError(f"{len(prompts)} prompts; mutual information compares at least 2")
    for i, prompt in enumerate(prompts):
        if prompt in prompts[:i]:
            raise ValueError(f"prompts {prompts.index(prompt)} and {i} are the same; take turns of different tasks")
    answered = [(i, turn) for i, answers in enumerate(turns) for turn in answers]
    crossed = [msgspec.structs.replace(turn, prompt_ids=prompt) for _, turn in answered for prompt in prompts]
    samples = [
        replace(sample, group_id=str(k // len(prompts)), index=k % len(prompts))
        for k, sample in enumerate(lone_samples(crossed))
    ]
    return CrossSamples(samples, np.array([i for i, _ in answered], dtype=np.int64), len(prompts))


def score_matrix(cross: CrossSamples, batches: Sequence[Sequence[Sample]], logprobs: Sequence[Tensor]) -> Floats:
    """`L[r, n]`: log-prob of response r after prompt n, summed over its tokens; 0 where `batches` don't hold the pair.

    Every rank scores its share, and the matrices of all ranks add up to the whole one.

    Args:
        batches: samples of `cross`, as they were packed into micro-batches; an empty one is a dummy.
        logprobs: one tensor `[B, L]` per micro-batch, 0 where nothing is trained.

    Raises:
        ValueError: the numbers of micro-batches and tensors differ.
    """
    if len(batches) != len(logprobs):
        raise ValueError(f"{len(batches)} micro-batches with {len(logprobs)} tensors of log-probs")
    scores = np.zeros((len(cross.own), cross.num_prompts))
    for batch, found in zip(batches, logprobs, strict=True):
        sums = found.detach().double().sum(dim=-1).tolist()
        for row, sample in enumerate(batch):
            scores[int(sample.group_id), sample.index] = sums[row]
    return scores


def estimate(scores: Floats, own: Ints) -> float:
    """Mutual information of N prompts and R responses from their cross-scores, in nats per response (arXiv 2604.06268).

    `mean over r of L[r, own(r)] - (logsumexp_n L[r, n] - log N)`: at most log N, and 0 where responses don't depend on
    their prompt. A sample may give a negative number.

    Args:
        scores: `[R, N]`, log-probs `L` per response; with means over tokens instead, the result is per token.
        own: `[R]`.

    Raises:
        ValueError: shapes don't fit, there is no response or fewer than two prompts, or a score is not finite.
    """
    if scores.ndim != 2 or scores.shape[1] < 2 or len(scores) != len(own) or not len(own):
        raise ValueError(f"scores of shape {scores.shape} for {len(own)} responses; needs [R, N] with N >= 2, R >= 1")
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} of {scores.size} scores are not finite")
    matched = scores[np.arange(len(own)), own]
    highest = scores.max(axis=1)
    marginal = highest + np.log(np.exp(scores - highest[:, None]).mean(axis=1))
    return math.fsum(matched - marginal) / len(own)


def _prompt(i: int, answers: Sequence[Turn]) -> Sequence[int]:
    if not answers:
        raise ValueError(f"prompt {i} has no response")
    if any(turn.prompt_ids != answers[0].prompt_ids for turn in answers):
        raise ValueError(f"the turns of prompt {i} answer different prompts")
    return answers[0].prompt_ids
