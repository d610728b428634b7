"""`milepost train --dry-run` as it is typed: it starts nothing and leaves nothing."""

from pathlib import Path

import pytest


@pytest.fixture
def lake(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    path = own_folder / "lake.toml"
    path.write_text('[run]\nname = "lake"\n')
    return path


def test_a_dry_run_prints_placement_and_memory_and_leaves_no_run(call, lake: Path) -> None:
    planned = ("--hosts", "1", "--gpus-per-host", "2", "--gpu-memory", "24", "--host-memory", "64")
    code, out, err = call("train", lake, "--dry-run", *planned)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("1 hosts of 64.0 GiB with 2 GPUs of 24 GiB in all; a model of ")
    assert lines[1].startswith("1 engines x tensor parallel 1, 1 learner ranks (ZeRO 2), 1 workers: 2 GPUs and 3 CPUs")
    assert any(line.startswith("each of 1 GPUs of learner ranks: ") for line in lines)
    assert any(line.startswith("memory of host 0: ") for line in lines)
    assert list(lake.parent.iterdir()) == [lake]


def test_hardware_is_told_for_a_dry_run_alone_and_gpus_with_their_hosts(call, lake: Path) -> None:
    code, _, err = call("train", lake, "--hosts", "4")
    assert (code, "add --dry-run, or leave them out" in err, err.count("\n")) == (2, True, 1)
    code, _, err = call("train", lake, "--dry-run", "--gpus-per-host", "8")
    assert (code, "give both, or neither" in err, err.count("\n")) == (2, True, 1)
    assert list(lake.parent.iterdir()) == [lake]


def test_a_dry_run_of_what_cannot_fit_ends_with_code_2_after_its_account(call, lake: Path) -> None:
    planned = ("--hosts", "1", "--gpus-per-host", "1", "--gpu-memory", "3")
    code, out, err = call("train", lake, "--dry-run", *planned)
    assert code == 2
    assert "engine's KV cache" in out
    assert "each of 1 GPUs with an engine and a rank: needs " in err
    code, _, err = call("train", lake, "--dry-run", *planned, "--set", "learner.ranks=2")
    assert (code, err) == (
        2,
        "milepost: GPUs: 1 for engines and 2 for learner ranks are wanted, 1 here: lower engine.num_engines, "
        "engine.tensor_parallel_size or learner.ranks, or name a larger cluster in run.ray_address\n",
    )
