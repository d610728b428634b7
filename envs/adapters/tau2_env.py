"""Tasks of tau2-bench without its simulated user: what the user wants is told at once, and tools do it.

A suite to evaluate on. Database, tools, policy and the evaluators of the final database, of actions and of what was
communicated are the package's; no language model is asked. `telecom` is the package's solo mode, with its tickets.
`airline` and `retail` have none: there the user's instructions, which a simulated user would tell bit by bit, are the
ticket, so numbers are not those of the published benchmark. Not promised: speed, for a database of megabytes is read at
every start and twice at every end; or that a tool ends: one that calculates takes a huge power too.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from milepost.envs.adapters.foreign import foreign
from milepost.envs.messages import Message, ToolSchema
from milepost.envs.tool_env import ToolEnv, ToolError

INSTALL = "run make worlds, or pip install --no-deps what deploy/requirements-worlds.lock names for tau2"
Domain = Literal["airline", "retail", "telecom"]
_SOLO: set[Domain] = {"telecom"}
_EVALUATORS = {
    ("evaluator_env", "EnvironmentEvaluator"): {"DB", "ENV_ASSERTION"},
    ("evaluator_communicate", "CommunicateEvaluator"): {"COMMUNICATE"},
    ("evaluator_action", "ActionEvaluator"): {"ACTION"},
}
"""The package's evaluators that need no language model, and the kinds of reward that each one judges."""
_INSTRUCTION = (
    "You are a customer service agent. Help the customer according to the policy below. You cannot ask anything: the "
    "ticket tells all there is. Call tools until everything is done, then answer with one message to the customer, "
    "which ends the case."
)


class _Case:
    """One episode in the package's `environment`, kept in the package's `words` for its evaluators."""

    def __init__(self, environment: Any, words: Any) -> None:
        self.environment, self._words = environment, words
        self.messages: list[Any] = []

    def called(self, name: str, arguments: dict[str, Any]) -> Any:
        """The package's answer to a call, its errors included."""
        call = self._words.ToolCall(id=f"call{len(self.messages)}", name=name, arguments=arguments)
        self.messages.append(self._words.AssistantMessage(role="assistant", tool_calls=[call.model_copy(deep=True)]))
        self.messages.append(self.environment.get_response(call))
        return self.messages[-1]

    def said(self, content: str) -> None:
        self.messages.append(self._words.AssistantMessage(role="assistant", content=content))

    @functools.cached_property
    def database(self) -> str:
        """A hash of what the databases hold."""
        return f"{self.environment.get_db_hash()}/{self.environment.get_user_db_hash()}"


class _Tau2Tool:
    """A tool of the package, used in a case."""

    def __init__(self, told: Any, case: _Case) -> None:
        self.name: str = told.name
        self.schema: ToolSchema = told.openai_schema
        self._case = case

    def checked(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """The arguments as they are: the package tells what is wrong with them."""
        return arguments

    def run(self, checked: Mapping[str, Any]) -> str:
        """What the package answers; raises `ToolError` where that is an error."""
        answer = self._case.called(self.name, copy.deepcopy(dict(checked)))
        self._case.__dict__.pop("database", None)
        if answer.error:
            raise ToolError(str(answer.content).removeprefix("Error: "))
        return str(answer.content)


class Tau2(ToolEnv):
    """One task of the package's `domain`, of its own split `task_split`; seed n plays task n modulo their number.

    An answer without a call ends the episode, and the reward is the product of what the package's evaluators give for
    the kinds of reward that the task names. The cohort is the domain. Raises ImportError without the package, and
    ValueError for an unknown domain or split.
    """

    def __init__(self, *, domain: Domain = "airline", task_split: str = "test", max_steps: int = 30) -> None:
        if domain not in get_args(Domain):
            raise ValueError(f"domain must be one of {', '.join(get_args(Domain))}, it is {domain!r}")
        super().__init__([], max_steps=max_steps)
        foreign("loguru", INSTALL).logger.disable("tau2")  # it writes a line per call
        self._words = foreign("tau2.data_model.message", INSTALL)
        self._home = foreign(f"tau2.domains.{domain}.environment", INSTALL)
        self._evaluators = [
            (getattr(foreign(f"tau2.evaluator.{module}", INSTALL), name), kinds)
            for (module, name), kinds in _EVALUATORS.items()
        ]
        self._domain: Domain = domain
        self._tasks = _tasks(self._home.get_tasks, task_split)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """The task and its tools."""
        self._number = seed
        said, info = super().reset(seed=seed, options=options)
        return said, info | {"cohort": self._domain}

    def start(self) -> list[Message]:
        """The package's database in the task's first state, its policy and the ticket."""
        number = int(self.np_random.integers(len(self._tasks))) if self._number is None else self._number
        self._task = self._tasks[number % len(self._tasks)]
        environment = self._home.get_environment(solo_mode=self._domain in _SOLO)
        first = self._task.initial_state
        if first is not None:
            environment.set_state(first.initialization_data, first.initialization_actions, [])
        self._case = _Case(environment, self._words)
        told = environment.get_tools() + (environment.get_user_tools() if environment.user_tools else [])
        self.offer([_Tau2Tool(each, self._case) for each in told])
        policy = f"{_INSTRUCTION}\n\n<policy>\n{environment.get_policy()}\n</policy>"
        ticket = self._task.ticket if self._domain in _SOLO else str(self._task.user_scenario.instructions)
        return [Message(role="system", content=policy), Message(role="user", content=f"<ticket>\n{ticket}\n</ticket>")]

    def solved(self, answer: str | None) -> bool:
        """Whether the package's evaluators give 1, once the case is closed."""
        if answer is None:
            return False
        self._case.said(answer)
        asked = set(self._task.evaluation_criteria.reward_basis)
        for evaluator, kinds in self._evaluators:
            if kinds & asked and self._given(evaluator, "DB" in kinds) != 1.0:
                return False
        return True

    def state(self) -> str:
        """What the databases hold, and what the tools showed last."""
        return f"{self._task.id}/{self._case.database}/{super().state()}"

    def _given(self, evaluator: Any, by_database: bool) -> float:
        played = {"task": self._task, "full_trajectory": self._case.messages}
        if by_database:
            played |= {"environment_constructor": self._home.get_environment, "solo_mode": self._domain in _SOLO}
        return float(evaluator.calculate_reward(**played).reward)


@functools.cache
def _tasks(read: Callable[[str], Any], split: str) -> list[Any]:
    """The package's tasks that its evaluators without a language model can judge; read once, for telecom has many."""
    judged = set().union(*_EVALUATORS.values())
    return [task for task in read(split) if judged.issuperset(task.evaluation_criteria.reward_basis)]
