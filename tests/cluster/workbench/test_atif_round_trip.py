"""What `milepost show --atif` writes of a run is what `milepost credit` scores: credit is that of the run's record."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from milepost.cluster.trajectories.recording import EVALUATION
from milepost.cluster.workbench.atif_groups import read
from milepost.envs.dialogue import Dialogue
from milepost.envs.types import Group
from milepost.learner.credit.assignment import from_group
from milepost.learner.credit.interchange import Numbered
from milepost.learner.credit.strategies.crbc import CRBC, CRBCConfig
from tests.actors.episode_rig import BROKEN, task
from tests.cluster.trajectories.recorded import Played, closing, recorder, trained

Call = Callable[..., tuple[object, str, str]]


@pytest.fixture
def group(own_folder: Path, dialogue: Dialogue, tiny_policy: Path, call: Call) -> Group:
    """What was trained on; episodes.jsonl holds it beside a failed episode and one that was played to evaluate."""
    run = own_folder / "runs" / "20260101-000000-lake"
    run.mkdir(parents=True)
    (run / "resolved.toml").write_text("")
    played = Played(dialogue)
    group = played.group(task(), "g00000001", ("up", "down", "up", "up up"))
    played.play(task(), EVALUATION, 0)
    played.play(task(f"{BROKEN}:RaisesInStep"), "g00000002", 0)
    with closing(record := recorder(run / "trajectories", tiny_policy)):
        record.judge([trained(group)])
        record.add(played.told())
    code, out, _ = call("show", "latest", "--count", "100", "--atif")
    assert code == 0
    (own_folder / "episodes.jsonl").write_text(out)
    return group


def test_groups_come_back_as_the_credit_of_the_run_saw_them(own_folder: Path, group: Group) -> None:
    found = {
        each.group.task_id: each.group for each in read(own_folder / "episodes.jsonl") if isinstance(each, Numbered)
    }
    assert set(found) == {"g00000001", "eval train 0"}
    before = from_group(group)
    assert {turn.invalid for t in before.trajectories for turn in t.turns} == {True, False}
    assert sorted(found["g00000001"].trajectories, key=repr) == sorted(before.trajectories, key=repr)


def test_the_command_gives_the_credit_of_the_run_and_says_what_it_left_out(
    own_folder: Path, group: Group, call: Call
) -> None:
    code, out, err = call("credit", own_folder / "episodes.jsonl", "--strategy", "crbc", "--json")
    assert code == 0
    assert err == f"milepost: left out 1 episodes that broke off; first: {own_folder}/episodes.jsonl, line 1\n"
    [line] = [line for line in map(json.loads, out.splitlines()) if line["task_id"] == group.group_id]
    expected = CRBC(CRBCConfig()).assign(from_group(group))
    newest_first = list(reversed(expected.total))
    assert line["total"] == [pytest.approx(total.tolist()) for total in newest_first]


def test_a_folder_of_documents_is_scored_and_has_its_page_inside(own_folder: Path, group: Group, call: Call) -> None:
    (own_folder / "theirs").mkdir()
    for k, line in enumerate((own_folder / "episodes.jsonl").read_text().splitlines()):
        (own_folder / "theirs" / f"{k}.json").write_text(line)
    code, out, _ = call("credit", "theirs", "--group", group.group_id)
    assert code == 0
    assert "graph: theirs/credit.html" in out
    assert (own_folder / "theirs" / "credit.html").is_file()


def test_a_bad_document_is_one_line_and_may_be_skipped(own_folder: Path, group: Group, call: Call) -> None:
    path = own_folder / "episodes.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = lines[1].replace('"message": ', '"mesage": ', 1)
    path.write_text("\n".join(lines))
    code, out, err = call("credit", path, "--json")
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        f"milepost: {path}, line 2: steps[0]: Object contains unknown field `mesage`",
        "milepost: nothing was scored; mend them, or add --skip-bad",
    ]
    code, out, _ = call("credit", path, "--json", "--skip-bad", "--strategy", "crbc")
    assert (code, [json.loads(line)["task_id"] for line in out.splitlines()]) == (0, [group.group_id])


@pytest.mark.parametrize("name", ["nothing", "nothing/x.json"])
def test_what_holds_no_trajectory_is_refused(own_folder: Path, call: Call, name: str) -> None:
    (own_folder / "nothing").mkdir()
    (own_folder / "nothing" / "notes.json").write_text("[]")
    code, _, err = call("credit", name)
    assert code == 2
    assert ("holds no ATIF document" in err) or ("no such file" in err)
