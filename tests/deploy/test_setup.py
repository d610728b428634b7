"""`make setup` chooses the lock by the machine or by the user, and says which. Nothing is installed here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The Makefile with the files that its set-up looks at, and an nvidia-smi that answers in `gpu/`."""
    (tmp_path / "deploy").mkdir()
    (tmp_path / ".venv").mkdir()
    (tmp_path / "gpu").mkdir()
    for name in ("Makefile", "pyproject.toml", "deploy/requirements.lock", "deploy/requirements-gpu.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    smi = tmp_path / "gpu" / "nvidia-smi"
    smi.write_text("#!/bin/sh\nexit 0\n")
    smi.chmod(0o755)
    return tmp_path


def make(checkout: Path, *words: str, gpu: bool = False) -> str:
    """What `make` would run, or says."""
    env = {key: value for key, value in os.environ.items() if key not in ("ACCELERATOR", "MAKEFLAGS", "MAKELEVEL")}
    env |= {"PATH": f"{checkout / 'gpu'}:{os.environ['PATH']}"} if gpu else {}
    return subprocess.run(["make", *words], cwd=checkout, env=env, capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize(
    ("gpu", "words", "lock"),
    [
        (False, [], "deploy/requirements.lock"),
        (True, [], "deploy/requirements-gpu.lock"),
        (True, ["ACCELERATOR=cpu"], "deploy/requirements.lock"),
        (False, ["ACCELERATOR=cuda"], "deploy/requirements-gpu.lock"),
    ],
)
def test_the_lock_is_that_of_the_machine_unless_one_is_asked_for(
    checkout: Path, gpu: bool, words: list[str], lock: str
) -> None:
    said = make(checkout, "-n", "setup", *words, gpu=gpu)
    assert f"what {lock} names" in said
    assert f"--requirement {lock}\n" in said


def test_an_environment_stays_what_it_was_made_for(checkout: Path) -> None:
    (checkout / ".venv" / "ready").write_text("cpu\n")
    assert "names" not in make(checkout, "-n", "setup", gpu=True)
    said = make(checkout, "setup", "ACCELERATOR=cuda")
    assert said.startswith("milepost: .venv was made with ACCELERATOR=cpu: make clean, then again with cuda")


def test_an_unknown_accelerator_is_refused_before_anything_is_installed(checkout: Path) -> None:
    assert make(checkout, "setup", "ACCELERATOR=rocm") == "milepost: ACCELERATOR is cpu or cuda, not 'rocm'\n"
    assert not list((checkout / ".venv").iterdir())
