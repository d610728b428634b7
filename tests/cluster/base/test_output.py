import errno
from pathlib import Path

import pytest

from milepost.cluster.base.exits import DependencyLost, Exit
from milepost.cluster.base.output import logging_to


def test_a_full_disk_is_a_lost_dependency_and_any_other_error_of_a_file_is_not(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "driver.log"
    full = OSError(errno.ENOSPC, "No space left on device", "/run/metrics")
    full = OSError(errno.ENOSPC, "No space left on device", "/run/metrics")
    with pytest.raises(DependencyLost, match=r"^/run/metrics could not be written: No space left"), logging_to(log):
        raise full
    with pytest.raises(Exit, match="unexpected FileNotFoundError") as end, logging_to(log):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "/run/metrics")
    assert end.value.code == 1
    assert "Traceback" in log.read_text()


def test_a_log_on_a_full_disk_fills_no_screen(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DependencyLost), logging_to(Path("/dev/full")):
        raise OSError(errno.ENOSPC, "No space left on device", "/run/metrics")
    assert capfd.readouterr().err == ""
