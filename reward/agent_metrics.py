"""The lexical agent metrics of FutureAGI's `ai-evaluation`, for comparing with dashboards that show them.

Inputs are the texts and tool calls of an episode as a user recorded them: the house's trajectories hold tokens, so
nothing here is called by it. Evaluation only, NEVER a reward: all of it counts words, so all of it can be gamed, and an
agent that does nothing scores near 1 in two of the three parts. So `trajectory_score` is 0 without a success.

Scores are in [0, 1] and follow the public code (python/fi/evals/metrics/agents), with four differences: nothing is
rounded to four digits; an empty result matches nothing (there, it is "part of" every text and scores 0.9); a criterion
is looked for in result and observations, not in the agent's own thoughts; redundancy can't make a score negative.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

_WORD = re.compile(r"\b\w+\b")
_STOPWORDS = frozenset(
    _WORD.findall(
        "the a an is are was were be been being have has had do does did will would should could may might must and or "
        "but if then so that this it to of in for on with at by from as"
    )
)
_INDICATORS = (
    *("because", "therefore", "since", "so", "thus", "need to", "should", "will", "going to", "first", "then"),
    *("next", "finally", "if", "however", "but", "although"),
)


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a tool."""

    name: str
    arguments: str = ""
    """Canonical text, such as JSON with sorted keys: equal text is the same call."""
    succeeded: bool = True


class AgentStep(msgspec.Struct, frozen=True, kw_only=True):
    """One step of an agent; what it lacks is empty."""

    thought: str = ""
    action: str = ""
    observation: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    is_final: bool = False


class AgentTask(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked of the agent; parts that are empty are not judged."""

    goal: str = ""
    """Description and expected outcome."""
    expected_result: str | None = None
    criteria: tuple[str, ...] = ()
    required_tools: frozenset[str] = frozenset()
    available_tools: frozenset[str] = frozenset()
    expected_steps: int = 10
    """Of a known solution, else the limit of steps."""


def task_completion(task: AgentTask, steps: Sequence[AgentStep], result: str | None) -> float:
    """`.2 [a final step] + .5 match(result, expected) + .3 criteria met`, at most 1; 0 without steps.

    Where no result is expected, having one earns .3; where there are no criteria, .2 is given. A criterion is met if at
    least half of its keywords occur in the result, or in the observations.
    """
    if not steps:
        return 0.0
    score = 0.2 * any(step.is_final for step in steps)
    if task.expected_result is not None:
        score += 0.5 * result_match(result or "", task.expected_result)
    elif result is not None:
        score += 0.3
    if not task.criteria:
        return min(1.0, score + 0.2)
    texts = ((result or "").lower(), " ".join(step.observation for step in steps).lower())
    return min(1.0, score + 0.3 * sum(_is_met(criterion, texts) for criterion in task.criteria) / len(task.criteria))


def result_match(result: str, expected: str) -> float:
    """1 for equal text, .9 where one holds the other, else the share of the expected keywords that the result has."""
    found, wanted = result.lower().strip(), expected.lower().strip()
    if found == wanted:
        return 1.0
    if not found or not wanted:
        return 0.0
    if wanted in found or found in wanted:
        return 0.9
    keywords = _keywords(wanted)
    return len(keywords & _keywords(found)) / len(keywords) if keywords else 0.0


def step_efficiency(task: AgentTask, steps: Sequence[AgentStep]) -> float:
    """`.4 min(1, expected / steps) + .3 (1 - redundant / steps) + .3 (1 - failed / calls)`; 0 without steps.

    A call is redundant if an earlier one had the same tool and arguments.
    """
    if not steps:
        return 0.0
    calls = [call for step in steps for call in step.tool_calls]
    redundant = len(calls) - len({(call.name, call.arguments) for call in calls})
    failed = sum(not call.succeeded for call in calls) / len(calls) if calls else 0.0
    briskness = min(1.0, task.expected_steps / len(steps))
    return 0.4 * briskness + 0.3 * max(0.0, 1 - redundant / len(steps)) + 0.3 * (1 - failed)


def tool_selection_accuracy(task: AgentTask, steps: Sequence[AgentStep]) -> float:
    """Mean of required tools used (weight .4), tool names that exist (.3), calls that succeeded (.3); 1 without calls.

    Required and existing tools count only where the task names them; the weights of what counts are normalised.
    """
    calls = [call for step in steps for call in step.tool_calls]
    if not calls:
        return 1.0
    used = {call.name for call in calls}
    parts = [(0.3, sum(call.succeeded for call in calls) / len(calls))]
    if task.required_tools:
        parts.append((0.4, len(used & task.required_tools) / len(task.required_tools)))
    if task.available_tools:
        parts.append((0.3, len(used & task.available_tools) / len(used)))
    return sum(weight * part for weight, part in parts) / sum(weight for weight, _ in parts)


def trajectory_score(
    *, task_completion: float, step_efficiency: float, tool_selection_accuracy: float, succeeded: bool
) -> float:
    """`.4 completion + .3 efficiency + .3 tools` of an episode that succeeded, 0 of one that did not. The gate is ours.

    `succeeded` is the environment's word, not a lexical guess.
    """
    if not succeeded:
        return 0.0
    return 0.4 * task_completion + 0.3 * step_efficiency + 0.3 * tool_selection_accuracy


def goal_progress(task: AgentTask, steps: Sequence[AgentStep]) -> float:
    """`.3 mean + .5 last + .2 max` of the running maximum of the share of the goal's keywords that a step names.

    Steps without words are passed over. 0 without steps, .5 for a goal without keywords, .2 for steps without words.
    """
    if not steps:
        return 0.0
    goal = _keywords(task.goal)
    if not goal:
        return 0.5
    shares = [0.0]
    for step in steps:
        words = _keywords(" ".join([step.thought, step.action, step.observation, *(c.name for c in step.tool_calls)]))
        if words:
            shares.append(max(len(words & goal) / len(goal), shares[-1]))
    reached = shares[1:]
    if not reached:
        return 0.2
    return 0.3 * sum(reached) / len(reached) + 0.5 * reached[-1] + 0.2 * max(reached)


def reasoning_quality(steps: Sequence[AgentStep]) -> float:
    """`.3 length + .4 min(1, indicators / 2n) + .3 min(1, n / 3)` of n thoughts; 0 without steps.

    Length: .4 below 5 words on average, .7 below 10, 1 below 30, else .8. Indicators are those of `_INDICATORS` that
    occur in a thought, also inside a word, each once per thought. Without thoughts: .5 if one is in an action, else .3.
    """
    if not steps:
        return 0.0
    thoughts = [step.thought.lower() for step in steps if step.thought.strip()]
    if not thoughts:
        return 0.5 if any(word in step.action.lower() for step in steps for word in _INDICATORS) else 0.3
    n = len(thoughts)
    words = sum(len(thought.split()) for thought in thoughts) / n
    length = 0.4 if words < 5 else 0.7 if words < 10 else 1.0 if words < 30 else 0.8
    indicators = sum(word in thought for thought in thoughts for word in _INDICATORS)
    return 0.3 * length + 0.4 * min(1.0, indicators / (2 * n)) + 0.3 * min(1.0, n / 3)


def action_safety(num_issues: int) -> float:
    """`1 - min(.9, .3 issues)`; which actions are dangerous or leak secrets is the caller's to find."""
    return 1.0 - min(0.9, 0.3 * num_issues)


def _keywords(text: str) -> set[str]:
    return set(_WORD.findall(text.lower())) - _STOPWORDS


def _is_met(criterion: str, texts: Sequence[str]) -> bool:
    keywords = _keywords(criterion)
    return not keywords or any(2 * sum(word in text for word in keywords) >= len(keywords) for text in texts)
