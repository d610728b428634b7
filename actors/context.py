"""Builds each turn's prompt from token ids: what the policy sampled is never decoded and encoded again.

Append-only (the default): the prompt of turn k+1 is the prompt of turn k, its response and what the environment said,
by concatenation. Windowed: after `window_turns` turns the oldest ones leave, and the prompt is laid out anew from the
same ids; the learner then trains those turns as sequences of their own.
"""

from __future__ import annotations

from milepost.envs.dialogue import Dialogue

LEFT_OUT = "[earlier turns left out]"


class Context:
    """The growing conversation of one episode.

    Worked example, append-only: `open("o0")` gives `[u o0 a]`; after the response `[x e]`, `extend([x, e], True, "o1")`
    gives `[u o0 a x e u o1 a]`.
    """

    def __init__(self, dialogue: Dialogue, *, window_turns: int = 0) -> None:
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
            self._prompt = self._windowed()
        else:
            self._prompt = self._prompt + piece
        return self._prompt

    def _windowed(self) -> list[int]:
        kept = self._pieces[len(self._pieces) - self._window + 1 :] if self._window > 1 else []
        start = self._observations[-1 - len(kept)]
        prompt = self._dialogue.opening(f"{self._first}\n{LEFT_OUT}\n{start}")
        for piece in kept:
            prompt = prompt + piece
        return prompt
