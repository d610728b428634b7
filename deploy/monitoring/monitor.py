"""Watch the local runs: a real Prometheus with our rules, and Grafana where it is installed: `make monitor`.

It finds what to scrape through the status files of runs that are going on, also of those that begin later, and ends
both with Ctrl-C. What it stored stays in `.cache/monitoring`. Grafana is started as its package installs it; that has
not been run here.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from milepost.cluster.base.children import end_with_parent
from milepost.cluster.base.exits import ConfigError, DependencyLost, Exit
from milepost.cluster.base.ports import free_port
from milepost.cluster.runlog.runs import RunFolder, list_runs

HERE = Path(__file__).parent.resolve()
_LOOK_EVERY_S = 2.0
_START_S = 60.0
_PORTS = {"prometheus": 9090, "grafana": 3000}
_GRAFANA_HOME = Path("/usr/share/grafana")


def targets(runs_dir: Path) -> list[dict[str, Any]]:
    """What there is to scrape now, as Prometheus's file service discovery wants it."""
    found: list[dict[str, Any]] = []
    for name in list_runs(runs_dir) if runs_dir.is_dir() else []:
        folder = RunFolder(runs_dir / name)
        if (status := folder.read_status()) is None or not folder.is_driven():
            continue
        for part, port in status.ports.items():
            job = {"metrics": "milepost", "ray": "ray"}.get(part, "vllm")
            labels = {"job": job, "run": name, "instance": "driver" if part == "metrics" else part}
            found.append({"targets": [f"127.0.0.1:{port}"], "labels": labels})
    return found


def write_targets(runs_dir: Path, place: Path) -> int:
    """Tell Prometheus what to scrape; returns how many targets there are."""
    found = targets(runs_dir)
    scratch = place / "targets.tmp"
    scratch.write_text(json.dumps(found, indent=1))
    os.replace(scratch, place / "targets" / "runs.json")
    return len(found)


def start_prometheus(place: Path, port: int) -> subprocess.Popen[bytes]:
    """A Prometheus of our own on loopback, with its data in `place`; returns once it answers."""
    program = shutil.which("prometheus")
    if program is None:
        raise ConfigError("no prometheus on this machine: 'make prometheus' brings it by apt")
    (place / "targets").mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "prometheus.yml", place)
    shutil.copytree(HERE / "rules", place / "rules", dirs_exist_ok=True)
    arguments = [f"--config.file={place}/prometheus.yml", f"--storage.tsdb.path={place}/data"]
    process = _start([program, *arguments, f"--web.listen-address=127.0.0.1:{port}"], place / "prometheus.log")
    _wait(process, f"http://127.0.0.1:{port}/-/ready", place / "prometheus.log")
    return process


def _start_grafana(place: Path, port: int, prometheus_port: int) -> subprocess.Popen[bytes] | None:
    program = shutil.which("grafana-server")
    if program is None:
        return None
    settings = {
        "GF_SERVER_HTTP_ADDR": "127.0.0.1",
        "GF_SERVER_HTTP_PORT": str(port),
        "GF_PATHS_DATA": str(place / "grafana"),
        "GF_PATHS_PROVISIONING": str(HERE / "grafana"),
        "GF_ANALYTICS_REPORTING_ENABLED": "false",
        "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
        "MILEPOST_PROMETHEUS": f"http://127.0.0.1:{prometheus_port}",
        "MILEPOST_DASHBOARDS": str(HERE / "dashboards"),
    }
    log = place / "grafana.log"
    process = _start([program, f"--homepath={_GRAFANA_HOME}"], log, settings)
    _wait(process, f"http://127.0.0.1:{port}/api/health", log)
    return process


def _start(command: list[str], log: Path, settings: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        return subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=os.environ | (settings or {}),
            start_new_session=True,  # Ctrl-C is for this program, which ends it in order
            preexec_fn=end_with_parent,
        )


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Return once `url` answers."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=_START_S):
            return
        time.sleep(0.1)
    process.kill()
    raise DependencyLost(f"{log.stem} did not start within {_START_S:g} s: see {log}")


def _usual_port(port: int) -> int:
    """The usual one, or any where that one is taken."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return free_port()
    return port


def monitor(runs_dir: Path, place: Path) -> None:
    """Until Ctrl-C. Raises ConfigError where no run is going on, DependencyLost where Prometheus ends."""
    if not targets(runs_dir):
        raise ConfigError(f"no run is going on in {runs_dir}: start one, e.g. with make train")
    ports = {name: _usual_port(port) for name, port in _PORTS.items()}
    prometheus = start_prometheus(place, ports["prometheus"])
    grafana = None
    try:
        print(f"Prometheus  http://127.0.0.1:{ports['prometheus']}/alerts", flush=True)
        grafana = _start_grafana(place, ports["grafana"], ports["prometheus"])
        shown = f"http://127.0.0.1:{ports['grafana']}/dashboards" if grafana else "not installed; its dashboards are in"
        print(f"Grafana     {shown}{'' if grafana else f' {HERE}/dashboards'}", flush=True)
        print(f"scraping {write_targets(runs_dir, place)} endpoints; Ctrl-C ends it", flush=True)
        while prometheus.poll() is None:
            write_targets(runs_dir, place)
            time.sleep(_LOOK_EVERY_S)
        raise DependencyLost(f"Prometheus ended: see {place}/prometheus.log")
    except KeyboardInterrupt:
        return
    finally:
        for process in filter(None, (grafana, prometheus)):
            process.terminate()
            process.wait(30)


def main() -> int:
    """Returns the exit code."""
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # one that a shell started in the background would not hear the first
        signal.signal(number, signal.default_int_handler)
    try:
        monitor(Path(sys.argv[1] if len(sys.argv) > 1 else "runs"), Path(".cache/monitoring").resolve())
    except Exit as end:
        print(f"milepost: {end}", file=sys.stderr)
        return end.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
