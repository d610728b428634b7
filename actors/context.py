"""Builds each turn's prompt from token ids: what the policy sampled is never decoded and encoded again.

Append-only (the default): the prompt of turn k+1 is the prompt of turn k, its response and what the environment said,
by concatenation. Windowed: where a prompt would show more than `window_turns` turns, the older ones leave in one block
and the newer half stays; it is laid out anew from the same ids and grows by appending again. So between half the window
and the whole of it is shown, and engine and learner begin a new sequence once per half window, not every turn.
"""

from __future__ import annotations

from typing import Protocol

LEFT_OUT = "[earlier turns left out]"


class Layout(Protocol):
    """How observations become token ids; `envs/dialogue.py` has the one of a policy's chat template."""

    def opening(self, observation: str) -> list[int]:
        """Ids of the first prompt."""
        ...

    def continuation(self, observation: str, closed: bool) -> list[int]:
        """Ids between a response, which ended by itself if `closed`, and the next one."""
        ...


class Context:
    """The growing conversation of one episode.

    Worked example, append-only: `open("o0")` gives `[u o0 a]`; after the response `[x e]`, `extend([x, e], True, "o1")`
    gives `[u o0 a x e u o1 a]`.
    """

    def __init__(self, dialogue: Layout, *, window_turns: int = 0) -> None:
        self._dialogue = dialogue
        self._window = window_turns
        self._first = ""
        self._observations: list[str] = []
        self._pieces: list[list[int]] = []
        self._prompt: list[int] = []

    def open(self, observation: str) -> list[int]:
        """The first prompt."""
        self._first = observation
        self._observations, self._pieces = [observation], []
        self._prompt = self._dialogue.opening(observation)
        return self._prompt

    def extend(self, response_ids: list[int], stopped: bool, observation: str) -> list[int]:
        """The prompt after a response and the environment's answer to it."""
        piece = response_ids + self._dialogue.continuation(observation, stopped)
        self._pieces.append(piece)
        self._observations.append(observation)
        if self._window and len(self._pieces) >= self._window:
            self._prompt = self._newer_half()
        else:
            self._prompt = self._prompt + piece
        return self._prompt

    def _newer_half(self) -> list[int]:
        """Forget all but the newer half of the window, the turn that begins included; the prompt of what is left."""
        past = max(self._window // 2, 1) - 1
        self._pieces = self._pieces[len(self._pieces) - past :]
        self._observations = self._observations[-1 - past :]
        prompt = self._dialogue.opening(f"{self._first}\n{LEFT_OUT}\n{self._observations[0]}")
        for piece in self._pieces:
            prompt = prompt + piece
        return prompt
