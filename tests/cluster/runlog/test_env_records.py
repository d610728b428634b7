"""Several environments in one run: each has numbers of its own, in the records and wherever people look."""

import io

import msgspec
import pytest
from rich.console import Console

from milepost.cluster.runlog import console, runs
from milepost.cluster.runlog.console import LiveView, summary
from milepost.cluster.runlog.environments import FailingEnvironments, env_records
from milepost.cluster.runlog.metrics import Metrics
from milepost.cluster.runlog.records import EnvRecord, read_records
from milepost.cluster.runlog.report import write_report
from milepost.envs.types import Failure, Group, Outcome
from milepost.learner.credit.filter import Verdict
from tests.cluster.replay.buffer_rig import failure, task, trajectory
from tests.cluster.runlog.example_records import cohort, eval_record, iteration_record
from tests.cluster.runlog.test_metrics import scrape
from tests.cluster.runlog.test_report import Document

KEPT = Verdict(keep=True, reason="selected", score=0.5, weight=1.0)
FLAT = Verdict(keep=False, reason="zero_variance", score=0.0, weight=0.0)


def group(name: str, env_name: str, rewards: list[float], outcomes: list[Outcome]) -> Group:
    of = msgspec.structs.replace(task(), env_name=env_name)
    played = [
        msgspec.structs.replace(
            t, task=of, outcome=outcome, turns=[msgspec.structs.replace(t.turns[0], reward=reward, action=None)]
        )
        for t, reward, outcome in zip((trajectory(name, i) for i in range(2)), rewards, outcomes, strict=True)
    ]
    return Group(group_id=name, task=of, trajectories=played)


def failed(env_name: str, message: str) -> Failure:
    return msgspec.structs.replace(
        failure("g", 0), task=msgspec.structs.replace(task(), env_name=env_name), message=message
    )


def env_record(**changes: object) -> EnvRecord:
    values: dict[str, object] = {
        "episodes": 8, "success": 0.75, "success_low": 0.4, "success_high": 0.9, "reward_mean": 0.75,
        "reward_std_within": 0.3, "zero_variance_share": 0.0, "turns_mean": 3.0, "invalid_share": 0.125,
        "groups_trained": 1, "groups_filtered": 0,
    }  # fmt: skip
    return msgspec.convert(values | changes, EnvRecord)


BROKEN = EnvRecord(episodes=0, groups_trained=0, groups_filtered=0, episodes_failed=8, first_error="env: E: <no>")


def test_each_environment_has_its_numbers_computed_by_hand() -> None:
    played = [
        group("a", "lake", [1.0, 0.0], ["success", "failure"]),
        group("b", "lake", [2.0, 2.0], ["failure", "failure"]),
        group("c", "shop", [100.0, 0.0], ["success", "success"]),
    ]
    found = env_records(
        played, [KEPT, FLAT, KEPT], [failed("lake", "first"), failed("lake", "then"), failed("den", "x")]
    )
    lake, shop, den = found["lake"], found["shop"], found["den"]
    assert list(found) == ["den", "lake", "shop"]
    assert (lake.episodes, lake.success, lake.reward_mean) == (4, 0.25, 1.25)
    # deviations of .5 and 0 around the means of two groups: the mean variance is (.25 + 0) / 2
    assert lake.reward_std_within == pytest.approx(0.125**0.5)
    assert (lake.zero_variance_share, lake.invalid_share, lake.turns_mean) == (0.5, 1.0, 1.0)
    assert (lake.groups_trained, lake.groups_filtered, lake.verdicts) == (1, 1, {"selected": 1, "zero_variance": 1})
    assert (lake.episodes_failed, lake.first_error) == (2, "env: ValueError: first")
    assert (shop.success, shop.reward_std_within, shop.episodes_failed, shop.first_error) == (1.0, 50.0, 0, "")
    assert (den.episodes, den.success, den.reward_mean, den.episodes_failed) == (0, None, None, 1)


def test_an_environment_without_a_name_needs_no_part_of_its_own() -> None:
    assert env_records([group("a", "", [1.0, 0.0], ["success", "failure"])], [KEPT], [failure("g", 0)]) == {}


def test_an_environment_that_only_fails_is_named_once_with_its_first_error_and_once_when_that_is_over() -> None:
    watch = FailingEnvironments(episodes=4)
    well = env_record()

    def bad(error: str) -> EnvRecord:
        return msgspec.structs.replace(BROKEN, episodes_failed=3, first_error=error)

    assert watch.see({"lake": well, "shop": bad("env: ValueError: no stock")}) == [], "three may be an accident"
    assert watch.see({"lake": well, "shop": bad("env: KeyError: later")}) == [
        "environment shop does nothing but fail: 6 episodes in a row, the first in env: ValueError: no stock; training "
        "goes on with the others"
    ]
    assert watch.see({"lake": well, "shop": bad("later")}) == []
    assert watch.see({"lake": well}) == []
    assert watch.see({"lake": well, "shop": well}) == ["environment shop: episodes come through again"]
    assert watch.see({"lake": well, "shop": bad("anew")}) == []
    assert watch.see({"lake": well, "shop": env_record(episodes_failed=5)}) == [], "some come through"


def test_records_of_environments_read_back_equal_and_are_served_by_name(tmp_path) -> None:
    line = iteration_record(1, envs={"lake": env_record(), "shop": BROKEN})
    evaluated = msgspec.structs.replace(
        eval_record(1, "ood", 0.5), envs={"lake": cohort(8, 2)}, failed={"shop": "8 of 8 failed"}
    )
    with Metrics(tmp_path / "m.jsonl") as metrics:
        metrics.record(line)
        metrics.record(line)
        metrics.record_eval(evaluated)
        seen = {
            name: value for name, value in scrape(metrics).items() if "milepost_env_" in name and "_created" not in name
        }
    assert read_records(tmp_path / "m.jsonl") == [line, evaluated]
    assert seen == {
        'milepost_env_success_ratio{env="lake",split="rollouts"}': 0.75,
        'milepost_env_success_low_ratio{env="lake",split="rollouts"}': env_record().success_low,
        'milepost_env_success_high_ratio{env="lake",split="rollouts"}': env_record().success_high,
        'milepost_env_success_ratio{env="lake",split="ood"}': 0.25,
        'milepost_env_success_low_ratio{env="lake",split="ood"}': cohort(8, 2).success_low,
        'milepost_env_success_high_ratio{env="lake",split="ood"}': cohort(8, 2).success_high,
        'milepost_env_reward_mean{env="lake"}': 0.75,
        'milepost_env_reward_within_group_std{env="lake"}': 0.3,
        'milepost_env_zero_variance_groups_ratio{env="lake"}': env_record().zero_variance_share,
        'milepost_env_episode_turns_mean{env="lake"}': env_record().turns_mean,
        'milepost_env_invalid_actions_ratio{env="lake"}': 0.125,
        'milepost_env_episodes_total{env="lake",state="finished"}': 16,
        'milepost_env_episodes_total{env="lake",state="failed"}': 0,
        'milepost_env_episodes_total{env="shop",state="finished"}': 0,
        'milepost_env_episodes_total{env="shop",state="failed"}': 16,
    }


def test_the_console_tells_success_by_environment_where_there_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Console(file=io.StringIO(), width=200)
    monkeypatch.setattr(console, "Console", lambda **_: out)
    with LiveView(run_id="r", iterations=9) as view:
        view.update(iteration_record(1, envs={"lake": env_record(), "shop": BROKEN}))
        view.update_eval(
            msgspec.structs.replace(eval_record(1, "ood", 0.5), envs={"lake": cohort(8, 2), "shop": cohort(8, 6)})
        )
    lines = out.file.getvalue().splitlines()
    assert "success 25.0%  lake 75.0%, shop n/a  invalid" in lines[0]
    assert lines[1].endswith("(200 episodes)  lake 25.0%, shop 75.0%")


def test_the_summary_and_the_report_tell_environments_apart(tmp_path) -> None:
    folder = runs.create(tmp_path, "both")
    first, last = (
        msgspec.structs.replace(eval_record(i, "heldout", 0.5), envs={"lake": cohort(8, wins), "shop": cohort(8, 8)})
        for i, wins in ((0, 2), (2, 6))
    )
    lines = [iteration_record(i, envs={"lake": env_record(), "<b>shop": BROKEN}) for i in (1, 2)]
    with Metrics(folder.metrics) as metrics:
        metrics.record_eval(first)
        for line in lines:
            metrics.record(line)
        metrics.record_eval(last)
    out = Console(file=io.StringIO(), width=200)
    out.print(summary(read_records(folder.metrics), folder))
    told = next(line for line in out.file.getvalue().splitlines() if "lake" in line)
    assert told.index("25.0%") < told.index("75.0%")
    document = Document(page := write_report(folder).read_text())
    assert document.tags.count("svg") == 17 + 5
    assert "&lt;b&gt;shop" in page
    for expected in ("Success by environment", "Failed episodes by environment", "75.0%", "n/a"):
        assert expected in document.text
