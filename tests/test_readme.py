"""The README's own claims: its snippets are run, its tables are compared with the code."""

import asyncio
import re
import urllib.request
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from milepost.actors.checks.check import check_env
from milepost.cluster.base.exits import Exit
from milepost.cluster.cli import app
from milepost.cluster.preflight import check_world
from milepost.cluster.runlog.metrics import Metrics
from milepost.cluster.settings import config as configs
from milepost.envs.dialogue import Dialogue
from milepost.envs.types import Failure, Task, Trajectory
from milepost.learner.first_policy.demonstrations import demonstrate
from milepost.reward.reward import TurnText, apply, load_reward
from tests.actors.episode_rig import ScriptedEngine, play, resources, task

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
TOML = re.findall(r"```toml\n(.*?)```", README, flags=re.DOTALL)
ENV = "higher_lower:HigherLower"
REWARD = "my_reward:fewer_turns"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a reader has after following the README: environment, reward and config in the folder they start from."""
    env, reward = PYTHON
    config, several = TOML
    for name, text in (("config.toml", config), ("several.toml", several)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    for name, text in (("higher_lower.py", env), ("my_reward.py", reward)):
        assert f"`{name}`" in README
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def bisect(prompt: str) -> str:
    low, high = map(int, re.findall(r"from (\d+) to (\d+)", prompt)[-1])
    return f"<answer>{(low + high) // 2}</answer>"


def played(dialogue: Dialogue, *, seeds: int) -> list[Trajectory | Failure]:
    """The README's environment, played by bisection through the episode code that workers run."""
    tokenizer = dialogue._tokenizer

    async def go() -> list[Trajectory | Failure]:
        engine = ScriptedEngine(dialogue, lambda ids: bisect(tokenizer.decode(ids)))
        async with resources(dialogue, engine=engine, max_turns=4, max_prompt_tokens=4000) as on:
            return [await play(on, Task(env=ENV, seed=seed, split="train")) for seed in range(seeds)]

    return asyncio.run(go())


def test_the_environment_and_config_of_the_readme_are_those_that_init_writes() -> None:
    template = ROOT / "deploy" / "templates" / "env"
    assert PYTHON[0] == (template / "higher_lower.py").read_text(encoding="utf-8")
    assert TOML[0] in (template / "train.toml").read_text(encoding="utf-8")


@pytest.mark.usefixtures("folder")
def test_the_environment_of_the_readme_has_under_40_lines_and_keeps_the_contract() -> None:
    assert len(PYTHON[0].splitlines()) < 40
    assert {finding.level for finding in check_env(ENV, {"top": 15, "max_steps": 4}).findings} == {"ok"}


@pytest.mark.usefixtures("folder")
def test_the_episode_of_the_readme_is_the_one_that_is_played(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    played = CliRunner().invoke(app, ["play", ENV, "--seed", "10"])
    assert f"$ milepost play {ENV} --seed 10\n{played.stdout}```" in README


@pytest.mark.usefixtures("folder")
def test_a_scripted_policy_wins_the_environment_of_the_readme(dialogue: Dialogue) -> None:
    for episode in played(dialogue, seeds=6):
        assert isinstance(episode, Trajectory), episode
        assert (episode.outcome, episode.reward) == ("success", 1.0)
        # What an anchor is for: every episode starts in one state, and each turn starts where the last one ended.
        assert episode.turns[0].anchor.startswith("A number from 1 to 15.")
        assert [t.next_anchor for t in episode.turns[:-1]] == [t.anchor for t in episode.turns[1:]]


@pytest.mark.usefixtures("folder")
def test_a_small_model_can_be_warmed_up_on_the_environment_of_the_readme() -> None:
    transcripts = demonstrate([task(ENV)], episodes=3, noise=0.5, draws=2, seed=0, progress=lambda _: None)
    assert all(re.fullmatch(r"<answer>\d+</answer>", a) for turns in transcripts for t in turns for a in t.answers)


def test_the_config_of_the_readme_passes_what_is_checked_before_a_run(folder: Path) -> None:
    for overrides in ([], [f"reward.path={REWARD}"]):
        check_world(configs.load(folder / "config.toml", overrides))


def test_the_environments_of_the_readme_play_in_one_run_by_their_shares(folder: Path) -> None:
    scenarios = check_world(configs.load(folder / "several.toml"))
    assert [scenarios.schedule(place).env_name for place in range(8)].count("lake") == 6


@pytest.mark.usefixtures("folder")
def test_the_reward_of_the_readme_charges_for_turns(dialogue: Dialogue) -> None:
    (episode,) = played(dialogue, seeds=1)
    assert isinstance(episode, Trajectory)
    assert f'path = "{REWARD}"' in README
    silent, *others = [
        TurnText(observation="", response="" if t == 0 else "7", next_observation="") for t in range(len(episode.turns))
    ]
    scored = apply(load_reward(REWARD), episode, [silent, *others])
    assert isinstance(scored, Trajectory)
    assert scored.reward == pytest.approx(1 - 0.05 * len(episode.turns) - 0.1)


def test_the_exit_codes_of_the_readme_are_those_of_the_program() -> None:
    table = README.partition("| exit code |\n|---|---|---|\n")[2].partition("\n\n")[0]
    told = {int(code) for row in table.splitlines() for code in re.findall(r"\b\d\b", row.rsplit("|", 2)[1])}
    own = {end.code for end in Exit.__subclasses__() if "code" in vars(end)}  # a failed experiment has its cell's code
    assert told == {0, *own}


def test_the_command_table_of_the_readme_names_every_command_and_its_options() -> None:
    section = README.partition("## Command line")[2].partition("\n## ")[0]
    told = {
        row.split()[0]: set(re.findall(r"--[a-z-]+[a-z]", row)) for row in re.findall(r"^\| `(.*?)` \|", section, re.M)
    }
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert told.keys() == commands.keys()
    for name, options in told.items():
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert options <= known, f"{name}: {options - known}"


def test_the_metrics_of_the_readme_are_served(tmp_path: Path) -> None:
    told = set(re.findall(r"`milepost_(\w+)", README))
    with (
        Metrics(tmp_path / "metrics.jsonl") as metrics,
        urllib.request.urlopen(f"http://127.0.0.1:{metrics.port}/metrics", timeout=5) as answer,
    ):
        served = set(re.findall(r"^# TYPE (\w+)", answer.read().decode(), re.M))
    assert told
    assert {f"milepost_{name}" for name in told} <= served


def test_every_file_that_the_documents_name_is_there() -> None:
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs" / "design.md"):
        text = document.read_text(encoding="utf-8")
        links = re.findall(r"\]\(([^)#]+)\)", text)
        assert [link for link in links if not (document.parent / link).exists()] == []
        named = re.findall(r"`((?:envs|reward|actors|learner|cluster|deploy|tests)/[\w./]+\.\w+)`", text)
        assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_output_that_is_shown_lies_between_its_markers() -> None:
    begin, end = README.index("<!-- output:begin -->"), README.index("<!-- output:end -->")
    assert "success" in README[begin:end]
