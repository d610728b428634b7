"""A server of OpenEnv (`openenv` 0.10, `create_app`) as an environment: one WebSocket session for each episode.

Speaks the protocol by `websockets` (extra `openenv`) and not by OpenEnv's client: that one connects anew where the
server went away, and then plays on in a session that nobody has reset; and it loads the whole server, whose packages
want another `mcp` than ours. Not promised: that a server's session is its own; that is the server's to keep.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import gymnasium
import pydantic
from gymnasium.spaces import Text

from milepost.envs.dotted_path import resolve

_SPACE = Text(min_length=0, max_length=10_000, charset=string.printable)
_MOST_BYTES = 100 * 2**20
_WRONG_ACTION = "VALIDATION_ERROR"


class OpenEnv(gymnasium.Env):  # type: ignore[misc]
    """Plays on the server at `base_url`, http or https.

    `action` says how an action is made of a response: the name of the action's field that gets the text; or
    `package.module:Name` of a pydantic class, such as the server's own action, which the response is JSON of, or of a
    function from the text to a dict. Where either raises ValueError, or the server takes no such action, the turn has
    no valid action and the policy is told why. `text` names the field of the observation that the policy reads;
    without it, that is all of it, as JSON. Each request has `timeout_s`. Whatever the server fails at, or that it is
    not there, is a ConnectionError that names it. `reset` sends `seed` and, for luck that comes later, `episode_seed`.
    """

    def __init__(self, *, base_url: str, action: str, text: str = "", timeout_s: float = 30.0) -> None:
        try:
            from websockets.sync.client import connect
        except ImportError as error:
            raise ImportError(f"{__name__} needs the extra 'openenv': pip install 'milepost[openenv]'") from error
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url = {base_url!r} is no address such as http://127.0.0.1:8000")
        self.observation_space = self.action_space = _SPACE
        self._url = base_url.rstrip("/")
        self._connect = connect
        self._action_of = _reader(action)
        self._text, self._timeout_s = text, timeout_s
        self._session: Any = None
        self._connection = ExitStack()
        self._seen = ""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin in a session of its own."""
        super().reset(seed=seed)
        self.close()
        try:
            self._session = self._connection.enter_context(
                self._connect(
                    f"ws{self._url.removeprefix('http')}/ws",
                    open_timeout=self._timeout_s,
                    close_timeout=self._timeout_s,
                    max_size=_MOST_BYTES,
                    proxy=None if "//127.0.0.1" in self._url or "//localhost" in self._url else True,
                )
            )
        except Exception as error:  # refused, timed out, no WebSocket there
            raise self._failed(error) from error
        data = {} if seed is None else {"seed": seed}
        answer = self._asked("reset", data | (options or {}))
        self._seen = self._said(answer)
        return self._seen, {"anchor": self._seen}

    def step(self, response: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Send the action that the response holds; without one, the state stays."""
        try:
            action = self._action_of(response)
        except ValueError as error:
            return self._nothing_done(_reason(error))
        answer = self._asked("step", action)
        if answer.get("code") == _WRONG_ACTION:
            return self._nothing_done("the environment takes no such action")
        self._seen = self._said(answer)
        info = {"anchor": self._seen, "action": json.dumps(action, sort_keys=True, ensure_ascii=False)}
        return self._seen, float(answer.get("reward") or 0.0), bool(answer.get("done")), False, info

    def close(self) -> None:
        """End the session."""
        self._connection.close()

    def _asked(self, kind: str, data: dict[str, Any]) -> dict[str, Any]:
        """The data that the server answers with; raises ConnectionError for anything but that or a wrong action."""
        try:
            self._session.send(json.dumps({"type": kind, "data": data}))
            told = json.loads(self._session.recv(timeout=self._timeout_s))
        except Exception as error:  # closed, timed out, no JSON
            raise self._failed(error) from error
        answer: dict[str, Any] = told["data"]
        if told["type"] == "error" and (kind, answer.get("code")) != ("step", _WRONG_ACTION):
            raise self._failed(RuntimeError(f"{answer.get('message')} ({answer.get('code')})"))
        return answer

    def _failed(self, error: Exception) -> ConnectionError:
        why = str(error) or f"no answer within {self._timeout_s:g} s"
        return ConnectionError(f"OpenEnv server {self._url}: {why}")

    def _said(self, answer: dict[str, Any]) -> str:
        observation = answer["observation"]
        if not self._text:
            return json.dumps(observation, sort_keys=True, ensure_ascii=False)
        if self._text not in observation:
            raise ValueError(f"text = {self._text!r} is no field of the observation, which has {sorted(observation)}")
        return str(observation[self._text])

    def _nothing_done(self, why: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return f"Nothing was done: {why}.", 0.0, False, False, {"anchor": self._seen, "action_valid": False}


def _reader(action: str) -> Callable[[str], dict[str, Any]]:
    if ":" not in action:
        return lambda response: {action: response.strip()}
    found: Any = resolve(action)
    if isinstance(found, type) and issubclass(found, pydantic.BaseModel):
        return lambda response: found.model_validate_json(response).model_dump(mode="json")
    if not callable(found):
        raise TypeError(f"action = {action!r} is {found!r}, neither a pydantic class nor a function")
    return found  # type: ignore[no-any-return]


def _reason(error: ValueError) -> str:
    if isinstance(error, pydantic.ValidationError):
        return "; ".join(f"{'.'.join(map(str, each['loc'])) or 'it'}: {each['msg']}" for each in error.errors())[:500]
    return str(error)[:500]
