"""Two simulated hosts with a Ray over both: see two_hosts.sh. On A are Ray's head, Redis and the driver."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from milepost.cluster.replay.redis_server import find_binary
from tests.system.driving import MILEPOST, ROOT, START_S, Driver, environment

SCRIPT = Path(__file__).with_suffix(".sh")
ADDRESS = "10.77.0.1:6379"
REDIS = "redis://:a-password@10.77.0.1:6399/0"
_RAY = str(Path(sys.executable).parent / "ray")
_STORE = f"--object-store-memory={128 * 2**20}"
_HEALTH = {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "4000"}
"""Ray looks after a host more often than it does by itself, and gives it up after 25 s instead of a minute."""


def why_not() -> str | None:
    """Why this machine cannot simulate hosts, None if it can."""
    if os.geteuid() != 0:
        return "two hosts are simulated by root alone"
    missing = [tool for tool in ("ip", "unshare", "nsenter", "pgrep") if shutil.which(tool) is None]
    return f"two hosts are simulated with {', '.join(missing)}, which this machine lacks" if missing else None


_BALANCE = """
import asyncio
from milepost.cluster.replay.client import connect
from milepost.cluster.replay.ledger import Ledger
balance = asyncio.run(Ledger(connect({url!r}), {run_id!r}).balance())
print(balance.issued_total, sum(balance.counts.values()))
"""
_NODES = f"""
import ray
ray.init({ADDRESS!r}, log_to_driver=False)
print(*(node["NodeManagerAddress"] for node in ray.nodes() if not node["Alive"]))
"""


class TwoHosts:
    """The hosts A and B, as `two_hosts` gives them; `folder` is their shared file system, with a policy."""

    def __init__(self, folder: Path, *, cpus_of_a: int, cpus_of_b: int) -> None:
        self.folder, self.policy = folder, folder / "policy"
        self._cpus = {"A": cpus_of_a, "B": cpus_of_b}
        self._place = folder / f"hosts-{os.getpid()}"  # its last letters name the networks
        self._place.mkdir()
        own = [ROOT, Path(sys.prefix).resolve(), folder]
        self._shared = [str(path) for path in own if path.is_relative_to("/tmp")]
        self._env = {key: value for key, value in environment().items() if not key.startswith("RAY_")}
        self._env |= {"RAY_ADDRESS": ADDRESS, "RAY_DISABLE_IMPORT_WARNING": "1", "REDIS_OF_THE_RUN": REDIS, **_HEALTH}

    def _script(self, what: str, *arguments: str) -> list[str]:
        return ["bash", str(SCRIPT), what, str(self._place), *arguments]

    def up(self) -> str | None:
        """Make both hosts; what failed, if that did."""
        done = subprocess.run(
            self._script("up", *self._shared), capture_output=True, text=True, timeout=60, check=False
        )
        return done.stderr.strip() if done.returncode else None

    def down(self) -> None:
        """End all processes on both, and the hosts."""
        subprocess.run(self._script("down"), capture_output=True, timeout=60, check=True)

    def cut(self) -> None:
        """End host B with all on it, as a power cut does."""
        subprocess.run(self._script("cut", "B"), timeout=60, check=True)

    def again(self) -> None:
        """Start host B again, which was cut, and Ray on it."""
        subprocess.run(self._script("again", "B", *self._shared), timeout=60, check=True)
        self._join()

    def begin(self, host: str, command: list[str], out: Path) -> subprocess.Popen[bytes]:
        """A process on a host, in the repository's root; its output goes to `out`."""
        inside = ["bash", "-c", f"cd {shlex.quote(str(ROOT))} && exec {shlex.join(command)}"]
        with out.open("wb") as file:
            return subprocess.Popen(
                self._script("on", host, *inside), env=self._env, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )

    def on(self, host: str, *command: str) -> str:
        """What a command prints on a host. Raises CalledProcessError."""
        told = subprocess.run(
            self._script("on", host, *command),
            env=self._env,
            capture_output=True,
            text=True,
            timeout=START_S,
            check=True,
        )
        return told.stdout

    def serve(self) -> None:
        """Redis and Ray's head on A, Ray on B."""
        redis = [find_binary(), "--bind", "10.77.0.1", "--port", "6399", "--requirepass", "a-password", "--dir", "/tmp"]
        redis += ["--appendonly", "yes", "--maxmemory", "4gb", "--maxmemory-policy", "noeviction"]
        self.begin("A", redis, self.folder / "redis.log")
        self._start_ray("A", "--head", "--port=6379", "--node-ip-address=10.77.0.1")
        self._join()

    def _join(self) -> None:
        self._start_ray("B", f"--address={ADDRESS}", "--node-ip-address=10.77.0.2")

    def balance(self, run_id: str) -> tuple[int, int]:
        """Episodes that a run issued, and the sum of those in each state."""
        issued, counted = self._python(_BALANCE.format(url=REDIS, run_id=run_id)).split()
        return int(issued), int(counted)

    def lost(self) -> list[str]:
        """Addresses of the hosts that Ray calls dead."""
        return self._python(_NODES).split()

    def _python(self, code: str) -> str:
        return self.on("A", "bash", "-c", f"cd {shlex.quote(str(ROOT))} && {sys.executable} -c {shlex.quote(code)}")

    def _start_ray(self, host: str, *arguments: str) -> None:
        arguments += (f"--num-cpus={self._cpus[host]}", _STORE, "--disable-usage-stats")
        out = self.folder / f"ray-{time.monotonic_ns()}.out"  # and no pipe, which Ray's processes would keep open
        ray = self.begin(host, [_RAY, "start", *arguments], out)
        assert ray.wait(START_S) == 0, out.read_text()

    def place(self, name: str) -> Path:
        """A folder that both hosts see."""
        (self.folder / name).mkdir()
        return self.folder / name

    def train(self, config: Path) -> Driver:
        """`milepost train CONFIG` on A; its runs lie beside the configuration."""
        runs, out = config.parent / "runs", config.parent / f"driver-{time.monotonic_ns()}.out"
        return Driver(self.begin("A", [*MILEPOST, "train", str(config)], out), runs, out)


@contextmanager
def two_hosts(folder: Path, *, cpus_of_a: int = 0, cpus_of_b: int = 16) -> Iterator[TwoHosts | str]:
    """Both hosts with Redis and Ray, or why there are none; they end with the context."""
    if (reason := why_not()) is not None:
        yield reason
        return
    hosts = TwoHosts(folder, cpus_of_a=cpus_of_a, cpus_of_b=cpus_of_b)
    try:
        if (problem := hosts.up()) is not None:
            yield f"two hosts could not be simulated: {problem}"
            return
        hosts.serve()
        yield hosts
    finally:
        hosts.down()
