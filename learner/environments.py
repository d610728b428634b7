"""What is compared within an environment only: the filter's verdicts, and the scale of a batch.

A batch may hold groups of several environments, whose returns have units of their own. One that pays 100 would take all
places of a filter by spread from one that pays 1, and would be the whole of a common scale. So each environment is
judged and scaled as if the batch held nothing else; how much it counts in an update is what its share says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from milepost.learner.credit.assignment import Credit, CreditGroup, Floats, Scaling
from milepost.learner.credit.filter import FilterConfig, Verdict, keep_groups
from milepost.learner.credit.scaling import scaled

T = TypeVar("T")


def keep_groups_of_each(
    names: Sequence[str], groups: Sequence[CreditGroup], credits: Sequence[Credit], config: FilterConfig
) -> list[Verdict]:
    """`keep_groups` in each environment apart; `names` are those of the environments of the N groups."""
    return _of_each(names, lambda at: keep_groups([groups[k] for k in at], [credits[k] for k in at], config))


def scaled_of_each(
    names: Sequence[str], credits: Sequence[Credit], weights: Sequence[Sequence[Floats]], scaling: Scaling
) -> list[Credit]:
    """`scaled` in each environment apart; `names` are those of the environments of the N credits."""
    return _of_each(names, lambda at: scaled([credits[k] for k in at], [weights[k] for k in at], scaling))


def _of_each(names: Sequence[str], judge: Callable[[list[int]], list[T]]) -> list[T]:
    """What `judge` says of the places of each name, in the order of all places."""
    found: dict[int, T] = {}
    for name in dict.fromkeys(names):
        places = [k for k, other in enumerate(names) if other == name]
        found.update(zip(places, judge(places), strict=True))
    return [found[k] for k in range(len(names))]
