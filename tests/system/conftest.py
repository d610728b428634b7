from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system import driving
from tests.system.driving import Driver


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    """Starts `milepost ...` as a process; whatever is left of it at the end of the test is killed."""
    drivers: list[Driver] = []

    def begin(*arguments: str | Path) -> Driver:
        out = tmp_path / f"driver-{len(drivers)}.out"
        drivers.append(driving.start([str(argument) for argument in arguments], tmp_path / "runs", out))
        return drivers[-1]

    yield begin
    for driver in drivers:
        driver.kill()
