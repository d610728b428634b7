import io

import msgspec
import pytest
from rich.console import Console

from milepost.cluster.runlog import console as console_module
from milepost.cluster.runlog import runs
from milepost.cluster.runlog.console import LiveView, sparkline, summary, who_waits
from milepost.cluster.runlog.metrics import Metrics
from milepost.cluster.runlog.runs import Status
from milepost.cluster.runlog.status import status_lines
from tests.cluster.runlog.example_records import cohort, eval_record, iteration_record


def console(*, terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None)


@pytest.fixture
def shown_on(monkeypatch):
    """Makes the live view show itself on a console of the test."""

    def use(*, terminal):
        out = console(terminal=terminal)
        monkeypatch.setattr(console_module, "Console", lambda **_: out)
        return out

    return use


def test_without_a_terminal_every_iteration_is_one_plain_line(shown_on):
    out = shown_on(terminal=False)
    with LiveView(run_id="r", iterations=9) as view:
        view.phase("starting engines")
        view.phase("")
        view.activity("waiting for groups 3/8")
        view.update(iteration_record(1))
        view.update(iteration_record(2, worker_restarts=1, success=None))
    lines = out.file.getvalue().splitlines()
    assert lines[0] == "starting engines ..."
    assert lines[1].startswith("starting engines: 0.")
    assert lines[2].startswith("iteration 1/9  success 25.0%  invalid 1.0% of turns  groups: return std 0.40, ")
    assert "all returns equal in 12.5%  staleness 0.75, at most 2  tokens/s 900" in lines[2]
    assert "  buffer: 3 groups ready  " in lines[2]
    assert lines[3].startswith("iteration 2/9  success n/a")
    assert lines[3].endswith("restarts 1 worker")
    assert len(lines) == 4


def test_the_line_of_an_iteration_tells_the_share_of_cut_responses_where_there_are_any(shown_on):
    out = shown_on(terminal=False)
    with LiveView(run_id="r", iterations=9) as view:
        view.update(iteration_record(1, invalid_share=1.0, cut_share=0.975))
        view.update(iteration_record(2, cut_share=0.0))
    first, second = out.file.getvalue().splitlines()
    assert "  invalid 100.0% of turns, 97.5% cut  " in first
    assert "  invalid 1.0% of turns  " in second


def test_on_a_terminal_the_panel_shows_progress_and_what_goes_on(shown_on):
    out = shown_on(terminal=True)
    with LiveView(run_id="the-run", iterations=4) as view:
        view.update(iteration_record(1))
        view.update_eval(eval_record(1, "ood", 0.5))
        view.activity("waiting for groups 3/8")
    shown = out.file.getvalue()
    for expected in (
        "the-run",
        "iteration 1/4",
        "waiting for groups 3/8 ... 0.",
        "eval ood",
        "3 groups ready, 0.1 MiB",
    ):
        assert expected in shown


def test_an_evaluation_shows_success_by_cohort_where_there_are_several(shown_on):
    out = shown_on(terminal=False)
    lone, two = {"easy": cohort(8, 6)}, {"easy": cohort(8, 6), "[b]hard": cohort(8, 2)}
    with LiveView(run_id="r", iterations=9) as view:
        for cohorts in ({}, lone, two):
            view.update_eval(msgspec.structs.replace(eval_record(1, "ood", 0.5), cohorts=cohorts))
    lines = out.file.getvalue().splitlines()
    assert [line.endswith("(200 episodes)") for line in lines] == [True, True, False]
    assert lines[2].endswith("(200 episodes)  easy 75.0%, [b]hard 25.0%")


def test_sparkline_goes_from_the_lowest_to_the_highest_bar():
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([-1.0, 2.0]) == "▁█"


def test_who_waits_tells_both_halves_apart():
    # 2 s waiting + 5 s at work; rollouts ran beside half of the 7 s, so they stood still for 5 - 3.5 s.
    assert who_waits(iteration_record(1)) == "learner for groups 2.0 s, workers for learner 1.5 s"
    assert who_waits(iteration_record(1, both_busy_share=None)) == "learner for groups 2.0 s"


@pytest.fixture
def folder(tmp_path):
    return runs.create(tmp_path, "lake")


def test_the_summary_compares_before_with_after(folder):
    records = [eval_record(0, "heldout", 0.2), iteration_record(1), eval_record(1, "heldout", 0.8)]
    records.append(eval_record(0, "ood", 0.1))
    out = console(terminal=False)
    out.print(summary(records, folder))
    text = out.file.getvalue()
    assert "20.0% [15.0%, 25.0%]" in text
    assert "80.0% [75.0%, 85.0%]" in text
    assert "not evaluated" in text, "ood was played only before"
    assert "not written" in text, "neither report nor policy is there"


def test_status_tells_a_dead_driver_from_a_living_one(folder):
    assert status_lines(folder)[1] == "phase      its driver has not reported yet"
    folder.write_status(Status(pid=42, phase="training", iteration=1, iterations=5, ports={"metrics": 1234}))
    with Metrics(folder.metrics) as metrics:
        metrics.record(iteration_record(1))
        metrics.record_eval(eval_record(1, "train", 0.3))
    lines = status_lines(folder)
    assert "training (no driver is running" in lines[1]
    assert lines[2] == "iteration  1 of 5"
    assert lines[3] == "port       metrics 127.0.0.1:1234"
    assert lines[5] == "ledger     8 issued, 40 running, 48 trained, 16 filtered (episodes)"
    assert lines[6].startswith("eval       train: 30.0%")
    with folder.lock():
        assert "training (driver pid 42" in status_lines(folder)[1]
