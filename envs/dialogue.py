"""How observations and responses are laid out as token ids: one layout for rollout and for warm-up.

A conversation is built by appending ids, never by encoding its text again: `opening`, then for every turn the ids the
policy sampled and a `continuation`. So the prompt of turn k followed by its response is the exact prefix of the prompt
of turn k+1. Templates that ask for the date are told a fixed one, so that a layout is the same in every process and on
every day. Not promised: that ids a policy sampled are the ids its text would encode to, and that white space around a
response looks as in the template, which may trim it: what was sampled stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

_PLACEHOLDER = "x"
_TODAY = datetime(2025, 1, 1)
"""What every template is told the date is."""
_PROBES = (
    ("State {}", "Move {}"),
    ("  State {}\n\n", " Move {}\n"),
    ("State {}", "<think>\nPlan {}\n</think>\n\nMove {}"),
)
"""Observations and responses that templates are known to rewrite: letters, white space around them, thoughts."""
_PROBED_TURNS = 3


class TemplateError(ValueError):
    """The tokenizer's chat template cannot lay out a conversation by appending."""


class ObservationError(ValueError):
    """An observation holds the text of a control token and would forge a turn, or the tokenizer cannot take it."""


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
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool, **variables: Any
    ) -> Any:
        """The conversation as one string, where `tokenize` is False."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`."""


class Dialogue:
    """The token layout of conversations between an environment (user) and a policy (assistant).

    Raises `TemplateError` where the chat template rewrites or drops what it rendered before, lays out a later turn
    otherwise than the first, hides what is said, or does not close an assistant message with a special token.
    """

    def __init__(self, tokenizer: Tokenizer, system_prompt: str = "") -> None:
        self._tokenizer = tokenizer
        self._system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        self._history = [{"role": "user", "content": _PLACEHOLDER}]
        self._history_text = self._render(self._system + self._history)
        self._require_shown(system_prompt, self._history_text)
        for observation, response in _PROBES:
            self._require_own_layout(observation, response)
        special = self._special_ids()
        first = self._encode(self._following_text(_PLACEHOLDER))[:1]
        if not first or first[0] not in special:
            raise TemplateError(
                "the chat template closes an assistant message with "
                f"{self._following_text(_PLACEHOLDER)[:20]!r}, which does not start with a special token: the engine "
                "cannot tell the end of a turn; use a template with an end-of-turn token"
            )
        self._end_of_turn_id = first[0]
        self._control_ids = special | self._markers()
        self._opening_control = self._count_control(self._encode(self._history_text))
        self._following_control = self._count_control(self._encode(self._following_text(_PLACEHOLDER)))

    @property
    def stop_token_ids(self) -> list[int]:
        """The tokens after which the engine stops: end of turn, then end of sequence where it is another one."""
        eos = self._tokenizer.eos_token_id
        return [self._end_of_turn_id] if eos in (None, self._end_of_turn_id) else [self._end_of_turn_id, eos]

    def opening(self, observation: str) -> list[int]:
        """Ids of the first prompt: system prompt, first observation, generation prompt.

        Raises `ObservationError` if the observation holds a control token.
        """
        ids = self._encode(self._render([*self._system, {"role": "user", "content": observation}]))
        self._refuse_forgery(ids, self._opening_control, observation)
        return ids

    def response(self, text: str) -> list[int]:
        """Ids of a response as a demonstrator would write it, closed by the end-of-turn token.

        Raises `ObservationError` if the text holds a control token.
        """
        ids = self._encode(text)
        self._refuse_forgery(ids, Counter(), text)
        return [*ids, self._end_of_turn_id]

    def continuation(self, observation: str, closed: bool) -> list[int]:
        """Ids between a sampled response and the next one: end of turn, observation, generation prompt.

        `closed`: the response already ends with one of `stop_token_ids`; else (it ran into its length limit) the
        continuation starts with the end-of-turn token. Raises `ObservationError` if the observation holds a control
        token.
        """
        ids = self._encode(self._following_text(observation))
        self._refuse_forgery(ids, self._following_control, observation)
        return ids[1:] if closed else ids

    def _require_own_layout(self, observation: str, response: str) -> None:
        """Lay out a conversation by appending, and raise `TemplateError` where the template's own layout differs."""
        messages = [*self._system, {"role": "user", "content": observation.format(0)}]
        text = self._render(messages)
        self._require_shown(observation.format(0), text)
        for turn in range(1, _PROBED_TURNS + 1):
            said, seen = response.format(*[turn - 1] * response.count("{}")), observation.format(turn)
            messages += [{"role": "assistant", "content": said}, {"role": "user", "content": seen}]
            following, rendered = self._following_text(seen), self._render(messages)
            self._require_shown(seen, following)
            text = _with_response(text, said, rendered)
            if rendered != text + following:
                raise TemplateError(
                    f"the chat template lays out a later turn as {rendered[len(text) :]!r}, the first one as "
                    f"{following!r}; use a template in which every turn looks alike"
                )
            text = rendered

    def _require_shown(self, content: str, text: str) -> None:
        if content.strip() not in text:
            raise TemplateError(
                f"the chat template does not show {content.strip()[:60]!r} as it is, but renders {text[:200]!r}; use a "
                "template that shows every message, the system prompt included"
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
        turn = [{"role": "assistant", "content": _PLACEHOLDER}, *self._history]
        ids = self._encode(self._render(self._system + self._history + turn, add_generation_prompt=False))
        return self._tokenizer.added_tokens_decoder.keys() & set(ids)

    def _following_text(self, observation: str) -> str:
        """What the template renders between the end of an assistant message and the next generation prompt."""
        turn = [{"role": "assistant", "content": _PLACEHOLDER}, {"role": "user", "content": observation}]
        text = self._render(self._system + self._history + turn)
        return text[len(_with_response(self._history_text, _PLACEHOLDER, text)) :]

    def _render(self, messages: list[dict[str, str]], *, add_generation_prompt: bool = True) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                strftime_now=_TODAY.strftime,  # in place of the clock that transformers gives to templates
            )
        except Exception as error:  # the template is a program of the model's author: it may raise anything
            roles = ", ".join(message["role"] for message in messages)
            raise TemplateError(f"the chat template cannot render the roles {roles}: {error}") from error
        if not isinstance(text, str):
            raise TemplateError(f"the chat template gave {type(text).__name__}, not text")
        return text

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


def _with_response(before: str, response: str, rendered: str) -> str:
    """`before` and then `response`, as `rendered` begins: whole, or without the white space around it.

    Raises `TemplateError` where it begins otherwise.
    """
    shown = (response, response.strip(), response.lstrip(), response.rstrip())
    for prefix in (before + text for text in shown):
        if rendered.startswith(prefix):
            return prefix
    prefix = before + response
    at = next((i for i, (a, b) in enumerate(zip(rendered, prefix, strict=False)) if a != b), len(rendered))
    raise TemplateError(
        "the chat template is not append-only: after one more turn it renders the history as "
        f"...{rendered[max(0, at - 20) : at + 20]!r}, before as ...{prefix[max(0, at - 20) : at + 20]!r}; use a "
        "template that never rewrites earlier turns, nor drops their thoughts: edit chat_template.jinja in the model's "
        "folder"
    )
