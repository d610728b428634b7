"""How many restarts a pool's slots have, and how long they pause, on a clock that the test turns."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from milepost.cluster.base import restarts
from milepost.cluster.base.restarts import RestartBudget


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


clock = Clock()


@pytest.fixture(autouse=True)
def turned_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "time", clock)


def spent(budget: RestartBudget, times: int) -> list[float | None]:
    """The pauses of so many restarts of slot 0, each of which comes up."""
    pauses = []
    for _ in range(times):
        pauses.append(budget.spend(0))
        budget.came_up(0)
    return pauses


def test_the_first_restart_comes_at_once_and_each_one_soon_after_it_pauses_twice_as_long() -> None:
    budget = RestartBudget(limit=9, window_s=3600)
    assert spent(budget, 10) == [0, 1, 2, 4, 8, 16, 32, 60, 60, None]
    assert budget.total == 9


def test_a_slot_has_its_own_restarts_and_its_own_pause() -> None:
    budget = RestartBudget(limit=2, window_s=3600)
    assert [budget.spend(0), budget.spend(0), budget.spend(0)] == [0, 1, None]
    assert budget.spend(1) == 0
    assert budget.total == 3


def test_a_restart_counts_until_the_window_has_passed_over_it() -> None:
    budget = RestartBudget(limit=2, window_s=3600)
    budget.spend(0)
    clock.now += 1800
    assert [budget.spend(0), budget.spend(0)] == [0, None], "ten minutes later the pause is none again"
    clock.now += 1799
    assert budget.spend(0) is None
    clock.now += 1
    assert [budget.spend(0), budget.spend(0)] == [0, None]


def test_a_loss_every_hour_never_uses_a_budget_up() -> None:
    budget = RestartBudget(limit=1, window_s=3600)
    for _ in range(1000):
        clock.now += 3600
        assert spent(budget, 1) == [0]


def test_thirty_killed_workers_over_an_hour_are_all_replaced_within_seconds() -> None:
    budget = RestartBudget(limit=40, window_s=3600)
    pauses = []
    for _ in range(30):
        clock.now += 120
        pauses += spent(budget, 1)
    assert pauses == [0, 1, 2, 4, *[8] * 26]


def test_what_never_came_up_in_five_starts_is_given_up_until_the_window_has_passed() -> None:
    budget = RestartBudget(limit=40, window_s=3600)
    assert [budget.spend(0) for _ in range(7)] == [0, 1, 2, 4, 8, None, None]
    assert budget.spend(1) == 0
    clock.now += 3600
    assert budget.spend(0) == 0


def test_one_that_came_up_between_begins_the_count_of_false_starts_anew() -> None:
    budget = RestartBudget(limit=40, window_s=3600)
    assert None not in [budget.spend(0) for _ in range(5)]
    budget.came_up(0)
    assert None not in [budget.spend(0) for _ in range(5)]
    assert budget.spend(0) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    gaps_s=st.lists(st.floats(0, 500), max_size=60), limit=st.integers(0, 8), window_s=st.sampled_from([10.0, 1000.0])
)
def test_no_window_ever_holds_more_restarts_than_the_limit(gaps_s: list[float], limit: int, window_s: float) -> None:
    budget = RestartBudget(limit, window_s)
    granted: list[float] = []
    for gap_s in gaps_s:
        clock.now += gap_s
        [pause_s] = spent(budget, 1)
        if pause_s is not None:
            assert 0 <= pause_s <= 60
            granted.append(clock.now)
        assert sum(clock.now - at < window_s for at in granted) <= limit
    assert budget.total == len(granted)
