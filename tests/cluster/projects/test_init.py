"""`milepost init`: what it writes is tested, configured and understood as it is, by the commands that it prints."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from milepost.cluster.live.plan import planned
from milepost.cluster.preflight import check_start
from milepost.cluster.projects.command import write
from milepost.cluster.settings import config as configs

ROOT = Path(__file__).parents[3]
TEMPLATES = {"env": "higher_lower:HigherLower", "tools": "stock_desk:StockDesk", "agent": "stock_agent:run"}
pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_three_commands_are_printed_with_the_way_to_the_folder(call, template):
    code, out, err = call("init", "mine", "--template", template)
    assert (code, err) == (0, "")
    commands = [line.strip() for line in out.splitlines() if line.startswith("  ")]
    assert commands[0] == "cd mine"
    assert [command.rsplit("/")[-1].split()[0] for command in commands[1:]] == ["milepost", "python", "milepost"]
    assert f"milepost play {TEMPLATES[template]}" in commands[1]
    assert commands[2].endswith("python -m pytest -q")
    assert commands[3].endswith("milepost train train.toml")


def test_a_program_that_the_shell_would_not_find_is_printed_with_its_folder(call, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    out = call("init", "mine")[1]
    assert f"  {Path(sys.executable).parent}/milepost train train.toml" in out.splitlines()


def test_no_way_to_the_folder_is_printed_in_it(call):
    assert "cd " not in call("init", ".")[1]


def test_a_folder_that_is_not_empty_and_a_file_are_refused(call, own_folder):
    (own_folder / "full").mkdir()
    (own_folder / "full" / "thesis.txt").write_text("mine")
    for name in ("full", "full/thesis.txt"):
        code, out, err = call("init", name)
        assert (code, out) == (2, "")
        assert err.startswith(f"milepost: init {name}: ")
        assert len(err.splitlines()) == 1
    assert [path.name for path in (own_folder / "full").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_project_passes_its_own_tests(template, own_folder):
    write(own_folder / "mine", template)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=own_folder / "mine",
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


@pytest.mark.parametrize(("template", "path"), TEMPLATES.items())
def test_the_project_passes_what_is_checked_before_a_run(template, path, own_folder, monkeypatch):
    write(own_folder / "mine", template)
    monkeypatch.chdir(own_folder / "mine")
    monkeypatch.syspath_prepend(str(own_folder / "mine"))
    check_start(configs.load(Path("train.toml")))
    plan = planned("train.toml", [], seed=0)
    assert (plan.task.env, plan.has_expert) == (path, template != "agent")
    assert (own_folder / "mine" / ".gitignore").read_text().startswith("runs/\n")
