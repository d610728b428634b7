"""How `milepost train` ends where nothing was started yet, nothing was learnt, or nothing is left to do."""

import asyncio
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from milepost.cluster import train
from milepost.cluster.base.exits import NothingLearnt, Stopped
from milepost.cluster.run import Run
from milepost.cluster.runlog import runs
from milepost.cluster.runlog.metrics import Metrics
from milepost.cluster.runlog.runs import RunFolder, Status
from milepost.cluster.settings.config import RunConfig, RunSection, load
from milepost.cluster.start import Start
from milepost.envs.scenarios import ScenarioConfig
from tests.cluster.runlog.example_records import iteration_record

Call = Callable[..., tuple[object, str, str]]
CONFIG = RunConfig(env=ScenarioConfig(train_size=4, heldout_size=2), run=RunSection(iterations=2))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return runs.create(tmp_path, "ended")


@pytest.fixture
def ended_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose parts did all they had to: what is left is its end."""

    async def main(*_: object) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(Run, "main", main)
    monkeypatch.setattr(train, "start_of", lambda _, folder, *__, **___: Start(folder.start, None, None))


def recorded(folder: RunFolder, **changes: object) -> None:
    with Metrics(folder.metrics) as metrics:
        for number in (1, 2):
            metrics.record(iteration_record(number, **changes))


@pytest.mark.usefixtures("ended_well")
def test_a_run_that_made_no_update_is_finished_and_ends_with_a_code_of_its_own(folder: RunFolder) -> None:
    recorded(folder, groups_trained=0, groups_filtered=8, cut_share=1.0)
    with pytest.raises(NothingLearnt, match=r"none of the 2 iterations made an update.*max_tokens = 256: raise it"):
        train.train(CONFIG, folder, resume=False)
    status = folder.read_status()
    assert status is not None
    assert status.phase == "finished"
    assert folder.report.exists()


@pytest.mark.usefixtures("ended_well")
def test_a_run_that_learnt_from_cut_responses_says_so_at_its_end(
    folder: RunFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    recorded(folder, cut_share=0.75)
    train.train(CONFIG, folder, resume=False)
    last = capfd.readouterr().out.splitlines()[-1]
    assert last == "warning: at the end 75.0% of the responses were cut at sampling.max_tokens = 256: raise it"


def test_a_signal_while_the_first_policy_is_made_is_an_orderly_stop_that_names_the_way_on(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> Start:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "start_of", interrupted)
    with pytest.raises(Stopped, match=rf"^stopped before training; milepost train --resume \S*{folder.run_id}$") as end:
        train.train(CONFIG, folder, resume=False)
    status = folder.read_status()
    assert status is not None
    assert status.phase == f"ended: {end.value}"


@pytest.mark.usefixtures("ended_well")
def test_what_libraries_and_children_write_goes_to_a_log_and_not_between_the_lines_of_the_run(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async def main(run: Run, _: Start) -> None:
        os.write(1, b"a progress bar\n")  # not print(): pytest has streams of its own
        subprocess.run("echo out of a child; echo and its warning >&2", shell=True, check=True)
        run.reporter.note("a line of the run")

    monkeypatch.setattr(Run, "main", main)
    recorded(folder)
    train.train(CONFIG, folder, resume=False)
    out, err = capfd.readouterr()
    assert err == ""
    assert "a line of the run" in out
    assert "progress bar" not in out
    assert "out of a child" not in out
    log = folder.output_log.read_text().splitlines()
    assert sorted(log) == ["a progress bar", "and its warning", "out of a child"]


@pytest.fixture
def trained(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[RunFolder]:
    """The runs that the command line had trained, which here takes no time."""
    done: list[RunFolder] = []
    monkeypatch.setattr(train, "train", lambda _, folder, **__: done.append(folder))
    (own_folder / "six.toml").write_text("[run]\niterations = 6\n")
    return done


def test_to_go_on_to_fewer_iterations_than_are_done_is_refused_and_leaves_the_run_as_it_was(
    call: Call, trained: list[RunFolder]
) -> None:
    call("train", "six.toml")
    (folder,) = trained
    (folder.checkpoints / "step-00000006").mkdir()
    assert call("train", "--resume", "latest", "--set", "run.iterations=5") == (
        2,
        "",
        f"milepost: run.iterations = 5, but {folder.run_id} has done 6: to go on, ask for more, e.g. "
        "--set run.iterations=12\n",
    )
    assert load(folder.resolved).run.iterations == 6
    assert trained == [folder]


def test_a_run_that_did_all_it_was_to_do_says_so_and_starts_nothing(call: Call, trained: list[RunFolder]) -> None:
    call("train", "six.toml")
    folder = trained[0]
    folder.write_status(Status(pid=1, phase="finished", iteration=6, iterations=6))
    code, out, err = call("train", "--resume", "latest")
    assert (code, err, len(trained)) == (0, "", 1)
    assert out.startswith(f"{folder.run_id} has done all of its 6 iterations: to go on, ask for more")
    folder.write_status(Status(pid=1, phase="ended: stopped", iteration=6, iterations=6))  # before its last evaluation
    assert call("train", "--resume", "latest")[0] == 0
    assert len(trained) == 2
