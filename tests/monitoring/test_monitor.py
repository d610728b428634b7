"""`make monitor`: a real Prometheus finds a run that is going on, loads the rules, and ends with Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from milepost.cluster.runlog import runs
from milepost.cluster.runlog.metrics import Metrics
from milepost.cluster.runlog.runs import RunFolder, Status
from tests.cluster.registry.served_metrics import registry_metrics
from tests.cluster.runlog.example_records import iteration_record
from tests.cluster.runlog.test_series import plenty, view
from tests.monitoring.queries import queries

ROOT = Path(__file__).parents[2]
_START_S = 120.0
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="no prometheus: 'make prometheus' brings it by apt"
)


def ask(port: int, path: str, **parameters: str) -> Any:
    """What Prometheus's HTTP API answers."""
    url = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)["data"]


def begin(runs_dir: Path, folder: Path) -> subprocess.Popen[str]:
    """`make monitor`, started in `folder`."""
    return subprocess.Popen(
        [sys.executable, "-m", "deploy.monitoring.monitor", str(runs_dir)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def going_on(runs_dir: Path, ports: dict[str, int]) -> RunFolder:
    """A run's folder with the status of a driver in training; who holds its lock drives it."""
    folder = runs.create(runs_dir, "watched")
    folder.resolved.touch()
    folder.write_status(Status(pid=os.getpid(), phase="training", ports=ports))
    return folder


def panels_without_a_series(port: int) -> list[str]:
    """Of all but Ray's, by name and query."""
    own = [(name, query) for name, query in queries() if "ray_" not in query]
    return [f"{name}: {query}" for name, query in own if not ask(port, "query", query=query)["result"]]


class EngineMetrics:
    """What the panels ask of vLLM, served by the library that vLLM serves it with."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counters = ("prefix_cache_hits", "prefix_cache_queries", "prompt_tokens", "generation_tokens")
        self._counters = [Counter(f"vllm:{name}", name, registry=self.registry) for name in counters]
        for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
            Gauge(f"vllm:{name}", name, registry=self.registry)

    def go_on(self) -> None:
        for counter in self._counters:
            counter.inc()


def test_without_a_run_it_says_in_one_line_what_to_do(tmp_path: Path) -> None:
    going_on(tmp_path / "runs", {"metrics": 1})  # nobody holds it: that run has ended
    process = begin(tmp_path / "runs", tmp_path)
    out, err = process.communicate(timeout=_START_S)
    assert (process.returncode, out) == (2, "")
    assert err == f"milepost: no run is going on in {tmp_path / 'runs'}: start one, e.g. with make train\n"


@needs_prometheus
def test_it_scrapes_the_run_so_that_panels_show_it_evaluates_the_rules_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    registry, _ = start_http_server(0, "127.0.0.1", registry_metrics(tmp_path).collectors)
    vllm = EngineMetrics()
    engine, _ = start_http_server(0, "127.0.0.1", vllm.registry)
    with contextlib.ExitStack() as ending, Metrics(tmp_path / "metrics.jsonl") as metrics:
        for server in (registry, engine):
            ending.callback(server.server_close)
            ending.callback(server.shutdown)
        plenty(metrics)
        metrics.see(view())
        folder = going_on(tmp_path / "runs", {"metrics": metrics.port, "engine-0": engine.server_port})
        with folder.lock():
            (by_hand := tmp_path / ".cache" / "monitoring" / "targets").mkdir(parents=True)
            target = {
                "targets": [f"127.0.0.1:{registry.server_port}"],
                "labels": {"job": "milepost", "instance": "serve"},
            }
            (by_hand / "serve.json").write_text(json.dumps([target]))  # as docs/serving.md tells
            process = begin(tmp_path / "runs", tmp_path)
            assert process.stdout is not None
            first = process.stdout.readline()
            assert first.startswith("Prometheus  http://127.0.0.1:"), process.communicate()
            port = int(first.split(":")[2].split("/")[0])
            deadline = time.monotonic() + _START_S
            while empty := panels_without_a_series(port):
                assert time.monotonic() < deadline, empty
                vllm.go_on()
                metrics.record(iteration_record(2, verdicts={"selected": 6}, transfer_s={"pause": 0.1}))
                time.sleep(1)
            [seen] = ask(port, "query", query="milepost_iteration")["result"]
            labels = {name: seen["metric"][name] for name in ("job", "run", "instance")}
            assert labels == {"job": "milepost", "run": folder.run_id, "instance": "driver"}
            groups = ask(port, "rules")["groups"]
            assert sum(len(group["rules"]) for group in groups) > 20
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
    with pytest.raises(OSError):  # noqa: PT011  Prometheus ended with it
        ask(port, "query", query="up")


@needs_prometheus
def test_the_parts_of_a_run_are_told_apart_by_job_and_place(tmp_path: Path) -> None:
    from deploy.monitoring import monitor

    folder = going_on(tmp_path / "runs", {"metrics": 1, "ray": 2, "engine-0": 3})
    assert monitor.targets(tmp_path / "runs") == []
    with folder.lock():
        found = monitor.targets(tmp_path / "runs")
    assert [(each["labels"]["job"], each["labels"]["instance"], each["targets"]) for each in found] == [
        ("milepost", "driver", ["127.0.0.1:1"]),
        ("ray", "ray", ["127.0.0.1:2"]),
        ("vllm", "engine-0", ["127.0.0.1:3"]),
    ]
