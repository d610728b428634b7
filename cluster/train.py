"""What `milepost train` does after reading its arguments: from a configuration and a run folder to the run's end.

Opens what people look at, finds where to start, and hears signals. Call it from the main thread of a process that does
nothing else: the second signal ends the process.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from milepost.cluster.base.exits import ConfigError, Exit, NothingLearnt, Stopped
from milepost.cluster.base.output import others_to
from milepost.cluster.evaluate import first_policy
from milepost.cluster.hosts.places import joined_hosts
from milepost.cluster.placement import dry_run
from milepost.cluster.placement.hosts import Build, Host, installed_build, memory_here, named_ray, own_host
from milepost.cluster.placement.size import size_of_folder, size_of_warmup
from milepost.cluster.run import Run
from milepost.cluster.runlog.console import LiveView
from milepost.cluster.runlog.metrics import Metrics
from milepost.cluster.runlog.runs import RunFolder
from milepost.cluster.settings.config import RunConfig
from milepost.cluster.start import Start, start_of


def train(config: RunConfig, folder: RunFolder, *, resume: bool) -> None:
    """Train until all iterations are done. Raises an Exit for every other end, and where none made an update."""
    with (
        others_to(folder.output_log) as stdout,
        Metrics(folder.metrics, host=config.metrics.host, port=config.metrics.port) as metrics,
        LiveView(run_id=folder.run_id, iterations=config.run.iterations, out=stdout) as view,
    ):
        run = Run(config, folder, view, metrics)
        how = "failed"
        try:
            asyncio.run(_signalled(run, start_of(config, folder, run.reporter, resume=resume)))
            how = "finished"
        except Exit as end:
            how = f"ended: {end}"
            raise
        except KeyboardInterrupt:  # while there is no loop yet that hears signals
            stopped = Stopped(f"stopped before training; milepost train --resume {os.path.relpath(folder.path)}")
            how = f"ended: {stopped}"
            raise stopped from None
        finally:
            why = run.reporter.finished(how)
    if why is not None:
        raise NothingLearnt(why)


def planned(config: RunConfig, hosts: int, gpus: int, *, gpu_gib: float, host_gib: float) -> Iterator[str]:
    """`milepost train --dry-run`: placement and memory in lines; nothing is started, but a Ray that is named is joined.

    Args:
        hosts: plan for so many, of `gpus` each, with packages that use these; 0: for what there is.
        gpu_gib: memory of each GPU, and `host_gib` of each host; 0: as here.

    Raises ConfigError for what does not fit.
    """
    if gpus and not hosts:
        raise ConfigError("train --dry-run: --gpus-per-host says what each of --hosts has: give both, or neither")
    size = size_of_warmup(config.model.warmup, config.lora)
    if config.model.source != "warmup":
        size = size_of_folder(
            first_policy(config, print) if config.model.source == "smollm2" else Path(config.model.path).expanduser(),
            config.lora,
        )
    if hosts:
        found, build = [Host(math.inf, gpus)] * hosts, Build(engine=gpus > 0, learner=gpus > 0)
    elif address := named_ray(config.run.ray_address):
        found, build = joined_hosts(address), installed_build()
    else:
        found, build = [own_host()], installed_build()
    here_gib, here_gpu_gib = memory_here()
    hardware = dry_run.Hardware(found, build, gpu_gib or here_gpu_gib, host_gib or here_gib)
    yield from dry_run.report(config, size, hardware)


async def _signalled(run: Run, start: Start) -> None:
    """The first SIGINT or SIGTERM asks for an orderly stop, the second one ends the process at once."""
    loop = asyncio.get_running_loop()

    def first() -> None:
        run.reporter.note("stopping: finishing the step under way, then a checkpoint; once more to kill")
        run.stop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, first)
    await run.main(start)
