"""`milepost eval --suite --judge` after the engine: judged scores stand beside the others and change none of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from milepost.cluster.base.exits import ConfigError, DependencyLost
from milepost.cluster.evaluation import judging
from milepost.cluster.evaluation.compare import compare
from milepost.cluster.evaluation.judging import add_judgements, open_judge
from milepost.cluster.evaluation.results import Results
from milepost.cluster.evaluation.store import read, write
from milepost.cluster.evaluation.tables import results_table
from milepost.cluster.trajectories.reader import Episode as Recorded
from tests.cluster.evaluation.played_results import results, the_suite
from tests.cluster.evaluation.scripted_agents import played
from tests.reward.judges.judge_rig import WEIGHTS, Body, Served, serving, user_text, verdict, write_judge

CALIBRATION = {
    "task": "Find the key.",
    "outcome": "failure",
    "turns": [{"agent": "calibration"}],
    "labels": {"reasoning_quality": 3},
}


def by_words(body: Body) -> str:
    """5 for an episode in which the agent looks the order up, 1 for the idle one, 3 for calibration."""
    text = user_text(body)
    return verdict(body, score=3 if "calibration" in text else 5 if "look_up {" in text else 1)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results of the sound agent and the idle one in turns, two episodes of a scenario, as they lie on the disk."""
    suite, agents = the_suite(), ("sound", "idle")
    size = len(suite.scenarios)
    rows = []
    for n in range(2 * size):
        row = played(agents[n // size], seed=suite.scenarios[n % size].seed, luck=n)
        rows.append(Recorded(row.row | {"index": n}, row.turns))
    monkeypatch.setattr(judging, "read", lambda *_: rows[::-1])  # their Parquet files are test_results.py's matter
    return write(results(*agents, episodes=2), tmp_path)


def judge_of(folder: Path, url: str, more: str = "", *, policy: str = "llama", **values: Any) -> Any:
    (folder / "config.json").write_text(json.dumps({"model_type": policy}))
    return open_judge(write_judge(folder, url, more, **values), folder)


def with_calibration(tmp_path: Path, more: str = "", labels: int = 1) -> str:
    (tmp_path / "calibration.jsonl").write_text("\n".join([json.dumps(CALIBRATION)] * labels))
    return f'calibration = "calibration.jsonl"\n{more}'


def test_judged_scores_are_told_by_bucket_and_episode_and_change_no_other(tmp_path: Path, kept: Path) -> None:
    before = read(kept)
    with serving(by_words) as served:
        found = add_judgements(kept, *judge_of(tmp_path, served.url))
    assert found == read(kept)
    for scenario in found.scenarios:
        assert [p.judged.scores for p in scenario.episodes if p.judged] == [
            {"reasoning_quality": 1.0}, {"reasoning_quality": 0.0},
        ]  # fmt: skip
        assert {p.judged.weights_digest for p in scenario.episodes if p.judged} == {WEIGHTS}
    whole = found.buckets["all"].judged["reasoning_quality"]
    assert (whole.mean, whole.episodes) == (0.5, 6)
    assert whole.low is not None
    assert found.buckets["cohort hurried"].judged["reasoning_quality"].episodes == 2
    bare = [msgspec.structs.replace(p, judged=None) for s in found.scenarios for p in s.episodes]
    assert bare == [p for s in before.scenarios for p in s.episodes]
    assert {name: msgspec.structs.replace(b, judged={}) for name, b in found.buckets.items()} == before.buckets


def test_the_judge_is_shown_what_the_environment_reports(tmp_path: Path, kept: Path) -> None:
    with serving(by_words) as served:
        add_judgements(kept, *judge_of(tmp_path, served.url))
    reported = sorted(user_text(body).splitlines()[0] for body in served.asked)
    assert reported == ["The environment reports: failure."] * 3 + ["The environment reports: success."] * 3


def test_the_table_tells_scores_judge_and_calibration_apart_from_the_rest(tmp_path: Path, kept: Path) -> None:
    with serving(by_words) as served:
        found = add_judgements(kept, *judge_of(tmp_path, served.url, with_calibration(tmp_path)))
        assert len(served.asked) == 1 + 6 + 1  # calibration, episodes, calibration
    lines = results_table(found).splitlines()
    assert lines[-3].startswith(f"judge tester: judge-model (weights {WEIGHTS[:12]}, prompt ")
    assert lines[-3].endswith("6 of 6 episodes judged")
    assert (
        lines[-2] == "calibration: as people in 1.000 [0.207, 1.000] of 1 labels, mean difference +0.000, drift 0.000"
    )
    assert lines[-1] == "may not decide a promotion: calibration holds 1 labels, fewer than 100"
    [judged, *_] = [line for line in lines if line.startswith("judged reasoning_quality")]
    assert judged.split()[2] == "0.500"


def failing(which: Callable[[str], bool]) -> Callable[[Body], str]:
    return lambda body: "no" if which(user_text(body)) else by_words(body)


def test_episodes_that_are_not_judged_are_counted_and_have_no_score(tmp_path: Path, kept: Path) -> None:
    with serving(failing(lambda text: "look_up {" not in text)) as served:
        found = add_judgements(kept, *judge_of(tmp_path, served.url))
    assert found.buckets["all"].judged["reasoning_quality"].episodes == 3
    [told] = [line for line in results_table(found).splitlines() if line.startswith("not judged: ")]
    assert told.startswith("not judged: 3, 0 of them against the facts; the first: asked 1 times: not one JSON object")


def test_verdicts_against_the_facts_are_counted_apart(tmp_path: Path, kept: Path) -> None:
    with serving(lambda body: verdict(body, score=5, outcome="success")) as served:
        found = add_judgements(kept, *judge_of(tmp_path, served.url))
    assert found.buckets["all"].judged["reasoning_quality"].episodes == 3  # those that did succeed
    assert found.buckets["all"].native["success"].mean == 0.5
    assert "not judged: 3, 3 of them against the facts; the first: it says outcome success" in results_table(found)


@pytest.mark.parametrize(
    ("answer", "says_model", "error", "told"),
    [
        (lambda _: "no", "judge-model", DependencyLost, "judged none of 6 episodes; the first: asked 1 times"),
        (by_words, "another", ConfigError, "'judge-model' was asked and 'another' answered"),
    ],
)
def test_a_judge_that_fails_leaves_the_results_as_they_were(
    tmp_path: Path, kept: Path, answer: Any, says_model: str, error: type[Exception], told: str
) -> None:
    before = kept.read_bytes()
    with serving(answer) as served:
        served.says_model = says_model
        with pytest.raises(error) as raised:
            add_judgements(kept, *judge_of(tmp_path, served.url))
    assert told in str(raised.value)
    assert f"results without judged scores: {kept}" in str(raised.value)
    assert kept.read_bytes() == before


def drifting(body: Body) -> str:
    """Kinder to calibration once it has seen an episode."""
    if "calibration" not in user_text(body):
        drifting.seen = True  # type: ignore[attr-defined]
        return by_words(body)
    return verdict(body, score=4 if drifting.seen else 3)  # type: ignore[attr-defined]


@pytest.fixture
def drifting_judge() -> Any:
    drifting.seen = False  # type: ignore[attr-defined]
    return drifting


def test_a_judge_that_drifts_is_warned_of_loudly(
    tmp_path: Path, kept: Path, drifting_judge: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(drifting_judge) as served:
        found = add_judgements(kept, *judge_of(tmp_path, served.url, with_calibration(tmp_path)))
    assert found.judge is not None
    assert found.judge.calibration is not None
    assert found.judge.calibration.drift == 0.25
    said = capsys.readouterr().err
    assert said.startswith("milepost: WARNING: do not rely on judge tester: ")
    assert "the judge drifted by 0.250 of its scale, max_drift = 0.05" in said


def test_of_promotion_grade_it_is_refused_and_leaves_the_results_as_they_were(
    tmp_path: Path, kept: Path, drifting_judge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("milepost.reward.judges.calibration.FEWEST_LABELS", 2)
    before = kept.read_bytes()
    more = with_calibration(tmp_path, "promotion_grade = true", labels=2)
    with (
        serving(drifting_judge) as served,
        pytest.raises(DependencyLost, match="is not of promotion grade: the judge dri"),
    ):
        add_judgements(kept, *judge_of(tmp_path, served.url, more))
    assert kept.read_bytes() == before


def test_a_judge_is_refused_before_anything_is_played(tmp_path: Path) -> None:
    with serving(by_words) as served:
        with pytest.raises(ConfigError, match="it is a mistral and the policy a mistral"):
            judge_of(tmp_path, served.url, policy="mistral")
        with pytest.raises(ConfigError, match="prompt_sha256: the file pins"):
            judge_of(tmp_path, served.url, "max_chars = 2000")
    with pytest.raises(DependencyLost, match="start its server"):
        judge_of(tmp_path, "http://127.0.0.1:9/v1")


def judged_results(tmp_path: Path, kept: Path, served: Served, more: str = "", **values: Any) -> Results:
    return add_judgements(kept, *judge_of(tmp_path, served.url, more, **values))


def test_a_comparison_shows_what_one_judge_said_of_both(tmp_path: Path, kept: Path) -> None:
    with serving(by_words) as served:
        first = judged_results(tmp_path, kept, served)
    with serving(lambda body: verdict(body, score=5)) as served:
        second = judged_results(tmp_path, kept, served)
    found = compare(first, second)
    [row] = [each for each in found.compared if (each.bucket, each.metric) == ("all", "judged reasoning_quality")]
    assert (row.first, row.second, row.difference.pairs) == (0.5, 1.0, 6)


def test_scores_of_two_judges_do_not_compare(tmp_path: Path, kept: Path) -> None:
    with serving(by_words) as served:
        first = judged_results(tmp_path, kept, served)
        second = judged_results(tmp_path, kept, served, "max_chars = 2000", max_chars=2000)
    found = compare(first, second)
    assert not [each for each in found.compared if each.metric.startswith("judged")]
    [note] = [note for note in found.notes if note.startswith("judged scores do not compare: tester (weights c0c0")]
    assert "second" in note
    bare = results("sound", "idle", episodes=2)
    assert not [each for each in compare(bare, second).compared if each.metric.startswith("judged")]
