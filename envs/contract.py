"""What an environment must do: be a `gymnasium.Env` that takes text and gives text, or speaks in messages.

`reset(seed=...)` returns `(observation, info)`, `step(response)` returns `(observation, reward, terminated, truncated,
info)`, as in Gymnasium. `response` is all that the policy wrote, so parsing it is the environment's work. Rewards are
finite, and those of an episode add up to at most 1e12 in magnitude.

An observation may also be a list of messages, dicts with `role` (system: the first of `reset` only; user; tool),
`content` and, for a tool, `name` and `tool_call_id`. An environment that declares tools, in its attribute `tools` or in
`info["tools"]` at reset, as OpenAI's function schemas, gets `messages.AssistantMessage` instead of the text: thoughts,
content and calls, taken apart. A call that cannot be read does not reach it; the policy is told so. `tool_env.ToolEnv`
makes such an environment of Python functions.

Draw all chance from `self.np_random`: what `reset(seed=...)` draws makes the start, which all episodes of a task share;
after `reset` a generator of the episode's own stands there (`chance.reset`). An environment that draws from other
generators (of one that it wraps, Python's `random`) seeds them in `reset` with `options["episode_seed"]`.

Optional info keys, each used where it is given:

    anchor              str    canonical key of the state, without step counter or history; default: the observation
    action              str    the action as understood, canonical; default: the stripped response, or its calls
    action_valid        bool   False: the response held no action
    progress            float  share of the way to the goal, in [0, 1]
    success             bool   at the end: was the task solved? default: whether the rewards add up to more than 0, for
                               people; credit then goes by returns
    success_trains      bool   with success: False where that judges the choice by what it is worth on average, not by
                               what came of it; it is for people then, and credit goes by returns
    admissible_actions  list   of str: what could be done now
    tool                dict   facts about a tool call, of values that JSON knows; `violations` in it, a list of str,
                               names the rules that the turn broke, for evaluators: it changes no reward
    tools               list   at reset: the tools of this episode, in place of the attribute
    cohort              str    at reset: the kind of task (difficulty, map family) by which success is told, up to 64
                               printable characters; default: the option `cohort`, if there is one

Here such values are checked once and become typed and plain: NumPy's texts, numbers and flags, arrays without
dimensions and subclasses of `str` mean what they hold. `check-env`, the check before a run and the run itself come
through here, so they agree. Not promised: that a state has one anchor, that equal seeds give
equal episodes (`check.check_env` looks for that), or that an environment returns at all: the caller bounds time.
"""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import gymnasium
import msgspec

from milepost.envs.dotted_path import DottedPathError, resolve
from milepost.envs.messages import AssistantMessage, Said, ToolSchema, declared_tools, read_said, read_tools, text_of
from milepost.envs.plain_values import ContractError, plain_number, plain_object, plain_text, scalar, shown
from milepost.envs.types import COHORT_RULE, check_rewards, is_cohort


class EnvPathError(ValueError):
    """An environment cannot be loaded or built from its path and options."""


class Reset(msgspec.Struct, frozen=True, kw_only=True):
    """The start of an episode."""

    observation: str
    """As one text, also where it came as messages."""
    said: Said
    """The observation as it came: a text, or messages."""
    tools: tuple[ToolSchema, ...] = ()
    """What the policy may call; with any, actions are of the type `AssistantMessage`."""
    anchor: str
    cohort: str | None = None
    """As the environment says; None if it says nothing."""


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What one response led to."""

    observation: str
    """As one text, also where it came as messages."""
    said: Said
    """The observation as it came: a text, or messages."""
    reward: float
    terminated: bool
    truncated: bool
    anchor: str
    action: str | None
    """Canonical action; None if the response held no valid one."""
    progress: float | None
    success: bool | None
    """As the environment says; None if it says nothing."""
    success_trains: bool
    """Whether that success is something to learn from."""
    tool: dict[str, Any] | None
    """Facts about a tool call, of values that JSON knows; None where there was none."""


@runtime_checkable
class Demonstrator(Protocol):
    """An environment that knows an expert: used for warm-up and by checks, never while the policy is scored."""

    def demonstration(self, rng: random.Random, noise: float) -> str | AssistantMessage:
        """The expert's response in the current state; with probability `noise` a uniformly random valid action."""


def load_env_class(path: str) -> type[Any]:
    """The environment class at `package.module:Class`; raises `EnvPathError` if it is not a `gymnasium.Env`."""
    try:
        found = resolve(path)
    except DottedPathError as error:
        raise EnvPathError(f"environment {error}") from error
    if not isinstance(found, type) or not issubclass(found, gymnasium.Env):
        raise EnvPathError(f"environment {path!r} is {found!r}, not a subclass of gymnasium.Env")
    return found


def build_env(path: str | type[Any], options: Mapping[str, object]) -> Any:
    """An environment made with `options` as keyword arguments; raises `EnvPathError` if its constructor raises.

    The option `cohort` says what kind of task it is and goes to the constructor only where that names it. Lists and
    tables are the environment's own copies.
    """
    env_class = load_env_class(path) if isinstance(path, str) else path
    given = {name: value for name, value in options.items() if name != "cohort" or _names_cohort(env_class)}
    try:
        return env_class(**copy.deepcopy(given))
    except (Exception, SystemExit, GeneratorExit) as error:  # a user's constructor may raise anything
        raise EnvPathError(
            f"environment {env_class.__name__} cannot be built with options {dict(options)}: "
            f"{type(error).__name__}: {error}"
        ) from error


def observe_reset(returned: object, env: object = None) -> Reset:
    """The typed form of what `reset` of `env` returned; raises `ContractError`."""
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise ContractError(f"reset must return (observation, info), it returned {shown(returned)}")
    said = read_said(returned[0], "reset")
    observation = text_of(said)
    info = _info(returned[1], "reset")
    return Reset(
        observation=observation,
        said=said,
        tools=read_tools(info.get("tools", declared_tools(env))),
        anchor=_anchor(info, observation, "reset"),
        cohort=_cohort(info),
    )


def observe_step(returned: object, response: str) -> Step:
    """The typed form of what `env.step(response)` returned; raises `ContractError`."""
    if not isinstance(returned, tuple) or len(returned) != 5:
        raise ContractError(
            f"step must return (observation, reward, terminated, truncated, info), it returned {shown(returned)}"
        )
    said = read_said(returned[0], "step")
    observation = text_of(said)
    info = _info(returned[4], "step")
    return Step(
        observation=observation,
        said=said,
        reward=_reward(returned[1]),
        terminated=_flag(returned[2], "step: terminated"),
        truncated=_flag(returned[3], "step: truncated"),
        anchor=_anchor(info, observation, "step"),
        action=_action(info, response),
        progress=_progress(info),
        success=None if info.get("success") is None else _flag(info["success"], "step: info['success']"),
        success_trains=_flag(info.get("success_trains", True), "step: info['success_trains']"),
        tool=_tool(info),
    )


def _names_cohort(env_class: type[Any]) -> bool:
    try:
        return "cohort" in inspect.signature(env_class).parameters
    except (TypeError, ValueError):  # a constructor that cannot be looked into
        return False


def _cohort(info: dict[str, Any]) -> str | None:
    cohort = scalar(info.get("cohort"))
    if cohort is None:
        return None
    if not is_cohort(cohort):
        raise ContractError(f"reset: info['cohort'] is {shown(cohort)}; {COHORT_RULE}")
    return plain_text(cohort, "reset: info['cohort']")


def _info(info: object, where: str) -> dict[str, Any]:
    if not isinstance(info, Mapping):
        raise ContractError(f"{where}: info must be a dict, found {shown(info)}")
    actions = info.get("admissible_actions", [])
    if not isinstance(actions, list | tuple) or not all(isinstance(action, str) for action in actions):
        raise ContractError(f"{where}: info['admissible_actions'] must be a list of str, found {shown(actions)}")
    return dict(info)


def _anchor(info: dict[str, Any], observation: str, where: str) -> str:
    return plain_text(info["anchor"], f"{where}: info['anchor']") if "anchor" in info else observation


def _action(info: dict[str, Any], response: str) -> str | None:
    if not _flag(info.get("action_valid", True), "step: info['action_valid']"):
        return None
    if "action" not in info:
        return response.strip()
    action = info["action"]
    if action is None:
        if "action_valid" in info:
            raise ContractError("step: info['action'] is None although info['action_valid'] is True")
        return None
    return plain_text(action, "step: info['action']")


def _progress(info: dict[str, Any]) -> float | None:
    if info.get("progress") is None:
        return None
    progress = plain_number(info["progress"], "step: info['progress']")
    if not 0.0 <= progress <= 1.0:
        raise ContractError(f"step: info['progress'] must lie in [0, 1], found {progress}")
    return progress


def _tool(info: dict[str, Any]) -> dict[str, Any] | None:
    if info.get("tool") is None:
        return None
    facts = plain_object(info["tool"], "step: info['tool']")
    rules = facts.get("violations", [])
    if not isinstance(rules, list) or not all(isinstance(rule, str) for rule in rules):
        raise ContractError(f"step: info['tool']['violations'] must be a list of str, found {shown(rules)}")
    return facts


def _flag(value: object, what: str) -> bool:
    held = scalar(value)
    if not isinstance(held, bool):
        raise ContractError(f"{what} must be a bool, found {shown(value)}")
    return held


def _reward(value: object) -> float:
    reward = plain_number(value, "step: reward")
    try:
        check_rewards([reward])
    except ValueError as error:
        raise ContractError(f"step: {error}") from error
    return reward
