"""What `milepost train` does after reading its arguments: from a configuration and a run folder to the run's end.

Opens what people look at, finds where to start, and hears signals. Call it from the main thread of a process that does
nothing else: the second signal ends the process.
"""

from __future__ import annotations

import asyncio
import os
import signal

from milepost.cluster.base.exits import Exit, NothingLearnt, Stopped
from milepost.cluster.base.output import others_to
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
