"""Cross-scoring: the worked matrix, what collapse looks like, and the way from turns to the matrix and back."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from milepost.envs.types import Group, Task, Trajectory, Turn
from milepost.learner.batch import pack
from milepost.learner.health.mutual_information import cross_samples, estimate, first_turns, score_matrix
from tests.learner.token_turns import turn

WORKED = np.array([[-1.0, -3.0], [-4.0, -2.0]])
OWN = np.array([0, 1])


def group(name: str, *turns: Turn) -> Group:
    task = Task(env="x:Y", seed=int(name), split="train")
    played = [
        Trajectory(task=task, group_id=name, index=k, turns=[one], outcome="failure") for k, one in enumerate(turns)
    ]
    return Group(group_id=name, task=task, trajectories=played)


def test_the_worked_matrix_gives_the_worked_number() -> None:
    found = estimate(WORKED, OWN)
    # matched -1 and -2 with marginals -1.5662 and -2.5662: -1.5 + 2.0662
    assert found == pytest.approx(0.5662, abs=5e-5)
    assert found < math.log(2)


def test_responses_that_ignore_their_prompt_carry_no_information() -> None:
    assert estimate(np.full((8, 4), -7.0), np.array([0, 0, 1, 1, 2, 2, 3, 3])) == pytest.approx(0.0)


def test_likely_responses_to_other_prompts_make_the_estimate_negative() -> None:
    # matched -3 and -4 with the same marginals: -3.5 + 2.0662
    assert estimate(WORKED[:, ::-1], OWN) == pytest.approx(-1.4338, abs=1e-4)


@settings(max_examples=60)
@given(st.integers(2, 6), st.integers(1, 4), st.integers(0, 2**32 - 1), st.floats(0.1, 500.0))
def test_information_never_exceeds_the_log_of_the_number_of_prompts(n: int, k: int, seed: int, scale: float) -> None:
    scores = -scale * np.random.default_rng(seed).random((n * k, n))
    assert estimate(scores, np.repeat(np.arange(n), k)) <= math.log(n) + 1e-9


@pytest.mark.parametrize(
    ("scores", "own", "complaint"),
    [
        (np.zeros((2, 1)), OWN, r"shape \(2, 1\) for 2 responses"),
        (np.zeros((3, 2)), OWN, r"shape \(3, 2\) for 2 responses"),
        (np.zeros((0, 2)), np.array([], dtype=np.int64), "for 0 responses"),
        (np.array([[0.0, -math.inf], [0.0, 0.0]]), OWN, "1 of 4 scores are not finite"),
    ],
)
def test_a_matrix_that_is_no_matrix_of_scores_is_refused(scores: np.ndarray, own: np.ndarray, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        estimate(scores, own)


def test_every_response_follows_every_prompt_with_only_its_own_tokens_scored() -> None:
    cross = cross_samples([[turn([1, 2], [7, 8]), turn([1, 2], [9])], [turn([3], [5])]])
    assert [sample.token_ids.tolist() for sample in cross.samples] == [
        [1, 2, 7, 8],
        [3, 7, 8],
        [1, 2, 9],
        [3, 9],
        [1, 2, 5],
        [3, 5],
    ]
    assert cross.own.tolist() == [0, 0, 1]
    assert [(s.group_id, s.index) for s in cross.samples] == [
        (str(r), n) for r in range(3) for n in range(cross.num_prompts)
    ]
    assert [s.loss_mask.tolist() for s in cross.samples[:2]] == [[False, False, True, True], [False, True, True]]


def test_ranks_fill_one_matrix_however_samples_were_packed() -> None:
    cross = cross_samples([[turn([1, 2], [7, 8]), turn([1, 2], [9])], [turn([3], [5, 6, 7])]])
    planned = pack.plan(cross.samples, num_ranks=2, max_tokens=8)
    shares = []
    for batches in planned:
        # a log-prob of -(token id) for every scored token, as a model without context would say
        collated = [pack.collate(rows) for rows in batches]
        logprobs = [torch.where(b.loss_mask, -b.input_ids.float(), 0.0) for b in collated]
        shares.append(score_matrix(cross, batches, logprobs))
    assert all(share.any() and not share.all() for share in shares)
    assert sum(shares).tolist() == [[-15.0, -15.0], [-9.0, -9.0], [-18.0, -18.0]]
    with pytest.raises(ValueError, match="2 micro-batches with 0 tensors"):
        score_matrix(cross, [(), ()], [])


def test_a_dummy_batch_scores_nothing() -> None:
    cross = cross_samples([[turn([1], [7])], [turn([3], [5])]])
    assert not score_matrix(cross, [()], [torch.ones(1, 2)]).any()


@pytest.mark.parametrize(
    ("turns", "complaint"),
    [
        ([[turn([1], [2])]], "1 prompts"),
        ([[turn([1], [2])], []], "prompt 1 has no response"),
        ([[turn([1], [2]), turn([3], [2])], [turn([4], [2])]], "prompt 0 answer different prompts"),
        ([[turn([1], [2])], [turn([4], [2])], [turn([1], [3])]], "prompts 0 and 2 are the same"),
    ],
)
def test_turns_that_cannot_be_crossed_are_refused(turns: list[list[Turn]], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        cross_samples(turns)


def test_first_turns_are_taken_from_groups_with_different_prompts() -> None:
    groups = [
        group("0", turn([1], [2]), turn([1], [3]), turn([1], [4])),
        group("1", turn([1], [5])),
        group("2", turn([6], [7]), turn([8], [7]), turn([6], [9])),
        group("3", turn([9], [9])),
    ]
    chosen = first_turns(groups, num_prompts=2, num_responses=2)
    assert [[one.response_ids for one in answers] for answers in chosen] == [[[2], [3]], [[7], [9]]]
    assert cross_samples(chosen).own.tolist() == [0, 0, 1, 1]
    assert first_turns(groups[:2], num_prompts=8, num_responses=2) == []
