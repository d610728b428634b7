from __future__ import annotations

import enum
import math
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
import pytest

from milepost.envs.contract import (
    ContractError,
    Demonstrator,
    EnvPathError,
    build_env,
    load_env_class,
    observe_reset,
    observe_step,
)
from milepost.envs.frozen_lake import FrozenLakeText
from tests.broken_envs import CountingEnv


def step(info: dict[str, Any], reward: Any = 0.0, observation: Any = "seen") -> Any:
    return observe_step((observation, reward, False, False, info), " go north\n")


def test_without_info_keys_the_observation_is_the_anchor_and_the_stripped_response_the_action() -> None:
    assert observe_reset(("hello", {})).anchor == "hello"
    seen = step({})
    assert (seen.anchor, seen.action, seen.progress, seen.success) == ("seen", "go north", None, None)
    assert seen.success_trains


def test_info_keys_are_taken_over() -> None:
    seen = step({"anchor": "k", "action": "north", "action_valid": True, "progress": 0.5, "success": np.bool_(True)})
    assert (seen.anchor, seen.action, seen.progress, seen.success) == ("k", "north", 0.5, True)
    assert observe_reset(("hello", {"anchor": "k"})).anchor == "k"


@pytest.mark.parametrize(
    "info", [{"action_valid": False}, {"action": None}, {"action": "x", "action_valid": np.bool_(False)}]
)
def test_an_invalid_action_is_none(info: dict[str, Any]) -> None:
    assert step(info).action is None


@pytest.mark.parametrize("reward", [1, np.float32(0.5), np.int64(2), np.array(0.5), Fraction(1, 2), 0.25])
def test_any_finite_number_is_a_reward(reward: Any) -> None:
    assert step({}, reward).reward == float(reward)
    assert type(step({}, reward).reward) is float


@pytest.mark.parametrize(
    "reward",
    [
        *(math.nan, math.inf, None, "1", True, np.bool_(True), np.zeros(1), 10**400),
        pytest.param(10**5000, id="5000 digits"),
    ],
)
def test_anything_else_is_no_reward(reward: Any) -> None:
    with pytest.raises(ContractError, match=r"step: reward must be .*, found"):
        step({}, reward)


@pytest.mark.parametrize("reward", [1e308, -1e13, 10**13])
def test_a_reward_that_no_sum_could_hold_is_refused(reward: Any) -> None:
    with pytest.raises(ContractError, match=r"step: the rewards of an episode add up to .*, the limit is 1e\+12"):
        step({}, reward)


def test_a_number_too_long_to_be_shown_is_refused_all_the_same() -> None:
    with pytest.raises(ContractError, match=r"found int \(ValueError when it is shown\)"):
        step({"anchor": 10**5000})


@pytest.mark.parametrize(
    ("info", "what"),
    [
        ({"anchor": 3}, "anchor"),
        ({"action": 3}, "action"),
        ({"action_valid": "yes"}, "action_valid"),
        ({"action": None, "action_valid": True}, "action"),
        ({"progress": 1.5}, "progress"),
        ({"progress": math.nan}, "progress"),
        ({"success": 1}, "success"),
        ({"success": True, "success_trains": 1}, "success_trains"),
        ({"admissible_actions": "north"}, "admissible_actions"),
        ({"anchor": "half \ud83d"}, "anchor.* holds half a character at 5"),
        ({"tool": "search"}, "tool"),
        ({"tool": {"violations": "no ticket"}}, "violations"),
        ({"tool": {"violations": [1]}}, "violations"),
    ],
)
def test_an_info_key_of_another_type_is_named(info: dict[str, Any], what: str) -> None:
    with pytest.raises(ContractError, match=what):
        step(info)


class Room(enum.StrEnum):
    HALL = "hall"


class Said(str):
    def __str__(self) -> str:
        return "something else"


@pytest.mark.parametrize("text", [np.str_("hall"), Room.HALL, Said("hall"), np.array("hall")])
def test_every_kind_of_text_is_the_plain_text_it_holds(text: Any) -> None:
    seen = step({"anchor": text, "action": text, "action_valid": np.array(True)}, observation=text)
    start = observe_reset((text, {"anchor": text, "cohort": text}))
    found = [seen.anchor, seen.action, seen.observation, start.anchor, start.cohort, start.observation]
    assert found == ["hall"] * 6
    assert {type(one) for one in found} == {str}
    msgspec.msgpack.encode((seen, start))


def test_a_tuple_of_actions_and_any_mapping_will_do() -> None:
    info = {"anchor": "k", "admissible_actions": ("go", np.str_("stay"))}
    assert step(MappingProxyType(info)).anchor == "k"  # type: ignore[arg-type]


@pytest.mark.parametrize("returned", ["text", ("text",), ("text", None), (3, {}), ["text", {}]])
def test_a_reset_that_returns_something_else_is_refused(returned: Any) -> None:
    with pytest.raises(ContractError, match="reset"):
        observe_reset(returned)


@pytest.mark.parametrize(
    "returned",
    [None, ("o", 0.0, False, {}), (b"o", 0.0, False, False, {}), ("o", 0.0, 0, False, {}), ("o", 0.0, False, False, 1)],
)
def test_a_step_that_returns_something_else_is_refused(returned: Any) -> None:
    with pytest.raises(ContractError, match="step"):
        observe_step(returned, "go")


@pytest.mark.parametrize("cohort", ["", "hard", "Stufe 3", "x" * 64, None])
def test_a_cohort_is_taken_over_at_reset(cohort: Any) -> None:
    assert observe_reset(("hello", {"cohort": cohort})).cohort == cohort


@pytest.mark.parametrize("cohort", [3, "x" * 65, "two\nlines", "\ud800", ["hard"]])
def test_a_cohort_that_is_no_short_line_of_text_is_refused(cohort: Any) -> None:
    with pytest.raises(ContractError, match=r"info\['cohort'\].* at most 64 printable characters"):
        observe_reset(("hello", {"cohort": cohort}))


class KnowsItsCohort(CountingEnv):
    def __init__(self, *, cohort: str = "none given", **others: Any) -> None:
        super().__init__(**others)
        self.cohort = cohort


def test_the_option_cohort_goes_to_a_constructor_that_names_it_and_to_no_other() -> None:
    options = {"target": 2, "cohort": "hard"}
    assert build_env(CountingEnv, options).target == 2
    assert build_env(KnowsItsCohort, options).cohort == "hard"
    assert options == {"target": 2, "cohort": "hard"}


def test_a_class_is_loaded_by_its_path() -> None:
    assert load_env_class("milepost.envs.frozen_lake:FrozenLakeText") is FrozenLakeText
    assert isinstance(build_env("tests.broken_envs:CountingEnv", {"target": 2}), CountingEnv)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("milepost.envs.frozen_lake", "not of the form"),
        ("../envs:Lake", "not of the form"),
        ("milepost.no_such:Lake", "no module named 'milepost.no_such'"),
        ("milepost.envs.frozen_lake:Lake", "has no 'Lake'"),
        ("milepost.envs.frozen_lake:MOVES", "not a subclass of gymnasium.Env"),
        ("milepost.envs.types:Task", "not a subclass of gymnasium.Env"),
    ],
)
def test_a_path_that_names_no_environment_says_why(path: str, why: str) -> None:
    with pytest.raises(EnvPathError, match=why):
        load_env_class(path)


def test_a_module_that_raises_on_import_says_what(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "faulty_env_module.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EnvPathError, match="importing faulty_env_module raised ZeroDivisionError"):
        load_env_class("faulty_env_module:Env")


def test_options_that_the_constructor_refuses_are_shown() -> None:
    with pytest.raises(EnvPathError, match=r"FrozenLakeText .*\{'size': 99\}.*ValueError: size must lie in 2..12"):
        build_env(FrozenLakeText, {"size": 99})
    with pytest.raises(EnvPathError, match="unexpected keyword argument 'width'"):
        build_env(FrozenLakeText, {"width": 4})


def test_an_environment_with_an_expert_is_told_from_one_without() -> None:
    assert isinstance(FrozenLakeText(), Demonstrator)
    assert not isinstance(CountingEnv(), Demonstrator)


def test_facts_about_a_tool_call_are_kept_as_json_says_them() -> None:
    step = observe_step(("", 0.0, False, False, {"tool": {"name": "sql", "rows": (1, np.int64(2)), "ok": True}}), "x")
    assert step.tool == {"name": "sql", "rows": [1, 2], "ok": True}
    assert observe_step(("", 0.0, False, False, {}), "x").tool is None


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), object(), 2**70, "\ud83d"])
def test_facts_that_json_does_not_know_are_refused(value: object) -> None:
    with pytest.raises(ContractError, match=r"info\['tool'\] must hold what JSON knows"):
        observe_step(("", 0.0, False, False, {"tool": {"fact": value}}), "x")
