import contextlib
import errno
import io
import subprocess
import sys
from pathlib import Path

import pytest

from milepost.cluster.base.exits import ConfigError, DependencyLost, Exit
from milepost.cluster.base.output import logging_to, readers_may_leave

ROOT = Path(__file__).resolve().parents[3]


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


@pytest.mark.parametrize(
    ("command", "code", "streams"),
    [
        ("config", 0, "| true"),
        ("--help", 0, ">&- 2>&- <&-"),
        ("--help", 0, "2>&1 | true"),
        ("status nothing", 2, "| true"),
        ("status nothing", 2, ">&- 2>&- <&-"),
        ("status nothing", 2, "2>&1 | true"),
    ],
)
def test_a_reader_who_left_or_never_came_changes_no_exit_code_and_is_told_nothing(
    tmp_path: Path, command: str, code: int, streams: str
) -> None:
    milepost = f"{sys.executable} -m milepost.cluster.cli {command} {streams}"
    line = f"cd {tmp_path}; PYTHONPATH={ROOT} {milepost}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert "Broken" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_path_without_rights_is_the_users_to_mend(tmp_path: Path) -> None:
    denied = PermissionError(errno.EACCES, "Permission denied", "/run/metrics")
    with pytest.raises(ConfigError, match=r"^/run/metrics: Permission denied"), logging_to(tmp_path / "l" / "log"):
        raise denied


def test_a_stream_that_is_closed_says_so_to_those_who_kept_it() -> None:
    with contextlib.redirect_stdout(io.StringIO()) as behind, readers_may_leave():
        kept = sys.stdout  # as Ray's colorama does, which looks at it when the process ends
        assert not kept.closed
        behind.close()
        assert kept.closed
