"""What credit will go by in a run, said before it starts: success as the environment reports it, or returns.

An environment need not say more of success than its last step does, so an episode is played towards its end, for a few
seconds and without judging it. Not promised: that every episode ends as this one does.
"""

from __future__ import annotations

import random
import time

from milepost.cluster.settings.config import RunConfig
from milepost.envs.contract import Demonstrator, build_env, observe_reset, observe_step
from milepost.envs.messages import AssistantMessage
from milepost.envs.types import Task
from milepost.learner.credit.strategies.crbc import CRBCConfig
from milepost.learner.credit.strategies.pbrs import PBRSConfig
from milepost.learner.credit.strategies.registry import READS_SUCCESS


def credit_basis(config: RunConfig, task: Task, *, seconds: float) -> str | None:
    """One line for people; None where the strategy reads no success, or is told not to.

    Plays `task` on the caller's thread and makes no further step after `seconds`.
    """
    credit = config.credit
    asked = credit.objective if isinstance(credit, CRBCConfig) else "auto"
    of_graph = not isinstance(credit, PBRSConfig) or credit.potential == "graph"
    if credit.strategy not in READS_SUCCESS or asked == "return" or not of_graph:
        return None
    reported = reports_success(task, seconds=seconds)
    if asked == "success" and reported is False:
        return (
            "credit: success, which the environment does not report: any return above 0 counts as one; report "
            'info["success"], or set credit.objective = "auto"'
        )
    return {
        True: "credit: success as the environment reports it",
        False: 'credit: returns, because the environment reports no success to learn from (info["success"])',
        None: 'credit: success if an episode\'s end reports it (info["success"]), else returns; the first steps do not',
    }[reported]


def reports_success(task: Task, *, seconds: float) -> bool | None:
    """Whether an episode of `task` says, to be learnt from, if it is solved.

    None where none of its first steps does and it goes on.
    """
    deadline = time.monotonic() + seconds
    try:
        env = build_env(task.env, task.options)
        try:
            returned = env.reset(seed=task.seed)
            tools = observe_reset(returned, env).tools
            while True:
                response = _response(env, returned[-1])
                if tools and isinstance(response, str):
                    response = AssistantMessage(content=response or "I do not know.")
                returned = env.step(response)
                step = observe_step(returned, "")
                if step.success is not None:
                    return step.success_trains
                if step.terminated or step.truncated:
                    return False
                if time.monotonic() > deadline:
                    return None
        finally:
            env.close()
    except Exception:  # it is the episodes' to fail, and the other checks' to say why
        return None


def _response(env: object, info: dict[str, object]) -> str | AssistantMessage:
    """Something that moves the episode on, as far as that is known."""
    if isinstance(env, Demonstrator):
        return env.demonstration(random.Random(0), 0.0)
    admissible = info.get("admissible_actions")
    return str(admissible[0]) if isinstance(admissible, list) and admissible else ""
