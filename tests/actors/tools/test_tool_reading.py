"""Responses taken apart by vLLM's own parsers, of the families whose templates know tools."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest

from milepost.actors.checks.rehearsal import Characters
from milepost.actors.tool_reading import Reader, ToolLayout, ToolParserError, ToolReaders, UnreadableCall
from milepost.envs.dialogue import Dialogue
from milepost.envs.messages import AssistantMessage, ToolCall
from tests.envs.test_envs_layout_families import TOOLS
from tests.families.chat_templates import family_tokenizer

FAMILIES = ("qwen2.5", "qwen3", "llama3")
HERMES = '<tool_call>\n{"name": "look_up", "arguments": %s}\n</tool_call>'


@functools.cache
def reader_of(family: str) -> tuple[Any, ToolLayout, Reader]:
    tokenizer = family_tokenizer(family)
    return tokenizer, *ToolReaders(tokenizer, Dialogue(tokenizer)).reader(TOOLS)


def read(family: str, text: str, *, calls_before: int = 0) -> AssistantMessage:
    tokenizer, _, reader = reader_of(family)
    ids = tokenizer.encode(text, add_special_tokens=False)
    return reader.read([*ids, tokenizer.eos_token_id], True, calls_before)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_template_writes_is_read_back(family: str) -> None:
    _, layout, _ = reader_of(family)
    call = ToolCall(id="call00003", name="look_up", arguments={"order": 7, "why": 'he "said" so \U0001f9ca'})
    assert read(family, layout.spoken(AssistantMessage(tool_calls=(call,))), calls_before=3).tool_calls == (call,)


def test_thoughts_are_told_from_calls_and_from_answers_where_the_family_thinks() -> None:
    _, layout, _ = reader_of("qwen3")
    call = ToolCall(id="call00000", name="look_up", arguments={"order": 7})
    said = AssistantMessage(reasoning="Look first.", tool_calls=(call,))
    found = read("qwen3", layout.spoken(said))
    assert (found.reasoning.strip(), found.content.strip(), found.tool_calls) == ("Look first.", "", (call,))
    found = read("qwen3", "<think>\nIt is there.\n</think>\n\nShipped.")
    assert (found.reasoning.strip(), found.content.strip(), found.tool_calls) == ("It is there.", "Shipped.", ())


def test_several_calls_are_numbered_on() -> None:
    found = read("qwen2.5", "So: " + HERMES % '{"order": 1}' + "\n" + HERMES % '{"order": 2}', calls_before=4)
    assert [(call.id, call.arguments["order"]) for call in found.tool_calls] == [("call00004", 1), ("call00005", 2)]
    assert found.content.strip() == "So:"


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_without_a_call_is_content(family: str) -> None:
    text = "It was shipped. {not a call" if family != "llama3" else "It was shipped."
    found = read(family, f"<think>\n\n</think>\n\n{text}" if family == "qwen3" else text)
    assert (found.content.strip(), found.tool_calls) == (text, ())


@pytest.mark.parametrize(
    ("family", "text", "why"),
    [
        ("qwen2.5", '<tool_call>\n{"name": "look_up", "argum', "cut short or not well formed"),
        ("qwen2.5", "<tool_call>\nlook_up(7)\n</tool_call>", "cut short or not well formed"),
        ("qwen2.5", HERMES % '{"order": 1}' + '\n<tool_call>\n{"name"', "cut short or not well formed"),
        ("qwen2.5", '<tool_call>\n{"name": 7, "arguments": {}}\n</tool_call>', "cut short or not well formed"),
        ("qwen2.5", HERMES % '"left"', "its arguments are not an object of JSON"),
        ("qwen2.5", HERMES % '{"order": NaN}', "its arguments are not an object of JSON"),
        ("qwen2.5", HERMES % '{"order": "\\ud800"}', "its arguments are not an object of JSON"),
        ("qwen2.5", HERMES % f'{{"order": {2**80}}}', "its arguments are not an object of JSON"),
        ("qwen2.5", HERMES % ('{"order": ' + "[" * 5000 + "]" * 5000 + "}"), "it|its"),
        ("qwen2.5", HERMES % '{"order": "<|im_start|>user"}', "its arguments hold a control token"),
        ("qwen2.5", '<tool_call>\n{"name": "<|im_end|>", "arguments": {}}\n</tool_call>', "its name holds a control"),
        ("qwen3", '<think>\nHm.\n</think>\n\n<tool_call>\n{"name": "look_up"', "cut short or not well formed"),
        ("llama3", '{"name": "look_up", "parameters": {"order": 7}', "cut short or not well formed"),
        ("llama3", '{"name": "look_up"}', "cut short or not well formed"),
    ],
)
def test_a_call_that_cannot_be_read_says_why_without_words_of_the_policy(family: str, text: str, why: str) -> None:
    with pytest.raises(UnreadableCall, match=why) as error:
        read(family, text)
    assert len(str(error.value)) < 80
    assert "look_up" not in str(error.value)


def test_a_control_token_that_the_policy_sampled_does_not_reach_the_environment() -> None:
    assert read("qwen2.5", "It <|im_start|>is<|endoftext|> so.").content == "It is so."


def test_a_response_that_ran_into_its_limit_is_read_to_its_last_token() -> None:
    tokenizer, _, reader = reader_of("qwen2.5")
    ids = tokenizer.encode(HERMES % '{"order": 7}', add_special_tokens=False)
    assert reader.read(ids, False, 0).tool_calls[0].arguments == {"order": 7}


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (
            {"tool_parser": "herms"},
            "'herms' does not read the call .*has not been registered; set .*hermes, .*llama3_json",
        ),
        (
            {"tool_parser": "llama3_json"},
            "'llama3_json' does not read the call that the chat template writes as '<tool_c",
        ),
        ({"reasoning_parser": "none"}, "with actors.reasoning_parser = 'none'"),
    ],
)
def test_a_parser_that_does_not_read_what_the_template_writes_is_refused(names: Any, complaint: str) -> None:
    tokenizer = family_tokenizer("qwen2.5")
    with pytest.raises(ToolParserError, match=complaint):
        ToolReaders(tokenizer, Dialogue(tokenizer), **names).reader(TOOLS)


def test_a_named_parser_that_reads_it_is_taken() -> None:
    tokenizer = family_tokenizer("qwen3")
    readers = ToolReaders(tokenizer, Dialogue(tokenizer), tool_parser="qwen3_json", reasoning_parser="deepseek_r1")
    _, reader = readers.reader(TOOLS)
    ids = tokenizer.encode("<think>\nHm.\n</think>\n\n" + HERMES % "{}", add_special_tokens=False)
    assert reader.read(ids, False, 0).tool_calls[0].name == "look_up"


def test_a_check_without_a_model_reads_what_it_writes() -> None:
    layout, reader = ToolReaders(Characters(), Characters(), tool_parser="hermes").reader(TOOLS)
    said = AssistantMessage(content="So:\n", tool_calls=(ToolCall(id="call00000", name="x", arguments={"y": [1]}),))
    found = reader.read(Characters().response(said), True, 0)
    assert (found.content.strip(), found.tool_calls) == ("So:", said.tool_calls)
    assert json.loads(layout.spoken(said).split("\n")[-2])["name"] == "x"
