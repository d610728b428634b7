"""How observations and responses are laid out as token ids: one layout for rollout and for warm-up.

A conversation is built by appending ids, never by encoding its text again: `opening`, then for every turn the ids the
policy sampled and a `continuation`. So the prompt of turn k followed by its response is the exact prefix of the prompt
of turn k+1. Not promised: that ids a policy sampled are the ids its text would encode to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

_PLACEHOLDER = "x"


class TemplateError(ValueError):
    """The tokenizer's chat template cannot lay out a conversation by appending."""


class ObservationError(ValueError):
    """An observation holds the text of a control token and would forge a turn of the conversation."""


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
        """The tokens that ordinary text does not encode to."""

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> Any:
        """The conversation as one string, where `tokenize` is False."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`."""


class Dialogue:
    """The token layout of conversations between an environment (user) and a policy (assistant).

    Raises `TemplateError` where the chat template rewrites or drops what it rendered before, lays out a later turn
    otherwise than the first, or does not close an assistant message with a special token.
    """

    def __init__(self, tokenizer: Tokenizer, system_prompt: str = "") -> None:
        self._tokenizer = tokenizer
        self._system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        self._history = [{"role": "user", "content": _PLACEHOLDER}]
        self._history_text = self._render(self._system + self._history)
        self._require_append_only()
        first = self._encode(self._following_text(_PLACEHOLDER))[:1]
        special = {*tokenizer.all_special_ids, tokenizer.eos_token_id} - {tokenizer.unk_token_id, None}
        if not first or first[0] not in special:
            raise TemplateError(
                "the chat template closes an assistant message with "
                f"{self._following_text(_PLACEHOLDER)[:20]!r}, which does not start with a special token: the engine "
                "cannot tell the end of a turn; use a template with an end-of-turn token"
            )
        self._end_of_turn_id = first[0]
        self._control_ids = special
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

    def _following_text(self, observation: str) -> str:
        """What the template renders between the end of an assistant message and the next generation prompt."""
        turn = [{"role": "assistant", "content": _PLACEHOLDER}, {"role": "user", "content": observation}]
        return self._appended(self._system + self._history, self._history_text, turn)

    def _require_append_only(self) -> None:
        turn = [{"role": "assistant", "content": _PLACEHOLDER}, {"role": "user", "content": _PLACEHOLDER}]
        second = self._system + self._history + turn
        later = self._appended(second, self._render(second), turn)
        if later != self._following_text(_PLACEHOLDER):
            raise TemplateError(
                f"the chat template lays out a later turn as {later!r}, the first one as "
                f"{self._following_text(_PLACEHOLDER)!r}; use a template in which every turn looks alike"
            )

    def _appended(self, before: list[dict[str, str]], before_text: str, turn: list[dict[str, str]]) -> str:
        text = self._render(before + turn)
        prefix = before_text + _PLACEHOLDER
        if not text.startswith(prefix):
            shared = next((i for i, (a, b) in enumerate(zip(text, prefix, strict=False)) if a != b), len(text))
            raise TemplateError(
                "the chat template is not append-only: after one more turn it renders the history as "
                f"...{text[max(0, shared - 20) : shared + 20]!r}, before as "
                f"...{prefix[max(0, shared - 20) : shared + 20]!r}; use a template that never rewrites earlier turns"
            )
        return text[len(prefix) :]

    def _render(self, messages: list[dict[str, str]]) -> str:
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # the template is a program of the model's author: it may raise anything
            roles = ", ".join(message["role"] for message in messages)
            raise TemplateError(f"the chat template cannot render the roles {roles}: {error}") from error
        if not isinstance(text, str):
            raise TemplateError(f"the chat template gave {type(text).__name__}, not text")
        return text

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _count_control(self, ids: list[int]) -> Counter[int]:
        return Counter(i for i in ids if i in self._control_ids)

    def _refuse_forgery(self, ids: list[int], expected: Counter[int], text: str) -> None:
        if self._count_control(ids) != expected:
            raise ObservationError(
                f"the text {text[:60]!r} holds a control token of the tokenizer: it would forge a turn; remove it"
            )
