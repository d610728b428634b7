"""What is measured of the policy after an iteration, before the next update starts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

from milepost.cluster.recovery import Progress
from milepost.cluster.replay.ready import LeasedGroup
from milepost.cluster.runlog.iteration_record import PolicyChecks
from milepost.cluster.system import System
from milepost.envs.types import Group
from milepost.learner.health.repetition import repetition

_PROMPTS = 4


async def check_policy(
    system: System,
    taken: Sequence[LeasedGroup],
    progress: Progress,
    measuring: Callable[[str], AbstractContextManager[None]],
) -> PolicyChecks:
    """How far engines and learner are apart, how much the responses of the groups repeat each other, and, as often as
    the config says, what they owe to their prompts.

    Every engine answers a few prompts of the groups with the weights of the version in `progress`. Raises Diverged
    if parity is broken; what the others raise is left to `measuring`.
    """
    groups = [leased.group for leased in taken]
    prompts = [list(group.trajectories[0].turns[-1].prompt_ids) for group in groups[:_PROMPTS]]
    turns = await system.engines.sample(prompts)
    parity = await system.learners.check_parity(turns, progress.version) if turns else None
    every, information, repeated = system.config.collapse.information_every, None, None
    with measuring("repetition"):
        repeated = await asyncio.to_thread(repetition, _responses(groups))  # it looks at every token
    if every and progress.iteration % every == 0:
        with measuring("mutual information"):
            information = await system.learners.mutual_information([leased.encoded for leased in taken])
    return PolicyChecks(parity=parity, information=information, repetition=repeated)


def _responses(groups: Sequence[Group]) -> Iterator[tuple[tuple[str, str], list[int]]]:
    """Responses with what they answered: the state of a task."""
    for group in groups:
        for trajectory in group.trajectories:
            for turn in trajectory.turns:
                yield (group.group_id, turn.anchor), turn.response_ids
