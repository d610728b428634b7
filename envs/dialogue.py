"""How observations and responses are laid out as token ids: one layout for rollout and for warm-up.

Where the chat template only appends, a conversation is built by appending ids: `opening`, then for every turn the ids
the policy sampled and a `continuation`. So the prompt of turn k followed by its response is the exact prefix of the
prompt of turn k+1. Where the template rewrites what it rendered before (thoughts of earlier turns that it drops, say),
`whole` lays the conversation out anew: what the template leaves as it was said keeps the ids that were sampled, and
only what it rewrites is encoded, as context of later turns. Either way nothing that was sampled is encoded again to be
trained on: a turn's own ids stay, and a prompt that does not continue the one before begins a new sample.

Templates that ask for the date are told a fixed one, so that a layout is the same in every process and on every day.
Not promised: that ids a policy sampled are the ids its text would encode to, and that white space around a response
looks as in the template, which may trim it: what was sampled stays.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from milepost.envs.chat_template import CALL_ID, PLACEHOLDER, ChatTemplate, Part, TemplateError, Tokenizer
from milepost.envs.messages import (
    AssistantMessage,
    Exchange,
    Message,
    Said,
    ToolCall,
    ToolSchema,
    messages_of,
    text_of,
    tool_names,
)

_PROBES = (
    ("State {}", "Move {}"),
    ("  State {}\n\n", " Move {}\n"),
    ("State {}", "<think>\nPlan {}\n</think>\n\nMove {}"),
)
"""Observations and responses that templates are known to rewrite: letters, white space around them, thoughts."""
_PROBED_TURNS = 3
_MOST_TOOL_SETS = 32
_MOST_ROLES = 256


class ObservationError(ValueError):
    """An observation holds the text of a control token and would forge a turn, or the tokenizer cannot take it."""


class Dialogue:
    """The token layout of conversations between an environment and a policy (assistant).

    Raises `TemplateError` where the chat template hides what is said, drops answers, does not show the tools, or does
    not close an assistant message with a special token.
    """

    def __init__(self, tokenizer: Tokenizer, system_prompt: str = "", tools: Sequence[ToolSchema] = ()) -> None:
        self._tokenizer = tokenizer
        self._system_prompt = system_prompt
        self._template = ChatTemplate(tokenizer, tools)
        self._with_tools: dict[str, Dialogue] = {}
        first = self._messages("")
        self._require_shown([system_prompt, *tool_names(tools)], self._template.render(first))
        roles = ("user", "tool") if tools else ("user",)
        self.appends = all([self._probe(*probe, role) for probe in _PROBES for role in roles])
        """Whether the template leaves what it rendered before as it was, so that conversations grow by appending."""
        special = self._special_ids()
        following = self._encode(self._following(PLACEHOLDER))[:1]
        if not following or following[0] not in special:
            raise TemplateError(
                f"the chat template closes an assistant message with {self._following(PLACEHOLDER)[:20]!r}, which does "
                "not start with a special token: the engine cannot tell the end of a turn; use a template with an "
                "end-of-turn token"
            )
        self._end_of_turn_id = following[0]
        self._control_ids = special | self._markers()
        self._expected: dict[tuple[bool, tuple[str, ...]], Counter[int]] = {}
        for tool in tools:
            self._refuse_forgery(self._encode(json.dumps(tool, ensure_ascii=False)), Counter(), str(tool))

    def with_tools(self, tools: Sequence[ToolSchema]) -> Dialogue:
        """The layout for an environment that declares `tools`; raises as the constructor does."""
        key = json.dumps(tools, sort_keys=True)
        found = self._with_tools.get(key)
        if found is None:
            if len(self._with_tools) >= _MOST_TOOL_SETS:
                self._with_tools.clear()
            found = self._with_tools[key] = Dialogue(self._tokenizer, self._system_prompt, tools)
        return found

    @property
    def stop_token_ids(self) -> list[int]:
        """The tokens after which the engine stops: end of turn, then end of sequence where it is another one."""
        eos = self._tokenizer.eos_token_id
        return [self._end_of_turn_id] if eos in (None, self._end_of_turn_id) else [self._end_of_turn_id, eos]

    @property
    def control_tokens(self) -> list[str]:
        """The texts of the tokens that no message may hold."""
        return [self._tokenizer.decode([i], skip_special_tokens=False) for i in sorted(self._control_ids)]

    def opening(self, said: Said) -> list[int]:
        """Ids of the first prompt: system prompt, what the environment said first, generation prompt.

        Raises `ObservationError` if that holds a control token.
        """
        ids = self._encode(self._template.render(self._messages(said)))
        self._refuse_forgery(ids, self._expected_control(said, first=True), text_of(said))
        return ids

    def response(self, said: str | AssistantMessage) -> list[int]:
        """Ids of a response as a demonstrator would write it, closed by the end-of-turn token.

        Raises `ObservationError` if a text holds a control token; calls are written as the template writes them.
        """
        if isinstance(said, AssistantMessage):
            return [*self._encode(self.spoken(said)), self._end_of_turn_id]
        ids = self._encode(said)
        self._refuse_forgery(ids, Counter(), said)
        return [*ids, self._end_of_turn_id]

    def spoken(self, message: AssistantMessage) -> str:
        """The response that the template renders as `message`. Raises `TemplateError`."""
        return self._template.spoken(self._messages(PLACEHOLDER), message)

    def continuation(self, said: Said, closed: bool) -> list[int]:
        """Ids between a sampled response and the next one: end of turn, what the environment said, generation prompt.

        `closed`: the response already ends with one of `stop_token_ids`; else (it ran into its length limit) the
        continuation starts with the end-of-turn token. Raises `ObservationError` if what was said holds a control
        token.
        """
        ids = self._encode(self._following(said))
        self._refuse_forgery(ids, self._expected_control(said, first=False), text_of(said))
        return ids[1:] if closed else ids

    def whole(self, first: Said, exchanges: Sequence[Exchange]) -> list[int]:
        """Ids of the prompt after `exchanges`, laid out from the beginning.

        Where the template leaves a response as it was said, its sampled ids stay. Raises `ObservationError` if the last
        thing said holds a control token, and `TemplateError` where the template drops an answer.
        """
        return self._then(self.opening(first), self._messages(first), exchanges)

    def conversation(self, messages: Sequence[dict[str, Any]], exchanges: Sequence[Exchange] = ()) -> list[int]:
        """Ids of the prompt that shows `messages` of any role, answers included, and then `exchanges`, as `whole` does.

        Messages are as chat templates take them. Raises `ObservationError` if one holds a control token.
        """
        for message in messages:
            for text in (
                message["content"],
                *(json.dumps(c["function"], ensure_ascii=False) for c in message.get("tool_calls", ())),
            ):
                self._refuse_forgery(self._encode(text), Counter(), text)
        opening = self._with_system_prompt(list(messages))
        return self._then(self._encode(self._template.render(opening)), opening, exchanges)

    def _then(self, prompt: list[int], opening: list[dict[str, Any]], exchanges: Sequence[Exchange]) -> list[int]:
        """`exchanges` behind the `prompt` that shows `opening`."""
        if self.appends or not exchanges:
            for exchange in exchanges:
                prompt = prompt + exchange.response_ids + self.continuation(exchange.said, exchange.closed)
            return prompt
        for message in messages_of(exchanges[-1].said):
            self._refuse_forgery(self._encode(message.content), Counter(), message.content)
        conversation = opening
        for exchange in exchanges:
            conversation = [*conversation, {"role": "assistant", "content": self._text(exchange)}]
            conversation += _dicts(exchange.said)
        given = [message["content"] for message in opening if message["role"] == "assistant"]
        before, parts = "", self._template.parts(conversation)
        for part, answer in zip(parts, given, strict=False):
            before += part.text + (answer if part.kept else "")
        first, *later = parts[len(given) :]
        prompt, closed = [], False
        for part, exchange in zip([Part(before + first.text, first.kept), *later], exchanges, strict=False):
            prompt = prompt + self._encode(part.text)[closed:] + (exchange.response_ids if part.kept else [])
            closed = part.kept and exchange.closed
        return prompt + self._encode(parts[-1].text)[closed:]

    def _messages(self, said: Said) -> list[dict[str, Any]]:
        """What opens a conversation; the system prompt stands before the environment's own."""
        return self._with_system_prompt(_dicts(said))

    def _with_system_prompt(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if not self._system_prompt:
            return messages
        if messages[0]["role"] == "system":
            merged = f"{self._system_prompt}\n\n{messages[0]['content']}"
            return [messages[0] | {"content": merged}, *messages[1:]]
        return [{"role": "system", "content": self._system_prompt}, *messages]

    def _text(self, exchange: Exchange) -> str:
        """What was sampled, as text, without the token that ended it."""
        ids = exchange.response_ids[:-1] if exchange.closed else exchange.response_ids
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def _following(self, said: Said) -> str:
        """What the template renders between the end of an assistant message and the next generation prompt."""
        before = [*self._messages(PLACEHOLDER), {"role": "assistant", "content": PLACEHOLDER}]
        return self._template.parts([*before, *_dicts(said)])[-1].text

    def _probe(self, observation: str, response: str, role: str) -> bool:
        """Whether appending gives the template's own layout; raises `TemplateError` where it hides what is said."""
        messages = self._messages(observation.format(0))
        text = self._template.render(messages)
        self._require_shown([observation.format(0)], text)
        appends = True
        for turn in range(1, _PROBED_TURNS + 1):
            said, seen = response.format(*[turn - 1] * response.count("{}")), observation.format(turn)
            later: Said = [_result(seen)] if role == "tool" else seen
            messages += [{"role": "assistant", "content": said}, *_dicts(later)]
            rendered, following = self._template.render(messages), self._following(later)
            self._require_shown([seen], following)
            self._require_shown([message["content"].split("\n")[-1] for message in messages[:-1]], rendered)
            self._template.parts(messages)
            appends = appends and any(rendered == text + shown + following for shown in _trimmed(said))
            text = rendered
        return appends

    def _require_shown(self, contents: Sequence[str], text: str) -> None:
        for content in contents:
            if content.strip() not in text:
                raise TemplateError(
                    f"the chat template does not show {content.strip()[:60]!r} as it is, but renders {text[:200]!r}; "
                    "use a template that shows every message, the system prompt and the tools included"
                )

    def _special_ids(self) -> set[int]:
        """Tokens that are no text: flagged so, or named. The one for unknown text is none, unless it ends sequences."""
        tokenizer = self._tokenizer
        flagged = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        special = {*flagged, *tokenizer.all_special_ids}
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id != tokenizer.eos_token_id:
            special.discard(tokenizer.unk_token_id)
        return special

    def _markers(self) -> set[int]:
        """Added tokens that the template writes around messages, flagged special or not: text must not write them."""
        opening, answer = self._messages(PLACEHOLDER), {"role": "assistant", "content": PLACEHOLDER}
        texts = [self._template.render([*opening, answer, *_dicts(PLACEHOLDER)], generation=False)]
        if self._template.tools:
            call = ToolCall(id=CALL_ID, name=tool_names(self._template.tools)[0], arguments={})
            texts.append(self.spoken(AssistantMessage(tool_calls=(call,))))
            texts.append(self._template.render([*opening, answer, *_dicts([_result(PLACEHOLDER)])], generation=False))
        written = {i for text in texts for i in self._encode(text)}
        return self._tokenizer.added_tokens_decoder.keys() & written

    def _expected_control(self, said: Said, *, first: bool) -> Counter[int]:
        """The control tokens that the template itself writes around messages of these roles."""
        messages = messages_of(said)
        key = (first, tuple(message.role for message in messages))
        found = self._expected.get(key)
        if found is None:
            like = [
                _result(PLACEHOLDER) if m.role == "tool" else Message(role=m.role, content=PLACEHOLDER)
                for m in messages
            ]
            text = self._template.render(self._messages(like)) if first else self._following(like)
            if len(self._expected) >= _MOST_ROLES:
                self._expected.clear()
            found = self._expected[key] = self._count_control(self._encode(text))
        return found

    def _encode(self, text: str) -> list[int]:
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=False))
        except Exception as error:  # a tokenizer of anybody's, and any text
            raise ObservationError(f"the tokenizer cannot encode {text[:60]!r}: {error}") from error

    def _count_control(self, ids: list[int]) -> Counter[int]:
        return Counter(i for i in ids if i in self._control_ids)

    def _refuse_forgery(self, ids: list[int], expected: Counter[int], text: str) -> None:
        if self._count_control(ids) != expected:
            raise ObservationError(
                f"the text {text[:60]!r} holds a control token of the tokenizer: it would forge a turn; remove it"
            )


def _dicts(said: Said) -> list[dict[str, Any]]:
    told = [(m.role, m.content, {"name": m.name, "tool_call_id": m.tool_call_id}) for m in messages_of(said)]
    return [{"role": role, "content": text} | {k: v for k, v in more.items() if v} for role, text, more in told]


def _result(content: str) -> Message:
    return Message(role="tool", content=content, name=PLACEHOLDER, tool_call_id=CALL_ID)


def _trimmed(response: str) -> tuple[str, ...]:
    return (response, response.strip(), response.lstrip(), response.rstrip())
