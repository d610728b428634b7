"""A mode of `zero_rank`, `loop_rank` or `lora_rank` in a process of its own, forked from one that has loaded the
frameworks already: loading takes seconds, forking milliseconds.
"""

import importlib
import json
import multiprocessing
import os
from multiprocessing.process import BaseProcess
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["lora_rank", "peft"])  # and with it the other modules; found through PYTHONPATH


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
