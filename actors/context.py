"""Builds each turn's prompt from token ids: what the policy sampled is never decoded and encoded again.

Append-only (the default): the prompt of turn k+1 is the prompt of turn k, its response and what the environment said,
by concatenation. Windowed: where a prompt would show more than `window_turns` turns, the older ones leave in one block
and the newer half stays; it is laid out anew from the same ids and grows by appending again. So between half the window
and the whole of it is shown, and engine and learner begin a new sequence once per half window, not every turn.
Rewritten: where the policy's chat template does not only append (it drops old thoughts, say), every prompt is what the
template makes of the conversation, with the sampled ids wherever it leaves them; a prompt that it changed before its
end begins a new sequence, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec.structs import replace

from milepost.envs.messages import Exchange, Said, messages_of

LEFT_OUT = "[earlier turns left out]"


class Layout(Protocol):
    """How observations become token ids; `envs/dialogue.py` has the one of a policy's chat template."""

    @property
    def appends(self) -> bool:
        """Whether a prompt, its response and `continuation` are the next prompt."""
        ...

    def opening(self, said: Said) -> list[int]:
        """Ids of the first prompt."""
        ...

    def continuation(self, said: Said, closed: bool) -> list[int]:
        """Ids between a response, which ended by itself if `closed`, and the next one."""
        ...

    def whole(self, first: Said, exchanges: Sequence[Exchange]) -> list[int]:
        """Ids of the prompt after `exchanges`, laid out from the beginning."""
        ...


class Context:
    """The growing conversation of one episode.

    Worked example, append-only: `open("o0")` gives `[u o0 a]`; after the response `[x e]`, `extend([x, e], True, "o1")`
    gives `[u o0 a x e u o1 a]`.
    """

    def __init__(self, layout: Layout, *, window_turns: int = 0) -> None:
        self._layout = layout
        self._window = window_turns
        self._first: Said = ""
        self._shown_first: Said = ""
        self._exchanges: list[Exchange] = []
        self._prompt: list[int] = []

    def open(self, said: Said) -> list[int]:
        """The first prompt."""
        self._first = self._shown_first = said
        self._exchanges = []
        self._prompt = self._layout.opening(said)
        return self._prompt

    def extend(self, response_ids: list[int], stopped: bool, said: Said) -> list[int]:
        """The prompt after a response and the environment's answer to it."""
        self._exchanges.append(Exchange(response_ids, stopped, said))
        full = bool(self._window) and len(self._exchanges) >= self._window
        if full:
            self._keep_newer_half()
        if full or not self._layout.appends:
            self._prompt = self._layout.whole(self._shown_first, self._exchanges)
        else:
            self._prompt = self._prompt + response_ids + self._layout.continuation(said, stopped)
        return self._prompt

    def _keep_newer_half(self) -> None:
        """Forget all but the newer half of the window, the turn that begins included."""
        past = max(self._window // 2, 1) - 1
        oldest = self._exchanges[-1 - past]
        self._shown_first = _beginning(self._first, oldest.said)
        self._exchanges = self._exchanges[len(self._exchanges) - past :]


def _beginning(first: Said, oldest: Said) -> Said:
    """What stands first where turns between `first` and `oldest` are left out; two neighbouring users are one."""
    if isinstance(first, str) and isinstance(oldest, str):
        return f"{first}\n{LEFT_OUT}\n{oldest}"
    *head, last = messages_of(first)
    tail = messages_of(oldest)
    joined = f"{last.content}\n{LEFT_OUT}"
    if tail[0].role == last.role == "user":
        joined, tail = f"{joined}\n{tail[0].content}", tail[1:]
    return [*head, replace(last, content=joined), *tail]
