"""What holds for every group and every strategy, whatever the environment and the policy did."""

import itertools
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milepost.learner.credit.assignment import (
    INVALID,
    Credit,
    CreditGroup,
    CreditTrajectory,
    CreditTurn,
)
from milepost.learner.credit.settings import CreditSettings, StepSettings
from milepost.learner.credit.strategies.crbc import CRBCConfig
from milepost.learner.credit.strategies.registry import SETTINGS, build
from milepost.learner.credit.strategies.registry import settings as credit_settings
from milepost.learner.credit.strategies.starpo import StarPOConfig

OUTCOMES = ("success", "failure", "truncated")
BASELINES = ("grpo", "rloo", "dr_grpo")
CONFIGS = [
    *(StarPOConfig(baseline=baseline) for baseline in BASELINES),
    *(credit_settings(strategy=name) for name in SETTINGS if name not in ("starpo", "custom")),
    credit_settings(path="tests.learner.credit.own_strategies:LateTurns"),
]
STEP_CONFIGS = [
    credit_settings(strategy=name, baseline=baseline, w_step=0.0, w_trajectory=1.0)
    for (name, kind), baseline in zip(SETTINGS.items(), itertools.cycle(BASELINES), strict=False)
    if issubclass(kind, StepSettings)
]
every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.strategy}-{getattr(c, 'baseline', '')}")
# A shared machine may pause at any time.
unhurried = settings(deadline=None, max_examples=60)


@st.composite
def turns_from(draw: st.DrawFn, start: str) -> tuple[CreditTurn, ...]:
    """A random walk, so stochastic transitions, loops and self-loops all occur."""
    turns = []
    anchor = start
    for _ in range(draw(st.integers(1, 7))):
        action = draw(st.sampled_from(["x", "y", "z", INVALID]))
        next_anchor = draw(st.sampled_from("ABCD"))
        reward = draw(st.sampled_from([0.0, 0.0, 0.1, -0.3, 1.0, 250.0]))
        values = tuple(draw(st.sampled_from([-1.0, 0.0, 0.3, 2.0])) for _ in range(2))
        measured = {
            "progress": draw(st.sampled_from([0.0, 0.5, 1.0])),
            "entropy": draw(st.sampled_from([0.0, 0.2, 1.4])),
            "history_gain": draw(st.sampled_from([-0.5, 0.0, 0.5])),
            "value": values[0],
            "token_values": values,
        }
        turns.append(CreditTurn(anchor, action, next_anchor, reward, action == INVALID, num_tokens=2, **measured))
        anchor = next_anchor
    return tuple(turns)


@st.composite
def groups(draw: st.DrawFn, outcomes: tuple[str, ...] = OUTCOMES, max_size: int = 6) -> CreditGroup:
    size = draw(st.integers(1, max_size))
    trajectories = [CreditTrajectory(draw(st.sampled_from(outcomes)), draw(turns_from("A"))) for _ in range(size)]
    return CreditGroup("g", tuple(trajectories))


def path(outcome: str, *edges: tuple[str, str, str]) -> CreditTrajectory:
    return CreditTrajectory(outcome, tuple(CreditTurn(s, a, x, 0.0, False, num_tokens=1) for s, a, x in edges))


def visits(group: CreditGroup, credit: Credit) -> list[tuple[CreditTurn, str | None, float, int]]:
    """(turn, state it led to or None at the end, step advantage, coverage) of every turn."""
    found = []
    for trajectory, steps, covered in zip(group.trajectories, credit.step_adv, credit.coverage, strict=True):
        for t, turn in enumerate(trajectory.turns):
            is_last = t == len(trajectory.turns) - 1
            found.append((turn, None if is_last else turn.next_anchor, float(steps[t]), int(covered[t])))
    return found


def assert_finite(credit: Credit) -> None:
    assert np.all(np.isfinite(credit.traj_adv))
    assert all(np.all(np.isfinite(x)) for x in (*credit.step_adv, *credit.total))
    assert all(np.isfinite(x) for x in (*credit.state_value.values(), *credit.diagnostics.values()))


@every_config
@unhurried
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
@unhurried
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
@unhurried
@given(group=groups())
def test_without_a_step_weight_a_strategy_is_starpo(config: StepSettings, group: CreditGroup) -> None:
    credit = build(config).assign(group)
    plain = build(StarPOConfig(baseline=config.baseline)).assign(group)
    for have, want in zip(credit.total, plain.total, strict=True):
        np.testing.assert_array_equal(have, want)


@every_config
@unhurried
@given(group=groups(max_size=1))
def test_a_group_of_one_has_no_trajectory_advantage(config: CreditSettings, group: CreditGroup) -> None:
    assert build(config).assign(group).traj_adv.tolist() == [0.0]


@every_config
@unhurried
@given(group=groups())
def test_trajectory_advantages_of_a_group_sum_to_zero(config: CreditSettings, group: CreditGroup) -> None:
    advantages = build(config).assign(group).traj_adv
    assert abs(advantages.sum()) <= 1e-9 * max(1.0, np.abs(advantages).max())


@unhurried
@given(group=groups(outcomes=("failure", "truncated")))
def test_a_group_without_success_earns_no_step_credit(group: CreditGroup) -> None:
    credit = build(CRBCConfig()).assign(group)
    assert set(credit.state_value.values()) == {0.0}
    assert all(not np.any(steps) for steps in credit.step_adv)


@unhurried
@given(group=groups(outcomes=("success",)))
def test_a_group_of_successes_values_every_state(group: CreditGroup) -> None:
    credit = build(CRBCConfig()).assign(group)
    assert_finite(credit)
    assert all(0.0 < value <= 0.98 for value in credit.state_value.values())


@unhurried
@given(group=groups())
def test_a_state_with_one_action_earns_no_step_credit(group: CreditGroup) -> None:
    credit = build(CRBCConfig()).assign(group)
    actions = defaultdict(set)
    for trajectory in group.trajectories:
        for turn in trajectory.turns:
            actions[turn.anchor].add(turn.action)
    for turn, _, step, covered in visits(group, credit):
        assert covered == (len(actions[turn.anchor]) >= 2)
        assert covered or step == 0.0


@unhurried
@given(group=groups())
def test_step_credit_of_crbc_sums_to_zero_over_the_visits_of_a_state(group: CreditGroup) -> None:
    by_state = defaultdict(list)
    for turn, _, step, _ in visits(group, build(CRBCConfig()).assign(group)):
        by_state[turn.anchor].append(step)
    assert all(abs(sum(steps)) < 1e-9 for steps in by_state.values())


@unhurried
@given(group=groups())
def test_all_occurrences_of_an_action_in_a_state_share_their_credit(group: CreditGroup) -> None:
    by_pair = defaultdict(set)
    for turn, _, step, _ in visits(group, build(CRBCConfig()).assign(group)):
        by_pair[turn.anchor, turn.action].add(step)
    assert all(len(steps) == 1 for steps in by_pair.values())


@unhurried
@given(group=groups(), beta=st.sampled_from([0.5, 0.98, 0.9999]))
def test_a_states_value_is_the_discounted_mean_of_where_its_visits_led(group: CreditGroup, beta: float) -> None:
    credit = build(CRBCConfig(beta=beta)).assign(group)
    led_to = defaultdict(list)
    for trajectory in group.trajectories:
        for turn in trajectory.turns[:-1]:
            led_to[turn.anchor].append(credit.state_value[turn.next_anchor])
        led_to[trajectory.turns[-1].anchor].append(1.0 if trajectory.outcome == "success" else 0.0)
    assert credit.state_value.keys() == led_to.keys()
    for state, values in led_to.items():
        assert 0.0 <= credit.state_value[state] <= 1.0
        assert credit.state_value[state] == pytest.approx(beta * np.mean(values), abs=1e-9)


@unhurried
@given(group=groups(), copies=st.integers(2, 4))
def test_a_duplicated_group_earns_the_same_step_credit(group: CreditGroup, copies: int) -> None:
    credit = build(CRBCConfig()).assign(group)
    repeated = build(CRBCConfig()).assign(CreditGroup("g", group.trajectories * copies))
    for i, steps in enumerate(repeated.step_adv):
        np.testing.assert_allclose(steps, credit.step_adv[i % len(group.trajectories)], rtol=0, atol=1e-12)


@pytest.mark.parametrize("baseline", BASELINES)
@unhurried
@given(group=groups(), copies=st.integers(2, 4))
def test_a_duplicated_group_earns_the_same_trajectory_advantage_up_to_ddof(
    baseline: str, group: CreditGroup, copies: int
) -> None:
    n = len(group.trajectories)
    if n == 1:
        return  # a trajectory of its own has nothing to be compared with, its copies have
    many = copies * n
    strategy = build(StarPOConfig(baseline=baseline))
    credit, repeated = strategy.assign(group), strategy.assign(CreditGroup("g", group.trajectories * copies))
    factor = {
        "grpo": np.sqrt((many - 1) / (copies * (n - 1))),
        "rloo": (many / (many - 1)) / (n / (n - 1)),
        "dr_grpo": 1.0,
    }[baseline]
    np.testing.assert_allclose(repeated.traj_adv, np.tile(factor * credit.traj_adv, copies), rtol=1e-9, atol=1e-12)


@unhurried
@given(group=groups())
def test_failure_and_truncation_end_in_the_same_terminal(group: CreditGroup) -> None:
    renamed = tuple(
        CreditTrajectory("failure" if t.outcome == "truncated" else t.outcome, t.turns) for t in group.trajectories
    )
    credit, other = build(CRBCConfig()).assign(group), build(CRBCConfig()).assign(CreditGroup("g", renamed))
    assert other.state_value == credit.state_value


@unhurried
@given(group=groups())
def test_the_names_of_states_carry_no_meaning(group: CreditGroup) -> None:
    names = {"A": "9", "B": "", "C": "0", "D": "success"}
    renamed = tuple(
        CreditTrajectory(
            t.outcome,
            tuple(
                CreditTurn(names[u.anchor], u.action, names[u.next_anchor], u.reward, u.invalid, u.num_tokens)
                for u in t.turns
            ),
        )
        for t in group.trajectories
    )
    credit, other = build(CRBCConfig()).assign(group), build(CRBCConfig()).assign(CreditGroup("g", renamed))
    for have, want in zip(other.step_adv, credit.step_adv, strict=True):
        np.testing.assert_allclose(have, want, rtol=0, atol=1e-9)


def test_a_self_loop_is_worth_one_turn_of_delay() -> None:
    # V(A) = beta * (V(A) / 2 + 1 / 2) with beta = .5: V = 1/3, Q(loop) = 1/6, Q(go) = 1/2, sigma = 1/6.
    group = CreditGroup("g", (path("success", ("A", "loop", "A"), ("A", "go", "A")),))
    credit = build(CRBCConfig(beta=0.5)).assign(group)
    assert credit.state_value == pytest.approx({"A": 1 / 3})
    np.testing.assert_allclose(credit.step_adv[0], [-1.0, 1.0])


def test_a_cycle_nobody_leaves_is_worth_nothing() -> None:
    circle = path("truncated", ("A", "x", "B"), ("B", "x", "A"), ("A", "x", "B"))
    credit = build(CRBCConfig(beta=0.999999)).assign(CreditGroup("g", (circle, circle)))
    assert credit.state_value == {"A": 0.0, "B": 0.0}


def test_of_two_ways_to_succeed_the_shorter_earns_more() -> None:
    short = path("success", ("A", "x", "B"))
    long = path("success", ("A", "y", "B"), ("B", "x", "C"), ("C", "x", "D"))
    credit = build(CRBCConfig()).assign(CreditGroup("g", (short, long)))
    # Q(A, x) = .98, Q(A, y) = .98 ** 3, V their mean; their distance is under sigma_min = .1.
    half = (0.98 - 0.98**3) / 2
    assert credit.step_adv[0][0] == pytest.approx(half / 0.1)
    assert credit.step_adv[1].tolist() == pytest.approx([-half / 0.1, 0.0, 0.0])
    assert credit.traj_adv.tolist() == [0.0, 0.0]


def test_equally_good_actions_earn_exactly_nothing() -> None:
    # Five two-turn ways, each won once and lost once: in floating point Q(A, .) and V(A) differ in the last place.
    ways = tuple(
        path(outcome, ("A", action, action), (action, "x", "end")) for action in "pqrst" for outcome in OUTCOMES[:2]
    )
    credit = build(CRBCConfig()).assign(CreditGroup("g", ways))
    assert [steps.tolist() for steps in credit.step_adv] == [[0.0, 0.0]] * 10
    assert [covered.tolist() for covered in credit.coverage] == [[1, 0]] * 10


def test_an_invalid_turn_is_compared_with_the_valid_actions_of_its_state() -> None:
    garbled = CreditTrajectory("failure", (CreditTurn("A", INVALID, "A", 0.0, True, num_tokens=1),))
    credit = build(CRBCConfig()).assign(CreditGroup("g", (garbled, path("success", ("A", "x", "A")))))
    assert credit.step_adv[0][0] == pytest.approx(-1.0)
    assert credit.step_adv[1][0] == pytest.approx(1.0)
    assert credit.diagnostics["invalid_share"] == 0.5


def test_aliasing_counts_repeated_actions_that_led_to_different_states() -> None:
    group = CreditGroup(
        "g",
        (
            path("failure", ("A", "x", "B"), ("B", "y", "C")),
            path("failure", ("A", "x", "C"), ("C", "z", "D")),
            path("failure", ("A", "w", "B"), ("B", "y", "C")),
        ),
    )
    # (A, x) and (B, y) repeat; only (A, x) leads to two states. C is the one state visited once, of six turns.
    diagnostics = build(CRBCConfig()).assign(group).diagnostics
    assert diagnostics["aliased_share"] == 0.5
    assert diagnostics["singleton_share"] == pytest.approx(1 / 6)
    assert diagnostics["coverage"] == pytest.approx(3 / 6)


def test_a_path_through_a_thousand_states_is_discounted_turn_by_turn() -> None:
    edges = [(f"{i:04d}", "x", f"{i + 1:04d}") for i in range(1000)]
    credit = build(CRBCConfig()).assign(CreditGroup("g", (path("success", *edges),)))
    assert credit.state_value["0000"] == pytest.approx(0.98**1000, rel=1e-9)
    assert credit.state_value["0999"] == pytest.approx(0.98)
