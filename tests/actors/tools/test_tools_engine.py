"""A policy that has learnt to call a tool, served by the real engine, and an environment that has the tool."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from milepost.envs.dialogue import Dialogue
from milepost.envs.messages import AssistantMessage, Message, ToolCall
from milepost.learner.batch.sample import samples
from tests.actors.episode_rig import play, resources, task, trajectory
from tests.actors.running_engine import RunningEngine
from tests.actors.tools.taught_policy import by_heart, taught, template
from tests.actors.tools.tool_envs import Door, schema

EPISODES = 16


def conversation(layout: Dialogue) -> tuple[list[int], list[bool]]:
    """The ids of an episode behind the door, and which of them are learnt."""
    said, _ = Door().reset()
    call = ToolCall(id="call00000", name="open", arguments={})
    result = [Message(role="tool", content="It is open.", tool_call_id="call00000")]
    exchanges = [(AssistantMessage(tool_calls=(call,)), result), (AssistantMessage(content="Done."), [])]
    return by_heart(layout, [Message(**message) for message in said], exchanges)


@pytest.mark.services
@pytest.mark.timeout(600)
def test_calls_that_the_engine_samples_reach_the_environment_and_are_trained_on_as_sampled(
    engine: RunningEngine, tiny_policy: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    tokenizer.chat_template = template("tool | tojson")
    dialogue = Dialogue(tokenizer)
    ids, learnt = conversation(dialogue.with_tools([schema("open")]))

    async def play_all() -> list[object]:
        async with resources(dialogue, engine=engine.engine, max_prompt_tokens=400, episode_timeout_s=120) as here:
            door = task("tests.actors.tools.tool_envs:Door")
            return list(await asyncio.gather(*(play(here, door, index) for index in range(EPISODES))))

    with taught(engine, tiny_policy, ids, learnt, tmp_path):
        done = [trajectory(result) for result in engine.run(play_all(), timeout_s=300)]  # type: ignore[arg-type]
    solved = [each for each in done if [turn.action for turn in each.turns] == ["open {}", "Done."]]
    assert len(solved) >= EPISODES / 2  # sampled at 0.8, about 40 tokens of which each could be another one
    for each in solved:
        assert (each.outcome, each.turns[0].next_anchor) == ("success", "open")
        (sample,) = samples(each, [0.0] * len(each.turns))
        sampled = [token for turn in each.turns for token in turn.response_ids]
        assert sample.token_ids[sample.loss_mask].tolist() == sampled
        assert tokenizer.decode(sampled).endswith("</tool_call><|im_end|>Done.<|im_end|>")
