"""Worked numbers that lie between components: intermediate values, and what a known fault of public code would give."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch

from milepost.learner.batch.segments import segments
from milepost.learner.credit.assignment import Credit, CreditGroup, CreditTrajectory, CreditTurn
from milepost.learner.credit.baseline import trajectory_advantages
from milepost.learner.credit.filter import FilterConfig, keep_groups
from milepost.learner.credit.graph import build_graph, solve_values
from milepost.learner.credit.modulators import EMPGConfig, modulate
from milepost.learner.credit.scaling import scaled
from milepost.learner.credit.strategies.crbc import CRBC, CRBCConfig
from milepost.learner.credit.strategies.pbrs import shaping
from milepost.learner.health.mutual_information import estimate
from milepost.learner.loss import offpolicy, surrogate
from milepost.learner.loss.offpolicy import OffPolicyConfig
from tests.learner.credit.toy4 import toy4
from tests.learner.loss.token_batches import token_batch


def test_statistics_over_turns_would_weigh_long_trajectories_more() -> None:
    # verl-agent's default repeats a return in every one of the 2, 3, 3, 3 rows of its trajectory; ours counts it once.
    rows = np.repeat([1.0, 0.0, 1.0, 0.0], [2, 3, 3, 3])
    assert rows.mean() == pytest.approx(0.4545, abs=5e-5)
    assert rows.std(ddof=1) == pytest.approx(0.5222, abs=5e-5)
    by_row = trajectory_advantages(rows, baseline="grpo")
    assert sorted({round(float(a), 4) for a in by_row}) == [-0.8704, 1.0445]
    once = trajectory_advantages(np.array([1.0, 0.0, 1.0, 0.0]), baseline="grpo")
    assert once.tolist() == pytest.approx([0.8660, -0.8660, 0.8660, -0.8660], abs=5e-5)


def test_the_closures_matrix_and_immediate_success_of_toy4() -> None:
    graph = build_graph(toy4())
    matrix, wins = np.zeros((3, 3)), np.zeros(3)
    for pair, target, count in zip(graph.edge_pair, graph.edge_target, graph.edge_count, strict=True):
        state = graph.pair_state[pair]
        share = count / graph.state_visits[state]
        if target < len(graph.states):
            matrix[state, target] += share
        elif target == len(graph.states):
            wins[state] += share
    np.testing.assert_allclose(matrix, [[0, 0.5, 0.5], [0, 0, 1 / 3], [0, 0.25, 0.25]], atol=1e-12)
    np.testing.assert_allclose(0.98 * wins, [0, 0.65333, 0], atol=5e-6)
    by_hand = np.linalg.solve(np.eye(3) - 0.98 * matrix, 0.98 * wins)
    np.testing.assert_allclose(by_hand, [0.474295, 0.730802, 0.237148], atol=5e-7)
    np.testing.assert_allclose(by_hand, solve_values(graph, beta=0.98).value, atol=1e-12)


def test_crbcs_raw_credit_is_the_mean_shaping_reward_of_the_estimated_potential() -> None:
    # Phi = V, gamma = beta; a success is worth 1, so it is both terminal potential and reward.
    group, beta = toy4(), 0.98
    config = CRBCConfig(sigma_min=1.0, truncation="failure")  # sigma is below 1 everywhere: raw Q - V
    credit = CRBC(config).assign(group)
    shaped, raw = defaultdict(list), {}
    for trajectory, steps in zip(group.trajectories, credit.step_adv, strict=True):
        for t, (turn, step) in enumerate(zip(trajectory.turns, steps, strict=True)):
            is_last = t == len(trajectory.turns) - 1
            following = float(trajectory.outcome == "success") if is_last else credit.state_value[turn.next_anchor]
            potential = np.array([credit.state_value[turn.anchor], following])
            shaped[turn.anchor, turn.action].append(float(shaping(potential, gamma=beta)[0]))
            raw[turn.anchor, turn.action] = float(step)
    assert {pair: np.mean(terms) for pair, terms in shaped.items()} == pytest.approx(raw, abs=1e-12)


@pytest.mark.parametrize(
    ("value", "kept"), [(0.3906, [0]), (0.3908, [0, 2]), (0.7105, [0, 2]), (0.7107, [0, 2, 3]), (0.9, [0, 2, 3])]
)
def test_softmax_shares_of_the_worked_scores_are_where_the_filter_changes(value: float, kept: list[int]) -> None:
    # Scores [.5, 0, .3, .2] have the shares .3907, -, .3199, .2894; .3907 + .3199 = .7106.
    groups = []
    for k, score in enumerate((0.5, 0.0, 0.3, 0.2)):
        turns = [CreditTurn("A", "x", "A", reward, False, num_tokens=1) for reward in (score * 2**0.5, 0.0)]
        groups.append(CreditGroup(str(k), tuple(CreditTrajectory("failure", (turn,)) for turn in turns)))
    credits = [CRBC(CRBCConfig()).assign(group) for group in groups]
    verdicts = keep_groups(groups, credits, FilterConfig(method="top_p_softmax", value=value))
    assert [k for k, verdict in enumerate(verdicts) if verdict.keep] == kept


def test_marginals_of_the_worked_matrix_of_scores() -> None:
    for row, marginal in ((-1.0, -3.0), -1.5662), ((-4.0, -2.0), -2.5662):
        information = estimate(np.array([row]), np.array([0]))
        assert row[0] - information == pytest.approx(marginal, abs=5e-5)


def test_whitening_over_tokens_would_let_the_longer_turn_set_the_mean() -> None:
    # Turns of 1 and 3 tokens with advantages 1 and -1: the mean is 0 over turns and -.5 over tokens.
    arrays = (np.array([1.0, -1.0]),)
    credit = Credit(
        traj_adv=np.zeros(1),
        step_adv=arrays,
        coverage=(np.ones(2, dtype=np.int8),),
        total=arrays,
        state_value={},
        diagnostics={},
        token_total=((np.array([1.0]), np.full(3, -1.0)),),
    )
    (by_turn,) = scaled([credit], [[np.ones(2)]], "whiten_turns")
    (by_token,) = scaled([credit], [[np.ones(2)]], "whiten_tokens")
    assert by_turn.total[0].tolist() == pytest.approx([0.5**0.5, -(0.5**0.5)])
    assert by_token.token_total is not None
    # less -.5, over the standard deviation 1 of 1, -1, -1, -1
    assert np.concatenate(by_token.token_total[0]).tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5])


def geometric(logs: list[float]) -> float:
    batch = token_batch(turns=[[0] * len(logs)], advantages=[[1.0] * len(logs)])
    current = torch.tensor(logs, dtype=torch.float64)
    return float(surrogate.geometric_ratios(current, torch.zeros_like(current), segments(batch, "turn"))[0])


def product(logs: list[float]) -> float:
    batch = token_batch(turns=[[0] * len(logs)], advantages=[[1.0] * len(logs)])
    config = OffPolicyConfig(importance="sequence", importance_cap=100)
    return float(offpolicy.weights(torch.tensor(logs, dtype=torch.float64), batch, config)[0])


@pytest.mark.parametrize(
    ("logs", "mean", "whole", "digits"),
    [([0.1, -0.2, 0.3], 1.06894, 1.2214, 5), ([0.1, 1.2, -0.5, 2.0], 2.0138, 16.4446, 4)],
)
def test_geometric_means_and_products_of_ratios(logs: list[float], mean: float, whole: float, digits: int) -> None:
    assert round(geometric(logs), digits) == mean
    assert round(product(logs), 4) == whole


def test_the_two_ratios_of_the_decoupled_loss() -> None:
    behaviour, proximal, current = (torch.tensor([x], dtype=torch.float64) for x in (-1.0, -0.8, -0.7))
    assert offpolicy.log_ratio(proximal, behaviour).exp().item() == pytest.approx(1.2214, abs=5e-5)
    assert offpolicy.log_ratio(current, proximal).exp().item() == pytest.approx(1.1052, abs=5e-5)


def test_weight_and_bonus_of_empg_before_the_batch_is_centred() -> None:
    turns = [CreditTurn("A", "x", "A", 0.0, False, num_tokens=2, entropy=h) for h in (0.2, 0.5, 0.8)]
    group = CreditGroup("g", (CreditTrajectory("failure", tuple(turns)),))
    ones = (np.ones(3),)
    credit = Credit(np.zeros(1), ones, (np.ones(3, dtype=np.int8),), ones, {}, {})

    def centred(bonus: float) -> np.ndarray:
        (found,) = modulate([group], [replace(credit)], [EMPGConfig(bonus=bonus)])
        return found.total[0]

    g = centred(0.0) + 1.0  # g has the mean 1
    np.testing.assert_allclose(g, [1.5194, 0.9216, 0.5590], atol=5e-5, rtol=0)
    gained = centred(1.0) - centred(0.0)
    f = gained - gained[-1]  # nothing follows the last turn
    np.testing.assert_allclose(f, [0.6065, 0.3679, 0.0], atol=5e-5, rtol=0)
    np.testing.assert_allclose(g + 0.05 * f, [1.5498, 0.9400, 0.5590], atol=6e-5, rtol=0)
