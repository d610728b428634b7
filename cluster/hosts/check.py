"""What a Ray of several hosts must have before a run uses it, looked at on each of them.

Nothing but Ray's objects and the network is shared by itself: the run's folder and the model must lie on a file system
that all hosts mount, Redis must be reached from all, and Milepost be installed on all.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from milepost.cluster.base.exits import ConfigError, DependencyLost
from milepost.cluster.hosts.ray_start import alive_hosts, last_line
from milepost.cluster.replay.own_redis import is_loopback

_LOOK_S = 180.0
"""A host starts a process for it, which imports torch."""


async def require_hosts(models: Sequence[Path], *, redis_url: str | None, run: Path | None) -> None:
    """Look at every host where Ray may place something; where there is one host alone, nothing has to be shared.

    Args:
        models: folders that engines, workers and learner load.
        redis_url: where workers put episodes; None where they hand them to the driver alone.
        run: folder that the learner writes checkpoints into; None where nothing is learnt.

    Raises:
        ConfigError: with a line for each host that lacks something.
        DependencyLost: a host does not answer.
    """
    hosts = alive_hosts()
    if len(hosts) == 1:
        return
    if redis_url is not None and is_loopback(redis_url):
        raise ConfigError(
            f"Ray has {len(hosts)} hosts, and this run's Redis is reached from the driver's alone: set buffer.url_env "
            "to the environment variable that holds the URL of one that every host reaches"
        )
    marker = run / f".seen-{secrets.token_hex(8)}" if run else None
    if marker:
        marker.touch()
    try:
        useful = [node for node in hosts if node["Resources"].keys() & {"CPU", "GPU"}]
        lacks = await asyncio.gather(*(_look_at(node, models, marker) for node in useful))
    finally:
        if marker:
            marker.unlink()
    if complaints := [f"{host['NodeName']}: {lack}" for host, lack in zip(useful, lacks, strict=True) if lack]:
        raise ConfigError("\n".join(complaints))


async def _look_at(node: dict[str, Any], models: Sequence[Path], marker: Path | None) -> str | None:
    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    look = ray.remote(_lacks).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
    try:
        async with asyncio.timeout(_LOOK_S):
            lack: str | None = await look.remote(models, marker)
            return lack
    except TimeoutError:
        raise DependencyLost(f"host {node['NodeName']} of Ray did not answer within {_LOOK_S:g} s") from None
    except RayError as error:
        if missing := re.search(r"No module named '[\w.]+'", str(error)):
            return f"{missing[0]}: install Milepost and its lock on every host, at one path"
        raise DependencyLost(f"host {node['NodeName']} of Ray: {last_line(error)}") from error


def _lacks(models: Sequence[Path], marker: Path | None) -> str | None:
    """Runs on a host: what it lacks, None if nothing."""
    if (lack := lacks_plug_in()) is not None:
        return lack
    if unseen := [model for model in models if not (model / "config.json").is_file()]:
        return f"does not see the model in {unseen[0]}: it must lie on a file system that all hosts share"
    if marker is not None and not marker.exists():
        return f"does not see {marker.parent}: run.runs_dir must lie on a file system that all hosts share"
    return None


def lacks_plug_in() -> str | None:
    """Why vLLM would not find our transfer of weights on this host; None where it does."""
    if any(entry.name == "milepost_weights" for entry in entry_points(group="vllm.general_plugins")):
        return None
    return "Milepost can be imported but is not installed, so vLLM does not find its plug-in: install it there"
