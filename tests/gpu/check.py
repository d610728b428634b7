"""What a lent GPU is asked within ten minutes: `make gpu-check`, or `python -m tests.gpu.check` where there is no make.

Such a machine has torch and transformers, but neither vLLM nor Ray, and reaches nothing: so it is the learner alone.
Every way of laying rows out that the learner knows is compared in bfloat16 with padded rows in float32, on a group that
shares a prompt; then each is timed there and on single rows of growing length, with gradient checkpointing; a step that
is not finite must be refused, and saved weights come back. The model is random, of the shape of a 1.5B one; `--tiny` is
for a CPU. `wheels.txt` says what to bring. The table goes to `$OUT/gpu_check.md`, or to `.cache/gpu_check`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import transformers

from milepost.learner.zero.families import packing_for, tree_obstacle
from milepost.learner.zero.policy import load_config
from tests.gpu.shapes import BIG, TINY, WAYS, Job, Shape

_ROOT: Final = Path(__file__).parents[2]
_MEASURE: Final = "tests.gpu.measure"
_PEAK_FLOPS: Final = {"H100 80GB HBM3": 989e12, "H200": 989e12, "A100": 312e12}
"""Part of a card's name -> dense bfloat16 operations a second, by its data sheet."""
LIMIT_NATS: Final = 5e-2
"""Mean difference of log-probs, as `learner.parity_limit` is recommended for bfloat16."""
_JOB_S: Final = 180
"""Three such jobs and the model fit into ten minutes."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a job left."""

    values: dict[str, Any]
    logprobs: np.ndarray


def run_job(job: Job) -> Seen | str:
    """A job in a process of its own; the last line of its errors where it failed."""
    job.folder.mkdir()
    # on a CPU what is loaded once is forked; a process that has touched a GPU must not fork
    context = multiprocessing.get_context("forkserver" if job.device == "cpu" else "spawn")
    if job.device == "cpu":
        context.set_forkserver_preload([_MEASURE])
    process = context.Process(target=_measure, args=(job,))
    process.start()
    process.join(_JOB_S)
    if process.is_alive():
        process.kill()
        process.join()
        return f"it did not end within {_JOB_S} s"
    if process.exitcode:
        lines = (job.folder / "errors.txt").read_text().splitlines()
        return lines[-1] if lines else f"it ended with code {process.exitcode}"
    return Seen(json.loads((job.folder / "seen.json").read_text()), np.load(job.folder / "logprobs.npy"))


def _measure(job: Job) -> None:
    importlib.import_module(_MEASURE).run(job)  # heavy front door


def run_all(shape: Shape, device: str, folder: Path) -> dict[str, Seen | str]:
    """Way -> what it came to; `float32` is the reference."""
    shape.write(folder / "model")
    config, found = load_config(folder / "model"), {}
    here = {way: way for way in WAYS if packing_for(config, way, torch.device(device)) == way}
    for way in set(WAYS) - here.keys():  # else it is padded rows that are measured under that name
        print(f"{way}: {tree_obstacle(config)}", flush=True)
    for name, packing in ({"float32": "padded"} | here).items():
        job = Job(
            packing=packing,
            dtype="float32" if name == "float32" else "bfloat16",
            shape=shape,
            model=folder / "model",
            device=device,
            folder=folder / name,
            is_whole=name != "float32",
        )
        found[name] = run_job(job)
        print(f"{name}: {found[name] if isinstance(found[name], str) else 'measured'}", flush=True)
    return found


def problems(found: Mapping[str, Seen | str]) -> list[str]:
    """What is wrong with it, a line each."""
    told = [f"{name}: {seen}" for name, seen in found.items() if isinstance(seen, str)]
    reference = found["float32"]
    for name, seen in found.items():
        if isinstance(seen, str) or name == "float32":
            continue
        if not isinstance(reference, str) and not (apart := _apart(seen, reference)[0]) <= LIMIT_NATS:
            told.append(f"{name}: log-probs are {apart:.3g} nats from float32 on the mean, limit {LIMIT_NATS}")
        if not seen.values["nan"]:
            told.append(f"{name}: a step that was not finite was made")
        if not (seen.values["saved"]["moved"] and seen.values["saved"]["same"]):
            told.append(f"{name}: saved weights did not come back")
    return told


def table(found: Mapping[str, Seen | str], shape: Shape, card: str) -> str:
    """What was measured, in Markdown."""
    measured = {name: seen for name, seen in found.items() if not isinstance(seen, str)}
    lines = [f"Card: {card}. torch {torch.__version__}, transformers {transformers.__version__}.", ""]
    lines += [f"{shape.rows} rows of {shape.prompt} shared tokens and at most {shape.response} of their own:", ""]
    lines += [*_heading("way", "log-probs from float32, mean / largest", "loss", "gradient norm", "s / step")]
    reference = measured.get("float32")
    for name, seen in measured.items():
        apart = "{:.2g} / {:.2g}".format(*_apart(seen, reference)) if reference else "-"
        loss, norm = seen.values["loss"], seen.values["grad_norm"]
        lines.append(f"| {name} | {apart} | {loss:.5g} | {norm:.5g} | {_told(seen.values.get('group_seconds'))} |")
    whole = {name: seen.values for name, seen in measured.items() if "saved" in seen.values}
    peak = next((flops for part, flops in _PEAK_FLOPS.items() if part in card), None)
    lines += ["", "One row:", "", *_heading("way", "tokens", "peak GiB", "s / step", "TFLOP/s", "MFU")]
    for name, values in whole.items():
        lines += [f"| {name} | {each['tokens']} | {_speed(each, shape, peak)} |" for each in values["lengths"]]
    lines += ["", *_heading("way", "a step that is not finite", "saved weights", "loss of the step after them, again")]
    for name, values in whole.items():
        refused = "refused" if values["nan"] else "made"
        back = "come back" if values["saved"]["moved"] and values["saved"]["same"] else "do not come back"
        lines.append(f"| {name} | {refused} | {back} | {values['saved']['loss_difference']:.2g} apart |")
    return "\n".join([*lines, "", *problems(found)]).rstrip() + "\n"


def _apart(seen: Seen, reference: Seen) -> tuple[float, float]:
    apart = np.abs(seen.logprobs.astype(np.float64) - reference.logprobs)
    return float(apart.mean()), float(apart.max())


def _heading(*names: str) -> tuple[str, str]:
    return f"| {' | '.join(names)} |", "|---" * len(names) + "|"


def _told(value: float | None, unit: float = 1.0) -> str:
    return "-" if value is None else f"{value / unit:.3g}"


def _speed(each: Mapping[str, Any], shape: Shape, peak: float | None) -> str:
    """The cells of a row after its length."""
    if each["seconds"] is None:
        return "out of memory | - | - | -"
    rate = shape.row_flops(each["tokens"]) / each["seconds"]
    share = "-" if peak is None else f"{100 * rate / peak:.1f} %"
    return f"{_told(each['peak'], 2**30)} | {_told(each['seconds'])} | {_told(rate, 1e12)} | {share}"


def main() -> None:
    """Run all of it, and exit with 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="gpu_check", description=__doc__.partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="a model of some thousand parameters, on the CPU")
    is_tiny = parser.parse_args().tiny
    if not is_tiny and not torch.cuda.is_available():
        sys.exit("gpu_check: no GPU here; --tiny runs on the CPU")
    paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    if is_tiny:
        os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    out = Path(os.environ.get("OUT") or _ROOT / ".cache" / "gpu_check")
    out.mkdir(parents=True, exist_ok=True)
    shape, started = (TINY if is_tiny else BIG), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        found = run_all(shape, "cpu" if is_tiny else "cuda:0", Path(folder))
    text = table(found, shape, "none (CPU)" if is_tiny else torch.cuda.get_device_name())
    (out / "gpu_check.md").write_text(text)
    print(f"{text}\n{out / 'gpu_check.md'}, {time.monotonic() - started:.0f} s")
    sys.exit(1 if problems(found) else 0)


if __name__ == "__main__":
    main()
