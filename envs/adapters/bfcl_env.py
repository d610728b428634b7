"""BFCL's multi-turn tasks: a user asks for one thing after another, and the policy calls the package's own tools.

A suite to evaluate on: its 200 tasks per category are all there are. Tools and judgement are the package's: its classes
are executed, and its checker compares state and results with those of its own solution, after every request. It
executes calls with `eval`; what reaches that are the names of offered tools, the names of their parameters, and values
from JSON. Not promised: that a tool ends: one that is asked for a huge power is the environment's failure. The category
`miss_func` is not there, for tools would have to come in the middle of an episode.
"""

from __future__ import annotations

import hashlib
import json
import string
import uuid
from pathlib import Path
from typing import Any, Literal, get_args

import gymnasium
from gymnasium.spaces import Text

from milepost.envs.adapters.foreign import foreign
from milepost.envs.messages import AssistantMessage, Message, Said, ToolCall, ToolSchema, action_of

INSTALL = "run make worlds, or pip install --no-deps bfcl-eval==2026.3.23 mpmath"
Category = Literal["base", "miss_param", "long_context"]
_SPACE = Text(min_length=0, max_length=100_000, charset=string.printable)
_MULTI_TURN = "bfcl_eval.eval_checker.multi_turn_eval"


class BfclMultiTurn(gymnasium.Env):  # type: ignore[misc]  # gymnasium is untyped for mypy here
    """One task of BFCL's multi-turn `category`; seed n plays task n modulo their number.

    An answer without a call ends the request at hand and brings the next one; after the last one, the package's checker
    says whether the task is solved, and the reward is 1 or 0. A request on which 20 rounds of calls were made, the
    package's own limit, ends the episode. The cohort is the category. Raises ImportError without the package, and
    ValueError for an unknown category.
    """

    def __init__(self, *, category: Category = "base") -> None:
        if category not in get_args(Category):
            raise ValueError(f"category must be one of {', '.join(get_args(Category))}, it is {category!r}")
        self.observation_space = self.action_space = _SPACE
        self._executor = foreign(f"{_MULTI_TURN}.multi_turn_utils", INSTALL)
        self._check = foreign(f"{_MULTI_TURN}.multi_turn_checker", INSTALL).multi_turn_checker
        self._step_limit = int(foreign("bfcl_eval.constants.default_prompts", INSTALL).MAXIMUM_STEP_LIMIT)
        self._types: dict[str, str] = foreign("bfcl_eval.constants.type_mappings", INSTALL).GORILLA_TO_OPENAPI
        self._documents: dict[str, str] = foreign(
            "bfcl_eval.constants.executable_backend_config", INSTALL
        ).MULTI_TURN_FUNC_DOC_FILE_MAPPING
        self._data = Path(foreign("bfcl_eval", INSTALL).__file__).parent / "data"
        self._category = category
        file = f"BFCL_v4_multi_turn_{category}.json"
        self._tasks = _lines(self._data / file)
        self._solutions = _lines(self._data / "possible_answer" / file)
        self._owner = ""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Said, dict[str, Any]]:
        """The task's first request, with the tools of its classes in their first state."""
        super().reset(seed=seed, options=options)
        self.close()
        number = (int(self.np_random.integers(len(self._tasks))) if seed is None else seed) % len(self._tasks)
        self._task = self._tasks[number]
        self._solution: list[list[str]] = self._solutions[number]["ground_truth"]
        self._owner = f"milepost_{uuid.uuid4().hex}"  # names the package's instances, which are globals of its module
        self._calls: list[list[list[str]]] = [[]]
        self._last: list[str] = []
        self.tools = self._offered()
        self._parameters = {
            tool["function"]["name"]: tool["function"]["parameters"]["properties"] for tool in self.tools
        }
        return self._request(), {"anchor": self._anchor(), "tools": self.tools, "cohort": self._category}

    def step(self, message: AssistantMessage) -> tuple[Said, float, bool, bool, dict[str, Any]]:
        """Make the calls; without any, go on to the next request."""
        if message.tool_calls:
            return self._called(message)
        if not message.content.strip():
            return self._turn("Call a tool, or answer.", None)
        if len(self._calls) < len(self._task["question"]):
            self._calls.append([])
            return self._turn(self._request(), message)
        verdict = self._check(self._calls, self._solution, self._task, "", self._owner)
        return self._turn(str(verdict.get("error_message", "Solved.")), message, ended=True, solved=verdict["valid"])

    def close(self) -> None:
        """Forget the episode's instances, which the package keeps for ever."""
        held = vars(self._executor)
        for name in [name for name in list(held) if self._owner and name.startswith(self._owner)]:
            del held[name]

    def _called(self, message: AssistantMessage) -> tuple[Said, float, bool, bool, dict[str, Any]]:
        wrong = {call.id: complaint for call in message.tool_calls if (complaint := self._complaint(call))}
        fitting = tuple(call for call in message.tool_calls if call.id not in wrong)
        results = self._executed([_as_python(call) for call in fitting])
        if fitting:
            self._calls[-1].append([_as_python(call) for call in fitting])
            self._last = results
        answers = wrong | {call.id: result for call, result in zip(fitting, results, strict=True)}
        said = [
            Message(role="tool", name=call.name, tool_call_id=call.id, content=answers[call.id])
            for call in message.tool_calls
        ]
        calls = [{"name": call.name, "fits": call.id not in wrong} for call in message.tool_calls]
        too_many = len(self._calls[-1]) > self._step_limit
        acted = AssistantMessage(tool_calls=fitting) if fitting else None
        return self._turn(said, acted, ended=too_many, facts={"calls": calls})

    def _turn(
        self,
        said: Said,
        acted: AssistantMessage | None,
        *,
        ended: bool = False,
        solved: bool = False,
        facts: dict[str, Any] | None = None,
    ) -> tuple[Said, float, bool, bool, dict[str, Any]]:
        info: dict[str, Any] = {"anchor": self._anchor(), "action_valid": acted is not None, "tool": facts}
        if acted is not None:
            info["action"] = action_of(acted)
        return said, float(solved), ended, False, info | {"success": solved}

    def _request(self) -> list[Message]:
        return [Message(role="user", content=said["content"]) for said in self._task["question"][len(self._calls) - 1]]

    def _executed(self, calls: list[str]) -> list[str]:
        """What the package's tools return; without calls it only makes them."""
        results, self._instances = self._executor.execute_multi_turn_func_call(
            calls,
            self._task["initial_config"],
            self._task["involved_classes"],
            self._owner,
            self._task["id"],
            long_context=self._category == "long_context",
        )
        return [str(result) for result in results]

    def _complaint(self, call: ToolCall) -> str:
        if call.name not in self._parameters:
            return f"There is no tool {call.name[:64]!r}; the tools are: {', '.join(self._parameters)}"
        strange = sorted(call.arguments.keys() - self._parameters[call.name].keys())
        if strange:
            known = ", ".join(self._parameters[call.name]) or "none"
            return f"Nothing was done: {call.name} has no argument {strange[0][:64]!r}; it has: {known}"
        return ""

    def _offered(self) -> list[ToolSchema]:
        """The documents of the task's classes as OpenAI's schemas."""
        kept = {"name", "description", "parameters"}
        return [
            {"type": "function", "function": _retyped({k: told[k] for k in kept}, self._types)}
            for name in self._task["involved_classes"]
            for told in _lines(self._data / "multi_turn_func_doc" / self._documents[name])
        ]

    def _anchor(self) -> str:
        """The request at hand, the state of the package's instances, and what was seen last."""
        self._executed([])
        state = [
            {name: repr(value) for name, value in sorted(vars(self._instances[held]).items()) if name[0] != "_"}
            for held in sorted(self._instances)
        ]
        digest = hashlib.blake2b(json.dumps([state, self._last]).encode(errors="replace"), digest_size=12)
        return f"{self._task['id']}/{len(self._calls)}/{digest.hexdigest()}"


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def _as_python(call: ToolCall) -> str:
    """The call as the package executes it; values are JSON's, so each is written as a literal."""
    return f"{call.name}({', '.join(f'{name}={value!r}' for name, value in call.arguments.items())})"


def _retyped(told: Any, types: dict[str, str]) -> Any:
    """A document with the types of JSON schemas in place of BFCL's."""
    if isinstance(told, dict):
        return {
            key: types.get(value, "string") if key == "type" and isinstance(value, str) else _retyped(value, types)
            for key, value in told.items()
        }
    return [_retyped(each, types) for each in told] if isinstance(told, list) else told
