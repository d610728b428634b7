import re
import stat
from typing import get_origin

import pytest
from pydantic import BaseModel

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.experiment import plan
from milepost.cluster.settings import config as configs
from milepost.cluster.settings.config import RunConfig, config_hash, dump, load, refuse_change
from milepost.cluster.settings.keys import tables
from milepost.learner.credit.modulators import AEMConfig, EMPGConfig
from milepost.learner.credit.strategies.registry import SETTINGS


@pytest.fixture
def toml(tmp_path):
    def write(text):
        path = tmp_path / "run.toml"
        path.write_text(text)
        return path

    return write


def complaint(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return str(caught.value)


def test_an_empty_file_is_the_recommended_config(toml):
    assert load(toml("")) == RunConfig()


def test_values_of_the_file_and_overrides_arrive_in_their_sections(toml):
    path = toml('[run]\nname = "lake"\nseed = 3\n[learner]\nlr = 1e-4\n')
    config = load(path, ["run.seed=5", "learner.lr=1e-5", "env.options.slippery=true", "run.name=bandit"])
    assert (config.run.name, config.run.seed, config.learner.lr) == ("bandit", 5, 1e-5)
    assert config.env.options == {"slippery": True}


def test_options_of_an_environment_may_be_lists_and_tables(toml, tmp_path):
    path = toml('[env.options]\nrooms = [["hall", 2], ["attic"]]\n[env.options.prices]\nbread = [2.5, true]\n')
    config = load(path, ["env.options.words=['a', 'b']", "env.ood_options.prices={bread = []}"])
    assert config.env.options == {
        "rooms": [["hall", 2], ["attic"]],
        "prices": {"bread": [2.5, True]},
        "words": ["a", "b"],
    }
    dump(config, tmp_path / "resolved.toml")
    assert load(tmp_path / "resolved.toml") == config
    other = load(path, ["env.options.words=['a', 'c']", "env.ood_options.prices={bread = []}"])
    assert config_hash(other) != config_hash(config)
    with pytest.raises(ConfigError, match=r"env\.options\.words was \['a', 'b'\] and is now \['a', 'c'\]"):
        refuse_change(config, other)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("[1, 1979-05-27]", r"option rooms\[1\] is date 1979-05-27; an option is"),
        ("[{from = 07:32:00}]", r"option rooms\[0\]\.from is time 07:32:00"),
        ("[1.0, nan]", r"option rooms\[1\] is nan, not a finite number"),
        ("18446744073709551616", "option rooms has more than 64 bits"),
    ],
)
def test_an_option_that_no_wire_takes_is_refused_by_name(toml, value, reason):
    assert re.fullmatch(rf".*run\.toml: env\.options: {reason}.*", complaint(toml(f"[env.options]\nrooms = {value}\n")))


def test_a_resolved_config_reads_back_equal(toml, tmp_path):
    config = load(
        toml('[env]\noptions = {size = 5, slippery = false}\n[run]\nname = "a-b"\n'), ["actors.system_prompt=Hi"]
    )
    dump(config, tmp_path / "resolved.toml")
    assert load(tmp_path / "resolved.toml") == config
    dump(RunConfig(), tmp_path / "default.toml")
    assert load(tmp_path / "default.toml") == RunConfig()


def test_a_resolved_config_shows_what_is_unset_as_a_comment_in_its_section(toml, tmp_path):
    for strategy in SETTINGS:
        own = ["credit.path=my_credit:Mine"] if strategy == "custom" else []
        config = load(toml(""), [f"credit.strategy={strategy}", "entropy.band=[0.5, 2]", "entropy.coef=0.01", *own])
        dump(config, tmp_path / "resolved.toml")
        assert load(tmp_path / "resolved.toml") == config
        section, told = "", set()
        for line in (tmp_path / "resolved.toml").read_text().splitlines():
            section = line.strip("[]") if line.startswith("[") else section
            if line.startswith("# "):
                key, meaning = line.removeprefix("# ").split(" = unset: ")
                told.add(f"{section}.{key}")
                assert meaning
        unset = {"critic.value_clip", "offpolicy.ratio_band", "offpolicy.rejection_band"}
        assert told == unset | ({"credit.depth"} if strategy == "crbc" else set())


@pytest.mark.parametrize("text", ["\u2028[critic]", "a\n[critic]\nb", "\x85", "\r\n", '"""', "# value_clip = unset"])
def test_no_text_breaks_the_resolved_config(tmp_path, text):
    config = RunConfig.model_validate({"actors": {"system_prompt": text}})
    dump(config, tmp_path / "resolved.toml")
    assert load(tmp_path / "resolved.toml") == config


def test_an_unknown_key_is_refused_with_file_key_and_nearest_name(toml):
    path = toml("[run]\ngroup_sise = 4\n")
    assert complaint(path) == f"{path}: unknown key run.group_sise; did you mean run.group_size?"


def test_a_key_in_the_wrong_section_is_shown_its_place(toml):
    assert complaint(toml("[run]\nlr = 1e-4\n")).endswith("unknown key run.lr; did you mean learner.lr?")
    assert complaint(toml("[lerner]\nlr = 1.0\n")).endswith("unknown key lerner; did you mean learner?")


def test_an_unknown_key_like_nothing_else_lists_the_known_ones(toml):
    assert complaint(toml("[metrics]\nzzz = 1\n")).endswith(
        "unknown key metrics.zzz; known here: allow_remote, host, port"
    )


def test_a_wrong_override_names_set_as_its_source(toml):
    assert complaint(toml(""), "run.sead=1") == "--set: unknown key run.sead; did you mean run.seed?"
    assert complaint(toml(""), "run.seed=x").startswith("--set: run.seed = 'x': input should be a valid integer")


@pytest.mark.parametrize("override", ["run.seed", "=1", ".seed=1", "run.=1"])
def test_an_override_that_is_no_assignment_says_how_to_write_it(toml, override):
    assert "write key=value" in complaint(toml(""), override)


def test_an_override_below_a_value_is_refused(toml):
    assert "seed is a value, not a section" in complaint(toml("[run]\nseed = 1\n"), "run.seed.x=1")


def test_an_override_cannot_smuggle_in_a_second_key(toml):
    config = load(toml(""), ["actors.system_prompt=1\nother = 2"])
    assert config.actors.system_prompt == "1\nother = 2"


def test_every_type_error_has_its_own_line(toml):
    path = toml("[run]\nseed = -1\niterations = 1.5\n[learner]\nlr = 0.0\n")
    lines = complaint(path).splitlines()
    assert len(lines) == 3
    assert lines[0] == f"{path}: run.seed = -1: input should be greater than or equal to 0"
    assert lines[1].startswith(f"{path}: run.iterations = 1.5: ")
    assert lines[2].startswith(f"{path}: learner.lr = 0.0: ")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_number_that_is_not_finite_is_refused(toml, value):
    assert "learner.lr" in complaint(toml(f"[learner]\nlr = {value}\n"))
    assert "is not a finite number" in complaint(toml(f"[env.options]\nx = {value}\n"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[run]\nseed = 1\nseed = 2\n", "not valid TOML"),
        ("[run]\nseed = no\n", "not valid TOML"),
        ("run: {seed: 1}", "not valid TOML"),
        ("x = " + "[" * 100_000, "nested too deeply"),
        ("# " + "x" * 1_000_000, "larger than 1 MB"),
        ('[run]\nname = "../up"\n', "run.name"),
        ('[run]\nruns_dir = "runs/../../up"\n', "'..' is not allowed"),
        ("run = 1\n", "run"),
    ],
)
def test_a_hostile_or_broken_file_is_refused_by_name(toml, text, reason):
    path = toml(text)
    message = complaint(path)
    assert message.startswith(str(path))
    assert reason in message


def test_a_missing_file_is_named(tmp_path):
    assert complaint(tmp_path / "none.toml").startswith(f"{tmp_path / 'none.toml'}: No such file")


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "not valid TOML" in complaint(path)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["run.group_size=1"], "run.group_size = 1"),
        (["buffer.max_groups=2"], "buffer.max_groups = 2 is less than the 16 groups"),
        (["learner.minibatches=9"], "learner.minibatches = 9 is more than run.groups_per_iteration = 8"),
        (["sampling.max_tokens=4096"], "leaves no room for a prompt"),
        (["run.ray_address=auto"], "buffer.url_env is empty"),
        (["loss.objective=sapo"], 'set offpolicy.importance = "none"'),
        (["loss.ratio=turn"], "set clip_low = 3e-4 and clip_high = 4e-4"),
        (["loss.objective=cispo"], "loss.objective = 'cispo' has no effect with learner.minibatches = 1"),
        (["loss.dual_clip=2.0"], "set learner.minibatches to 2 or more, or leave dual_clip out"),
        (["loss.tau_positive=2.0", "learner.minibatches=2"], 'set objective = "sapo", or leave tau_positive out'),
        (["offpolicy.ratio_band=[2, 3]"], "must be 0 <= low < 1 < high"),
        (["metrics.host=0.0.0.0"], "set metrics.allow_remote = true"),
    ],
)
def test_sections_that_contradict_each_other_are_one_clear_line(toml, overrides, expected):
    message = complaint(toml(""), *overrides)
    assert expected in message
    assert "\n" not in message


def test_a_resolved_config_names_the_variable_of_the_redis_url_and_never_the_url(toml, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_REDIS", "redis://:hunter2@host:1")
    config = load(toml(""), ["buffer.url_env=MY_REDIS"])
    dump(config, tmp_path / "resolved.toml")
    text = (tmp_path / "resolved.toml").read_text()
    assert "MY_REDIS" in text
    assert "hunter2" not in text + repr(config)


def test_the_hash_follows_what_is_learnt_and_not_where_or_how_long(toml):
    base = config_hash(load(toml("")))
    assert config_hash(load(toml(""), ["run.iterations=7", "metrics.port=9", "run.runs_dir=/tmp/x"])) == base
    assert config_hash(load(toml(""), ["learner.lr=1e-3"])) != base
    assert config_hash(load(toml(""), ["env.options.size=5"])) != base


def test_a_resumed_run_may_go_on_longer_but_not_otherwise(toml):
    path = toml("")
    old = load(path)
    refuse_change(old, load(path, ["run.iterations=500", "run.eval_every=5", "metrics.port=9"]))
    with pytest.raises(ConfigError) as caught:
        refuse_change(old, load(path, ["run.seed=9", "env.options.size=5"]))
    assert str(caught.value).splitlines()[:2] == [
        "env.options.size was None and is now 5",
        "run.seed was 0 and is now 9",
    ]


def test_no_section_has_more_fields_than_a_person_reads():
    sections = dict(tables(RunConfig))
    for name, section in (sections | SETTINGS).items():
        keys = [key for key, field in section.model_fields.items() if get_origin(field.annotation) is not dict]
        assert len(keys) <= 16, name  # a table of foreign keys is read in the docs of those who know them


def test_every_key_is_described_in_a_phrase_that_begins_with_a_capital_letter():
    experiment = [plan.Experiment, plan.BaseRun, plan.Arm, plan.Measures]
    sections = dict(tables(RunConfig)).values()
    for section in [*sections, *SETTINGS.values(), AEMConfig, EMPGConfig, *experiment]:
        for name, field in section.model_fields.items():
            is_section = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
            assert is_section or (field.description or "")[:1].isupper(), f"{section.__name__}.{name}"


def test_the_keys_of_the_credit_section_are_those_of_its_strategy(toml):
    assert load(toml('[credit]\nstrategy = "starpo"\nbaseline = "rloo"\n')).credit.strategy == "starpo"
    message = complaint(toml('[credit]\nstrategy = "starpo"\nbeta = 0.9\n'))
    assert "unknown key credit.beta of strategy starpo" in message
    assert "credit.strategy = 'crcb': no such strategy; did you mean crbc?" in complaint(
        toml(""), "credit.strategy=crcb"
    )
    assert (
        complaint(toml(""), "credit.bta=0.9")
        == "--set: unknown key credit.bta of strategy crbc; did you mean credit.beta?"
    )
    assert complaint(toml(""), "credit.beta=1.5").startswith("--set: credit.beta = 1.5: ")


def test_a_path_alone_means_a_strategy_of_ones_own(toml):
    credit = load(toml('[credit]\npath = "my_credit:Mine"\noptions = { fade = 0.5 }\ninvalid_penalty = 0\n')).credit
    assert (credit.strategy, credit.path, credit.options) == ("custom", "my_credit:Mine", {"fade": 0.5})
    assert load(toml(""), ["credit.path=my_credit:Mine", "credit.options.fade=0.5"]).credit.options == {"fade": 0.5}
    assert complaint(toml('[credit]\nstrategy = "custom"\n')).endswith("credit.path: field required")
    assert "unknown key credit.path of strategy gigpo" in complaint(
        toml('[credit]\nstrategy = "gigpo"\n'), "credit.path=my_credit:Mine"
    )
    assert "unknown key credit.fade of strategy custom" in complaint(
        toml('[credit]\npath = "my_credit:Mine"\nfade = 0.5\n')
    )


def test_the_configs_that_are_delivered_are_valid():
    from pathlib import Path

    folder = Path(configs.__file__).resolve().parents[2] / "deploy" / "configs"
    delivered = sorted(folder.glob("*.toml"))
    assert {path.name for path in delivered} >= {"local.toml", "bandit.toml", "smollm2.toml", "cluster.toml"}
    for path in delivered:
        assert load(path).run.name
        assert not stat.S_IMODE(path.stat().st_mode) & 0o111


def test_a_home_folder_in_runs_dir_is_expanded(toml, monkeypatch):
    monkeypatch.setenv("HOME", "/somebody")
    assert load(toml('[run]\nruns_dir = "~/runs"\n')).run.runs_dir == "/somebody/runs"


def test_a_baseline_named_as_a_strategy_is_explained(toml):
    line = complaint(toml('[credit]\nstrategy = "grpo"\n'))
    assert 'strategy = "starpo" with credit.baseline = "grpo"' in line
