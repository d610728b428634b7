"""Suites: what a file may say, what is wrong with it in one line, its hash, and tasks that were trained on."""

from __future__ import annotations

import datetime
import json
import random
from pathlib import Path

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.evaluation.suite import (
    Scenario,
    age_days,
    content_hash,
    load,
    refuse_trained,
    tasks_in,
    trained_on,
    world_of,
)
from milepost.cluster.settings.config import RunConfig
from milepost.envs.scenarios import ScenarioConfig, ScenarioSet
from milepost.envs.types import Task

TODAY = datetime.date(2026, 11, 27)
LAKE = "milepost.envs.frozen_lake:FrozenLakeText"
HEADER = {"name": "lake", "created": "2026-11-01"}
ONE = {"name": "corner", "env": LAKE, "seed": 7, "options": {"size": 5}, "ideal_steps": 6, "cohort": "large"}
TWO = {"name": "bank", "env": LAKE, "seed": 8, "expected_tools": ["look"], "criteria": ["a b"]}


def write(folder: Path, *scenarios: object, kind: str = "jsonl", **header: object) -> Path:
    """A suite's file."""
    path, told = folder / f"suite.{kind}", HEADER | header
    if kind == "toml":
        path.write_text(tomli_w.dumps(told | {"scenario": list(scenarios)}))
    else:
        path.write_text("\n".join(map(json.dumps, [told, *scenarios])) + "\n")
    return path


@pytest.mark.parametrize("kind", ["toml", "jsonl"])
def test_a_suite_is_read_from_either_file_and_is_the_same(tmp_path: Path, kind: str) -> None:
    suite = load(write(tmp_path, ONE, TWO, kind=kind), today=TODAY)
    assert (suite.name, suite.created, age_days(suite, TODAY)) == ("lake", datetime.date(2026, 11, 1), 26)
    bank, corner = suite.scenarios  # in the order of their names
    assert corner.task == Task(env=LAKE, seed=7, split="heldout", options={"size": 5}, env_name="corner")
    assert (corner.expected.ideal_steps, bank.expected.tools, bank.expected.criteria) == (6, ("look",), ("a b",))
    assert suite.sha256 == content_hash([Scenario(**TWO), Scenario(**ONE)])


def test_an_episodes_luck_goes_by_scenario_and_number(tmp_path: Path) -> None:
    suite = load(write(tmp_path, ONE, TWO), today=TODAY)
    assert [task.env_name for task in tasks_in(suite, 2)] == ["bank", "corner", "bank", "corner"]
    assert tasks_in(suite, 3)[:4] == tasks_in(suite, 2)


@given(seed=st.integers(0, 99), change=st.sampled_from(["seed", "ideal_steps", "cohort", "env"]))
def test_the_hash_goes_by_what_the_scenarios_say_and_not_by_their_order(seed: int, change: str) -> None:
    told = [Scenario(name=f"s{k}", env="m:E", seed=k) for k in range(5)]
    mixed = random.Random(seed).sample(told, 5)
    assert content_hash(mixed) == content_hash(told)
    other = {"seed": 77, "ideal_steps": 3, "cohort": "easy", "env": "m:F"}[change]
    changed = told[seed % 5].model_copy(update={change: other})
    assert content_hash([*told[: seed % 5], changed, *told[seed % 5 + 1 :]]) != content_hash(told)


@pytest.mark.parametrize(
    ("scenario", "complaint"),
    [
        (ONE | {"seed": "7"}, "scenario corner: seed: Input should be a valid integer"),
        (ONE | {"idealsteps": 3}, "scenario corner: idealsteps: unknown key"),
        (ONE | {"ideal_steps": 0}, "scenario corner: ideal_steps: Input should be greater than or equal to 1"),
        (ONE | {"cohort": "c" * 65}, "scenario corner: cohort: a cohort is text of at most 64 printable characters"),
        (ONE | {"options": {"size": None}}, "scenario corner: options.size: "),
        (ONE | {"expected_tools": "look"}, "scenario corner: expected_tools: Input should be a valid list"),
        (ONE | {"name": "a b"}, "scenario a b: name: "),
        ({"env": LAKE, "seed": 1}, "scenario number 1: name: Field required"),
        ([], "scenario number 1: Input should be"),
    ],
)
def test_what_is_wrong_with_a_scenario_is_one_line_with_its_name_and_key(
    tmp_path: Path, scenario: object, complaint: str
) -> None:
    path = write(tmp_path, scenario)
    with pytest.raises(ConfigError) as refused:
        load(path, today=TODAY)
    assert str(refused.value).startswith(f"{path}: {complaint}")
    assert "\n" not in str(refused.value)


def test_every_wrong_key_of_every_scenario_has_a_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load(write(tmp_path, ONE | {"seed": -1, "cohorts": "x"}, TWO | {"env": ""}), today=TODAY)
    lines = [line.split(": ")[1:3] for line in str(refused.value).splitlines()]
    assert lines == [["scenario corner", "seed"], ["scenario corner", "cohorts"], ["scenario bank", "env"]]


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        ({"created": "2026-11-28"}, "created: 2026-11-28 is in the future"),
        ({"created": "yesterday"}, "created: "),
        ({"sha256": "0" * 64}, "sha256: the scenarios hash to "),
        ({"owner": "me"}, "owner: unknown key"),
    ],
)
def test_what_is_wrong_with_the_suite_itself_is_one_line(
    tmp_path: Path, header: dict[str, object], complaint: str
) -> None:
    path = write(tmp_path, ONE, **header)
    with pytest.raises(ConfigError) as refused:
        load(path, today=TODAY)
    assert str(refused.value).startswith(f"{path}: {complaint}")


def test_a_hash_that_is_right_is_accepted(tmp_path: Path) -> None:
    found = load(write(tmp_path, ONE), today=TODAY).sha256
    assert load(write(tmp_path, ONE, sha256=found), today=TODAY).sha256 == found


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.toml", "name = ", "not valid TOML"),
        ("a.jsonl", '{"name": "a", "created": "2026-11-01"}\n{', "line 2: not valid JSON"),
        ("a.jsonl", "", "name: Field required"),
        ("a.toml", 'name = "a"\ncreated = 2026-11-01', "scenario: there is none"),
        ("a.toml", None, "No such file or directory"),
        ("a.jsonl", b"\xff", "not valid UTF-8"),
    ],
)
def test_a_file_that_is_no_suite_is_refused(
    tmp_path: Path, name: str, text: str | bytes | None, complaint: str
) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=complaint):
        load(path, today=TODAY)


def test_two_scenarios_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="scenario corner: name: two scenarios have it"):
        load(write(tmp_path, ONE, TWO, ONE | {"seed": 9}), today=TODAY)


def test_scenarios_that_a_run_trains_on_are_named(tmp_path: Path) -> None:
    run = ScenarioSet(ScenarioConfig(path=LAKE, options={"size": 4, "cohort": "usual"}, train_size=3, heldout_size=2))
    trained, held = run.tasks("train")[2].seed, run.tasks("heldout")[0].seed
    scenarios = [
        {"name": "default-size", "env": LAKE, "seed": trained},  # 4 is the lake's default
        {"name": "same", "env": LAKE, "seed": trained, "options": {"size": 4}, "cohort": "mine"},
        {"name": "larger", "env": LAKE, "seed": trained, "options": {"size": 5}},
        {"name": "held-out", "env": LAKE, "seed": held},
        {"name": "elsewhere", "env": "milepost.envs.key_door:KeyDoorText", "seed": trained},
    ]
    suite = load(write(tmp_path, *scenarios), today=TODAY)
    assert trained_on(suite, run.tasks("train")) == ["default-size", "same"]
    with pytest.raises(ConfigError, match="suite lake: run-7 trains on 2 of its scenarios: default-size, same;"):
        refuse_trained(suite, run.tasks("train"), "run-7")


def test_the_environments_of_a_suite_are_tried_one_by_one(tmp_path: Path) -> None:
    door = {"name": "door", "env": "milepost.envs.key_door:KeyDoorText", "seed": 1}
    world = world_of(load(write(tmp_path, ONE, TWO, door), today=TODAY), RunConfig())
    assert [(env.path, env.options) for env in world.envs] == [(LAKE, {}), (door["env"], {})]
    assert world.sampling == RunConfig().sampling


def test_an_agent_program_plays_only_its_own_scenarios(tmp_path: Path) -> None:
    config = RunConfig.model_validate({"agent": {"path": "my:agent"}, "model": {"source": "folder", "path": "m"}})
    suite = load(write(tmp_path, ONE, TWO | {"env": "my:agent"}), today=TODAY)
    with pytest.raises(ConfigError, match=rf"suite lake: env is {LAKE}, and the agent program my:agent plays"):
        world_of(suite, config)
