"""A real run whose disk for trajectories is full says so once and goes on to its end."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from milepost.cluster.runlog.runs import list_runs
from milepost.cluster.trajectories.parts import parts_of
from tests.system.driving import START_S, Driver, write_config

pytestmark = [pytest.mark.services, pytest.mark.sweep]
_ITERATIONS = 4


@pytest.fixture
def mount() -> Iterator[Callable[[Path], None]]:
    """Puts a file system of 16 KiB in the place of a folder."""
    mounted: list[Path] = []

    def begin(folder: Path) -> None:
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip(f"needs the right to mount: {done.stderr.decode()}")
        mounted.append(folder)

    yield begin
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.timeout(1500)
def test_a_full_disk_ends_the_recording_and_not_the_run(
    tmp_path: Path, tiny_policy: Path, start: Callable[..., Driver], mount: Callable[[Path], None]
) -> None:
    driver = start("train", write_config(tmp_path, tiny_policy, run={"iterations": _ITERATIONS}))
    driver.wait_for("its folder", lambda: (tmp_path / "runs").exists() and bool(list_runs(tmp_path / "runs")), START_S)
    mount(driver.folder.trajectories)  # parts that record start only after Redis, Ray and the engine
    assert driver.end(4 * START_S) == 0, driver.said()
    said = driver.out.read_text()
    [line] = [line for line in said.splitlines() if "trajectories are not recorded any more" in line]
    assert "No space left on device" in line
    assert [record.iteration for record in driver.records()] == list(range(1, _ITERATIONS + 1))
    assert parts_of(driver.folder.trajectories) == []
    assert list(driver.folder.trajectories.iterdir()) == [], "nothing is left half written"
