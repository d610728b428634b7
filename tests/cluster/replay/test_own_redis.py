"""A Redis of the user's own: what is refused before a run, what is never printed, and how a run's keys leave it."""

import asyncio
import contextlib
import itertools
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import pytest
import redis
import tomli_w

from milepost.cluster.replay import own_redis, redis_server
from milepost.cluster.replay.buffer import BufferConfig
from milepost.cluster.replay.client import BufferFull, BufferRefused, BufferUnavailable, connect, connect_sync
from milepost.cluster.replay.store import Store
from tests.cluster.replay.buffer_rig import failure, rig

EXTERNAL = {"url_env": "A_REDIS_URL"}
SMALL = BufferConfig(max_bytes=1024, **EXTERNAL)
_USERS = itertools.count()


def check(url: str, config: BufferConfig = SMALL) -> None:
    asyncio.run(own_redis.check_url(url, config))


def user(url: str, *rules: str) -> str:
    """The URL of a new user with these rights."""
    name = f"user-{next(_USERS)}"
    with connect_sync(url) as admin:
        admin.execute_command("ACL", "SETUSER", name, "on", ">pw", *rules)
    return as_user(url, f"{name}:pw")


def as_user(url: str, credentials: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{credentials}@{parts.hostname}:{parts.port}"))


def refusal_of(url: str) -> BufferRefused | None:
    """What `connect` says; None where it takes the URL, which then means the host that stands in it."""
    try:
        client = connect(url)
    except BufferRefused as error:
        return error
    assert client.connection.connection_pool.connection_kwargs["host"] == "10.0.0.7"
    return None


def test_the_embedded_server_and_a_user_with_all_that_is_needed_pass_and_leave_nothing(redis_url: str) -> None:
    check(redis_url)
    check(user(redis_url, "~mp:*", "+@all", "-@admin", "-@dangerous", "+info"))
    with connect_sync(redis_url) as client:
        assert not list(client.scan_iter("mp:{trial-*"))


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (("~*", "+@read", "+info", "+ping"), "Redis refuses HSET to this user"),
        (("~*", "+@all", "-info"), "Redis refuses INFO to this user"),
        (("~other:*", "+@all"), "Redis refuses HSET to this user"),
        (("~*", "+@all", "-xreadgroup"), "Redis refuses XREADGROUP to this user"),
        (("~*", "+@all", "-scan"), "Redis refuses SCAN to this user"),
    ],
)
def test_a_user_who_lacks_a_right_is_refused_before_a_run_and_the_command_is_named(
    redis_url: str, rules: tuple[str, ...], said: str
) -> None:
    with pytest.raises(BufferRefused, match=said):
        check(user(redis_url, *rules))


def test_a_server_with_less_memory_than_the_buffer_or_with_none_left_is_told_apart(tmp_path: Path) -> None:
    with redis_server.start(tmp_path, maxmemory_bytes=2 * SMALL.maxmemory_bytes) as server:
        with pytest.raises(BufferRefused, match=r"has maxmemory \d+, a buffer of buffer.max_bytes needs \d+"):
            check(server.url, BufferConfig(max_bytes=100_000_000, **EXTERNAL))
        with connect_sync(server.url) as client:
            for number in range(SMALL.maxmemory_bytes // 1_000_000 + 1):
                client.set(f"of-somebody-else-{number}", b"1" * 1_000_000)
            client.config_set("maxmemory", SMALL.maxmemory_bytes)
        with pytest.raises(BufferFull, match="at its memory limit"):
            check(server.url)


def test_a_redis_that_serves_everybody_beyond_this_machine_is_refused_unless_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with redis_server.start(tmp_path) as server:
        monkeypatch.setattr(own_redis, "is_loopback", lambda _: False)
        check(server.url)
        with connect_sync(server.url) as client:
            client.execute_command("ACL", "SETUSER", "named", "on", ">pw", "~*", "+@all")
            client.execute_command("ACL", "SETUSER", "default", "nopass")
        nobody = f"redis://127.0.0.1:{urlsplit(server.url).port}"
        for url in (as_user(server.url, "named:pw"), nobody):
            with pytest.raises(BufferRefused, match="serves everybody who reaches it"):
                check(url)
        check(nobody, SMALL.model_copy(update={"allow_no_password": True}))


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("redis://:pw@127.0.0.1:1/0", True),
        ("redis://localhost", True),
        ("redis://[::1]:6379", True),
        ("unix:///run/redis.sock", True),
        ("redis://redis.example:6379", False),
        ("rediss://10.0.0.7", False),
    ],
)
def test_this_machine_is_told_from_others(url: str, loopback: bool) -> None:
    assert own_redis.is_loopback(url) is loopback


@pytest.mark.parametrize("where", ["#", "/", "?", "[", "@", "%"])
@pytest.mark.parametrize(
    "form", ["redis://:{}@10.0.0.7:6379/0", "redis://user:{}@10.0.0.7", "redis://{}@10.0.0.7:6379"]
)
def test_no_piece_of_a_password_is_printed_whatever_is_in_it(form: str, where: str) -> None:
    for password in (f"hunter{where}secret", f"12{where}secret", f"{where}hunter"):
        if (refused := refusal_of(form.format(password))) is not None:
            assert not any(piece in str(refused) for piece in ("hunter", "secret", "12"))
            assert refused.__cause__ is None
            assert refused.__suppress_context__ or refused.__context__ is None
        assert refusal_of(form.format(quote(password, safe=""))) is None


def test_a_condition_that_passes_is_known_inside_a_script_too(tmp_path: Path) -> None:
    """A server that cannot save refuses writes with MISCONF; Redis 6.2 wraps that in an error of the script."""
    doomed = tmp_path / "doomed"
    doomed.mkdir()

    async def ask(url: str) -> None:
        client = connect(url)
        try:
            with pytest.raises(BufferUnavailable, match="MISCONF"):
                await client.command("EVAL", "return redis.call('SET', KEYS[1], 'x')", 1, "key")
            with pytest.raises(BufferRefused, match="Wrong number of args"):
                await client.command("EVAL", "return redis.call('GET')", 1, "key")
        finally:
            await client.aclose()

    with redis_server.start(tmp_path / "data") as server, connect_sync(server.url) as client:
        client.config_set("save", "3600 1")
        client.config_set("dir", str(doomed))
        shutil.rmtree(doomed)
        deadline = time.monotonic() + 10
        while client.info("persistence")["rdb_last_bgsave_status"] == "ok":
            assert time.monotonic() < deadline, "it saves in a folder that is gone"
            with contextlib.suppress(redis.ResponseError):  # one is under way
                client.bgsave()
            time.sleep(0.05)
        asyncio.run(ask(server.url))
        client.config_set("save", "")  # or it refuses to end before it has saved


async def _ttls(client: redis.asyncio.Redis, run_id: str) -> dict[str, int]:
    return {key.decode(): await client.ttl(key) async for key in client.scan_iter(f"mp:{{{run_id}}}:*")}


def test_every_key_of_a_run_in_an_external_redis_expires_and_a_driver_renews_it(redis_url: str) -> None:
    async def live() -> None:
        async with rig(redis_url, **EXTERNAL, expiry_days=2) as run:
            await run.fill("done")
            await run.fill("ready")
            await run.issue("open")
            await run.take(1)
            await run.buffer.commit(1, {"done": "trained"})
            await run.ledger.release_owner("worker-1")
            await run.ledger.reclaim()
            ttls = await _ttls(run.client, run.run_id)
            assert len(ttls) >= 9
            assert all(2 * 86_400 - 60 < ttl <= 2 * 86_400 for ttl in ttls.values()), ttls
            await run.issue("failing")
            await run.buffer.put_failure(failure("failing", 0))  # it writes a list beside the script
            for key in ttls:
                await run.client.expire(key, 1000)
            await own_redis.refresh_expiry(run.link, run.run_id, expiry_s=run.config.expiry_s)
            renewed = await _ttls(run.client, run.run_id)
            assert renewed.keys() > ttls.keys()
            assert all(2 * 86_400 - 60 < ttl <= 2 * 86_400 for ttl in renewed.values()), renewed

    asyncio.run(live())


def test_the_keys_of_a_run_on_the_embedded_server_stay(redis_url: str) -> None:
    async def live() -> None:
        async with rig(redis_url) as run:
            await run.fill("a")
            assert set((await _ttls(run.client, run.run_id)).values()) == {-1}

    asyncio.run(live())


def test_clean_removes_all_of_one_run_and_nothing_of_another(
    tmp_path: Path, redis_url: str, call: Callable[..., tuple[object, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for run_id, buffer in (("gone", EXTERNAL), ("gone-too", EXTERNAL), ("embedded", {})):
        folder = tmp_path / "runs" / run_id
        folder.mkdir(parents=True)
        (folder / "resolved.toml").write_text(tomli_w.dumps({"buffer": buffer}))

    async def fill(run_id: str) -> None:
        async with rig(redis_url, run_id=run_id, **EXTERNAL) as run:
            await run.fill("a")
            await run.buffer.put_failure(failure("b", 0))

    async def count(run_id: str) -> int:
        async with rig(redis_url, run_id="looking") as run:
            return len(await _ttls(run.client, run_id))

    for run_id in ("gone", "gone-too"):
        asyncio.run(fill(run_id))
    there = asyncio.run(count("gone"))
    clean = ("--runs-dir", tmp_path / "runs")
    assert call("clean", "gone", *clean)[0] == 2
    monkeypatch.setenv("A_REDIS_URL", redis_url)
    code, out, _ = call("clean", "gone", *clean)
    assert code == 0
    assert out == f"gone: removed {there} keys with 0.0 MiB of trajectories from Redis; checkpoints stay\n"
    assert asyncio.run(count("gone")) == 0
    assert asyncio.run(count("gone-too")) == there > 5
    assert "nothing to remove" in call("clean", "embedded", *clean)[1]
    assert Store(None, "gone").pattern == "mp:{gone}:*"
