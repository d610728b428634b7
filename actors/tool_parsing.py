"""Tool calls and thoughts, read from a response by vLLM's own parsers: the ones that its server would use.

Nothing is parsed by us. Which parser reads a model's calls follows from its chat template, for a template shows what
its model was trained to write: the first parser that reads back a call which the template rendered is the one. Not
promised: that a parser tells a broken call from text; a response that begins a call as the template does and yields
none counts as broken.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.parser.abstract_parser import Parser
from vllm.parser.parser_manager import ParserManager
from vllm.reasoning import ReasoningParserManager
from vllm.tokenizers.hf import get_cached_tokenizer
from vllm.tool_parsers import ToolParserManager

from milepost.actors.tool_reading import ToolLayout, ToolParserError, UnreadableCall
from milepost.envs.messages import AssistantMessage, ToolCall, ToolSchema, tool_names
from milepost.envs.plain_values import ContractError, plain_object

_TOOL_PARSERS = (
    "hermes", "llama3_json", "qwen3_coder", "mistral", "granite", "deepseek_v3", "deepseek_v31", "glm47", "gemma4",
    "pythonic",
)  # fmt: skip
"""Those that are tried, widespread ones first."""
_REASONING_PARSERS = ("qwen3", "deepseek_r1", "mistral", "granite", "glm45", "gemma4")
_THOUGHT = "Look it up first."
_SHORTEST_SIGN = 3
"""Letters that tell the beginning of a call from text."""


class ToolReader:
    """Reads the responses of one policy to an environment with `tools`.

    Raises `ToolParserError` where no parser reads what the chat template writes, or not the one that is named.
    """

    def __init__(
        self, tokenizer: Any, layout: ToolLayout, tools: Sequence[ToolSchema], tool_parser: str, reasoning_parser: str
    ) -> None:
        # As vLLM's server does: a parser that looks a token up would list the whole vocabulary for every response.
        self._tokenizer = get_cached_tokenizer(tokenizer) if hasattr(tokenizer, "get_vocab") else tokenizer
        self._control = layout.control_tokens
        self._request = ChatCompletionRequest(model="", messages=[{"role": "user", "content": ""}], tools=list(tools))
        call = ToolCall(id="call00000", name=tool_names(tools)[0], arguments={"probe": "left right"})
        written = layout.spoken(AssistantMessage(tool_calls=(call,)))
        thoughtful = layout.spoken(AssistantMessage(reasoning=_THOUGHT, tool_calls=(call,)))
        asked = [(written, "")] if _THOUGHT not in thoughtful else [(written, ""), (thoughtful, _THOUGHT)]
        self._parser_class = self._chosen(call, asked, tool_parser, reasoning_parser)
        self._sign = "".join(written.partition(call.name)[0].split()[:1])

    def read(self, response_ids: list[int], closed: bool, calls_before: int) -> AssistantMessage:
        """What a response says; its calls are numbered on from `calls_before`. Raises `UnreadableCall`."""
        text = str(self._tokenizer.decode(response_ids[:-1] if closed else response_ids, skip_special_tokens=False))
        reasoning, content, calls = self._parsed(self._parser_class, text, response_ids)
        said = text.replace(reasoning, "", 1) if reasoning else text
        if not calls and len(self._sign) >= _SHORTEST_SIGN and self._sign in said:
            raise UnreadableCall("it is cut short or not well formed")
        return AssistantMessage(
            content=self._without_control(content),
            reasoning=self._without_control(reasoning),
            tool_calls=tuple(
                ToolCall(id=f"call{number:05d}", name=self._name(name), arguments=self._arguments(arguments))
                for number, (name, arguments) in enumerate(calls, calls_before)
            ),
        )

    def _parsed(self, kind: type[Parser], text: str, ids: Sequence[int]) -> tuple[str, str, list[tuple[str, str]]]:
        """Thoughts, content, and calls as (name, arguments)."""
        try:  # a parser holds the state of one response
            parser = kind(self._tokenizer, self._request.tools)
            reasoning, content, calls = parser.parse(text, self._request, True, ids)
        except Exception as error:  # parsers of many hands, and any text
            raise UnreadableCall("it cannot be parsed") from error
        return reasoning or "", content or "", [(call.name, call.arguments) for call in calls or []]

    def _name(self, name: str) -> str:
        if self._without_control(name) != name:
            raise UnreadableCall("its name holds a control token")
        return name

    def _arguments(self, arguments: str) -> dict[str, Any]:
        try:
            read = plain_object(json.loads(arguments), "arguments")
        except (ValueError, RecursionError, ContractError) as error:
            raise UnreadableCall("its arguments are not an object of JSON") from error
        written = json.dumps(read, ensure_ascii=False)
        if self._without_control(written) != written:
            raise UnreadableCall("its arguments hold a control token")
        return read

    def _without_control(self, text: str) -> str:
        for token in self._control:
            text = text.replace(token, "")
        return text

    def _chosen(
        self, call: ToolCall, asked: Sequence[tuple[str, str]], tool_parser: str, reasoning_parser: str
    ) -> type[Parser]:
        """The parsers that read `call` from each text of `asked`, and its thought.

        A reasoning parser that is named need not read a call without a thought, nor any where the template shows none.
        """
        refusals, thinks = [], len(asked) > 1
        for tool, reasoning in _candidates(tool_parser, reasoning_parser, thinks=thinks):
            try:
                found = self._composed(tool, reasoning)
                judged = found if thinks or not reasoning else self._composed(tool, "")
                if all(self._reads(judged, call, *each) for each in (asked[-1:] if reasoning_parser else asked)):
                    return found
            except (TypeError, KeyError) as error:  # no such parser, or one for other tokens
                refusals.append(" ".join(str(error).split()))
        why = f": {refusals[0]}" if refusals and tool_parser else ""
        named = (
            f"actors.tool_parser = {tool_parser!r} does not read" if tool_parser else "no parser that is tried reads"
        )
        with_thoughts = f" with actors.reasoning_parser = {reasoning_parser!r}" if reasoning_parser else ""
        raise ToolParserError(
            f"{named} the call that the chat template writes as {asked[0][0]!r}{with_thoughts}{why}; set "
            f"actors.tool_parser to one of vLLM's ({', '.join(ToolParserManager.list_registered())}), and "
            f"actors.reasoning_parser ({', '.join(ReasoningParserManager.list_registered())}) where it thinks"
        )

    def _composed(self, tool_parser: str, reasoning_parser: str) -> type[Parser]:
        found: type[Parser] | None = ParserManager.get_parser(
            tool_parser, reasoning_parser or None, True, tokenizer=self._tokenizer
        )
        assert found is not None  # a tool parser is named
        return found

    def _reads(self, kind: type[Parser], call: ToolCall, text: str, thought: str) -> bool:
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        try:
            reasoning, content, calls = self._parsed(kind, text, ids)
            same = [(name, self._arguments(arguments)) for name, arguments in calls] == [(call.name, call.arguments)]
        except UnreadableCall:
            return False
        return same and reasoning.strip() == thought and not content.strip()


def _candidates(tool_parser: str, reasoning_parser: str, *, thinks: bool) -> Iterator[tuple[str, str]]:
    for tool in [tool_parser] if tool_parser else _TOOL_PARSERS:
        for reasoning in [reasoning_parser] if reasoning_parser or not thinks else _REASONING_PARSERS:
            yield tool, reasoning
