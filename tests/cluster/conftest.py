import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from milepost.cluster import cli
from milepost.cluster.replay import redis_server


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real embedded redis-server for the session; every test uses a run of its own on it."""
    with redis_server.start(tmp_path_factory.mktemp("redis"), maxmemory_bytes=512 * 1024**2) as server:
        yield server.url


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to stand in; the command line's mask is taken back."""
    monkeypatch.chdir(tmp_path)
    mask = os.umask(0o077)
    yield tmp_path
    os.umask(mask)


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[object, str, str]]:
    """Runs the command line in this process; gives exit code, stdout and stderr."""

    def run_main(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["milepost", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capfd.readouterr()
        return end.value.code, out, err

    return run_main
