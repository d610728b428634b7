import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from rich.cells import cell_len
from rich.console import Console

from milepost.cluster import cli
from milepost.cluster.base.exits import ConfigError
from milepost.cluster.runlog import runs
from milepost.cluster.workbench import tables, workbench
from milepost.cluster.workbench.credit_page import ScoredGroup
from milepost.cluster.workbench.scoring import Source, check, chosen, refuse, scored
from milepost.cluster.workbench.tables import Summary
from milepost.learner.credit.assignment import CreditGroup, CreditTrajectory, CreditTurn
from milepost.learner.credit.interchange import encode
from milepost.learner.credit.strategies.starpo import StarPO, StarPOConfig
from tests.cluster.workbench.lake_groups import lake_group
from tests.learner.credit.toy4 import toy4

pytestmark = pytest.mark.usefixtures("own_folder")
ROOT = Path(cli.__file__).resolve().parents[1]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "groups.jsonl"
    path.write_bytes(encode(toy4()) + b"\n" + encode(lake_group(3)) + b"\n")
    return path


def test_json_is_one_object_per_group_and_strategy_with_the_numbers_of_toy4(call, file):
    code, out, err = call("credit", file, "--strategy", "crbc,starpo", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert [(line["task_id"], line["strategy"]) for line in lines] == [
        (task, name) for task in ("toy4", "lake-3") for name in ("crbc", "starpo")
    ]
    keys = ["task_id", "strategy", "traj_adv", "step_adv", "coverage", "total", "state_value", "diagnostics"]
    assert all(list(line) == keys for line in lines)
    toy = lines[0]
    assert toy["traj_adv"] == pytest.approx([0.8660, -0.8660, 0.8660, -0.8660], abs=5e-5)
    assert toy["step_adv"][1] == pytest.approx([1.0, -1.4142, -0.5774], abs=5e-5)
    assert toy["total"][2] == pytest.approx([-4.1340, 9.5263, 4.4016], abs=5e-5)
    assert toy["coverage"] == [[1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1]]
    assert toy["state_value"] == pytest.approx({"A": 0.882689, "B": 0.936025, "C": 0.865381}, abs=5e-7)
    assert toy["diagnostics"]["success_rate"] == 0.5
    assert not file.with_name("credit.html").exists(), "a program that reads JSON asked for no page"


def test_a_parameter_reaches_every_strategy_that_has_it(call, file):
    _, out, _ = call("credit", file, "--json", "--set", "credit.w_trajectory=0.5", "--set", "credit.w_step=0")
    crbc, starpo = (json.loads(line) for line in out.splitlines()[:2])
    assert crbc["total"] == starpo["total"]
    assert crbc["total"][0] == pytest.approx([0.4330, 0.4330], abs=5e-5)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--strategy", "crbs"], "--strategy crbs: no such strategy; did you mean crbc?"),
        (["--strategy", ","], "name at least one of "),
        (["--strategy", "starpo", "--set", "credit.beta=0.9"], "no chosen strategy has the key beta"),
        (["--set", "credit.betta=0.9"], "no chosen strategy has the key betta; did you mean credit.beta?"),
        (["--set", "learner.lr=1"], "only keys of [credit] can be set here"),
        (["--set", "beta=1"], "only keys of [credit] can be set here"),
        (["--set", "credit.strategy=crbc"], "choose strategies by --strategy"),
        (["--set", "credit.modulators=[]"], "modulators work on batches"),
        (["--set", "credit.beta=2"], "credit.beta of strategy crbc: Input should be less than 1"),
        (["--set", "credit.beta"], "write key=value"),
        (["--group", "x"], "--group x: no such group in "),
    ],
)
def test_a_wrong_argument_is_one_line(call, file, arguments, complaint):
    code, out, err = call("credit", file, *arguments, "--json", "--html", "page.html")
    assert code == 2
    assert complaint in err
    assert err.count("\n") == 1
    assert not Path("page.html").exists()
    assert out == ""


def spoil(file, *, line, old, new):
    lines = file.read_bytes().splitlines(keepends=True)
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    file.write_bytes(b"".join(lines))


def test_malformed_lines_are_refused_by_line_and_field_and_nothing_is_scored(call, file):
    spoil(file, line=2, old=b'"reward":0.0', new=b'"reward":"no"')
    code, out, err = call("credit", file, "--json")
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        f"milepost: {file}, line 2: trajectories[0].turns[0].reward: Expected `float`, got `str`",
        "milepost: nothing was scored; mend them, or add --skip-bad",
    ]


def test_the_rest_is_scored_if_asked_and_what_was_skipped_is_said(call, file):
    spoil(file, line=1, old=b'"task_id"', new=b'"task"')
    code, out, err = call("credit", file, "--json", "--skip-bad", "--strategy", "crbc")
    assert code == 0
    assert [json.loads(line)["task_id"] for line in out.splitlines()] == ["lake-3"]
    assert err == (f"milepost: skipped 1 of 2 lines; first: {file}, line 1: Object contains unknown field `task`\n")


def test_a_group_that_was_asked_for_and_skipped_is_not_replaced_by_another(choosy):
    source, strategies = choosy
    with pytest.raises(ConfigError, match="a group of one\nnothing is left to show"):
        workbench.run(source, strategies, as_json=False, page=None, task="c", skip_bad=True)
    assert not source.page.exists()


def test_skipping_everything_is_no_success(call, file):
    file.write_text("{}\n[]\n")
    code, out, err = call("credit", file, "--json", "--skip-bad")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == "milepost: nothing is left to score"


def test_many_faults_are_not_all_listed(call, file):
    file.write_text("{}\n" * 25)
    code, _, err = call("credit", file)
    lines = err.splitlines()
    assert code == 2
    assert len(lines) == 12
    assert lines[10] == "milepost: ... and 15 more lines"


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_refused(call, file, content):
    file.write_text(content)
    assert call("credit", file) == (2, "", f"milepost: {file}: holds no group\n")


class Choosy(StarPO):
    """Needs entropy, and refuses a group of one for a reason of its own."""

    requires: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def assign(self, group):
        if len(group.trajectories) == 1:
            raise ValueError("a group of one")
        return super().assign(group)


def one_turn_group(task, *, entropy=0.5, episodes=2):
    turn = CreditTurn("A", "x", "B", 0.0, invalid=False, num_tokens=1, entropy=entropy)
    return CreditGroup(task, (CreditTrajectory("failure", (turn,)),) * episodes)


@pytest.fixture
def choosy(tmp_path):
    path = tmp_path / "choosy.jsonl"
    groups = [one_turn_group("a"), one_turn_group("b", entropy=None), one_turn_group("c", episodes=1)]
    path.write_bytes(b"".join(encode(group) + b"\n" for group in groups))
    return Source(path, "choosy", is_growing=False), {"choosy": Choosy(StarPOConfig())}


def test_a_field_that_a_strategy_requires_is_asked_for_by_strategy_line_and_field(choosy):
    source, strategies = choosy
    checked = check(source, strategies)
    fault = "line 2: strategy choosy needs trajectories[0].turns[0].entropy, which is not there"
    assert checked.faults == {2: f"{source.path}, {fault}"}
    with pytest.raises(ConfigError, match="nothing was scored"):
        refuse(checked, source, task=None, skip_bad=False)


def test_what_a_strategy_refuses_by_itself_is_an_error_or_skipped(choosy):
    source, strategies = choosy
    checked = check(source, strategies)
    with pytest.raises(ConfigError, match="line 3: strategy choosy: a group of one; mend it, or add --skip-bad"):
        list(scored(source, strategies, checked, skip_bad=False))
    assert [one.group.task_id for one in scored(source, strategies, checked, skip_bad=True)] == ["a"]
    assert sorted(checked.faults) == [2, 3]


def test_groups_are_scored_as_they_are_asked_for(file):
    source = Source(file, "f", is_growing=False)
    strategies = chosen("crbc", [])
    groups = scored(source, strategies, check(source, strategies), skip_bad=False)
    assert next(groups).group.task_id == "toy4"
    file.unlink()  # the file is open: nothing was read ahead into a list, and nothing is opened again
    assert next(groups).group.task_id == "lake-3"


def test_tables_show_summary_agreement_and_every_turn_of_the_first_group(call, file):
    code, out, err = call("credit", file)
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    turns = 11 + sum(len(t.turns) for t in lake_group(3).trajectories)
    assert out.splitlines()[1].startswith("2 groups, 12 trajectories (67% succeed), ")
    assert ["starpo", "2", str(turns), "0.0%", "0.0000"] in [line[:5] for line in lines]
    # The second action of the second trajectory, by hand: see TOY-4.
    assert ["2", "B", "q", "0", "-7.9371", "-0.8660"] in lines
    assert ["1", "success", "1", "A", "x", "0", "+5.8660", "+0.8660"] in lines
    assert "\x1b" not in out
    assert lines[0] == ["graph:", str(file.with_name("credit.html"))]
    assert file.with_name("credit.html").stat().st_mode & 0o077 == 0


def test_one_group_can_be_looked_at(call, file):
    code, out, _ = call("credit", file, "--group", "lake-3", "--html", "page.html")
    assert code == 0
    assert "Group lake-3: 8 trajectories" in out
    page = Path("page.html").read_text()
    assert page.index('"id":"lake-3"') < page.index('"id":"toy4"')


def test_a_page_that_cannot_be_written_is_one_line(call, file):
    code, _, err = call("credit", file, "--json", "--html", "no/such/folder/page.html")
    assert (code, err) == (
        2,
        "milepost: no/such/folder/page.html: No such file or directory; give another place by --html FILE\n",
    )


def table_of(group, *, width, strategies="crbc,starpo,gigpo,graphgpo"):
    one = ScoredGroup(group, {name: s.assign(group) for name, s in chosen(strategies, []).items()})
    summary = Summary(list(one.credits))
    summary.add(one)
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None, highlight=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "_Console", lambda **_: console)
        tables.show(summary, one)
    return out.getvalue()


@pytest.mark.parametrize("width", [60, 100])
def test_a_narrow_terminal_gets_more_tables_and_no_broken_lines(width):
    text = table_of(lake_group(3), width=width)
    tables = [line for line in text.splitlines() if line.split()[:2] == ["trajectory", "turn"]]
    assert len(tables) > 1
    assert [name for line in tables for name in line.split()[5:]] == ["crbc", "starpo", "gigpo", "graphgpo"]
    assert all(cell_len(line) <= width for line in text.splitlines())


def test_what_anchors_say_can_not_change_the_terminal():
    turn = CreditTurn("[red]A\x1b[31m\n" + "long " * 99, "[/]漢字" * 20, "B", 0.0, invalid=False, num_tokens=1)
    text = table_of(CreditGroup("[bold]t\x1b[0m", (CreditTrajectory("failure", (turn,)),)), width=120)
    assert "\x1b" not in text
    assert "[red]A [31m lon" in text
    assert "[/]漢字" in text
    assert all(cell_len(line) <= 120 for line in text.splitlines())


def test_a_run_is_found_by_its_name_and_a_torn_last_line_is_left_out(call, tmp_path, file):
    folder = runs.create(tmp_path / "runs", "lake")
    folder.resolved.write_text("")
    assert call("credit", "latest")[2].startswith(f"milepost: run {folder.run_id} has recorded no group yet")
    folder.groups.write_bytes(file.read_bytes() + b'{"task_id": ')
    code, out, err = call("credit", "latest")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"graph: {folder.path / 'credit.html'}"
    assert call("credit", folder.path)[0] == 0


def test_what_is_neither_file_nor_run_is_one_line(call, tmp_path):
    assert (
        call("credit", "none.jsonl")[2]
        == "milepost: none.jsonl: no such file; give one of groups or of ATIF documents, or a run\n"
    )
    assert call("credit", "nobody")[2].startswith("milepost: no run 'nobody' in ")
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in call("credit", "pipe")[2]


@pytest.mark.parametrize("options", [["--json"], []])
def test_a_reader_that_has_seen_enough_ends_the_command_quietly(tmp_path, options):
    path = tmp_path / "many.jsonl"
    long = lake_group(3, noise=0.95, episodes=200, max_steps=30)
    path.write_bytes((encode(long) + b"\n") * 3)
    command = [sys.executable, "-m", "milepost.cluster.cli", "credit", str(path), *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        program.stdout.readline()
        program.stdout.close()
        assert program.stderr.read() == b""
        assert program.wait(timeout=60) == 0
