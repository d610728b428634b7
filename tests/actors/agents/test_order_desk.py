"""The order desk is the same world as an environment with tools and as an agent program, token by token."""

from __future__ import annotations

import asyncio
import difflib
import re
from pathlib import Path
from typing import Any

import pytest

from examples.order_desk.env import OrderDesk
from examples.order_desk.program import TOOLS
from milepost.actors.agents.agent_episode import AgentHost, run_agent_episode
from milepost.actors.agents.config import AgentConfig
from milepost.actors.agents.endpoint import Endpoint
from milepost.actors.agents.program import load_program
from milepost.actors.agents.replies import Replies
from milepost.actors.engine import Completion
from milepost.actors.resources import RolloutResources
from milepost.envs.dialogue import Dialogue
from milepost.envs.messages import AssistantMessage, ToolCall
from milepost.envs.types import Task, Trajectory
from milepost.learner.first_policy.byte_tokenizer import train_tokenizer
from tests.actors.episode_rig import completion, resources, trajectory
from tests.actors.episode_rig import play as play_env

CONFIGS = Path(__file__).parents[3] / "deploy" / "configs"
ENV, AGENT = "examples.order_desk.env:OrderDesk", "examples.order_desk.program:run"
DIALOGUE = Dialogue(train_tokenizer([], vocab_size=300, has_tools=True))


class Clerk:
    """Cancels the first order it sees that is `wanted`, and says so."""

    def __init__(self, wanted: str) -> None:
        self.wanted, self.layout = wanted, DIALOGUE.with_tools(TOOLS)

    async def generate(self, prompt_ids: list[int]) -> Completion:
        await asyncio.sleep(0)
        prompt = DIALOGUE._tokenizer.decode(prompt_ids, skip_special_tokens=False)
        seen = re.findall(r'\{"order": (\d), "state": "(\w+)"\}<', prompt)
        if prompt.endswith("cancelled<|end|><|assistant|>"):
            return completion(self.layout.response("Done."))
        name, arguments = "first", {"customer": re.findall(r'Customer "(\w+)"', prompt)[0]}
        if seen:
            name, arguments = "cancel" if seen[-1][1] == self.wanted else "next", {"order": int(seen[-1][0])}
        call = ToolCall(id="call00000", name=name, arguments=arguments)
        return completion(self.layout.response(AssistantMessage(tool_calls=(call,))))


def played(path: str, wanted: str, seed: int) -> Trajectory:
    async def go() -> Any:
        async with resources(DIALOGUE, engine=Clerk(wanted), max_turns=6, max_prompt_tokens=4000) as shared:
            task = Task(env=path, seed=seed, split="train", options={"max_steps": 6})
            return await (play_env(shared, task) if path == ENV else play_agent(shared, task))

    return trajectory(asyncio.run(go()))


async def play_agent(shared: RolloutResources, task: Task) -> Any:
    endpoint = Endpoint()
    await endpoint.start()
    host = AgentHost(
        program=load_program(AgentConfig(path=AGENT), lambda _: None),
        endpoint=endpoint,
        layout=DIALOGUE,
        read=Replies(shared.readers, shared.decode, DIALOGUE.control_tokens).read,
        max_tokens=0,
        places=asyncio.Semaphore(1),
    )
    try:
        return await run_agent_episode(host, shared, task=task, group_id="g", index=0)
    finally:
        await endpoint.stop()


@pytest.mark.parametrize(("wanted", "outcome"), [("open", "success"), ("sent", "failure")])
def test_the_desk_is_the_same_as_an_environment_and_as_a_program(wanted: str, outcome: str) -> None:
    for seed in range(4):
        env, agent = played(ENV, wanted, seed), played(AGENT, wanted, seed)
        assert [(t.prompt_ids, t.response_ids) for t in env.turns] == [
            (t.prompt_ids, t.response_ids) for t in agent.turns
        ]
        assert (env.outcome, env.reward) == (agent.outcome, agent.reward) == (outcome, float(outcome == "success"))
        assert 3 <= len(env.turns) <= 5
        assert len({turn.lineage for turn in agent.turns}) == 1
        assert env.success_reported
        assert agent.success_reported


def test_episodes_in_one_state_meet_in_one_anchor_whichever_way_they_are_played() -> None:
    for path in (ENV, AGENT):
        good, bad = played(path, "open", 0), played(path, "sent", 0)
        assert [t.anchor for t in good.turns[:2]] == [t.anchor for t in bad.turns[:2]]
        assert len({turn.anchor for turn in good.turns}) == len(good.turns)


def test_the_program_offers_the_tools_of_the_environment() -> None:
    assert OrderDesk().tools == TOOLS


def test_the_two_configurations_differ_in_one_line() -> None:
    env, agent = (
        (CONFIGS / name).read_text(encoding="utf-8").splitlines() for name in ("desk.toml", "desk_agent.toml")
    )
    changes = [line for line in difflib.ndiff(env, agent) if line[0] in "+-"]
    assert changes == [f'- env.path = "{ENV}"', f'+ agent.path = "{AGENT}"']
