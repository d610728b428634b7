"""A job that is submitted again as it is goes on with its run: `run.resume = "auto"`."""

from pathlib import Path

import pytest

from milepost.cluster import train
from milepost.cluster.runlog.runs import RunFolder

Trained = list[tuple[RunFolder, bool]]


@pytest.fixture
def trained(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """The runs that the command line had trained, and whether they were resumed."""
    done: Trained = []
    monkeypatch.setattr(train, "train", lambda _, folder, *, resume: done.append((folder, resume)))
    (own_folder / "lake.toml").write_text('[run]\nname = "lake"\nresume = "auto"\n')
    return done


def test_a_submitted_config_goes_on_with_its_own_newest_run_and_starts_one_where_there_is_none(
    call, trained: Trained
) -> None:
    assert call("train", "lake.toml")[0] == 0
    call("train", "lake.toml", "--set", "run.seed=7")  # newer, and another configuration
    broken = Path("runs") / "99991231-235959-lake"
    broken.mkdir()
    (broken / "resolved.toml").write_text("[run]\nof_another_version = 1\n")
    run_id = trained[0][0].run_id
    said = f'run.resume = "auto": going on with {run_id}\n'
    assert call("train", "lake.toml", "--set", "run.iterations=500") == (0, said, "")
    assert [resumed for _, resumed in trained] == [False, False, True]
    assert trained[2][0].run_id == run_id


def test_a_submitted_config_never_goes_on_with_a_run_that_is_driven_or_to_fewer_iterations(
    call, trained: Trained
) -> None:
    call("train", "lake.toml")
    folder = trained[0][0]
    with folder.lock():
        code, _, err = call("train", "lake.toml")
    assert (code, err) == (2, f"milepost: run {folder.run_id} is in use by another driver; stop it first\n")
    (folder.checkpoints / "step-00000006").mkdir()
    code, _, err = call("train", "lake.toml", "--set", "run.iterations=5")
    assert (code, len(trained)) == (2, 1)
    assert err.startswith(f"milepost: run.iterations = 5, but {folder.run_id} has done 6")


def test_a_config_that_says_never_starts_a_run_of_its_own(call, trained: Trained) -> None:
    call("train", "lake.toml")
    call("train", "lake.toml", "--set", "run.resume=never")
    assert [resumed for _, resumed in trained] == [False, False]
