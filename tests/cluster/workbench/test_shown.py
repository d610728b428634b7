"""The page opens at the group that tells most, and holds a sample of all groups, not the earliest ones."""

from itertools import pairwise

import numpy as np
import pytest

from milepost.cluster.workbench import shown as module
from milepost.cluster.workbench.credit_page import ScoredGroup
from milepost.cluster.workbench.shown import Shown, tells
from milepost.learner.credit.assignment import Credit, CreditGroup, CreditTrajectory, CreditTurn


def group(name: str, *, won: int, credit: float = 0.0, episodes: int = 4, turns: int = 2) -> ScoredGroup:
    """`won` of its episodes succeed; the credit of the first turn of each is `credit`, of all others 0."""
    turn = CreditTurn("A", "x", "A", 0.0, invalid=False, num_tokens=1)
    outcomes = ["success"] * won + ["failure"] * (episodes - won)
    trajectories = tuple(CreditTrajectory(outcome, (turn,) * turns) for outcome in outcomes)
    total = tuple(np.array([credit] + [0.0] * (turns - 1)) for _ in outcomes)
    zeros = tuple(np.zeros(turns) for _ in outcomes)
    covered = tuple(np.zeros(turns, dtype=np.bool_) for _ in outcomes)
    found = Credit(
        traj_adv=np.zeros(episodes), step_adv=zeros, coverage=covered, total=total, state_value={}, diagnostics={}
    )
    return ScoredGroup(CreditGroup(name, trajectories), {"made up": found})


def shown(groups: list[ScoredGroup], task: str | None = None) -> list[str]:
    keeper = Shown(task)
    assert list(keeper.watching(iter(groups))) == groups
    assert keeper.num_groups == len(groups)
    return [one.group.task_id for one in keeper.groups]


def test_how_much_a_group_tells_by_hand() -> None:
    assert tells(group("g", won=1, credit=3.0)) == (0.1875, 1.5)  # 1/4 x 3/4; half of the turns 3 and half 0


def test_the_page_opens_at_the_group_whose_outcomes_differ_most() -> None:
    lost, one, half, late = group("lost", won=0, credit=9.0), group("1", won=1), group("2", won=2), group("3", won=2)
    assert shown([lost, one, half, late]) == ["2", "lost", "1", "3"]


def test_where_outcomes_tell_nothing_credit_does() -> None:
    groups = [group("flat", won=0), group("steep", won=0, credit=2.0), group("less", won=4, credit=-1.0)]
    assert shown(groups) == ["steep", "flat", "less"]


def test_a_group_that_is_asked_for_comes_first() -> None:
    groups = [group("a", won=0), group("b", won=2), group("c", won=0), group("c", won=2)]
    assert shown(groups, task="c") == ["c", "a", "b", "c"]


@pytest.mark.parametrize("total", [1, 39, 40, 41, 640, 1000])
def test_the_sample_is_evenly_spaced_over_all_groups(total: int) -> None:
    names = shown([group(str(place), won=1 if place == total - 1 else 0) for place in range(total)])
    assert names[0] == str(total - 1), "the last one tells most"
    places = sorted(map(int, names[1:]))
    assert len(places) <= 40
    gaps = {after - before for before, after in pairwise(places)}
    assert len(gaps) <= 1
    if total > 2:
        assert places[0] == 0
        assert total - places[-1] <= 2 * max(gaps), "the end is sampled, too"
        assert len(places) >= min(20, total - 1)


def test_long_groups_make_the_sample_smaller_and_leave_it_even(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_TURNS", 100)
    names = shown([group(str(place), won=0, turns=5) for place in range(32)])  # 20 turns each
    assert names == ["0", "8", "16", "24"]
    monkeypatch.setattr(module, "_MOST_TURNS", 10)
    assert shown([group("0", won=0, turns=5), group("1", won=0, turns=5)]) == ["0"]
