"""Shapes of a path by hand: the worked path turns by a right angle."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.reward.stability import local_coherence, path_efficiency


def path(*points: tuple[float, ...]) -> np.ndarray:
    return np.array(points, dtype=np.float64)


CORNER = path((0, 0), (1, 0), (1, 1))


def test_the_worked_path_turns_at_a_right_angle() -> None:
    assert local_coherence(CORNER) == 0.0
    assert path_efficiency(CORNER) == pytest.approx(0.7071, abs=5e-5)


def test_straight_on_and_back_and_forth_are_the_extremes() -> None:
    straight, back = path((0, 0), (1, 2), (3, 6)), path((0, 0), (1, 0), (0, 0))
    assert local_coherence(straight) == pytest.approx(1.0)
    assert path_efficiency(straight) == pytest.approx(1.0)
    assert local_coherence(back) == -1.0
    assert path_efficiency(back) == 0.0


def test_a_pause_has_no_direction() -> None:
    # right, pause, up, up: only the last two moves are a pair with directions.
    assert local_coherence(path((0, 0), (1, 0), (1, 0), (1, 1), (1, 3))) == 1.0


def test_a_path_too_short_to_have_a_shape_has_none() -> None:
    assert local_coherence(CORNER[:2]) is None
    assert path_efficiency(CORNER[:1]) is None
    assert local_coherence(path((2, 2), (2, 2), (2, 2))) is None
    assert path_efficiency(path((2, 2), (2, 2))) is None


@pytest.mark.parametrize("wrong", [np.zeros(3), np.zeros((0, 2)), np.array([[0.0], [np.nan]])])
def test_what_is_no_matrix_of_numbers_is_refused(wrong: np.ndarray) -> None:
    for measure in (local_coherence, path_efficiency):
        with pytest.raises(ValueError, match="one row of finite numbers per step"):
            measure(wrong)


points = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=8)


@given(points, st.floats(0.1, 100), st.integers(-50, 50))
def test_neither_depends_on_scale_or_place(corners: list[tuple[int, int]], scale: float, shift: int) -> None:
    here = path(*corners)
    for measure, low in ((local_coherence, -1.0), (path_efficiency, 0.0)):
        found, moved = measure(here), measure(here * scale)
        assert moved == pytest.approx(found, abs=1e-9)
        assert measure(here + shift) == pytest.approx(found, abs=1e-9)
        assert found is None or low <= found <= 1.0
