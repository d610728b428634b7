"""vLLM's own numbers of a real engine, as Prometheus would scrape them."""

import re
import urllib.request

import psutil
import pytest

from milepost.cluster.pools.engine_process import serve_metrics
from milepost.envs.dialogue import Dialogue
from tests.actors.running_engine import RunningEngine

pytestmark = pytest.mark.services


def test_vllms_own_metrics_are_served_on_loopback_and_count_the_prefix_cache(
    engine: RunningEngine, dialogue: Dialogue
) -> None:
    port = serve_metrics()

    def counted(name: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            found = re.findall(rf"^vllm:{name}_total\{{.*\}} (\S+)$", answer.read().decode(), re.M)
        return sum(map(float, found))

    asked, hits = counted("prefix_cache_queries"), counted("prefix_cache_hits")
    prompt = dialogue.opening("A prompt that is longer than one block of the cache. " * 4)
    for _ in range(2):
        engine.run(engine.engine.generate(prompt))
    assert counted("prefix_cache_queries") == asked + 2 * len(prompt)
    assert counted("prefix_cache_hits") > hits
    here = [c.laddr.ip for c in psutil.Process().net_connections() if c.status == "LISTEN" and c.laddr.port == port]
    assert here == ["127.0.0.1"]
