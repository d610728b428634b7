import pytest

from milepost.reward.promotions import Promotion, rollback_rate

DAY = 86_400.0


def promoted(day: float, *, back_after_days: float | None = None) -> Promotion:
    back = None if back_after_days is None else (day + back_after_days) * DAY
    return Promotion(promoted_s=day * DAY, rolled_back_s=back)


def test_two_of_nine_matured_promotions_were_rolled_back() -> None:
    history = [promoted(day) for day in range(7)]
    history += [promoted(7, back_after_days=1), promoted(8, back_after_days=2)]
    found = rollback_rate(history, window_s=3 * DAY, now_s=30 * DAY)
    assert (found.matured, found.rollbacks) == (9, 2)
    assert found.rate == pytest.approx(0.222, abs=5e-4)
    assert (found.low, found.high) == pytest.approx((0.063, 0.547), abs=5e-4)
    assert found.median_time_s == 1.5 * DAY


def test_an_open_window_counts_on_neither_side() -> None:
    history = [promoted(0), promoted(9, back_after_days=0.5), promoted(9.5)]
    found = rollback_rate(history, window_s=DAY, now_s=9.9 * DAY)
    assert (found.matured, found.rollbacks, found.rate) == (1, 0, 0.0)


def test_a_late_rollback_is_no_rollback_of_the_window_and_one_at_its_end_is() -> None:
    history = [promoted(0, back_after_days=1), promoted(0, back_after_days=1.01)]
    found = rollback_rate(history, window_s=DAY, now_s=DAY)
    assert (found.matured, found.rollbacks, found.median_time_s) == (2, 1, DAY)


def test_without_a_closed_window_nothing_is_known() -> None:
    found = rollback_rate([promoted(5)], window_s=DAY, now_s=5 * DAY)
    assert (found.matured, found.rate, found.low, found.high, found.median_time_s) == (0, None, 0.0, 1.0, None)


def test_times_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rolled back at 1\.0 s but promoted at 2\.0 s"):
        Promotion(promoted_s=2.0, rolled_back_s=1.0)
    with pytest.raises(ValueError, match=r"window of 0\.0 s"):
        rollback_rate([], window_s=0.0, now_s=1.0)
