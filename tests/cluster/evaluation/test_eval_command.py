"""`milepost eval --suite` up to the engine, and `milepost compare`: a wrong question is one line and exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from milepost.cluster import evaluate
from milepost.cluster.evaluation.store import read, write
from milepost.cluster.runlog.saved_policy import digest
from milepost.cluster.settings import config as configs
from milepost.cluster.trajectories.reader import Wanted
from milepost.cluster.trajectories.reader import read as read_episodes
from milepost.envs.scenarios import ScenarioSet
from milepost.envs.types import Task, Trajectory, Turn, VersionSpan
from tests.cluster.evaluation.played_results import SUITE_FILE, results
from tests.reward.judges.judge_rig import serving, verdict, write_judge

ENV = '[env]\npath = "tests.broken_envs:CountingEnv"\nheldout_size = 4\n[engine]\nmax_model_len = 512\n'
pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture
def config(own_folder: Path) -> Path:
    path = own_folder / "count.toml"
    path.write_text(ENV)
    return path


def suite(folder: Path, *seeds: int, created: str = "2026-11-01", extra: str = "") -> Path:
    path = folder / "suite.toml"
    tables = [
        f'[[scenario]]\nname = "s{k}"\nenv = "tests.broken_envs:CountingEnv"\nseed = {seed}\n{extra}'
        for k, seed in enumerate(seeds)
    ]
    path.write_text("\n".join([f'name = "counts"\ncreated = {created}', *tables]))
    return path


def test_a_broken_suite_is_refused_before_anything_starts(call, config, tiny_policy, own_folder) -> None:
    broken = suite(own_folder, 900001, extra="ideal = 3")
    code, out, err = call("eval", tiny_policy, "--config", config, "--suite", broken)
    assert (code, out, err) == (2, "", f"milepost: {broken}: scenario s0: ideal: unknown key\n")


def test_a_suite_that_was_trained_on_is_refused_by_the_names_of_its_scenarios(
    call, config, tiny_policy, own_folder
) -> None:
    trained = ScenarioSet(configs.load(config).envs).tasks("train")[1].seed
    code, out, err = call(
        "eval", tiny_policy, "--config", config, "--suite", suite(own_folder, 900001, trained, created="2020-01-01")
    )
    assert (code, out) == (2, "")
    age, refused = err.splitlines()
    assert age.startswith("milepost: suite counts is ")
    assert "days old, more than --max-age 90" in age
    assert refused == (
        f"milepost: suite counts: {tiny_policy} trains on 1 of its scenarios: s1; a policy is not judged by what it "
        "was trained on: give them other seeds, or take them out"
    )


@pytest.fixture
def engineless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system whose workers answer every task at once: one turn, solved where the seed is even."""

    class Started:
        def __init__(self, config: object, *_: object) -> None:
            self.config, self.workers = config, self

        async def start(self, *_: object, **__: object) -> None:
            pass

        async def stop(self) -> None:
            pass

        async def play(self, tasks: list[tuple[int, Task]], _: float) -> list[Trajectory]:
            return [self.played(index, task) for index, task in reversed(tasks)]

        def played(self, index: int, task: Task) -> Trajectory:
            turn = Turn(
                prompt_ids=[1, 2, 3], response_ids=[4], logprobs=[-1.0], anchor="0", next_anchor="1", action="go",
                versions=[VersionSpan(version=0, start=0, end=1)], reward=1.0,
            )  # fmt: skip
            outcome = "failure" if task.seed % 2 else "success"
            return Trajectory(task=task, group_id="eval", index=index, turns=[turn], outcome=outcome)

    monkeypatch.setattr(evaluate, "System", Started)


@pytest.mark.usefixtures("engineless")
def test_what_was_played_is_scored_by_scenario_printed_and_kept(call, config, tiny_policy, own_folder) -> None:
    asked = ("--suite", suite(own_folder, 900000, 900001, created="2026-11-27"), "--episodes", 3, "--prices", "1,1,2")
    code, out, _ = call("eval", tiny_policy, "--config", config, *asked)
    assert code == 0
    path = Path(out.splitlines()[-1].split()[1])
    assert path.parts[:2] == ("runs", "evaluations")
    found = read(path)
    assert [(s.name, [p.number for p in s.episodes]) for s in found.scenarios] == [("s0", [0, 1, 2]), ("s1", [0, 1, 2])]
    assert [[played.native.success for played in s.episodes] for s in found.scenarios] == [[1, 1, 1], [0, 0, 0]]
    assert found.buckets["all"].tokens_per_success == 2 * 4
    assert found.policy.sha256 == digest(tiny_policy)
    wanted = Wanted(episode=None, fate="evaluation", task="900001", worst=False, count=9)
    assert len(read_episodes(path.parent / "trajectories", wanted)) == 3


@pytest.mark.usefixtures("engineless")
def test_a_judge_scores_what_was_played_from_its_record(call, config, tiny_policy, own_folder) -> None:
    with serving(lambda body: verdict(body, score=1)) as served:
        asked = ("--suite", suite(own_folder, 900000, 900001), "--judge", write_judge(own_folder, served.url))
        code, out, err = call("eval", tiny_policy, "--config", config, *asked, "--max-age", 99999)
    assert (code, err) == (0, "")
    found = read(Path(out.splitlines()[-1].split()[1]))
    assert found.buckets["all"].judged["reasoning_quality"].mean == 0
    assert len(served.asked) == 8
    assert "judged reasoning_quality  0.000" in out


@pytest.mark.usefixtures("engineless")
def test_a_judge_that_gives_no_score_costs_no_episode(call, config, tiny_policy, own_folder) -> None:
    with serving(lambda _: "no") as served:
        asked = ("--suite", suite(own_folder, 900000), "--judge", write_judge(own_folder, served.url))
        code, out, err = call("eval", tiny_policy, "--config", config, *asked, "--max-age", 99999)
    path = Path(out.splitlines()[-1].split()[1])
    assert (code, len(read(path).scenarios[0].episodes)) == (4, 4)
    assert err.startswith("milepost: judge tester judged none of 4 episodes; the first: asked 1 times: ")
    assert err.endswith(f"; results without judged scores: {path}\n")


def test_a_judge_that_is_refused_is_told_before_anything_starts(call, config, tiny_policy, own_folder) -> None:
    judge = write_judge(own_folder, "http://127.0.0.1:9/v1")
    judge.write_text(judge.read_text().replace('family = "mistral"', 'family = "llama4"'))
    asked = ("--suite", suite(own_folder, 900000), "--judge", judge, "--max-age", 99999)
    code, out, err = call("eval", tiny_policy, "--config", config, *asked)
    assert (code, out) == (2, "")
    assert err.startswith("milepost: judge tester: it is a llama4 and the policy a llama, of one family")


@pytest.mark.parametrize("prices", ["1,2", "a,b,c", "1,-1,2", "1,inf,2"])
def test_prices_that_are_none_are_refused(call, config, tiny_policy, own_folder, prices: str) -> None:
    asked = ("--suite", suite(own_folder, 900001), "--prices", prices)
    code, _, err = call("eval", tiny_policy, "--config", config, *asked)
    assert code == 2
    assert err.startswith(f"milepost: --prices {prices}: ")


@pytest.mark.parametrize(
    ("asked", "which"),
    [
        (("--split", "ood"), "--split and"),
        (("--prices", "1,1,1"), "--prices without"),
        (("--judge", "judge.toml"), "--judge without"),
    ],
)
def test_an_option_that_would_not_count_is_refused(call, config, tiny_policy, own_folder, asked, which: str) -> None:
    with_suite = ("--suite", suite(own_folder, 900001)) if "--split" in asked else ()
    code, _, err = call("eval", tiny_policy, "--config", config, *asked, *with_suite)
    assert (code, err) == (2, f"milepost: eval {tiny_policy}: {which} --suite: what it says would not count\n")


def test_compare_prints_a_table_or_one_json_object(call, own_folder) -> None:
    folders = []
    for agent in ("idle", "sound"):
        folders.append(own_folder / agent)
        folders[-1].mkdir()
        write(results(agent, episodes=4, source=agent), folders[-1])
    code, out, _ = call("compare", *folders)
    assert code == 0
    assert out.splitlines()[:2] == ["first   idle version 3", "second  sound version 3"]
    found = json.loads(call("compare", *folders, "--json")[1])
    assert {each["difference"]["verdict"] for each in found["compared"] if each["metric"] == "success"} == {
        "better", "undecided",
    }  # fmt: skip


def test_what_names_no_results_is_one_line(call) -> None:
    code, out, err = call("compare", SUITE_FILE, "nobody")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "no results of a suite" in err
