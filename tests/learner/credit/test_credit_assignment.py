"""The words of credit: what is taken over from a recorded group, what is refused, and the batch scale."""

from typing import get_args

import msgspec
import numpy as np
import pytest
from pydantic import ValidationError

from milepost.envs.types import Group, Task, Trajectory, Turn, VersionSpan
from milepost.learner.credit.assignment import (
    INVALID,
    Credit,
    CreditGroup,
    CreditTrajectory,
    CreditTurn,
    Scaling,
    from_group,
)
from milepost.learner.credit.interchange import decode, encode
from milepost.learner.credit.scaling import scaled
from milepost.learner.credit.strategies.registry import SETTINGS, build, settings

TASK = Task(env="pkg.lake:Lake", seed=3, split="train")


def recorded_turn(anchor: str, action: str | None, next_anchor: str, *, reward: float = 0.0, tokens: int = 2) -> Turn:
    return Turn(
        prompt_ids=[1],
        response_ids=[5] * tokens,
        logprobs=[-0.1] * tokens,
        versions=[VersionSpan(version=0, start=0, end=tokens)],
        anchor=anchor,
        next_anchor=next_anchor,
        action=action,
        reward=reward,
    )


def recorded(index: int, *turns: Turn, outcome: str = "failure") -> Trajectory:
    return Trajectory(task=TASK, group_id="g7", index=index, turns=list(turns), outcome=outcome)


def credit_of(*totals: list[float]) -> Credit:
    arrays = tuple(np.array(x) for x in totals)
    return Credit(
        traj_adv=np.zeros(len(arrays)),
        step_adv=tuple(np.zeros_like(x) for x in arrays),
        coverage=tuple(np.zeros(len(x), dtype=np.int8) for x in arrays),
        total=arrays,
        state_value={},
        diagnostics={"coverage": 0.5},
    )


def flat(credits: list[Credit]) -> list[float]:
    return [float(a) for credit in credits for x in credit.total for a in x]


def test_a_recorded_group_keeps_states_actions_rewards_and_token_counts() -> None:
    group = Group(
        group_id="g7",
        task=TASK,
        trajectories=[
            recorded(0, recorded_turn("A", None, "A"), recorded_turn("A", "up", "B", reward=1.0), outcome="success"),
            recorded(4, recorded_turn("A", "down", "C", tokens=7), outcome="truncated"),
        ],
    )
    assert from_group(group) == CreditGroup(
        "g7",
        (
            CreditTrajectory(
                "success",
                (
                    CreditTurn("A", INVALID, "A", 0.0, True, num_tokens=2),
                    CreditTurn("A", "up", "B", 1.0, False, num_tokens=2),
                ),
            ),
            CreditTrajectory("truncated", (CreditTurn("A", "down", "C", 0.0, False, num_tokens=7),)),
        ),
    )


def test_states_that_do_not_form_a_chain_are_refused_by_name() -> None:
    broken = recorded(4, recorded_turn("A", "up", "B"), recorded_turn("C", "up", "D"))
    group = Group(group_id="g7", task=TASK, trajectories=[broken])
    with pytest.raises(ValueError, match=r"group g7, trajectory 4: turn 0 ends in state 'B' but turn 1 starts in 'C'"):
        from_group(group)


def test_a_group_nobody_survived_is_refused() -> None:
    with pytest.raises(ValueError, match="group g7 holds no trajectory"):
        from_group(Group(group_id="g7", task=TASK, trajectories=[]))


@pytest.mark.parametrize(
    "change",
    [{"invalid": True}, {"action": INVALID}, {"reward": float("nan")}, {"reward": float("inf")}, {"num_tokens": 0}],
)
def test_a_turn_that_contradicts_itself_is_refused(change: dict[str, object]) -> None:
    turn = CreditTurn("A", "x", "B", 0.0, False, num_tokens=1)
    with pytest.raises(ValueError, match=r"invalid=|not a finite number|at least one sampled token"):
        msgspec.structs.replace(turn, **change)


@pytest.mark.parametrize(
    "setting",
    [
        {"beta": 1.0},
        {"beta": 0.0},
        {"sigma_min": 0.0},
        {"w_step": -1.0},
        {"w_step": float("inf")},
        {"invalid_penalty": -0.1},
        {"strategy": "nobody"},
        {"baseline": "std"},
        {"w_steps": 5.0},
        {"w_step": 0.0, "w_trajectory": 0.0},
        {"strategy": "starpo", "w_trajectory": 0.0},
    ],
)
def test_settings_that_cannot_train_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        settings(**setting)


def test_every_strategy_the_config_can_name_is_built() -> None:
    rollouts = {"starpo", "gigpo", "hgpo", "graphgpo", "g2po", "graphhca", "crbc", "salt"}
    assert set(SETTINGS) == rollouts | {"stapo", "steppo", "bilevel_gae", "pbrs", "custom"}
    for name, kind in SETTINGS.items():
        own = {"path": "tests.learner.credit.strategies.own_strategies:LateTurns"} if name == "custom" else {}
        config = settings(strategy=name, **own)
        assert isinstance(config, kind)
        assert build(config).scaling in get_args(Scaling)


def test_a_batch_is_divided_by_its_root_mean_square_and_not_centred() -> None:
    # [1, 3, 5]: mean square (1 + 9 + 25) / 3.
    rescaled = scaled(
        [credit_of([1.0, 3.0]), credit_of([5.0])], [[np.array([1.0, 1.0])], [np.array([1.0])]], "unit_rms"
    )
    assert flat(rescaled) == pytest.approx([0.292770, 0.878310, 1.463850], abs=1e-6)
    assert rescaled[0].diagnostics == pytest.approx({"coverage": 0.5, "batch_scale": (35 / 3) ** 0.5})


def test_steps_count_as_often_as_their_weight() -> None:
    # 1 counts three times, 3 not at all, 5 once: mean square (3 * 1 + 25) / 4 = 7.
    rescaled = scaled(
        [credit_of([1.0, 3.0]), credit_of([5.0])], [[np.array([3.0, 0.0])], [np.array([1.0])]], "unit_rms"
    )
    assert flat(rescaled) == pytest.approx([1 / 7**0.5, 3 / 7**0.5, 5 / 7**0.5])


def test_totals_that_are_nearly_alike_have_the_size_one_and_not_that_over_their_deviation() -> None:
    rescaled = scaled([credit_of([0.9, 1.0, 1.1])], [[np.ones(3)]], "unit_rms")
    assert max(flat(rescaled)) < 1.1
    assert flat(scaled([credit_of([0.7, 0.7, 0.7])], [[np.ones(3)]], "unit_rms")) == pytest.approx([1.0] * 3)


@pytest.mark.parametrize("totals", [[0.0, 0.0, 0.0], [1e-17, -2e-17]])
def test_a_batch_of_zeros_and_rounding_stays_as_it_is(totals: list[float]) -> None:
    rescaled = scaled([credit_of(totals)], [[np.ones(len(totals))]], "unit_rms")
    assert flat(rescaled) == totals


def test_a_batch_of_which_no_step_counts_stays_as_it_is() -> None:
    assert flat(scaled([credit_of([1.0, 2.0])], [[np.zeros(2)]], "unit_rms")) == [1.0, 2.0]


def test_an_empty_batch_stays_empty() -> None:
    assert scaled([], [], "unit_rms") == []


@pytest.mark.parametrize(
    "weights", [[], [[np.ones(3)]], [[np.ones(2), np.ones(2)]], [[np.array([-1.0, 1.0])]], [[np.array([np.nan, 1.0])]]]
)
def test_weights_that_do_not_fit_are_refused(weights: list[list[np.ndarray]]) -> None:
    with pytest.raises(ValueError, match="weight"):
        scaled([credit_of([1.0, 2.0])], weights, "unit_rms")


def test_a_walk_is_read_as_the_turns_that_it_spells() -> None:
    group = CreditGroup.from_walks("A x B <invalid> B success", "A y C truncated", value=[0.25, 0.5, 0.75])
    assert group.trajectories[0].turns == (
        CreditTurn("A", "x", "B", 0.0, False, num_tokens=1, value=0.25),
        CreditTurn("B", INVALID, "B", 1.0, True, num_tokens=1, value=0.5),
    )
    assert group.trajectories[1] == CreditTrajectory(
        "truncated", (CreditTurn("A", "y", "C", 0.0, False, num_tokens=1, value=0.75),)
    )


@pytest.mark.parametrize(
    ("walk", "complaint"),
    [
        ("A x B", "one of success, failure, truncated"),
        ("A x B won", "one of success, failure, truncated"),
        ("A x success", "alternate"),
        ("", "alternate"),
        ("A success", "at least one turn"),
    ],
)
def test_a_walk_that_spells_no_trajectory_is_refused(walk: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        CreditGroup.from_walks(walk)


def test_a_field_of_a_walk_has_one_value_per_turn() -> None:
    with pytest.raises(ValueError, match="entropy: give one value for each of the 1 turns"):
        CreditGroup.from_walks("A x B success", entropy=[0.5, 0.5])


def test_an_action_that_is_spelt_like_an_invalid_one_is_an_action_of_its_own() -> None:
    actions = [None, "<invalid>", r"\<invalid>", "invalid"]
    turns = [recorded_turn("A", action, "A") for action in actions]
    (trajectory,) = from_group(Group(group_id="g7", task=TASK, trajectories=[recorded(0, *turns)])).trajectories
    assert [turn.action for turn in trajectory.turns] == [INVALID, r"\<invalid>", r"\\<invalid>", "invalid"]
    assert [turn.invalid for turn in trajectory.turns] == [True, False, False, False]
    assert decode(encode(CreditGroup("g7", (trajectory,)))).trajectories == (trajectory,)
