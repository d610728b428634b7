"""What is measured on the weights that an iteration published, before the next update starts from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from milepost.cluster.recovery import Progress
from milepost.cluster.runlog.iteration_record import PolicyChecks
from milepost.cluster.system import System
from milepost.envs.types import Group

_PROMPTS = 4


async def check_policy(
    system: System,
    groups: Sequence[Group],
    progress: Progress,
    measuring: Callable[[str], AbstractContextManager[None]],
) -> PolicyChecks:
    """How far engines and learner are apart, and, as often as the config says, what responses owe to their prompts.

    Every engine answers a few prompts of `groups` with the weights of the version in `progress`. Raises Diverged
    if parity is broken; what the second one raises is left to `measuring`.
    """
    prompts = [list(group.trajectories[0].turns[-1].prompt_ids) for group in groups[:_PROMPTS]]
    turns = await system.engines.sample(prompts)
    parity = await system.learners.check_parity(turns, progress.version) if turns else None
    every, information = system.config.collapse.information_every, None
    if every and progress.iteration % every == 0:
        with measuring("mutual information"):
            information = await system.learners.mutual_information(groups)
    return PolicyChecks(parity=parity, information=information)
