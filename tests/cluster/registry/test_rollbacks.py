"""The rollback rate: of promotions whose window has closed, the share that was taken back within it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.cluster.registry.rollbacks import rollback_rate
from milepost.cluster.registry.trail import BEGINNING, Entry, Event, Lineage, Promoted, RolledBack

LINEAGE = Lineage(
    source="", policy_version=0, policy_sha256="", config_sha256=None, suite="", suite_sha256="", results_sha256="",
    gate_sha256="", measured={},
)  # fmt: skip


def entries(*events: tuple[float, Event]) -> list[Entry]:
    return [Entry(number=n, at=at, previous=BEGINNING, event=event) for n, (at, event) in enumerate(events, start=1)]


def promoted(version: int) -> Promoted:
    return Promoted(version=version, replaced=version - 1 or None, lineage=LINEAGE)


def back(left: int) -> RolledBack:
    return RolledBack(version=left - 1, left=left, reason="slow")


def test_two_of_nine_closed_promotions_are_the_worked_numbers_of_the_specification() -> None:
    events = [(float(10 * v), promoted(v)) for v in range(1, 10)]
    events = [*events[:3], (32.0, back(3)), *events[3:7], (75.0, back(7)), *events[7:]]
    found = rollback_rate(entries(*events), now=100.0, window_s=10.0)
    assert (found.promotions, found.rolled_back) == (9, 2)
    assert found.share == pytest.approx(0.222, abs=5e-4)
    assert (found.low, found.high) == (pytest.approx(0.063, abs=5e-4), pytest.approx(0.547, abs=5e-4))


def test_an_open_window_counts_on_neither_side_also_after_a_rollback() -> None:
    trail = entries((0.0, promoted(1)), (95.0, promoted(2)), (96.0, back(2)))
    assert rollback_rate(trail, now=100.0, window_s=10.0).share == 0
    found = rollback_rate(trail, now=105.0, window_s=10.0)
    assert (found.promotions, found.rolled_back, found.share) == (2, 1, 0.5)


def test_a_rollback_after_the_window_is_none_of_the_promotion() -> None:
    trail = entries((0.0, promoted(1)), (0.0, promoted(2)), (11.0, back(2)))
    assert rollback_rate(trail, now=100.0, window_s=10.0).rolled_back == 0
    assert rollback_rate(trail, now=100.0, window_s=11.0).rolled_back == 1


def test_without_a_closed_window_there_is_no_rate() -> None:
    found = rollback_rate(entries((0.0, promoted(1))), now=5.0, window_s=10.0)
    assert (found.promotions, found.share, found.low, found.high) == (0, None, 0, 1)


@given(st.lists(st.tuples(st.floats(0, 10), st.booleans()), max_size=20), st.floats(0, 200), st.floats(0.1, 50))
def test_the_rate_lies_within_its_interval(gaps: list[tuple[float, bool]], now: float, window: float) -> None:
    at, events = 0.0, list[tuple[float, Event]]()
    for version, (gap, taken_back) in enumerate(gaps, start=1):
        at += gap
        events.append((at, promoted(version)))
        if taken_back:
            events.append((at + gap, back(version)))
    found = rollback_rate(entries(*events), now=now, window_s=window)
    assert 0 <= found.rolled_back <= found.promotions
    if found.share is not None:
        assert found.low <= found.share <= found.high
