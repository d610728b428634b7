"""check-env, the check before a run and a run judge an environment alike, for all three play through `run_episode`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from milepost.actors.checks.check import check_env
from milepost.cluster.base.exits import ConfigError
from milepost.cluster.preflight import check_dialogue, check_world
from milepost.cluster.replay.wire import encode
from milepost.cluster.settings.config import RunConfig
from milepost.envs.dialogue import Dialogue
from milepost.envs.types import Failure, Trajectory
from tests.actors.checked_envs import ENDINGS
from tests.actors.episode_rig import play, resources, task
from tests.cluster.judges.judged_envs import CLOSED

HABIT, CHECKED = "tests.cluster.judges.judged_envs:Habit", "tests.actors.checked_envs"

GOOD: list[tuple[str, dict[str, Any]]] = [
    (HABIT, {}),
    (HABIT, {"observation": "numpy text"}),
    (HABIT, {"observation": "own text"}),
    (HABIT, {"reward": "array"}),
    (HABIT, {"reward": "tensor"}),
    (HABIT, {"info": "numpy action"}),
    (HABIT, {"info": "enumerated anchor"}),
    (HABIT, {"info": "tuple of actions"}),
    ("tests.actors.thread_envs:Database", {}),
    ("tests.actors.thread_envs:Counts", {}),
    (f"{CHECKED}:NumberSpace", {}),
]
BAD: list[tuple[str, dict[str, Any], str]] = [
    (HABIT, {"observation": "bytes"}, "step: observation must be text (str), found bytes"),
    (HABIT, {"observation": "half a character"}, "step: observation holds half a character at 5"),
    (HABIT, {"observation": "control token"}, "control token of the"),
    (HABIT, {"observation": "much"}, "step: the observation has 1500000 characters"),
    (HABIT, {"reward": "numpy bool"}, "step: reward must be a number"),
    (HABIT, {"reward": "too large"}, "step: the rewards of an episode add up to 1.7e+308"),
    (HABIT, {"reward": "beyond floats"}, "step: reward must be finite"),
    (HABIT, {"info": "number as action"}, "step: info['action'] must be text"),
    (HABIT, {"info": "tuple as anchor"}, "step: info['anchor'] must be text"),
    (HABIT, {"info": "facts too large"}, "step: info['tool'] must hold what JSON knows"),
    ("tests.cluster.judges.judged_envs:SetsAnAlarm", {}, "signal only works in main thread"),
    *(
        (f"{CHECKED}:Leaves", {"where": where, "error": ending.__name__}, ending.__name__)
        for where in ("constructor", "reset", "step")
        for ending in ENDINGS
    ),
]


def judged(path: str, options: dict[str, Any], policy: Path, dialogue: Dialogue) -> tuple[str, str, str]:
    """What check-env, the check before a run and a run's episode say; "" where they have nothing to say."""
    errors = [finding.what for finding in check_env(path, options).findings if finding.level == "error"]
    sections = {
        "env": {"path": path, "options": options},
        "model": {"source": "folder", "path": str(policy)},
        "actors": {"max_turns": 20},
        "engine": {"max_model_len": 4096},
    }
    config = RunConfig.model_validate(sections)
    try:
        check_dialogue(config, policy, check_world(config))
        refused = ""
    except ConfigError as error:
        refused = str(error)

    async def run() -> Trajectory | Failure:
        bounds = {"max_turns": 20, "max_prompt_tokens": 4000, "max_observation_chars": 1_000_000}
        async with resources(dialogue, **bounds) as here:
            return await play(here, task(path, **options))

    result = asyncio.run(run())
    if isinstance(result, Failure):
        return " ".join(errors), refused, f"{result.error}: {result.message}"
    encode(result)
    return " ".join(errors), refused, ""


@pytest.mark.parametrize(("path", "options"), GOOD)
def test_what_is_meant_clearly_is_fine_with_all_three(
    path: str, options: dict[str, Any], tiny_policy: Path, dialogue: Dialogue
) -> None:
    assert judged(path, options, tiny_policy, dialogue) == ("", "", "")


@pytest.mark.parametrize(("path", "options", "what"), BAD)
def test_what_one_of_them_refuses_all_three_refuse_with_the_same_words(
    path: str, options: dict[str, Any], what: str, tiny_policy: Path, dialogue: Dialogue
) -> None:
    verdicts = judged(path, options, tiny_policy, dialogue)
    assert [what in verdict for verdict in verdicts] == [True] * 3, verdicts


def test_the_check_before_a_run_closes_what_it_builds(tiny_policy: Path) -> None:
    CLOSED.clear()
    config = RunConfig.model_validate({"env": {"path": "tests.cluster.judges.judged_envs:CountsClosings"}})
    check_dialogue(config, tiny_policy, check_world(config))
    assert CLOSED == ["episode"] * 2


@pytest.mark.parametrize("ending", [ending.__name__ for ending in ENDINGS])
def test_a_reward_that_would_end_the_program_is_refused_before_a_run(ending: str) -> None:
    config = RunConfig.model_validate(
        {
            "env": {"path": "tests.broken_envs:CountingEnv"},
            "reward": {"path": f"tests.cluster.judges.judged_rewards:{ending}"},
        }
    )
    with pytest.raises(ConfigError, match=ending):
        check_world(config)


def test_an_environment_that_ends_the_program_while_starts_are_drawn_is_refused() -> None:
    env = {"path": f"{CHECKED}:Leaves", "options": {"where": "reset", "error": "SystemExit"}, "distinct_starts": True}
    with pytest.raises(ConfigError, match="the environment's scenarios raised SystemExit: out"):
        check_world(RunConfig.model_validate({"env": env}))
