"""Groups drawn at random by hypothesis, groups of paths written by hand, and what is looked at in their credit."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from milepost.learner.credit.assignment import INVALID, Credit, CreditGroup, CreditTrajectory, CreditTurn

OUTCOMES = ("success", "failure", "truncated")
unhurried = settings(max_examples=60)
# For a property that is tried with a dozen strategies, and so sees some hundreds of groups.
for_every_strategy = settings(max_examples=30)


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
