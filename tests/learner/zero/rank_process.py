"""A mode of `zero_rank` or another module in processes of its own, one a rank, forked from one that has loaded the
frameworks already: loading takes seconds, forking milliseconds.
"""

import importlib
import json
import multiprocessing
import os
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["lora_rank", "peft"])  # and with it the other modules; found through PYTHONPATH


def launch(
    mode: str, folder: Path, *, model: Path, wait_for: int = 2, module: str = "zero_rank", **job: Any
) -> list[dict[str, Any]]:
    """Run `mode` on every rank; the reports of the first `wait_for` ranks, the others are killed."""
    folder.mkdir(parents=True, exist_ok=True)
    children = []
    for rank in range(job["config"]["ranks"]):
        path = folder / f"{mode}{rank}.json"
        path.write_text(json.dumps({**job, "model": str(model), "rank": rank, "store": str(folder / mode)}))
        children.append((begin(module, mode, path), path))
    try:
        return [report(child, path) for child, path in children[:wait_for]]
    finally:
        for child, _ in children:
            child.kill()
            child.join()


def report(child: BaseProcess, path: Path) -> dict[str, Any]:
    child.join(timeout=120)
    assert child.exitcode == 0, f"{path.name}: {Path(f'{path}.err').read_text()[-3000:]}"
    return json.loads(Path(f"{path}.out").read_text())


def config(ranks: int, stage: int, **more: Any) -> dict[str, Any]:
    return {"ranks": ranks, "zero_stage": stage, "lr": 3e-3, "warmup_steps": 1, "collective_timeout_s": 60, **more}


def begin(module: str, mode: str, path: Path) -> BaseProcess:
    """Start `run_<mode>` of `module` on the job in `path`; the caller ends the process."""
    child = _CONTEXT.Process(target=_run, args=(module, mode, str(path)))
    child.start()
    return child


def _run(module: str, mode: str, path: str) -> None:
    with open(f"{path}.err", "w") as errors:
        os.dup2(errors.fileno(), 2)
    job = json.loads(Path(path).read_text())
    seen = getattr(importlib.import_module(module), f"run_{mode}")(job)
    Path(f"{path}.out").write_text(json.dumps(seen))
    # As Ray ends a learner: at once. In an orderly exit gloo's threads abort the process now and then.
    os._exit(0)
