"""One table [env], or several [[env]]: what is read, what is refused, and how --set reaches one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.settings.config import config_hash, dump, load, refuse_change

LAKE = '[[env]]\nname = "lake"\nshare = 3\n[env.options]\nsize = 4\n'
DOOR = '[[env]]\nname = "door"\npath = "milepost.envs.key_door:KeyDoorText"\n'


@pytest.fixture
def toml(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "run.toml"
        path.write_text(text)
        return path

    return write


def complaint(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return str(caught.value)


def test_several_tables_are_several_environments_and_one_is_the_short_form(toml: Callable[[str], Path]) -> None:
    both = load(toml(LAKE + DOOR)).envs
    assert [(env.name, env.share, env.options) for env in both] == [("lake", 3.0, {"size": 4}), ("door", 1.0, {})]
    (one,) = load(toml("[env]\noptions = { size = 4 }\n")).envs
    assert (one.name, one.options) == ("", {"size": 4})


def test_a_resolved_config_of_several_reads_back_equal(toml: Callable[[str], Path], tmp_path: Path) -> None:
    config = load(toml(LAKE + DOOR))
    dump(config, tmp_path / "resolved.toml")
    assert load(tmp_path / "resolved.toml") == config


def test_set_reaches_an_environment_by_its_name(toml: Callable[[str], Path]) -> None:
    lake, door = load(toml(LAKE + DOOR), ["env.lake.options.size=8", "env.door.share=0.5"]).envs
    assert (lake.options, door.share) == ({"size": 8}, 0.5)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("env.lak.share=1", "--set env.lak.share=1: there is no table called lak; there are: lake, door"),
        ("env.share=1", "--set env.share=1: env holds several tables; name one of them: lake, door"),
        ("env.lake.pth=x", "--set: unknown key env.lake.pth; did you mean env.lake.path?"),
        ("env.door.share=0", "--set: env.door.share = 0: input should be greater than 0"),
    ],
)
def test_an_override_that_reaches_none_says_which_there_are(
    toml: Callable[[str], Path], override: str, said: str
) -> None:
    assert complaint(toml(LAKE + DOOR), override) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAKE + LAKE, "env: 2 [[env]] tables are called 'lake'; every environment needs a name of its own"),
        (LAKE + "[[env]]\n", '[[env]] table 2 has no name; give it one, e.g. name = "lake"'),
        (LAKE.replace("3", "-1"), "env.lake.share = -1: input should be greater than 0"),
        (LAKE.replace("3", "inf"), "env.lake.share = inf is not a finite number"),
        (LAKE + "[env.ood_options]\nsize = nan\n", "env.lake.ood_options.size = nan is not a finite number"),
        (LAKE.replace("lake", "My Lake"), "env.My Lake.name = 'My Lake': string should match pattern"),
        (LAKE.replace("share", "shore"), "unknown key env.lake.shore; did you mean env.lake.share?"),
        ("[env]\nseed = 1\n" + LAKE, "[env] and [[env]] exclude each other: write [[env]] each time, with a name"),
        (LAKE + "[env]\n", "[env] and [[env]] exclude each other"),
        ("env = []\n", "env: tuple should have at least 1 item"),
        ("env = [3]\n", "env.0 = 3: input should be a valid dictionary"),
        ("env = 3\n", "env = 3: input should be a valid dictionary"),
    ],
)
def test_tables_that_name_no_environments_are_refused_in_a_line(
    toml: Callable[[str], Path], text: str, said: str
) -> None:
    path = toml(text)
    assert said in complaint(path)
    assert complaint(path).startswith(str(path))


def test_a_resumed_run_keeps_its_environments_their_shares_and_their_order(toml: Callable[[str], Path]) -> None:
    old = load(toml(LAKE + DOOR))
    with pytest.raises(ConfigError, match=r"env.door.share was 1.0 and is now 2.0"):
        refuse_change(old, load(toml(LAKE + DOOR), ["env.door.share=2"]))
    swapped = load(toml(DOOR + LAKE))
    with pytest.raises(ConfigError, match=r"env was \['lake', 'door'\] and is now \['door', 'lake'\]"):
        refuse_change(old, swapped)
    assert config_hash(old) != config_hash(swapped)
    refuse_change(old, load(toml(LAKE + DOOR), ["run.iterations=7"]))
