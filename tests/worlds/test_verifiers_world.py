"""Environments of the package verifiers play as agent programs: with a scripted policy, and with the real engine."""

from __future__ import annotations

import asyncio
import re
import sys
import threading
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from milepost.actors.agents.agent_episode import AgentHost, run_agent_episode
from milepost.actors.agents.config import AgentConfig
from milepost.actors.agents.endpoint import Endpoint
from milepost.actors.agents.program import load_program
from milepost.actors.agents.replies import Replies
from milepost.actors.resources import Limits, RolloutResources
from milepost.actors.tool_reading import ToolReaders
from milepost.actors.user_code import count_if_hung
from milepost.envs.dialogue import Dialogue
from milepost.envs.types import Failure, Split, Task, Trajectory
from tests.actors.agents.agent_rig import Letters, SayingEngine, read, text_of
from tests.actors.episode_rig import failure, trajectory
from tests.actors.running_engine import RunningEngine
from tests.actors.tools.taught_policy import template
from tests.worlds.served_worlds import EPISODES

AGENT = "milepost.envs.adapters.verifiers_agent:run"
WORLDS = "tests.worlds.verifiers_worlds"


def with_package(test: Callable[..., None]) -> Callable[..., None]:
    needs = pytest.mark.skipif(find_spec("verifiers") is None, reason="needs the packages of make worlds")
    return pytest.mark.sweep(needs(test))


def lettered(say: Callable[[str], str], **limits: float) -> RolloutResources:
    """A policy that answers the text of a prompt with what `say` says."""
    bounds: dict[str, Any] = {"max_turns": 6, "env_timeout_s": 1.0, "episode_timeout_s": 120.0}
    bounds |= {"max_prompt_tokens": 10_000, "max_observation_chars": 10_000}
    return RolloutResources(
        engine=SayingEngine(say),
        dialogue=Letters(),  # type: ignore[arg-type]
        decode=text_of,
        places=threading.Semaphore(4),
        readers=ToolReaders(None, Letters()),  # type: ignore[arg-type]
        limits=Limits(**bounds | limits),
    )


async def episodes(
    here: RolloutResources, options: Any, *, take_apart: Any = read, split: Split = "train", count: int = EPISODES
) -> list[Trajectory | Failure]:
    endpoint = Endpoint()
    await endpoint.start()
    host = AgentHost(
        program=load_program(AgentConfig(path=AGENT), partial(count_if_hung, here)),
        endpoint=endpoint,
        layout=here.dialogue,  # type: ignore[arg-type]
        read=take_apart,
        max_tokens=0,
        places=asyncio.Semaphore(16),
    )
    tasks = [Task(env=AGENT, seed=seed, split=split, options=options) for seed in range(count)]
    try:
        return list(
            await asyncio.gather(*(run_agent_episode(host, here, task=t, group_id="g", index=0) for t in tasks))
        )
    finally:
        await endpoint.stop()


def named(kind: str, **args: Any) -> dict[str, Any]:
    return {"environment": WORLDS, "args": {"kind": kind, **args}}


def shown(each: Trajectory) -> str:
    return text_of(each.turns[-1].prompt_ids)


def adds(prompt: str) -> str:
    """The sum after the last question, by the tool where there is one."""
    (number,) = re.findall(r"(\d+) \+ 1 =", prompt)
    if "tools:add" not in prompt:
        return str(int(number) + 1)
    result = re.search(r"tool:(\d+)", prompt)
    return result[1] if result else f'CALL add {{"a": {number}, "b": 1}}'


def searches(prompt: str) -> str:
    low, high = 1, 7
    for guess, word in re.findall(r"(\d)user:(Higher|Lower)", prompt):
        low, high = (int(guess) + 1, high) if word == "Higher" else (low, int(guess) - 1)
    return str((low + high) // 2)


@with_package
@pytest.mark.parametrize(("kind", "plays"), [("single", adds), ("several", searches), ("by_tool", adds)])
def test_a_sound_player_solves_all_20_and_a_wrong_one_none(kind: str, plays: Callable[[str], str]) -> None:
    for say, outcome in ((plays, "success"), (lambda _: "0", "failure")):
        played = [trajectory(each) for each in asyncio.run(episodes(lettered(say), named(kind)))]
        assert {each.outcome for each in played} == ({outcome} if kind != "several" else {outcome, "failure"})
        assert all(each.success_reported for each in played)
        assert sum(each.reward for each in played) == pytest.approx(0.0 if outcome == "failure" else PAID[kind])


# 1 to 7 takes 1 guess for 4, 2 for 2 and 6, 3 for the others: a reward of 1, 1/2, 1/3. Rows 0, 5, 10, 15 are held out;
# the other 16 hold 2 3 4 5 7 1 2 3 5 6 7 1 3 4 5 6, and 20 seeds play the first four twice.
PAID = {"single": 20.0, "by_tool": 20.0, "several": 3 * 1.0 + 5 * 0.5 + 12 / 3}


@with_package
def test_the_real_engine_plays_20_episodes_of_each_kind(engine: RunningEngine, tiny_policy: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    tokenizer.chat_template = template("tool | tojson")
    layout = Dialogue(tokenizer)

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    for kind, turns, told in (("single", 1, "Add."), ("several", 4, "1 to 7"), ("by_tool", 3, '"name": "add"')):
        limits = Limits(
            max_turns=6, env_timeout_s=60, episode_timeout_s=240, max_prompt_tokens=416, max_observation_chars=10_000
        )
        readers = ToolReaders(tokenizer, layout)
        here = RolloutResources(
            engine=engine.engine,
            dialogue=layout,
            decode=decode,
            places=threading.Semaphore(4),
            readers=readers,
            limits=limits,
        )
        replies = Replies(readers, decode, layout.control_tokens)
        results = engine.run(episodes(here, named(kind), take_apart=replies.read), timeout_s=400)
        played = [trajectory(each) for each in results]
        assert len(played) == EPISODES
        for seed, each in enumerate(played):
            assert each.outcome in ("success", "failure", "truncated")
            assert 1 <= len(each.turns) <= turns
            prompt = tokenizer.decode(each.turns[0].prompt_ids)
            assert told in prompt
            if kind != "several":  # rows 0, 5, 10 and 15 of 20 are held out, the other 16 are played in turn
                assert f"{[k for k in range(20) if k % 5][seed % 16]} + 1 =" in prompt


@with_package
def test_held_out_tasks_are_rows_of_their_own() -> None:
    def questions(split: Split, **args: Any) -> list[str]:
        done = asyncio.run(episodes(lettered(lambda _: "0"), named("single", **args), split=split, count=20))
        return sorted({shown(trajectory(each)).split("user:")[1] for each in done})

    assert questions("heldout") == ["0 + 1 =", "10 + 1 =", "15 + 1 =", "5 + 1 ="]
    assert len(questions("train")) == 16
    assert not {*questions("train")} & {*questions("heldout")}
    assert questions("heldout", held_out=2) == questions("ood", held_out=2) == ["held out"]
    assert len(questions("train", held_out=2)) == 20


@with_package
def test_an_answer_without_a_word_is_scored_as_it_stands() -> None:
    (each,) = asyncio.run(episodes(lettered(lambda _: ""), named("single"), count=1))
    assert (trajectory(each).outcome, trajectory(each).reward) == ("failure", 0.0)


@with_package
def test_a_limit_of_ours_truncates_the_rollout() -> None:
    here = lettered(lambda _: "0", max_turns=2)
    (each,) = asyncio.run(episodes(here, named("several"), count=1))
    assert (trajectory(each).outcome, len(trajectory(each).turns)) == ("truncated", 2)


@with_package
def test_a_world_that_blocks_is_counted_as_hung() -> None:
    from tests.worlds.verifiers_worlds import FREED

    async def hung() -> int:
        here = lettered(lambda _: "0", episode_timeout_s=3.0, env_timeout_s=0.5)
        (each,) = await episodes(here, named("blocking"), count=1)
        assert failure(each).error == "TimeoutError"
        await asyncio.sleep(1.0)
        return here.hung

    asyncio.run(
        episodes(lettered(lambda _: "0"), named("several"), count=1)
    )  # verifiers is loaded, which takes seconds
    try:
        assert asyncio.run(hung()) == 1
    finally:
        FREED.set()


@with_package
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"environment": f"{WORLDS}:add", "args": {"a": 1, "b": 2}}, "which is no verifiers.Environment"),
        ({"environment": f"{WORLDS}:group_scored"}, "scores whole groups of rollouts"),
        ({"environment": "no-such-world"}, "Could not import 'no-such-world' environment"),
        (named("single", rows=1), "has no rows for the split 'train'"),
    ],
)
def test_a_world_that_cannot_be_played_says_why_in_every_episode(options: dict[str, Any], message: str) -> None:
    (each,) = asyncio.run(episodes(lettered(lambda _: "0"), options, count=1))
    assert failure(each).boundary == "env"
    assert message in failure(each).message


@pytest.mark.parametrize("options", [{}, {"environment": 3}, {"environment": "x", "seed": 1}, {"env": "x"}])
def test_options_that_name_no_world_are_refused_with_the_ones_there_are(options: dict[str, Any]) -> None:
    (each,) = asyncio.run(episodes(lettered(lambda _: "0"), options, count=1))
    assert "env.options for a verifiers environment are environment = 'its id'" in failure(each).message


def test_a_missing_package_is_told_by_the_name_of_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "verifiers", None)
    (each,) = asyncio.run(episodes(lettered(lambda _: "0"), {"environment": "x"}, count=1))
    assert "needs the extra 'verifiers' (verifiers 0.3): pip install 'milepost[verifiers]'" in failure(each).message
