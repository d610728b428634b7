"""A policy that has learnt to call a tool, served by the real engine, and an environment that has the tool."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from milepost.actors.context import Context
from milepost.envs.dialogue import Dialogue
from milepost.envs.messages import AssistantMessage, Message, ToolCall
from milepost.learner.batch.sample import samples
from tests.actors.episode_rig import play, resources, task, trajectory
from tests.actors.running_engine import RunningEngine
from tests.actors.tools.tool_envs import Door, schema
from tests.conftest import CHATML

TOLD = "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
CALLS = (
    """{% for c in m.tool_calls or [] %}{{ '<tool_call>\n{"name": "' + c.function.name + '", "arguments": ' """
    """+ c.function.arguments | tojson + '}\n</tool_call>' }}{% endfor %}"""
)
TEMPLATE = TOLD + CHATML.replace(" + '<|im_end|>\n' }}", " }}" + CALLS + "{{ '<|im_end|>\n' }}")
EPISODES, STEPS, ENOUGH = 16, 150, 0.02


def taught(policy: Path, layout: Dialogue, path: Path) -> str:
    """Weights of `policy` after it has learnt one conversation by heart, written to `path`; their hash."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(policy, trust_remote_code=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids, labels = conversation(layout)
    for _ in range(STEPS):
        loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
        if loss.item() < ENOUGH:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < ENOUGH
    safetensors.torch.save_file({name: tensor.data for name, tensor in model.named_parameters()}, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def conversation(layout: Dialogue) -> tuple[list[int], list[int]]:
    """The ids of an episode behind the door, and which of them are learnt (the others are -100)."""
    said, _ = Door().reset()
    context = Context(layout)
    ids = context.open([Message(**message) for message in said])
    labels = [-100] * len(ids)
    call = ToolCall(id="call00000", name="open", arguments={})
    result = [Message(role="tool", content="It is open.", tool_call_id="call00000")]
    for answer in (AssistantMessage(tool_calls=(call,)), AssistantMessage(content="Done.")):
        response = layout.response(answer)
        ids = context.extend(response, True, result)
        labels += response
        labels += [-100] * (len(ids) - len(labels))
    return ids, labels


@pytest.mark.services
@pytest.mark.timeout(600)
def test_calls_that_the_engine_samples_reach_the_environment_and_are_trained_on_as_sampled(
    engine: RunningEngine, tiny_policy: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    tokenizer.chat_template = TEMPLATE
    dialogue, weights = Dialogue(tokenizer), tmp_path / "taught.safetensors"
    sha256, before = taught(tiny_policy, dialogue.with_tools([schema("open")]), weights), tmp_path / "before"
    untaught = AutoModelForCausalLM.from_pretrained(tiny_policy, trust_remote_code=False)
    safetensors.torch.save_file({name: tensor.data for name, tensor in untaught.named_parameters()}, before)

    async def serve(path: Path, digest: str, version: int) -> None:
        await engine.engine.pause()
        await engine.engine.load(str(path), digest)
        await engine.engine.commit(version, rollback=version == 0)

    async def play_all() -> list[object]:
        async with resources(dialogue, engine=engine.engine, max_prompt_tokens=400, episode_timeout_s=120) as here:
            door = task("tests.actors.tools.tool_envs:Door")
            return list(await asyncio.gather(*(play(here, door, index) for index in range(EPISODES))))

    engine.run(serve(weights, sha256, 1))
    try:
        done = [trajectory(result) for result in engine.run(play_all(), timeout_s=300)]  # type: ignore[arg-type]
    finally:
        engine.run(serve(before, hashlib.sha256(before.read_bytes()).hexdigest(), 0))
    solved = [each for each in done if [turn.action for turn in each.turns] == ["open {}", "Done."]]
    assert len(solved) >= EPISODES / 2  # sampled at 0.8, about 40 tokens of which each could be another one
    for each in solved:
        assert (each.outcome, each.turns[0].next_anchor) == ("success", "open")
        (sample,) = samples(each, [0.0] * len(each.turns))
        sampled = [token for turn in each.turns for token in turn.response_ids]
        assert sample.token_ids[sample.loss_mask].tolist() == sampled
        assert tokenizer.decode(sampled).endswith("</tool_call><|im_end|>Done.<|im_end|>")
