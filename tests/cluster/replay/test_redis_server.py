import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import redis

from milepost.cluster.replay import redis_server
from milepost.cluster.replay.client import BufferRefused, BufferUnavailable, check_server, connect, connect_sync


def test_it_listens_on_loopback_only_and_asks_for_its_password(redis_url: str) -> None:
    parts = urlsplit(redis_url)
    with redis.Redis(port=parts.port) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    with connect_sync(redis_url) as client:
        server = psutil.Process(client.info()["process_id"])
    assert {c.laddr.ip for c in server.net_connections() if c.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
    assert parts.password
    assert parts.password not in " ".join(server.cmdline()) + str(server.environ())


def test_its_files_are_private_and_hold_no_password(tmp_path: Path) -> None:
    folder = tmp_path / 'a "quoted" folder'
    with redis_server.start(folder) as server:
        connect_sync(server.url).set("key", "value")
    assert folder.stat().st_mode & 0o777 == 0o700
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if urlsplit(server.url).password.encode() in path.read_bytes()]
    assert not [path for path in files if path.stat().st_mode & 0o077]


def test_stop_ends_the_process_and_keeps_the_data(tmp_path: Path) -> None:
    with redis_server.start(tmp_path) as server:
        connect_sync(server.url).set("key", "value")
    assert not psutil.pid_exists(server._process.pid)
    with redis_server.start(tmp_path) as again:
        assert connect_sync(again.url).get("key") == b"value"


def test_a_killed_server_comes_back_at_the_same_address_with_everything(tmp_path: Path) -> None:
    with redis_server.start(tmp_path) as server:
        client = connect_sync(server.url)
        for i in range(1000):
            client.set(f"key-{i}", i)
        while client.info("persistence")["aof_buffer_length"]:  # a slow disk: Redis holds writes back for up to 2 s
            time.sleep(0.05)
        first = server._process.pid
        os.kill(first, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(first)], timeout=5)
        assert not server.alive
        with pytest.raises(redis.ConnectionError):
            client.ping()
        server.revive()
        assert server._process.pid != first
        assert client.dbsize() == 1000


def test_it_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = f"""
import os, pathlib, signal
from milepost.cluster.replay import redis_server
print(redis_server.start(pathlib.Path({str(tmp_path)!r}))._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert child.returncode == -signal.SIGKILL, child.stderr
    pid = int(child.stdout)
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, f"redis-server {pid} outlives its parent"
        time.sleep(0.02)


def test_a_second_server_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    with redis_server.start(tmp_path), pytest.raises(BufferRefused, match="another redis-server uses"):
        redis_server.start(tmp_path)


def kill_during_a_rewrite(server: redis_server.RedisServer) -> psutil.Process:
    """Kill the server while a fork of it rewrites its file, slowly; returns that fork, which lives on."""
    with connect_sync(server.url) as client:
        client.mset({f"key-{i}": i for i in range(200)})
        client.config_set("rdb-key-save-delay", 1_000_000)  # microseconds per key: longer than any test
        client.bgrewriteaof()
    process = psutil.Process(server._process.pid)
    deadline = time.monotonic() + 10
    while not (forks := process.children()):
        assert time.monotonic() < deadline, "no rewrite began"
        time.sleep(0.01)
    process.kill()
    psutil.wait_procs([process], timeout=5)
    assert not server.alive
    assert forks[0].is_running(), "the fork ended with its server: nothing is tested"
    return forks[0]


def test_a_server_killed_during_a_rewrite_comes_back_at_once_and_its_fork_is_gone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with redis_server.start(tmp_path) as server:
        fork = kill_during_a_rewrite(server)
        server.revive()
        assert not fork.is_running()
        assert connect_sync(server.url).dbsize() == 200
    assert f"killing {fork.pid}, a fork that a dead redis-server left in {tmp_path}" in caplog.text
    assert not list(tmp_path.rglob("temp-rewriteaof*")), "the unfinished file is left"


def test_a_folder_whose_server_was_killed_during_a_rewrite_serves_the_next_run(tmp_path: Path) -> None:
    first = redis_server.start(tmp_path)
    fork = kill_during_a_rewrite(first)
    with redis_server.start(tmp_path) as server:
        assert not fork.is_running()
        assert connect_sync(server.url).dbsize() == 200


@pytest.mark.sweep
def test_a_server_killed_while_it_rewrites_half_a_gigabyte_serves_all_of_it_again(tmp_path: Path) -> None:
    with redis_server.start(tmp_path) as server, connect_sync(server.url) as client:
        for i in range(500):
            client.set(f"big-{i}", os.urandom(1 << 20))
        fork = kill_during_a_rewrite(server)
        server.revive()
        assert not fork.is_running()
        assert connect_sync(server.url).dbsize() == 700


def test_a_server_that_loads_its_file_for_long_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with redis_server.start(tmp_path) as server:
        client = connect_sync(server.url)
        for i in range(100):
            client.set(f"key-{i}", os.urandom(100_000))
        client.bgrewriteaof()  # the delay is per key of a rewritten file
        while client.info("persistence")["aof_base_size"] < 10_000_000:
            time.sleep(0.02)
    settings = redis_server.RedisServer._settings
    monkeypatch.setattr(  # 100 keys in 2 s
        redis_server.RedisServer, "_settings", lambda self, port: f"{settings(self, port)}key-load-delay 20000\n"
    )
    monkeypatch.setattr(redis_server, "_STARTUP_TIMEOUT_S", 0.5)
    with redis_server.start(tmp_path) as server:
        assert connect_sync(server.url).dbsize() == 100


def test_a_start_from_another_thread_is_refused_because_the_server_would_end_with_it(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool, pytest.raises(BufferRefused, match="main thread"):
        pool.submit(redis_server.start, tmp_path).result()


def test_a_start_that_fails_says_what_the_log_says(tmp_path: Path) -> None:
    for name in ("appendonly.aof", "appendonlydir/appendonly.aof.manifest"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"this is no append-only file\n")
    binary = redis_server.find_binary()
    if redis_server.server_version(binary) < (7, 0):
        (tmp_path / "appendonlydir/appendonly.aof.manifest").unlink()
        (tmp_path / "appendonlydir").rmdir()
    with pytest.raises(BufferUnavailable, match=r"ended at start; its log says: .*(AOF|append|manifest)"):
        redis_server.start(tmp_path)


def test_a_folder_of_a_newer_redis_is_refused_by_an_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "appendonlydir").mkdir()
    monkeypatch.setattr(redis_server, "server_version", lambda _: (6, 2))
    with pytest.raises(BufferRefused, match="would start empty"):
        redis_server.start(tmp_path)


def test_a_port_somebody_else_took_is_not_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free_port = redis_server.free_port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        ports = iter([taken.getsockname()[1]])
        monkeypatch.setattr(redis_server, "free_port", lambda: next(ports, None) or free_port())
        with redis_server.start(tmp_path) as server:
            assert urlsplit(server.url).port != taken.getsockname()[1]
    assert next(ports, None) is None


async def _check(url: str, **settings: str) -> None:
    client = connect(url)
    try:
        before = {name: (await client.connection.config_get(name))[name] for name in settings}
        for name, value in settings.items():
            await client.connection.config_set(name, value)
        try:
            await check_server(client, maxmemory_bytes=2**20)
        finally:
            for name, value in before.items():
                await client.connection.config_set(name, value)
    finally:
        await client.aclose()


def test_an_evicting_server_and_one_without_append_only_file_are_refused(redis_url: str) -> None:
    asyncio.run(_check(redis_url))
    with pytest.raises(BufferRefused, match=r"maxmemory-policy allkeys-lru.*CONFIG SET maxmemory-policy noeviction"):
        asyncio.run(_check(redis_url, **{"maxmemory-policy": "allkeys-lru"}))
    with pytest.raises(BufferRefused, match="CONFIG SET appendonly yes"):
        asyncio.run(_check(redis_url, appendonly="no"))
    with pytest.raises(BufferRefused, match=r"maxmemory 1000000, .* needs 1048576: run CONFIG SET maxmemory 1048576"):
        asyncio.run(_check(redis_url, maxmemory="1000000"))


def test_a_wrong_password_and_a_silent_address_are_told_apart(redis_url: str) -> None:
    password = urlsplit(redis_url).password
    with pytest.raises(BufferRefused, match="credentials"):
        asyncio.run(_check(redis_url.replace(password, "wrong")))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(BufferUnavailable, match="does not answer"):
        asyncio.run(_check(f"redis://:secret-canary@127.0.0.1:{port}"))
