"""The whole program from outside: one asynchronous run from start to report, and an orderly stop with a resumption."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from milepost.cluster.runlog.records import IterationRecord
from milepost.learner.zero import checkpoint
from tests.cluster.tracing.collector import collecting
from tests.cluster.tracing.compared import every_episode_is_traced
from tests.cluster.trajectories.recorded import rows
from tests.system.driving import MILEPOST, ROOT, START_S, Driver, environment, surviving_commits, write_config

pytestmark = pytest.mark.services
Start = Callable[..., Driver]
_ITERATIONS = 8
_EVAL_EPISODES = 8
_SMALL_BUFFER_BYTES = 300_000
"""Less than the groups of seven updates: a run that keeps what it consumed until its end would starve."""
_EVAL_KEYS = {"run", "split", "success", "success_ci", "episodes", "policy_version"}


@pytest.mark.timeout(600)
def test_an_asynchronous_run_keeps_its_promises(tmp_path: Path, tiny_policy: Path, start: Start) -> None:
    seldom, small = {"iterations": _ITERATIONS, "checkpoint_every": 100}, {"max_bytes": _SMALL_BUFFER_BYTES}
    seldom["eval_episodes"] = _EVAL_EPISODES
    with collecting() as collector:
        outside = {"tracing": {"endpoint": collector.url, "text_chars": 40}, "trackers": {"tensorboard": True}}
        driver = start("train", write_config(tmp_path, tiny_policy, run=seldom, buffer=small, **outside))
        assert driver.end(START_S) == 0, driver.said()
    assert driver.left(deadline_s=10) == []

    records = driver.records()
    assert [record.iteration for record in records] == list(range(1, _ITERATIONS + 1))
    assert max(record.both_busy_share or 0.0 for record in records) > 0, "rollouts and training never overlapped"
    assert max(record.staleness_max for record in records) in (1, 2)
    assert max(record.mixed_version_share or 0.0 for record in records) > 0, "no response carries two versions"
    engine_and_learner_agree(records)
    nothing_was_trained_twice(driver, records)
    assert max(record.buffer_bytes for record in records) < _SMALL_BUFFER_BYTES
    assert records[-1].ledger["trained"] > 0, "nothing was settled before the end, and yet the buffer sufficed"
    report = driver.folder.report.read_text()
    assert "<svg" in report or "data:image" in report
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//|url\(["']?http|@import""", report), (
        "it fetches something"
    )
    a_plain_folder_holds_the_policy(driver.folder.policy)
    every_episode_is_recorded(driver, records[-1])
    tables = [rows(driver.folder.trajectories, name) for name in ("episodes", "turns")]
    every_episode_is_traced(collector.spans, driver.folder.run_id, *tables)
    tensorboard_shows_every_iteration(driver, records)
    assert (status := driver.folder.read_status()) is not None
    assert status.ports.keys() == {"metrics", "ray", "engine-0"}
    assert records[-1].transfer_s.keys() == {"gather", "fetch", "pause", "load", "verify", "commit"}
    eval_prints_one_object(driver)
    told = _milepost("status", "latest", "--runs-dir", str(driver.runs_dir))
    assert "finished" in told
    assert f"{_ITERATIONS} of {_ITERATIONS}" in told


@pytest.mark.timeout(720)
def test_ctrl_c_stops_in_order_and_resume_goes_on(tmp_path: Path, tiny_policy: Path, start: Start) -> None:
    seldom = {"iterations": 60, "checkpoint_every": 100, "stop_grace_s": 6}
    config = write_config(tmp_path, tiny_policy, run=seldom)
    driver = start("train", config)
    driver.wait_for_iteration(2, START_S)
    rank = driver.find(r"ray::LearnerActor")[-1]
    rank.suspend()  # a step that takes longer than the stop would wait, with two before it in no checkpoint
    os.killpg(driver.process.pid, signal.SIGINT)  # as a terminal sends it: to the whole group
    driver.wait_for("more patience", lambda: "waiting for a long step, with" in driver.said(), deadline_s=30)
    rank.resume()
    assert driver.end(deadline_s=30) == 3, driver.said()
    assert driver.left(deadline_s=5) == []
    assert not list(Path("/dev/shm").glob(f"milepost-{driver.folder.run_id}-*"))
    done = driver.records()[-1].iteration
    saved = checkpoint.newest_valid(driver.folder.checkpoints)
    assert saved is not None
    assert saved.manifest.record.iteration == done

    shutil.rmtree(driver.folder.trajectories)
    driver.folder.trajectories.write_text("a file where a folder should be")  # no recording ends a run
    # with one checkpoint kept, the one it starts from is gone after the first iteration
    often = ["run.checkpoint_every=1", "run.keep_checkpoints=1", f"run.iterations={done + 2}"]
    resumed = start("train", config, "--resume", "latest", *(word for key in often for word in ("--set", key)))
    assert resumed.end(START_S) == 0, resumed.said()
    assert resumed.left(deadline_s=10) == []
    assert resumed.out.read_text().count("trajectories are not recorded any more") == 1, resumed.said()
    records = resumed.records()
    assert [record.iteration for record in records] == list(range(1, done + 3))
    engine_and_learner_agree(records)
    nothing_was_trained_twice(resumed, records)
    a_plain_folder_holds_the_policy(resumed.folder.policy)


@pytest.mark.timeout(480)
def test_a_second_ctrl_c_kills(tmp_path: Path, tiny_policy: Path, start: Start) -> None:
    driver = start("train", write_config(tmp_path, tiny_policy))

    def is_starting() -> bool:
        return bool(driver.find("redis-server")) and bool(driver.find("raylet/raylet"))

    driver.wait_for("Redis and Ray", is_starting, START_S)
    os.kill(driver.process.pid, signal.SIGINT)
    driver.wait_for("the first one to be heard", lambda: "once more to kill" in driver.said(), deadline_s=20)
    os.kill(driver.process.pid, signal.SIGINT)
    assert driver.end(deadline_s=5) == -signal.SIGINT, driver.said()
    # Ray's workers notice once they have finished importing; its agents look for its dead head for a minute more.
    assert driver.left(deadline_s=60, besides=r"ray::\w+Agent|/ray/(dashboard|_private/runtime_env)/agent") == []


@pytest.mark.timeout(480)
def test_a_sigterm_to_the_whole_group_while_ray_starts_is_a_stop(
    tmp_path: Path, tiny_policy: Path, start: Start
) -> None:
    driver = start("train", write_config(tmp_path, tiny_policy))
    driver.wait_for("Ray's first process", lambda: bool(driver.find("gcs_server")), START_S)
    os.killpg(driver.process.pid, signal.SIGTERM)  # as timeout and systemd do: it ends what Ray has started so far
    assert driver.end(deadline_s=120) == 3, driver.said()
    assert "milepost: stopped; nothing was trained yet: milepost train --resume" in driver.said()


@pytest.mark.timeout(480)
def test_a_run_whose_responses_are_all_cut_says_so_from_its_first_evaluation_on(
    tmp_path: Path, tiny_policy: Path, start: Start
) -> None:
    changed = {
        "run": {"iterations": 2, "eval_episodes": 4},
        "env": {"path": "milepost.envs.frozen_lake:FrozenLakeText", "options": {}},
        "actors": {"max_turns": 2},
        "sampling": {"max_tokens": 2},
        "filter": {"method": "top_p"},
    }
    driver = start("train", write_config(tmp_path, tiny_policy, **changed))
    assert driver.end(START_S) == 7, driver.said()
    warned, _, trained = driver.out.read_text().partition("iteration 1/2")
    assert "100.0% of the responses were cut at sampling.max_tokens = 2: raise it" in warned
    assert "100.0% of turns, 100.0% cut" in trained
    assert "no update was made: the filter dropped all 4 groups" in trained
    assert "milepost: none of the 2 iterations made an update" in trained
    assert checkpoint.newest_valid(driver.folder.checkpoints) is not None
    a_plain_folder_holds_the_policy(driver.folder.policy)


def engine_and_learner_agree(records: list[IterationRecord]) -> None:
    gaps = {record.policy_version: record.parity for record in records if record.parity is not None}
    assert [version for version in gaps if version > 1], f"no update was checked after the first one: {gaps}"
    assert max(gaps.values()) < 1e-3


def nothing_was_trained_twice(driver: Driver, records: list[IterationRecord]) -> None:
    commits = dict(surviving_commits(driver.folder.driver_log.read_text()))
    assert list(commits) == [record.policy_version for record in records]
    trained = [group_id for group_ids in commits.values() for group_id in group_ids]
    assert len(trained) == 4 * len(records)
    assert len(set(trained)) == len(trained)
    ledger = records[-1].ledger
    assert ledger["trained"] + ledger["applied"] + ledger["filtered"] == 4 * len(trained)


def a_plain_folder_holds_the_policy(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Call the coin."}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    assert model.generate(prompt, max_new_tokens=4, pad_token_id=0).shape[1] > prompt.shape[1]


def every_episode_is_recorded(driver: Driver, last: IterationRecord) -> None:
    """With the text that the engine saw, and, where it was trained on, the credit of every turn."""
    episodes = rows(driver.folder.trajectories, "episodes")
    trained = [episode for episode in episodes if episode["fate"] == "trained"]
    assert len(trained) == 4 * 4 * _ITERATIONS == len({(each["group_id"], each["index"]) for each in trained})
    assert sorted({episode["learner_version"] for episode in trained}) == list(range(_ITERATIONS))
    stale = [episode for episode in episodes if episode["fate"] == "stale"]
    assert len(stale) <= last.ledger["stale"]
    evaluated = Counter(episode["split"] for episode in episodes if episode["fate"] == "evaluation")
    assert evaluated == {"train": 2 * _EVAL_EPISODES, "heldout": 2 * _EVAL_EPISODES}
    assert {episode["fate"] for episode in episodes} <= {"trained", "stale", "pending", "evaluation"}
    assert "not among the recorded" not in driver.said()
    tokenizer = AutoTokenizer.from_pretrained(driver.folder.policy)
    turns = rows(driver.folder.trajectories, "turns")
    assert [turn["episode"] for turn in turns] == [
        episode["episode"] for episode in episodes for _ in range(episode["num_turns"])
    ]
    for episode in episodes:
        own = turns[: episode["num_turns"]]
        del turns[: episode["num_turns"]]
        ids = [token for turn in own for token in turn["prompt_ids"] + turn["response_ids"]]
        assert "".join(turn["prompt"] + turn["response"] for turn in own) == tokenizer.decode(ids)
        assert {turn["trained"] for turn in own} == {episode["fate"] == "trained"}
        assert all((turn["advantage"] is None) == (episode["fate"] != "trained") for turn in own)
    shown = _milepost("show", "latest", "--fate", "trained", "--runs-dir", str(driver.runs_dir))
    assert "Call the coin." in shown
    assert "advantage" in shown


def tensorboard_shows_every_iteration(driver: Driver, records: list[IterationRecord]) -> None:
    found = EventAccumulator(str(driver.folder.path / "tensorboard")).Reload()
    told = [(event.step, event.value) for event in found.Scalars("train/tokens")]
    assert told == [(record.iteration, record.tokens) for record in records]
    assert [event.step for event in found.Scalars("eval/heldout/success")] == [0, _ITERATIONS]


def eval_prints_one_object(driver: Driver) -> None:
    runs_dir = str(driver.runs_dir)
    printed = _milepost("eval", "latest", "--runs-dir", runs_dir, "--split", "heldout", "--episodes", "16", "--json")
    result = json.loads(printed)
    assert result.keys() >= _EVAL_KEYS
    assert (result["split"], result["episodes"], result["policy_version"]) == ("heldout", 16, _ITERATIONS)
    low, high = result["success_ci"]
    assert 0 <= low <= result["success"] <= high <= 1


def _milepost(*arguments: str) -> str:
    done = subprocess.run(
        [*MILEPOST, *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
