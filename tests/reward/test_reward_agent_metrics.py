"""The lexical metrics on the worked numbers, and how little it takes to score on them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.reward import agent_metrics as lexical
from milepost.reward.agent_metrics import AgentStep, AgentTask, ToolCall


def calls(*names: str, failed: int = -1) -> list[AgentStep]:
    """One call per step; call number `failed` fails."""
    return [
        AgentStep(tool_calls=(ToolCall(name=name, arguments='{"q": 1}', succeeded=k != failed),))
        for k, name in enumerate(names)
    ]


def test_half_the_result_and_half_the_criteria_complete_six_tenths() -> None:
    task = AgentTask(
        expected_result="red kite seven feathers", criteria=("feather count reported", "wing span measured")
    )
    steps = [AgentStep(observation="The feather count is listed."), AgentStep(is_final=True)]
    # Two of four keywords; of the criteria the first occurs by two of three keywords, the second not at all.
    assert lexical.result_match("a RED bird with seven eggs", "red kite seven feathers") == 0.5
    assert lexical.task_completion(task, steps, "a RED bird with seven eggs") == pytest.approx(0.20 + 0.25 + 0.15)


@pytest.mark.parametrize(
    ("result", "match"),
    [(" Paris ", 1.0), ("it is paris!", 0.9), ("", 0.0), ("rome", 0.0), ("par", 0.9)],
)
def test_a_result_matches_by_equality_by_part_or_not_at_all(result: str, match: float) -> None:
    assert lexical.result_match(result, "Paris") == match


def test_without_an_expected_result_or_criteria_something_is_given() -> None:
    steps = [AgentStep(is_final=True)]
    assert lexical.task_completion(AgentTask(), steps, "anything") == pytest.approx(0.2 + 0.3 + 0.2)
    assert lexical.task_completion(AgentTask(), steps, None) == pytest.approx(0.2 + 0.2)
    assert lexical.task_completion(AgentTask(expected_result="x"), [AgentStep()], None) == pytest.approx(0.2)
    assert lexical.task_completion(AgentTask(), [], "anything") == 0.0


def test_a_criterion_is_not_met_by_thinking_of_it() -> None:
    task = AgentTask(expected_result="x", criteria=("door opened",))
    assert lexical.task_completion(task, [AgentStep(thought="door opened")], None) == 0.0
    assert lexical.task_completion(task, [AgentStep(observation="door opened")], None) == pytest.approx(0.3)


def test_six_steps_for_four_with_a_repeat_and_a_failure() -> None:
    steps = calls("search", "open", "search", "read", "edit", "run", failed=5)
    task = AgentTask(expected_steps=4)
    assert lexical.step_efficiency(task, steps) == pytest.approx(0.2667 + 0.25 + 0.25, abs=5e-5)
    assert lexical.step_efficiency(task, calls(*"abcdef", failed=5)) == pytest.approx(0.2667 + 0.30 + 0.25, abs=5e-5)
    assert lexical.step_efficiency(task, calls(*"abcdef")) == pytest.approx(0.2667 + 0.30 + 0.30, abs=5e-5)


def test_a_call_is_repeated_only_with_the_same_arguments_and_never_costs_more_than_all() -> None:
    asked = [AgentStep(tool_calls=(ToolCall(name="search", arguments=text),)) for text in "abc"]
    assert lexical.step_efficiency(AgentTask(expected_steps=3), asked) == pytest.approx(1.0)
    crowded = [AgentStep(tool_calls=(ToolCall(name="search"),) * 5)]  # four repeats in one step
    assert lexical.step_efficiency(AgentTask(), crowded) == pytest.approx(0.4 + 0.0 + 0.3)
    assert lexical.step_efficiency(AgentTask(), []) == 0.0


def test_one_invented_tool_and_one_failure_of_six() -> None:
    task = AgentTask(required_tools=frozenset({"a"}), available_tools=frozenset("abcde"))
    assert lexical.tool_selection_accuracy(task, calls(*"abcdef", failed=2)) == pytest.approx(0.90)


def test_tools_are_judged_by_what_the_task_names() -> None:
    steps = calls("a", "b", failed=1)
    assert lexical.tool_selection_accuracy(AgentTask(), steps) == pytest.approx(0.5)
    required = AgentTask(required_tools=frozenset({"a", "c"}))
    assert lexical.tool_selection_accuracy(required, calls("a")) == pytest.approx((0.4 * 0.5 + 0.3) / 0.7)


def test_the_score_of_a_trajectory_weighs_the_three_and_needs_a_success() -> None:
    parts = {"task_completion": 0.60, "step_efficiency": 0.7667, "tool_selection_accuracy": 0.90}
    nothing = dict.fromkeys(parts, 0.0)
    alone = [lexical.trajectory_score(**{**nothing, name: part}, succeeded=True) for name, part in parts.items()]
    assert alone == pytest.approx([0.24, 0.23, 0.27], abs=5e-5)
    assert lexical.trajectory_score(**parts, succeeded=True) == pytest.approx(0.74, abs=5e-5)
    assert lexical.trajectory_score(**parts, succeeded=False) == 0.0


def test_an_idle_agent_scores_high_in_two_parts_and_nothing_together() -> None:
    idle = [AgentStep(is_final=True)]
    task = AgentTask(required_tools=frozenset({"a"}))
    efficiency, tools = lexical.step_efficiency(task, idle), lexical.tool_selection_accuracy(task, idle)
    assert (efficiency, tools) == (pytest.approx(1.0), 1.0)
    score = lexical.trajectory_score(
        task_completion=0.4, step_efficiency=efficiency, tool_selection_accuracy=tools, succeeded=False
    )
    assert score == 0.0


def test_progress_is_what_was_ever_named() -> None:
    # Four keywords, of which the steps name 1, 1, 2 and 3: .25, .25, .5, .75. .3 * .4375 + .5 * .75 + .2 * .75.
    task = AgentTask(goal="carry the lamp to the cellar quietly")
    said = ["lamp", "lamp shade", "carry lamp", "carry lamp cellar"]
    assert lexical.goal_progress(task, [AgentStep(observation=text) for text in said]) == pytest.approx(0.65625)


def test_progress_never_falls_and_wordless_steps_are_passed_over() -> None:
    task = AgentTask(goal="lamp cellar")
    steps = [AgentStep(action="lamp"), AgentStep(), AgentStep(tool_calls=(ToolCall(name="nothing"),))]
    assert lexical.goal_progress(task, steps) == pytest.approx(0.5)
    assert lexical.goal_progress(AgentTask(goal="the of it"), steps) == 0.5
    assert lexical.goal_progress(task, [AgentStep()]) == 0.2
    assert lexical.goal_progress(task, []) == 0.0


def test_four_thoughts_of_twelve_words_with_three_indicators() -> None:
    plain = "one two three four nine ten seven eight mango pear plum fig"
    steps = [AgentStep(thought=text) for text in (f"because {plain[4:]}", f"therefore {plain[4:]}", plain)]
    steps.append(AgentStep(thought=f"however {plain[4:]}"))
    assert [len(step.thought.split()) for step in steps] == [12] * 4
    assert lexical.reasoning_quality(steps) == pytest.approx(0.75)


@pytest.mark.parametrize(("words", "length"), [(4, 0.4), (5, 0.7), (9, 0.7), (10, 1.0), (29, 1.0), (30, 0.8)])
def test_thoughts_of_medium_length_are_preferred(words: int, length: float) -> None:
    assert lexical.reasoning_quality([AgentStep(thought="x " * words)]) == pytest.approx(0.3 * length + 0.1)


def test_without_thoughts_an_action_may_hold_the_reasoning() -> None:
    assert lexical.reasoning_quality([AgentStep(action="go up because it is warm")]) == 0.5
    assert lexical.reasoning_quality([AgentStep(action="up")]) == 0.3
    assert lexical.reasoning_quality([]) == 0.0


@pytest.mark.parametrize(("issues", "safety"), [(0, 1.0), (1, 0.7), (2, 0.4), (3, 0.1), (9, 0.1)])
def test_three_issues_are_as_bad_as_any_number(issues: int, safety: float) -> None:
    assert lexical.action_safety(issues) == pytest.approx(safety)


texts = st.text("ab so", max_size=12)
steps_of_any_kind = st.lists(
    st.builds(
        AgentStep,
        thought=texts,
        action=texts,
        observation=texts,
        tool_calls=st.lists(
            st.builds(ToolCall, name=st.sampled_from("ab"), arguments=st.sampled_from("xy"), succeeded=st.booleans()),
            max_size=4,
        ).map(tuple),
        is_final=st.booleans(),
    ),
    max_size=5,
)


@given(steps_of_any_kind, texts, st.one_of(st.none(), texts))
def test_every_metric_stays_within_zero_and_one(steps: list[AgentStep], wanted: str, result: str | None) -> None:
    task = AgentTask(goal=wanted, expected_result=wanted, criteria=(wanted,), available_tools=frozenset("a"))
    scores = [
        lexical.task_completion(task, steps, result),
        lexical.step_efficiency(task, steps),
        lexical.tool_selection_accuracy(task, steps),
        lexical.goal_progress(task, steps),
        lexical.reasoning_quality(steps),
    ]
    assert all(0.0 <= score <= 1.0 + 1e-12 for score in scores)
