"""A model's own chat template: what it renders of a conversation, and where each answer stands in that.

The template is a program of the model's author. Nothing here judges whether it can serve; `dialogue.py` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from milepost.envs.messages import AssistantMessage, ToolSchema

PLACEHOLDER = "x"
CALL_ID = "call00000"
"""Nine letters and digits, as some templates ask for."""
_TODAY = datetime(2025, 1, 1)
"""What every template is told the date is."""
_MARK = "\ue000\ue001"
"""Characters without a meaning (Unicode's private use area), written behind answers to find them again."""


class TemplateError(ValueError):
    """The tokenizer's chat template cannot lay out a conversation."""


class Tokenizer(Protocol):
    """What a dialogue needs of a tokenizer; every `transformers` tokenizer has it."""

    @property
    def eos_token_id(self) -> int | None:
        """The end-of-sequence token."""

    @property
    def unk_token_id(self) -> int | None:
        """The unknown-text token."""

    @property
    def all_special_ids(self) -> Sequence[int]:
        """The tokens that have a name: end of sequence, padding and so on."""

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        """The tokens beside the vocabulary of ordinary text; `special` tells those that are no text."""

    def apply_chat_template(
        self, conversation: list[dict[str, Any]], *, tokenize: bool, add_generation_prompt: bool, **variables: Any
    ) -> Any:
        """The conversation as one string, where `tokenize` is False."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """Text of `token_ids`."""


@dataclass(frozen=True, slots=True)
class Part:
    """What the template renders before an answer, or after the last one."""

    text: str
    """With the answer as the template writes it, where that is not as it was said."""
    kept: bool
    """Whether the answer follows as it was said, but for white space around it."""


class ChatTemplate:
    """The chat template of `tokenizer`, told of `tools`."""

    def __init__(self, tokenizer: Tokenizer, tools: Sequence[ToolSchema] = ()) -> None:
        self._tokenizer = tokenizer
        self.tools = list(tools)

    def render(self, messages: Sequence[dict[str, Any]], *, generation: bool = True) -> str:
        """The conversation, and with `generation` what stands before the next answer. Raises `TemplateError`."""
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages),
                tools=self.tools or None,
                tokenize=False,
                add_generation_prompt=generation,
                strftime_now=_TODAY.strftime,  # in place of the clock that transformers gives to templates
            )
        except Exception as error:  # the template is a program of the model's author: it may raise anything
            roles = ", ".join(message["role"] for message in messages)
            raise TemplateError(f"the chat template cannot render the roles {roles}: {error}") from error
        if not isinstance(text, str):
            raise TemplateError(f"the chat template gave {type(text).__name__}, not text")
        return text

    def parts(self, messages: Sequence[dict[str, Any]]) -> list[Part]:
        """What is rendered before each answer (role assistant) of `messages`, and after the last one.

        Raises `TemplateError` where the template drops an answer or repeats one.
        """
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        mark = _MARK
        while any(mark in message["content"] for message in messages):
            mark = mark[0] + mark  # no beginning of it is its end: what stands before it cannot be taken for it
        text = self.render([m | {"content": m["content"] + mark} if m["role"] == "assistant" else m for m in messages])
        *before, after = text.split(mark)
        if len(before) != len(answers):
            raise TemplateError(
                f"the chat template renders {len(before)} of {len(answers)} answers: use a template that shows every "
                "message"
            )
        return [_part(text, answer) for text, answer in zip(before, answers, strict=True)] + [Part(after, True)]

    def spoken(self, opening: Sequence[dict[str, Any]], message: AssistantMessage) -> str:
        """The text of an answer to `opening` that the template renders as `message`.

        Raises `TemplateError` where that cannot be told from what stands around it.
        """
        after: dict[str, Any] = {"role": "user", "content": PLACEHOLDER}
        if self.tools:  # a result and no question: some templates drop thoughts before the last question
            call_id = message.tool_calls[0].id if message.tool_calls else CALL_ID
            after = {"role": "tool", "content": PLACEHOLDER, "name": PLACEHOLDER, "tool_call_id": call_id}
        before, tail = self.parts([*opening, {"role": "assistant", "content": PLACEHOLDER}, after])
        text = self.render([*opening, _as_template_takes(message), after])
        if not text.startswith(before.text) or not text.endswith(tail.text):
            raise TemplateError(f"the chat template renders an answer with tool calls out of place: {text[-200:]!r}")
        return text[len(before.text) : len(text) - len(tail.text)]


def _part(text: str, answer: str) -> Part:
    for said in (answer, answer.lstrip()):
        if text.endswith(said):
            return Part(text[: len(text) - len(said)], True)
    return Part(text, False)


def _as_template_takes(message: AssistantMessage) -> dict[str, Any]:
    taken: dict[str, Any] = {"role": "assistant", "content": message.content}
    if message.reasoning:
        taken["reasoning_content"] = message.reasoning
    if message.tool_calls:
        calls = [{"name": call.name, "arguments": call.arguments} for call in message.tool_calls]
        ids = [call.id for call in message.tool_calls]
        taken["tool_calls"] = [{"id": i, "type": "function", "function": c} for i, c in zip(ids, calls, strict=True)]
    return taken
