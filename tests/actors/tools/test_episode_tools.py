"""Episodes with environments that have tools: calls reach them taken apart, and what cannot be read does not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from milepost.actors.engine import Completion
from milepost.envs.dialogue import Dialogue
from milepost.envs.messages import AssistantMessage, ToolCall
from milepost.envs.types import Failure, Trajectory
from milepost.learner.batch.sample import samples
from tests.actors.episode_rig import completion, failure, play, resources, task, trajectory
from tests.actors.tools.tool_envs import GOT
from tests.families.chat_templates import family_tokenizer

HERE = "tests.actors.tools.tool_envs"


class Scripted:
    """Says one thing after the other."""

    def __init__(self, dialogue: Dialogue, said: list[str]) -> None:
        self.prompts: list[list[int]] = []
        self._dialogue = dialogue
        self._said: Iterator[str] = iter(said)

    async def generate(self, prompt_ids: list[int]) -> Completion:
        self.prompts.append(prompt_ids)
        ids = self._dialogue._tokenizer.encode(next(self._said), add_special_tokens=False)
        return completion([*ids, self._dialogue.stop_token_ids[0]])


def played(said: list[str], *, family: str = "qwen2.5", **options: Any) -> tuple[Trajectory | Failure, list[str]]:
    """The episode in which a policy of `family` says `said`, and its prompts as text."""
    tokenizer = family_tokenizer(family)
    dialogue = Dialogue(tokenizer)

    async def run() -> Any:
        engine = Scripted(dialogue, said)
        async with resources(dialogue, engine=engine, max_prompt_tokens=10_000, episode_timeout_s=240) as here:
            return await play(here, task(f"{HERE}:Door", **options)), engine.prompts

    result, prompts = asyncio.run(run())
    return result, [tokenizer.decode(prompt) for prompt in prompts]


CALL = '<tool_call>\n{"name": "open", "arguments": {}}\n</tool_call>'


def test_a_call_reaches_the_environment_taken_apart_and_its_result_the_policy() -> None:
    result, prompts = played(["I will. " + CALL, "Done."])
    done = trajectory(result)
    opens, done_says = GOT
    assert opens == AssistantMessage(
        content="I will. ", tool_calls=(ToolCall(id="call00000", name="open", arguments={}),)
    )
    assert done_says == AssistantMessage(content="Done.")
    assert done.outcome == "success"
    assert [turn.action for turn in done.turns] == ["open {}", "Done."]
    assert '"name": "open"' in prompts[0].partition("<|im_start|>user")[0]  # the tools, in the system message
    assert prompts[1].endswith(
        "assistant\nI will. " + CALL + "<|im_end|>\n<|im_start|>user\n<tool_response>\nIt is open.\n</tool_response>"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    assert len(samples(done, [0.0, 0.0])) == 1


@pytest.mark.parametrize(
    ("family", "broken", "call"),
    [
        ("qwen2.5", "<tool_call>\n{open the door}\n</tool_call>", CALL),
        ("qwen3", "<think>\nHm.\n</think>\n\n<tool_call>\n{open", "<think>\nSo.\n</think>\n\n" + CALL),
        ("llama3", '{"name": "open"', '{"name": "open", "parameters": {}}'),
    ],
)
def test_a_call_that_cannot_be_read_is_no_action_and_the_policy_reads_why(family: str, broken: str, call: str) -> None:
    result, prompts = played(
        [broken, call, broken, "<think>\n\n</think>\n\nDone." if family == "qwen3" else "Done."], family=family
    )
    done = trajectory(result)
    assert [len(message.tool_calls) for message in GOT] == [1, 0]  # neither broken call came through
    assert GOT[0].tool_calls[0].id == "call00001"
    first, second, third, last = done.turns
    assert (first.action, first.reward, first.anchor, first.next_anchor, first.progress) == (
        None, 0.0, "closed", "closed", 0.0,
    )  # fmt: skip
    assert (second.action, second.next_anchor) == ("open {}", "open")
    assert (third.action, third.next_anchor, third.progress) == (None, "open", 0.5)
    assert (last.reward, done.outcome) == (1.0, "success")
    assert "That tool call cannot be read: it is cut short or not well formed. Nothing was done." in prompts[1]
    assert len(samples(done, [0.0] * 4)) == 1  # no question, so not even Qwen 3 drops a thought


def test_a_template_that_knows_no_tools_fails_the_episode_with_what_to_do() -> None:
    failed = failure(played(["x"], family="smollm2")[0])
    assert (failed.boundary, failed.error) == ("env", "TemplateError")
    assert "does not show 'open' as it is" in failed.message


def test_a_result_that_holds_a_control_token_is_the_environments_failure() -> None:
    failed = failure(played([CALL], says="<|im_end|>")[0])
    assert (failed.boundary, failed.error) == ("env", "ObservationError")


def test_a_tool_whose_name_is_a_control_token_is_the_environments_failure() -> None:
    assert failure(played([CALL], name="<|im_end|>")[0]).error == "ObservationError"


def test_an_environment_in_text_gets_text(dialogue: Dialogue) -> None:
    async def run() -> Any:
        async with resources(dialogue) as here:
            here.readers = None  # type: ignore[assignment]  # not asked
            return await play(here, task(target=1))

    assert trajectory(asyncio.run(run())).turns[0].action == "up"


def test_messages_without_tools_are_answered_in_text() -> None:
    tokenizer = family_tokenizer("gemma")
    dialogue = Dialogue(tokenizer)

    async def run() -> Any:
        engine = Scripted(dialogue, ["a", "b"])
        async with resources(dialogue, engine=engine, max_prompt_tokens=10_000, episode_timeout_s=240) as here:
            return await play(here, task(f"{HERE}:Talks")), engine.prompts

    result, prompts = asyncio.run(run())
    assert [turn.action for turn in trajectory(result).turns] == ["a", "b"]
    assert tokenizer.decode(prompts[1]) == (
        "<bos><start_of_turn>user\nBe quick.\n\nOpen the door.<end_of_turn>\n<start_of_turn>model\na<end_of_turn>\n"
        "<start_of_turn>user\nYou said a<end_of_turn>\n<start_of_turn>model\n"
    )
