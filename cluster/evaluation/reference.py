"""What the episodes of one task tell of its states: V and Q of CRBC on all of them together, and the shortest solution.

The values are those of whoever played: few visits make them optimistic or pessimistic, and a state that one policy
alone met is judged by it alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from milepost.learner.credit.assignment import INVALID, CreditGroup, CreditTrajectory, CreditTurn, escaped
from milepost.learner.credit.graph import build_graph, solve_values
from milepost.reward.evaluators.episode import Episode, Expected, Reference, Step
from milepost.reward.evaluators.native import broken_rules

_BETA = 0.98
"""CRBC's own: so a way that is longer by a step is worth 2 % less."""


def reference_of(episodes: Sequence[Episode], expected: Expected) -> Reference:
    """Of at least one episode of a task. A solution that broke a rule is none; `ideal_steps` count as one.

    Raises ValueError without episodes, and where a step does not start where the last one ended.
    """
    group = CreditGroup("", tuple(_walk(episode) for episode in episodes))
    graph = build_graph(group)
    values = solve_values(graph, beta=_BETA)
    said = {escaped(step.action): step.action for e in episodes for step in e.steps if step.action is not None}
    choices: dict[str, dict[str | None, float]] = {}
    for (anchor, action), q in zip(graph.pair_index, values.q.tolist(), strict=True):
        choices.setdefault(anchor, {})[said.get(action)] = q  # the invalid one is said by nobody
    solved = [len(e.steps) for e in episodes if e.won and not broken_rules(e.steps, expected.forbidden)]
    if expected.ideal_steps is not None:
        solved.append(expected.ideal_steps)
    return Reference(
        value=dict(zip(graph.states, values.value.tolist(), strict=True)),
        choices=choices,
        shortest=min(solved, default=None),
    )


def _walk(episode: Episode) -> CreditTrajectory:
    return CreditTrajectory(episode.outcome, tuple(_turn(step) for step in episode.steps))


def _turn(step: Step) -> CreditTurn:
    action = INVALID if step.action is None else escaped(step.action)
    return CreditTurn(step.anchor, action, step.next_anchor, 0.0, invalid=step.action is None, num_tokens=1)
