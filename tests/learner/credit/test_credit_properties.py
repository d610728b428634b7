"""What holds for every group and every strategy, whatever the environment and the policy did."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.learner.credit.assignment import CreditGroup, CreditTrajectory, CreditTurn
from milepost.learner.credit.settings import CreditSettings, StepSettings
from milepost.learner.credit.strategies.registry import SETTINGS, build
from milepost.learner.credit.strategies.registry import settings as credit_settings
from milepost.learner.credit.strategies.starpo import StarPOConfig
from tests.learner.credit.random_groups import assert_finite, for_every_strategy, groups

BASELINES = ("grpo", "rloo", "dr_grpo")


CONFIGS = [
    *(StarPOConfig(baseline=baseline) for baseline in BASELINES),
    *(credit_settings(strategy=name) for name in SETTINGS if name not in ("starpo", "custom")),
    credit_settings(path="tests.learner.credit.strategies.own_strategies:LateTurns"),
]


STEP_CONFIGS = [
    credit_settings(strategy=name, baseline=baseline, w_step=0.0, w_trajectory=1.0)
    for (name, kind), baseline in zip(SETTINGS.items(), itertools.cycle(BASELINES), strict=False)
    if issubclass(kind, StepSettings)
]


every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.strategy}-{getattr(c, 'baseline', '')}")


@every_config
@for_every_strategy
@given(group=groups())
def test_every_output_is_finite_and_has_the_shape_of_the_group(config: CreditSettings, group: CreditGroup) -> None:
    credit = build(config).assign(group)
    assert_finite(credit)
    lengths = [len(trajectory.turns) for trajectory in group.trajectories]
    assert credit.traj_adv.shape == (len(lengths),)
    for per_turn in (credit.step_adv, credit.coverage, credit.total):
        assert [x.shape for x in per_turn] == [(n,) for n in lengths]
    assert {int(x) for covered in credit.coverage for x in covered} <= {0, 1}


@every_config
@for_every_strategy
@given(data=st.data(), group=groups())
def test_the_order_of_the_trajectories_does_not_matter(
    config: CreditSettings, data: st.DataObject, group: CreditGroup
) -> None:
    order = data.draw(st.permutations(range(len(group.trajectories))))
    shuffled = CreditGroup("g", tuple(group.trajectories[i] for i in order))
    credit, other = build(config).assign(group), build(config).assign(shuffled)
    np.testing.assert_array_equal(other.traj_adv, credit.traj_adv[list(order)])
    for position, i in enumerate(order):
        np.testing.assert_array_equal(other.step_adv[position], credit.step_adv[i])
        np.testing.assert_array_equal(other.coverage[position], credit.coverage[i])
        np.testing.assert_array_equal(other.total[position], credit.total[i])
    assert other.state_value == credit.state_value


@every_config
def test_a_group_of_eight_long_trajectories_through_four_hundred_states_is_credited(config: CreditSettings) -> None:
    draw = np.random.default_rng(0)
    trajectories = []
    for i in range(8):
        states = draw.integers(0, 400, size=51)
        turns = tuple(
            CreditTurn(
                str(states[t]),
                f"a{draw.integers(4)}",
                str(states[t + 1]),
                float(t == 49 and i % 2),
                False,
                num_tokens=1,
                progress=t / 50,
                entropy=float(draw.random()),
                history_gain=0.1,
                value=0.5,
                token_values=(0.5,),
            )
            for t in range(50)
        )
        trajectories.append(CreditTrajectory("success" if i % 2 else "truncated", turns))
    credit = build(config).assign(CreditGroup("g", tuple(trajectories)))
    assert_finite(credit)
    assert any(np.any(total) for total in credit.total)


@pytest.mark.parametrize("config", STEP_CONFIGS, ids=lambda c: f"{c.strategy}-{c.baseline}")
@for_every_strategy
@given(group=groups())
def test_without_a_step_weight_a_strategy_is_starpo(config: StepSettings, group: CreditGroup) -> None:
    credit = build(config).assign(group)
    plain = build(StarPOConfig(baseline=config.baseline)).assign(group)
    for have, want in zip(credit.total, plain.total, strict=True):
        np.testing.assert_array_equal(have, want)


@every_config
@for_every_strategy
@given(group=groups(max_size=1))
def test_a_group_of_one_has_no_trajectory_advantage(config: CreditSettings, group: CreditGroup) -> None:
    assert build(config).assign(group).traj_adv.tolist() == [0.0]


@every_config
@for_every_strategy
@given(group=groups())
def test_trajectory_advantages_of_a_group_sum_to_zero(config: CreditSettings, group: CreditGroup) -> None:
    advantages = build(config).assign(group).traj_adv
    assert abs(advantages.sum()) <= 1e-9 * max(1.0, np.abs(advantages).max())


@pytest.mark.parametrize("baseline", BASELINES)
@for_every_strategy
@given(group=groups(), copies=st.integers(2, 4))
def test_a_duplicated_group_earns_the_same_trajectory_advantage_up_to_ddof(
    baseline: str, group: CreditGroup, copies: int
) -> None:
    n = len(group.trajectories)
    if n == 1:
        return  # a trajectory of its own has nothing to be compared with, its copies have
    many = copies * n
    # A penalty's divisor may be the least scale, which no number of copies changes.
    strategy = build(StarPOConfig(baseline=baseline, invalid_penalty=0.0))
    credit, repeated = strategy.assign(group), strategy.assign(CreditGroup("g", group.trajectories * copies))
    factor = {
        "grpo": np.sqrt((many - 1) / (copies * (n - 1))),
        "rloo": (many / (many - 1)) / (n / (n - 1)),
        "dr_grpo": 1.0,
    }[baseline]
    np.testing.assert_allclose(repeated.traj_adv, np.tile(factor * credit.traj_adv, copies), rtol=1e-9, atol=1e-12)
