"""TOY-4: one group of four rollouts over the states A, B, C whose credit is computed by hand.

T1: A -x-> B -p-> success            T2: A -x-> B -q-> C -w-> C   (time-out)
T3: A -y-> C -r-> B -p-> success     T4: A -y-> C -w-> C -w-> C   (time-out)
"""

import numpy as np

from milepost.learner.credit.assignment import CreditGroup, CreditTrajectory, CreditTurn, PastTransition

PATHS = (
    ("success", [("A", "x", "B"), ("B", "p", "B")]),
    ("truncated", [("A", "x", "B"), ("B", "q", "C"), ("C", "w", "C")]),
    ("success", [("A", "y", "C"), ("C", "r", "B"), ("B", "p", "B")]),
    ("truncated", [("A", "y", "C"), ("C", "w", "C"), ("C", "w", "C")]),
)


def toy4(history: tuple[PastTransition, ...] = ()) -> CreditGroup:
    trajectories = []
    for outcome, edges in PATHS:
        last = len(edges) - 1
        turns = tuple(
            CreditTurn(s, a, x, reward=float(outcome == "success" and t == last), invalid=False, num_tokens=1)
            for t, (s, a, x) in enumerate(edges)
        )
        trajectories.append(CreditTrajectory(outcome, turns))
    return CreditGroup("toy4", tuple(trajectories), history)


def assert_turns_equal(got: tuple[np.ndarray, ...], expected: tuple[list[float], ...]) -> None:
    """Four digits, as the numbers are written down."""
    assert len(got) == len(expected)
    for have, want in zip(got, expected, strict=True):
        np.testing.assert_allclose(have, want, atol=5e-5, rtol=0)
