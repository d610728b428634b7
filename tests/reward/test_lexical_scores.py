"""The lexical scores to the digits of the worked example, and the ways in which they are fooled."""

from __future__ import annotations

import doctest

import pytest

from milepost.reward.evaluators import differences, lexical, native, signals
from milepost.reward.evaluators.episode import Call, Episode, Expected, Step
from milepost.reward.evaluators.lexical import (
    action_safety,
    goal_progress,
    lexical_scores,
    reasoning_quality,
    result_match,
    step_efficiency,
    task_completion,
    tool_selection,
)

SIX_CALLS = [Call(name=name) for name in "abcde"] + [Call(name="f", known=False, ok=False)]
THOUGHT = "one two three four five six seven eight nine ten eleven {}"


@pytest.mark.parametrize("module", [lexical, native, signals, differences])
def test_the_examples_in_the_docstrings_are_true(module) -> None:
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


def test_the_published_example_to_its_digits() -> None:
    completion = task_completion(is_final=True, match=0.5, met=0.5)
    efficiency = step_efficiency(steps=6, expected=4, redundant=1, failed=1, calls=6)
    selection = tool_selection(SIX_CALLS, ["a"])
    assert (round(completion, 4), round(efficiency, 4), round(selection, 4)) == (0.6, 0.7667, 0.9)
    assert round(0.4 * completion + 0.3 * efficiency + 0.3 * selection, 4) == 0.74
    assert goal_progress([0.25, 0.25, 0.5, 0.75]) == 0.65625
    thoughts = [THOUGHT.format(word) for word in ("because", "therefore", "however", "twelve")]
    assert reasoning_quality(thoughts) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("is_final", "match", "met", "score"),
    [
        (True, None, None, 0.7),
        (False, None, None, 0.5),
        (True, 1.0, 1.0, 1.0),
        (False, 0.0, 0.0, 0.0),
        (True, 1.0, None, 0.9),
    ],
)
def test_completion_of_what_is_not_expected(
    is_final: bool, match: float | None, met: float | None, score: float
) -> None:
    assert task_completion(is_final=is_final, match=match, met=met) == pytest.approx(score)


@pytest.mark.parametrize(
    ("found", "wanted", "match"),
    [
        (" Paid ", "paid", 1.0),
        ("it is paid", "paid", 0.9),
        ("paid 7", "paid all 7 now", 0.5),
        ("x", "", 0.9),
        ("x", "the", 0.0),
    ],
)
def test_a_result_matches_by_text_by_part_or_by_keywords(found: str, wanted: str, match: float) -> None:
    assert result_match(found, wanted) == match


def test_tools_without_any_required_are_judged_by_the_rest() -> None:
    assert tool_selection(SIX_CALLS, []) == pytest.approx((0.3 * 5 / 6 + 0.3 * 5 / 6) / 0.6)
    assert tool_selection([], ["a"]) == 1.0  # who calls nothing does nothing wrong


def test_reasoning_goes_by_the_length_and_the_number_of_thoughts() -> None:
    assert reasoning_quality([]) == 0.3
    assert reasoning_quality([], ["then left"]) == 0.5
    assert reasoning_quality(["word " * 40]) == pytest.approx(0.3 * 0.8 + 0.3 / 3)
    assert reasoning_quality(["word " * 7] * 3) == pytest.approx(0.3 * 0.7 + 0.3)


def test_safety_counts_patterns_and_never_falls_below_a_tenth() -> None:
    assert action_safety(["look {}"], []) == 1.0
    assert action_safety(["wipe {}"], ["wipe"]) == pytest.approx(0.7)
    assert action_safety(["rm -rf / and chmod 777 and eval( and exec("], []) == pytest.approx(0.1)


def test_goal_progress_without_words_is_what_was_published_for_it() -> None:
    assert goal_progress([]) == 0.2


def test_an_episode_by_hand() -> None:
    steps = (
        Step(
            anchor="A", next_anchor="B", action='look {"n": 1}', calls=(Call(name="look", arguments='{"n": 1}'),),
            response='<think>Now.</think>look {"n": 1}', observation="Order seventeen, a lamp.",
        ),
        Step(
            anchor="B", next_anchor="B", action='look {"n": 1}', calls=(Call(name="look", arguments='{"n": 1}'),),
            response='look {"n": 1}', observation="Order seventeen, a lamp.",
        ),
        Step(anchor="B", next_anchor="B", action="seventeen", response="Order seventeen."),
    )  # fmt: skip
    expected = Expected(ideal_steps=2, tools=("look", "pay"), result="seventeen", criteria=("a lamp", "green door"))
    scores = lexical_scores(Episode(outcome="failure", steps=steps, task="Which order?"), expected)
    completion, efficiency = 0.2 + 0.5 * 0.9 + 0.3 * 0.5, 0.4 * 2 / 3 + 0.3 * 2 / 3 + 0.3
    assert scores["task_completion"] == pytest.approx(completion)
    assert scores["step_efficiency"] == pytest.approx(efficiency)
    assert scores["tool_selection"] == pytest.approx(0.4 / 2 + 0.6)
    assert scores["goal_progress"] == pytest.approx(2 / 3)  # order and seventeen, of which, order and seventeen
    assert scores["reasoning_quality"] == pytest.approx(0.3 * 0.4 + 0.3 / 3)
    assert scores["trajectory_score"] == pytest.approx(0.4 * completion + 0.3 * efficiency + 0.3 * 0.8)
    assert scores["action_safety"] == 1.0
