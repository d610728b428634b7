"""Prompts and masks of whole conversations, token by token, against what each family's own template renders of them."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from milepost.actors.context import Context
from milepost.envs.chat_template import TemplateError
from milepost.envs.dialogue import Dialogue, ObservationError
from milepost.envs.messages import AssistantMessage, Message, Said, ToolCall, messages_of
from milepost.envs.types import Task, Trajectory, Turn, VersionSpan
from milepost.learner.batch.sample import Sample, samples
from tests.families.chat_templates import family_tokenizer

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Find an order.",
            "parameters": {"type": "object", "properties": {"order": {"type": "integer"}}},
        },
    }
]
OPENING = [Message(role="system", content="Be brief."), Message(role="user", content="Where is order 7?")]


def call(order: int, reasoning: str = "") -> AssistantMessage:
    calls = (ToolCall(id="call00001", name="look_up", arguments={"order": order}),)
    return AssistantMessage(reasoning=reasoning, tool_calls=calls)


def result(content: str) -> list[Message]:
    return [Message(role="tool", name="look_up", tool_call_id="call00001", content=content)]


def as_dict(message: AssistantMessage) -> dict[str, Any]:
    said: dict[str, Any] = {"role": "assistant", "content": message.content}
    if message.reasoning:
        said["reasoning_content"] = message.reasoning
    if message.tool_calls:
        said["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
            for c in message.tool_calls
        ]
    return said


def played(
    family: str, opening: Said, turns: list[tuple[AssistantMessage, Said]], *, tools: list[dict[str, Any]]
) -> list[Sample]:
    """A conversation through `Context`, every prompt compared with the template's own; the samples it is trained as."""
    tokenizer = family_tokenizer(family)
    layout = Dialogue(tokenizer).with_tools(tools) if tools else Dialogue(tokenizer)
    context, messages = Context(layout), [msgspec.to_builtins(message) for message in messages_of(opening)]
    prompt, done = context.open(opening), []
    for answer, said in turns:
        rendered = tokenizer.apply_chat_template(
            messages,
            tools=tools or None,
            tokenize=False,
            add_generation_prompt=True,
            strftime_now=lambda _: "01 Jan 2025",
        )
        assert tokenizer.decode(prompt) == rendered
        assert prompt == tokenizer.encode(rendered, add_special_tokens=False)
        response = layout.response(answer)
        spans = [VersionSpan(version=0, start=0, end=len(response))]
        done.append(
            Turn(
                prompt_ids=prompt, response_ids=response, logprobs=[-1.0] * len(response), versions=spans, anchor="a",
                next_anchor="a", action="x", reward=0.0,
            )
        )  # fmt: skip
        messages += [as_dict(answer), *(msgspec.to_builtins(message) for message in messages_of(said))]
        prompt = context.extend(response, True, said)
    task = Task(env="e", seed=0, split="train")
    trajectory = Trajectory(task=task, group_id="g", index=0, turns=done, outcome="success")
    found = samples(trajectory, [0.0] * len(done))
    for sample in found:
        here = np.unique(sample.turn_index[sample.loss_mask])
        sampled = [token for turn in here for token in done[turn].response_ids]
        assert sample.token_ids[sample.loss_mask].tolist() == sampled  # what is trained is what was sampled
    assert sum(sample.num_trained for sample in found) == sum(len(turn.response_ids) for turn in done)
    return found


@pytest.mark.parametrize("family", ["qwen2.5", "qwen3", "llama3"])
def test_a_conversation_with_tools_is_laid_out_as_the_template_lays_it_out(family: str) -> None:
    turns: list[tuple[AssistantMessage, Said]] = [
        (call(7), result("shipped")),
        (call(8), [*result('{"state": "lost"}'), *result("see above")] if family != "llama3" else result('a "b"')),
        (AssistantMessage(content="It was shipped."), "And order 9?"),
        (call(9), result("unknown")),
    ]
    (sample,) = played(family, OPENING, turns, tools=TOOLS)
    assert set(sample.turn_index.tolist()) == {-1, 0, 1, 2, 3}


def test_thoughts_that_qwen_3_drops_at_the_next_question_begin_one_new_sample() -> None:
    turns: list[tuple[AssistantMessage, Said]] = [
        (call(7, "First the order."), result("shipped")),
        (call(8, "Then the other."), result("lost")),  # no question in between: the template keeps both thoughts
        (AssistantMessage(content="One was lost."), "And order 9?"),  # a question: it drops them
        (call(9, "The last."), result("unknown")),
    ]
    first, second = played("qwen3", OPENING, turns, tools=TOOLS)
    assert set(first.turn_index.tolist()) == {-1, 0, 1, 2}
    assert set(second.turn_index.tolist()) == {-1, 3}
    tokenizer = family_tokenizer("qwen3")
    assert "First the order." in tokenizer.decode(first.token_ids.tolist())
    assert "First the order." not in tokenizer.decode(second.token_ids.tolist())


@pytest.mark.parametrize("family", ["qwen2.5", "qwen3", "llama3", "smollm2", "gemma"])
def test_a_conversation_in_text_is_laid_out_as_the_template_lays_it_out(family: str) -> None:
    turns: list[tuple[AssistantMessage, Said]] = [
        (AssistantMessage(content=f"Move {turn}"), f"State {turn}") for turn in range(4)
    ]
    (sample,) = played(family, "Go.", turns, tools=[])
    assert set(sample.turn_index.tolist()) == {-1, 0, 1, 2, 3}


@pytest.mark.parametrize(
    ("family", "complaint"),
    [
        ("smollm2", "does not show 'look_up' as it is"),
        ("gemma", "does not show 'look_up' as it is"),
    ],
)
def test_a_template_that_knows_no_tools_is_refused_for_an_environment_that_has_some(
    family: str, complaint: str
) -> None:
    with pytest.raises(TemplateError, match=complaint):
        Dialogue(family_tokenizer(family)).with_tools(TOOLS)


@pytest.mark.parametrize("family", ["qwen2.5", "qwen3", "llama3"])
def test_a_result_cannot_forge_a_turn_or_a_call(family: str) -> None:
    tokenizer = family_tokenizer(family)
    layout = Dialogue(tokenizer).with_tools(TOOLS)
    for forged in layout.control_tokens:
        with pytest.raises(ObservationError, match="control token"):
            layout.continuation(result(f"a {forged} b"), True)
    assert ("<tool_call>" in layout.control_tokens) == (family != "llama3")
