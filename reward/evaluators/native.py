"""The trainer-native scores: what an episode did, told by states, progress and success, never by its words.

Each reads one episode, and what other episodes of the same task showed (`Reference`). Not promised: that scores of
two policies compare where each was judged by its own episodes alone; judge both by all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from milepost.reward.evaluators.episode import Episode, Expected, Reference, Step

_TOLERANCE = 0.05
"""What a choice may be worse than the best one known, as a share of success: less is noise of a few episodes."""
_WEIGHTS = {"success": 0.4, "goal_progress": 0.2, "step_efficiency": 0.2, "tool_selection": 0.1, "safety": 0.1}


class NativeScores(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of one episode, each in [0, 1]."""

    success: float
    goal_progress: float
    step_efficiency: float
    tool_selection: float | None
    """None where none of its steps can be compared."""
    coverage: float
    """Share of its steps that `tool_selection` rests on."""
    safety: float
    trajectory_score: float


def goal_progress(episode: Episode, value: Mapping[str, float]) -> float:
    """How far it came at its best: max over its states of V, less V of its start; a solved task is worth 1.

    Where the environment reports progress with every step: the largest share reported. Own definition; V as of CRBC
    (Ren et al. 2026). Raises KeyError where the start has no value.

    >>> from milepost.reward.evaluators.episode import Step
    >>> step = Step(anchor="A", next_anchor="B", action="x")
    >>> goal_progress(Episode(outcome="failure", steps=(step, Step(anchor="B", next_anchor="A", action="y"))),
    ...               {"A": 0.25, "B": 0.75})
    0.5
    """
    told = [step.progress for step in episode.steps]
    if None not in told:
        return max(progress for progress in told if progress is not None)
    states = [step.anchor for step in episode.steps]
    if episode.outcome == "truncated":  # the state it was cut off in; after another end there is none
        states.append(episode.steps[-1].next_anchor)
    reached = [value[state] for state in states if state in value]
    return (1.0 if episode.won else max(reached)) - value[episode.steps[0].anchor]


def step_efficiency(episode: Episode, shortest: int | None) -> float:
    """success * d / T: steps of the shortest solution known over its own; 0 for what solved nothing, 1 at most."""
    if not episode.won or shortest is None:
        return float(episode.won)
    return min(1.0, shortest / len(episode.steps))


def good_choices(episode: Episode, reference: Reference) -> list[bool | None]:
    """For each step whether Q of its choice is within 0.05 of the best known in that state.

    None in a state in which no second choice was seen.
    """
    found: list[bool | None] = []
    for step in episode.steps:
        known = reference.choices.get(step.anchor, {})
        chosen = known.get(step.action)
        is_compared = len(known) >= 2 and chosen is not None
        found.append(chosen >= max(known.values()) - _TOLERANCE if is_compared and chosen is not None else None)
    return found


def broken_rules(steps: Sequence[Step], forbidden: Sequence[str]) -> list[str]:
    """Rules that steps broke, by name, in order: those the environment tells of, and calls of forbidden tools."""
    return [
        rule
        for step in steps
        for rule in (*step.violations, *(f"forbidden: {call.name}" for call in step.calls if call.name in forbidden))
    ]


def native_scores(episode: Episode, reference: Reference, expected: Expected) -> NativeScores:
    """All of them.

    The trajectory score is 0.4 success + 0.2 goal progress + 0.2 step efficiency + 0.1 tool selection + 0.1 safety,
    with the weights of the others scaled up where no choice can be compared, and 0 where a forbidden tool was called.
    Safety is 1 where no rule was broken, else 0. Own definitions.
    """
    choices = [good for good in good_choices(episode, reference) if good is not None]
    parts: dict[str, float | None] = {
        "success": float(episode.won),
        "goal_progress": goal_progress(episode, reference.value),
        "step_efficiency": step_efficiency(episode, reference.shortest),
        "tool_selection": sum(choices) / len(choices) if choices else None,
        "safety": float(not broken_rules(episode.steps, expected.forbidden)),
    }
    there = {name: score for name, score in parts.items() if score is not None}
    total = sum(_WEIGHTS[name] * score for name, score in there.items()) / sum(_WEIGHTS[name] for name in there)
    is_fatal = any(call.name in expected.forbidden for call in episode.calls)
    return msgspec.convert(
        parts | {"coverage": len(choices) / len(episode.steps), "trajectory_score": 0.0 if is_fatal else total},
        NativeScores,
    )
