from collections.abc import Iterator

import pytest

from milepost.cluster import redis_server


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real embedded redis-server for the session; every test uses a run of its own on it."""
    with redis_server.start(tmp_path_factory.mktemp("redis"), maxmemory_bytes=512 * 1024**2) as server:
        yield server.url
