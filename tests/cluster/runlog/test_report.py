import math
import re
from html.parser import HTMLParser

import pytest

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.runlog import runs
from milepost.cluster.runlog.metrics import Metrics
from milepost.cluster.runlog.report import write_report
from milepost.cluster.runlog.runs import Status
from tests.cluster.runlog.example_records import cohort, eval_record, iteration_record

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Document(HTMLParser):
    """Collects text, tags and whatever could be fetched from elsewhere."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.open, self.references, self.text = [], [], [], ""
        self.feed(page)
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action", "data")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def folder(tmp_path):
    folder = runs.create(tmp_path, "lake")
    folder.resolved.write_text('[run]\nname = "<script>alert(1)</script>"\n')
    return folder


def write_records(folder, count, **changes):
    with Metrics(folder.metrics) as metrics:
        metrics.record_eval(eval_record(0, "heldout", 0.2))
        for iteration in range(1, count + 1):
            metrics.record(iteration_record(iteration, **changes))
        metrics.record_eval(eval_record(count, "heldout", 0.8))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The page of a run that measured everything."""
    folder = runs.create(tmp_path_factory.mktemp("whole"), "lake")
    folder.resolved.write_text("")
    phases = ("credit", "measure", "pack", "proximal", "parity", "update", "critic", "other")
    cohorts = {"easy": cohort(8, 6), "<b>hard": cohort(8, 2)}
    write_records(folder, 12, update_s=dict.fromkeys(phases, 0.5), commit_s=0.2, check_s=1.2, cohorts=cohorts)
    folder.write_status(Status(pid=1, phase="finished", iteration=12, iterations=12))
    return write_report(folder).read_text()


def test_the_report_shows_numbers_curves_ledger_and_config(whole):
    document = Document(whole)
    assert document.tags.count("svg") == 17
    for expected in ("20% → 80%", "finished, 12 of 12", "768", "75.0% – 85.0%", "Ledger", "resolved.toml"):
        assert expected in document.text
    assert "576" in document.text, "trained episodes of the last record's ledger"


def test_success_by_cohort_is_a_table(whole):
    assert "&lt;b&gt;hard" in whole
    for expected in ("Success by cohort", "rollouts", "75.0%", "25.0%"):
        assert expected in Document(whole).text


def test_the_report_needs_nothing_from_outside(whole):
    document = Document(whole)
    assert all(reference.startswith("#") for reference in document.references)
    assert not {"script", "link", "iframe", "img"} & set(document.tags)
    assert not re.search(r"url\((?!#)", whole)
    assert "@import" not in whole


def test_the_config_is_shown_as_text_not_as_markup(folder):
    page = write_report(folder).read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_a_run_without_any_record_has_a_report(folder):
    assert "No iteration is recorded yet" in Document(write_report(folder).read_text()).text


def test_a_run_with_one_iteration_no_cohort_and_a_torn_line_has_a_report(folder):
    write_records(folder, 1)
    with open(folder.metrics, "ab") as file:
        file.write(b'{"kind":"iter')
    document = Document(write_report(folder).read_text())
    assert document.tags.count("svg") == 17
    assert "Success by cohort" not in document.text


def test_values_that_were_not_finite_leave_gaps(folder):
    write_records(folder, 4, loss=math.nan, success=None, wait_s=None)
    page = write_report(folder).read_text()
    assert Document(page).tags.count("svg") == 17
    assert ">nan<" not in page


def test_the_time_card_shows_every_phase_of_an_iteration_and_of_its_update(whole):
    card = whole[whole.index("<h2>Time</h2>") : whole.index("<h2>A turn</h2>")]
    update = ("credit", "measure", "pack", "proximal", "check parity", "update", "critic", "other training")
    for label in ("wait for groups", "mutual information", *update, "commit", "publish weights"):
        assert label in card, label


def test_equal_records_give_equal_reports(folder):
    write_records(folder, 5)
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first


def test_damaged_metrics_are_refused(folder):
    folder.metrics.write_text("nonsense\n")
    with pytest.raises(ConfigError, match="line 1"):
        write_report(folder)
