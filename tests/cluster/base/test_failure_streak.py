"""When failures in a row are enough to give up, on a clock that the test turns."""

import pytest

from milepost.cluster.base import failure_streak
from milepost.cluster.base.failure_streak import FailureStreak, Streak


class Clock:
    now = 500.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of every rule."""
    turned = Clock()
    monkeypatch.setattr(failure_streak, "time", turned)
    return turned


class Run:
    """Counts of a run that is looked at once a second, and given up after 64 failures in 240 s."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.rule = FailureStreak(episodes=64, give_up_after_s=240)
        self.good = self.by_env = self.by_infra = 0
        self.look()

    def look(self, *, is_excused: bool = False) -> Streak | None:
        return self.rule.see(good=self.good, by_env=self.by_env, by_infra=self.by_infra, is_excused=is_excused)

    def fail(self, seconds: int, *, env: int = 0, infra: int = 0, is_excused: bool = False) -> Streak | None:
        """So many failures in every second; what is found at the end, or when it is first hopeless."""
        for _ in range(seconds):
            self.clock.now += 1
            self.by_env += env
            self.by_infra += infra
            if (streak := self.look(is_excused=is_excused)) is not None:
                return streak
        return None


def test_a_service_that_is_away_for_a_minute_ends_no_run_that_once_went_well(clock: Clock) -> None:
    run = Run(clock)
    run.good = 100
    assert run.fail(60, env=64) is None
    run.good += 1
    assert run.fail(239, env=1) is None


def test_one_that_stays_away_ends_it_after_the_give_up_time(clock: Clock) -> None:
    run = Run(clock)
    run.good = 100
    run.look()
    assert run.fail(1000, env=2) == Streak(by_env=482, by_infra=0, seconds=240)
    assert str(run.look()) == "482 episodes in a row failed within 240 s"


@pytest.mark.parametrize(("env", "infra"), [(4, 0), (0, 4)])
def test_a_run_of_which_nothing_ever_came_through_is_given_up_after_twenty_seconds(
    clock: Clock, env: int, infra: int
) -> None:
    assert Run(clock).fail(1000, env=env, infra=infra) == Streak(by_env=21 * env, by_infra=21 * infra, seconds=20)


def test_time_alone_is_no_reason(clock: Clock) -> None:
    run = Run(clock)
    assert run.fail(1, env=60) is None
    run.clock.now += 10_000
    assert run.fail(3, env=1) is None


def test_a_time_without_any_failure_counts_a_minute_at_most(clock: Clock) -> None:
    run = Run(clock)
    run.good = 100
    run.look()
    run.fail(1, env=1)
    run.clock.now += 10_000  # an update, while nothing is played
    assert run.fail(179, env=64) is None
    assert run.fail(2, env=64) is not None


def test_what_an_engine_loses_while_it_is_replaced_does_not_count_and_the_environment_s_does(clock: Clock) -> None:
    run = Run(clock)
    assert run.fail(1000, infra=8, is_excused=True) is None
    assert run.fail(15, infra=4) is None
    run = Run(clock)
    assert run.fail(1000, env=4, infra=8, is_excused=True) == Streak(by_env=84, by_infra=0, seconds=20)
