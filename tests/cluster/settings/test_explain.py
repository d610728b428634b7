"""`milepost config` says of every setting what the checked models say."""

import json
import re

import pytest

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.settings import explain, reference
from milepost.cluster.settings.config import RunConfig
from milepost.cluster.settings.explain import UNIT_WORDS, UNITS
from milepost.cluster.settings.overrides import leaves
from milepost.learner.credit.strategies.registry import SETTINGS

PURE_NUMBERS = {"seed", "rank", "port", "hidden_size", "head_dim", "intermediate_size", "draws"}
"""Integers that count nothing with a name."""


def every_setting():
    return [
        setting
        for name in ("", *(f"credit.{strategy}" for strategy in SETTINGS))
        for section in explain.sections(name)
        for setting in section.settings
    ]


def test_every_key_of_a_resolved_config_is_explained():
    told = {setting.key for section in explain.sections() for setting in section.settings}
    # The keys of these tables are names of the user's own environment, or of vLLM and DeepSpeed.
    own = {key for key, _ in leaves(RunConfig().model_dump())}
    assert own <= told
    open_tables = {"env.options", "env.ood_options", "engine.vllm", "learner.deepspeed"}
    assert told - own == open_tables | {key for key in told if "[]" in key}


def test_every_setting_says_what_it_means():
    for setting in every_setting():
        assert setting.description, setting.key


def test_an_integer_has_a_unit_unless_it_counts_nothing():
    without = {s.key.rpartition(".")[2] for s in every_setting() if s.type.startswith("integer") and s.unit is None}
    assert without == PURE_NUMBERS


def test_no_unit_is_stated_for_a_key_that_is_not_there():
    keys = {setting.key for setting in every_setting()}
    assert keys >= UNITS.keys()
    assert {key.rpartition(".")[2].rpartition("_")[2] for key in keys} >= UNIT_WORDS.keys()


@pytest.mark.parametrize(
    ("key", "kind", "bounds", "default", "unit", "is_free"),
    [
        ("learner.lr", "number", "> 0", 1e-6, None, False),
        ("run.stop_grace_s", "number", "> 0", 30, "seconds", True),
        ("buffer.max_bytes", "integer", ">= 1024", 1024**3, "bytes", True),
        ("engine.kv_cache_gib", "integer", ">= 1", 1, "GiB", False),
        ("env.heldout_size", "integer", ">= 0, <= 1048576", 64, "tasks", False),
        ("model.warmup.head_dim", "integer", ">= 8, a multiple of 2", 32, None, False),
        ("critic.value_clip", "number, or unset", "> 0", None, None, False),
        ("entropy.band", "[number, number], or unset", "", None, None, False),
        (
            "env.options",
            "table of true or false or integer or number or text or list or table of any of these",
            "",
            {},
            None,
            False,
        ),
        ("run.eval_splits", "list, each one of", "not empty", ("train", "heldout", "ood"), None, True),
        ("credit.gigpo.gamma", "number", "> 0, <= 1", 0.95, None, False),
        ("credit.depth", "integer, or unset", ">= 0", None, "backups", False),
    ],
)
def test_a_key_is_told_in_full(key, kind, bounds, default, unit, is_free):
    setting, elements = explain.setting(key)
    assert (setting.type, setting.bounds, setting.default, setting.unit) == (kind, bounds, default, unit)
    assert setting.is_free_on_resume == is_free
    assert elements == []


def test_the_choices_of_a_key_are_listed():
    assert explain.setting("learner.dtype")[0].choices == ("float32", "bfloat16")
    assert explain.setting("learner.lr")[0].choices is None


def test_a_list_of_tables_is_explained_with_the_keys_of_each():
    _, elements = explain.setting("credit.modulators")
    assert [section.title for section in elements] == [
        "credit.modulators[], name = aem",
        "credit.modulators[], name = empg",
    ]
    assert "credit.modulators[].bonus" in {setting.key for setting in elements[1].settings}


def test_a_section_comes_with_the_sections_inside_it():
    assert [section.title for section in explain.sections("model")] == ["model", "model.warmup"]
    assert [section.title for section in explain.sections("model.warmup")] == ["model.warmup"]


def test_the_credit_section_is_that_of_the_strategy_asked_for():
    default, gigpo = explain.sections("credit")[0], explain.sections("credit.gigpo")[0]
    assert (default.title, gigpo.title) == ("credit, strategy = crbc", "credit, strategy = gigpo")
    assert {setting.key for setting in gigpo.settings} >= {"credit.gamma", "credit.similarity"}
    assert "credit.beta" in {setting.key for setting in default.settings}
    assert {name for name, _ in explain.strategies()} == SETTINGS.keys()
    assert explain.strategies()[0][0] == "crbc"


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("lerner", "unknown section lerner; did you mean learner?"),
        ("learner.lrr", "unknown key learner.lrr; did you mean learner.lr?"),
        ("run.lr", "unknown key run.lr; did you mean learner.lr?"),
        ("credit.gigop", "unknown key credit.gigop; did you mean credit.gigpo?"),
        ("credit.omega", "unknown key credit.omega of strategy crbc; did you mean credit.graphgpo.omega?"),
        ("credit.gigpo.gama", "unknown key credit.gigpo.gama; did you mean credit.gigpo.gamma?"),
        ("metrics.zzz", "unknown key metrics.zzz; known here: allow_remote, host, port"),
        ("learner.lr.x", "unknown key learner.lr.x"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_one(name, complaint):
    assert explain.setting(name) is None
    with pytest.raises(ConfigError) as caught:
        explain.sections(name)
    assert str(caught.value) == complaint


@pytest.mark.parametrize("name", ["", "credit", "env", "learner.parity_limit", "credit.modulators"])
def test_a_terminal_of_80_columns_shows_it_without_a_longer_line(name, capsys, monkeypatch):
    for variable, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "80"}.items():
        monkeypatch.setenv(variable, value)
    reference.show(name, as_json=False)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)


def test_elsewhere_every_key_is_one_line_with_its_whole_name(capsys):
    reference.show("", as_json=False)
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("learner.parity_limit ")]
    assert re.split(r"  +", line)[1:3] == ["0.001", "nats"]
    assert line.endswith("about 5e-2 bfloat16")
    assert all(line == line.rstrip() for line in lines)


def test_the_command_prints_one_key_or_json_or_one_line_of_refusal(call):
    code, out, err = call("config", "learner.max_tokens_per_micro_batch")
    assert (code, err) == (0, "")
    assert [line.split(maxsplit=1)[1] for line in out.splitlines() if line.startswith(("default", "unit"))] == [
        "16384",
        "tokens",
    ]
    code, out, _ = call("config", "learner", "--json")
    found = {setting["key"]: setting for setting in json.loads(out)}
    assert found["learner.lr"]["default"] == 1e-6
    assert call("config", "lerner") == (2, "", "milepost: unknown section lerner; did you mean learner?\n")
