"""`milepost show` on a folder that was recorded: what people read, what programs get, what is not there."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from milepost.cluster.runlog.runs import RunFolder
from milepost.cluster.trajectories.atif import document
from milepost.cluster.trajectories.reader import Episode
from milepost.cluster.trajectories.recording import EVALUATION
from milepost.envs.dialogue import Dialogue
from tests.actors.episode_rig import BROKEN, task
from tests.cluster.trajectories.recorded import Played, closing, recorder, rows, trained, unjudged

Call = Callable[..., tuple[object, str, str]]
ESCAPE = "\x1b]0;owned\x07"


@pytest.fixture
def run(own_folder: Path, dialogue: Dialogue, tiny_policy: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run with a trained group, a stale one, a failed episode and one of an evaluation."""
    monkeypatch.setenv("COLUMNS", "110")
    folder = RunFolder(own_folder / "runs" / "20260101-000000-lake")
    folder.path.mkdir(parents=True)
    folder.resolved.write_text("")
    played = Played(dialogue)
    group, old = played.group(task(), "g00000001"), played.group(task(), "g00000002")
    played.play(task(f"{BROKEN}:RaisesInStep"), "g00000003", 0, say=f"up{ESCAPE}")
    played.play(task(), EVALUATION, 0)
    with closing(record := recorder(folder.trajectories, tiny_policy)):
        record.judge([trained(group, version=5), unjudged(old, "stale", "sampled by version 3")])
        record.add(played.told())
    return folder


def test_an_episode_reads_like_a_chat_with_its_credit_beside_it(call: Call, run: RunFolder) -> None:
    code, out, err = call("show", "latest", "--fate", "trained")
    assert (code, err) == (0, "")
    for words in (
        "g00000001/1", "truncated, reward 0", "trained at version 5 · selected", "policy version 3",
        "crbc, -", "<|im_start|>user", "down<|im_end|>", "turn 9", "no valid action", "progress 0%",
    ):  # fmt: skip
        assert words in out, words
    assert out.index("turn 0") < out.index("turn 1") < out.index("turn 9")
    turns = [row for row in rows(run.trajectories, "turns") if row["episode"] == 1]
    for turn in turns:
        assert f"credit {turn['credit']:+.3f}" in out
        assert f"advantage {turn['advantage']:+.3f}" in out


def test_a_failed_one_shows_where_it_broke_off_and_no_terminal_obeys_it(call: Call, run: RunFolder) -> None:
    code, out, _ = call("show", run.path, "--failed")
    assert code == 0
    assert "env: RuntimeError: broken in step" in out
    assert "broke off here" in out
    assert "reward" not in out
    assert "\x1b" not in out
    assert r"up\x1b]0;owned\x07" in out


def test_json_is_one_object_per_episode_the_worst_first(call: Call, run: RunFolder) -> None:
    _, out, _ = call("show", "--worst", "--count", "9", "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert [episode["reward"] for episode in found] == [0.0, 0.0, 1.0, 1.0, 1.0]
    assert [episode["episode"] for episode in found[:2]] == [3, 1], "of equals the newest"
    assert all(len(episode["turns"]) == episode["num_turns"] for episode in found)
    assert found[0]["turns"][0]["response_ids"]
    assert run.trajectories.is_dir()


@pytest.mark.usefixtures("run")
def test_a_terminal_that_does_not_know_a_letter_shows_its_number(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    code, _, err = call("show", "latest", "--fate", "trained")
    assert (code, err) == (0, "")
    shown = written.getvalue().decode("ascii")
    assert r"trained at version 5 \xb7 selected" in shown
    assert "| down<|im_end|>" in shown


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        (["--task", "g00000002", "--count", "9"], [3, 2]),
        (["--task", "0", "--count", "2"], [5, 4]),
        (["--fate", "evaluation"], [5]),
        (["--episode", "0"], [0]),
    ],
)
@pytest.mark.usefixtures("run")
def test_episodes_are_chosen_by_group_seed_fate_or_number(call: Call, options: list[str], numbers: list[int]) -> None:
    _, out, _ = call("show", *options, "--json")
    assert [json.loads(line)["episode"] for line in out.splitlines()] == numbers


def test_of_two_rows_of_one_episode_the_later_one_counts(
    call: Call, run: RunFolder, dialogue: Dialogue, tiny_policy: Path
) -> None:
    again = Played(dialogue).group(task(), "g00000001")
    with closing(record := recorder(run.trajectories, tiny_policy)):
        record.judge([trained(again, version=2)])
    _, out, _ = call("show", "--task", "g00000001", "--count", "9", "--json")
    assert [json.loads(line)["learner_version"] for line in out.splitlines()] == [2, 2]
    _, out, _ = call("show", "--episode", "0", "--json")
    assert json.loads(out)["learner_version"] == 5


@pytest.mark.usefixtures("run")
def test_where_none_is_found_the_line_says_what_there_is(call: Call) -> None:
    code, _, err = call("show", "--fate", "late")
    assert code == 2
    assert err.endswith("there are episodes 0 to 5: 2 trained, 2 stale, 1 failed, 1 evaluation\n")


def test_a_run_without_trajectories_says_why_that_may_be(call: Call, own_folder: Path) -> None:
    (own_folder / "runs" / "r").mkdir(parents=True)
    (own_folder / "runs" / "r" / "resolved.toml").write_text("")
    code, _, err = call("show", "r")
    assert code == 2
    assert "holds no trajectories: none is recorded where trajectories.max_bytes = 0" in err


def test_a_damaged_file_is_named(call: Call, run: RunFolder) -> None:
    [path] = run.trajectories.glob("episodes-*")
    path.write_bytes(path.read_bytes()[:-100])
    code, _, err = call("show")
    assert code == 2
    assert f"{path} cannot be read" in err
    assert err.count("\n") == 1


def test_an_atif_document_has_each_prompt_and_response_with_its_ids(call: Call, run: RunFolder) -> None:
    _, out, _ = call("show", "--episode", "0", "--atif")
    found = json.loads(out)
    assert (found["schema_version"], found["session_id"]) == ("ATIF-v1.8", run.run_id)
    assert [step["step_id"] for step in found["steps"]] == [1, 2, 3, 4, 5, 6]
    assert [step["source"] for step in found["steps"]] == ["user", "agent"] * 3
    turns = [row for row in rows(run.trajectories, "turns") if row["episode"] == 0]
    text, ids = "", []
    for turn, asked, answered in zip(turns, found["steps"][::2], found["steps"][1::2], strict=True):
        ids += turn["prompt_ids"]
        assert asked == {"source": "user", "message": turn["prompt"], "step_id": asked["step_id"]}
        metrics = answered["metrics"]
        assert (metrics["prompt_token_ids"], metrics["prompt_tokens"]) == (ids, len(ids))
        assert (metrics["completion_token_ids"], metrics["logprobs"]) == (turn["response_ids"], turn["logprobs"])
        assert (answered["message"], answered["extra"]["credit"]) == (turn["response"], turn["credit"])
        ids = ids + turn["response_ids"]
        text += asked["message"] + answered["message"]
    assert text == "".join(turn["prompt"] + turn["response"] for turn in turns)
    assert found["final_metrics"]["extra"] == {"reward": 1.0, "outcome": "success", "success_reported": True}
    assert found["extra"]["milepost"]["group_id"] == "g00000001"


@pytest.mark.usefixtures("run")
def test_an_atif_document_of_a_failed_episode_ends_with_what_it_answered_last(call: Call) -> None:
    _, out, _ = call("show", "--failed", "--atif")
    found = json.loads(out)
    assert [step["source"] for step in found["steps"]] == ["user", "agent"]
    assert "reward" not in found["steps"][1]["extra"]
    assert found["extra"]["milepost"]["reason"] == "env: RuntimeError: broken in step"


def test_an_atif_document_of_an_episode_without_a_turn_says_why_there_is_none(run: RunFolder) -> None:
    row = rows(run.trajectories, "episodes")[0] | {"reason": "env: KeyError: no such level"}
    [step] = document(Episode(row, []), "r")["steps"]
    assert step == {"step_id": 1, "source": "system", "message": "env: KeyError: no such level"}
