"""Spans arrive in a real Phoenix, an observability server that nobody here wrote: `make phoenix`."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from milepost.cluster.base.ports import free_port
from milepost.cluster.tracing.config import TracingConfig
from milepost.cluster.tracing.tracing import Tracing
from milepost.cluster.trajectories.recording import EVALUATION
from milepost.envs.dialogue import Dialogue
from tests.actors.episode_rig import task
from tests.cluster.tracing.collector import Came
from tests.cluster.tracing.compared import every_episode_is_traced
from tests.cluster.trajectories.recorded import Played, closing, recorder, rows, trained

pytestmark = pytest.mark.sweep
PHOENIX = Path(os.environ.get("PHOENIX", ".venv-phoenix/bin/phoenix"))
_START_S = 300.0
_PROJECT = "phoenix-test"
_QUIET = {
    "PHOENIX_TELEMETRY_ENABLED": "false",
    "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
    "PHOENIX_DISABLE_AGENT_ASSISTANT": "true",
}


@pytest.fixture
def phoenix(tmp_path: Path) -> Iterator[str]:
    """A Phoenix of its own on loopback: its URL."""
    if not PHOENIX.exists():
        pytest.skip("no Phoenix: 'make phoenix' brings it")
    ports = [free_port(), free_port()]
    place = {"PHOENIX_WORKING_DIR": str(tmp_path), "PHOENIX_HOST": "127.0.0.1"}
    named = {"PHOENIX_PORT": str(ports[0]), "PHOENIX_GRPC_PORT": str(ports[1])}
    log = tmp_path / "phoenix.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [PHOENIX, "serve"], env=os.environ | _QUIET | place | named, stdout=out, stderr=subprocess.STDOUT
        )
    url = f"http://127.0.0.1:{ports[0]}"
    try:
        wait_for(lambda: is_up(f"{url}/healthz", process, log))
        yield url
    finally:
        process.terminate()
        process.wait(30)


def wait_for(is_there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _START_S
    while not is_there():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def is_up(url: str, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text()[-3000:]
    try:
        with urllib.request.urlopen(url, timeout=30):
            return True
    except OSError:
        return False


def stored(url: str) -> list[Came]:
    """All spans of the project, as Phoenix gives them back."""
    found: list[Came] = []
    cursor = ""
    while cursor is not None:
        asked = f"{url}/v1/projects/{_PROJECT}/spans?limit=1000" + (f"&cursor={cursor}" if cursor else "")
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                page = json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return []  # the project comes with its first span
        found += [came(span) for span in page["data"]]
        cursor = page["next_cursor"]
    return found


def came(span: dict[str, Any]) -> Came:
    return Came(
        name=span["name"],
        trace_id=span["context"]["trace_id"],
        span_id=span["context"]["span_id"],
        parent_id=span["parent_id"] or "",
        start=round(datetime.fromisoformat(span["start_time"]).timestamp() * 1e9),
        end=round(datetime.fromisoformat(span["end_time"]).timestamp() * 1e9),
        kind=0,
        error=span["status_message"],
        attributes=span["attributes"] | {"openinference.span.kind": span["span_kind"]},
        evaluations=[event["attributes"] for event in span["events"]],
        resource={},
    )


def test_phoenix_shows_every_episode_as_it_was_recorded(
    tmp_path: Path, dialogue: Dialogue, tiny_policy: Path, phoenix: str
) -> None:
    played, folder = Played(dialogue), tmp_path / "trajectories"
    group = played.group(task(), "g1", ("up", "down", "up"))
    played.play(task(), EVALUATION, 0)
    spans = Tracing(TracingConfig(endpoint=phoenix, text_chars=40, service=_PROJECT), "run-1")
    with closing(record := recorder(folder, tiny_policy)):
        record.follow(spans.episode)
        record.add(played.told())
        record.judge([trained(group)])
    spans.close()
    assert spans.problem == ""
    tables = [rows(folder, name) for name in ("episodes", "turns")]
    wait_for(lambda: len(stored(phoenix)) == spans.counts["sent"])  # it puts them into its database a moment later
    every_episode_is_traced(stored(phoenix), "run-1", *tables)
