"""The command line: `milepost init | play | train | talk | eval | compare | promote | serve | show | credit | ...`.

It parses arguments, finds files, and turns every end of the program into one line and an exit code. What a command does
stands in the component it calls. Heavy libraries are imported inside the commands: help and usage errors come at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from milepost.cluster import eval_command
from milepost.cluster.base.examples import CREDIT_EXAMPLES, EXAMPLES
from milepost.cluster.base.exits import ConfigError, Exit, Stopped, exit_of
from milepost.cluster.base.output import logging_to, readers_may_leave
from milepost.cluster.live import command as live
from milepost.cluster.projects import command as projects
from milepost.cluster.registry import command as registry
from milepost.cluster.runlog import runs
from milepost.cluster.runlog.runs import RunFolder
from milepost.cluster.settings.overrides import apply
from milepost.cluster.trajectories import command as trajectories
from milepost.cluster.viewer import command as viewer

if TYPE_CHECKING:
    from milepost.cluster.settings.config import RunConfig

_EXIT_UNEXPECTED = 1
_INTERRUPTED = 130  # what typer makes of a KeyboardInterrupt
app = typer.Typer(
    help="Train LLM agents on whole trajectories, with credit for every state transition.",
    epilog=EXAMPLES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Overrides = Annotated[list[str], typer.Option("--set", metavar="A.B=C", help="Override one value; may be repeated.")]
app.add_typer(live.app)
app.add_typer(projects.app)
app.add_typer(trajectories.app)
app.add_typer(eval_command.app)
app.add_typer(registry.app)
app.add_typer(viewer.app)
RunsDir = Annotated[
    Path, typer.Option("--runs-dir", metavar="DIR", help="Folder of the run folders.", callback=Path.expanduser)
]


@app.command(epilog=EXAMPLES)
def train(  # noqa: PLR0913  the options of the command
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="TOML; not needed with --resume.")] = None,
    overrides: Overrides = [],  # noqa: B006  typer copies it
    resume: Annotated[str | None, typer.Option(metavar="RUN", help="Go on with a run: id, path or 'latest'.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say where its parts lie and what memory they take.")
    ] = False,
    hosts: Annotated[int, typer.Option(min=0, help="Dry run: plan for so many hosts. 0: those there are.")] = 0,
    gpus_per_host: Annotated[int, typer.Option(min=0, help="Dry run, with --hosts: GPUs of each.")] = 0,
    gpu_memory: Annotated[float, typer.Option(min=0, metavar="GIB", help="Dry run: of each GPU.")] = 0.0,
    host_memory: Annotated[float, typer.Option(min=0, metavar="GIB", help="Dry run: of each host.")] = 0.0,
) -> None:
    """Train a policy; with --resume from the newest valid checkpoint of a run."""
    from milepost.cluster.settings import config as configs

    if dry_run:
        from milepost.cluster.train import planned  # heavy front door

        resolved = configs.load(_given(config), overrides)
        for line in planned(resolved, hosts, gpus_per_host, gpu_gib=gpu_memory, host_gib=host_memory):
            typer.echo(line)
        return
    if hosts or gpus_per_host or gpu_memory or host_memory:
        raise ConfigError(
            "train: hosts, GPUs and their memory are told to plan a run: add --dry-run, or leave them out"
        )
    resolved, folder, is_resumed = _prepared(config, overrides, resume)
    if resolved.run.iterations and (nothing := folder.nothing_left(resolved.run.iterations)):
        typer.echo(nothing)
        return
    from milepost.cluster import train as training  # heavy front door

    with folder.lock(), logging_to(folder.driver_log):
        configs.dump(resolved, folder.resolved)
        training.train(resolved, folder, resume=is_resumed)


@app.command(epilog=CREDIT_EXAMPLES)
def credit(  # noqa: PLR0913  the options of the command
    name: Annotated[
        str, typer.Argument(metavar="FILE|DIR|RUN", help="Groups, one per line; or ATIF trajectories; or a run's.")
    ],
    strategy: Annotated[
        str, typer.Option(metavar="A,B", help="Strategies to score with; also package.module:Class.")
    ] = "crbc,starpo",
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="credit.K=V", help="One value; may be repeated.")
    ] = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per group and strategy.")] = False,
    page: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="The graph page; else credit.html beside the groups.")
    ] = None,
    group: Annotated[str | None, typer.Option(metavar="TASK_ID", help="The group to show turn by turn.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Score what is right, and say what is not.")] = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Score recorded groups again: credit of every turn, agreement of strategies, the graph to look at."""
    from milepost.cluster.workbench import scoring, workbench  # heavy front doors

    chosen = scoring.chosen(strategy, overrides)
    source = workbench.locate(name, runs_dir)
    workbench.run(source, chosen, as_json=as_json, page=page, task=group, skip_bad=skip_bad)


@app.command()
def experiment(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="TOML: configs, arms, seeds, measures.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the newest one; what finished stays.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every cell and say what would run.")] = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Train every (config, arm, seed), one after the other, and compare them in a table."""
    from milepost.cluster.experiment import runner  # heavy front door

    if dry_run:
        for line in runner.describe(file):
            typer.echo(line)
    else:
        runner.conduct(file, runs_dir, resume=resume, say=typer.echo)


@app.command("config", epilog="Examples: milepost config; milepost config learner; milepost config credit.gigpo")
def settings(
    name: Annotated[
        str, typer.Argument(metavar="[SECTION|KEY]", help="Nothing: all sections.", show_default=False)
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array of settings.")] = False,
) -> None:
    """Say what every setting means: description, default and unit; of one key also its bounds."""
    from milepost.cluster.settings import reference  # heavy front door

    reference.show(name, as_json=as_json)


@app.command("check-env")
def check_env(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Dotted path, package.module:Class.")],
    overrides: Annotated[list[str], typer.Option("--set", metavar="K=V", help="Constructor option.")] = [],  # noqa: B006
    episodes: Annotated[int, typer.Option(min=1, help="Episodes to play.")] = 3,
) -> None:
    """Show an episode of an environment, check that it keeps the contract, and say what to fix."""
    from milepost.actors.checks import check  # heavy front door: gymnasium

    options: dict[str, Any] = {}
    for override in overrides:
        apply(options, override)
    report = check.check_env(path, options, episodes=episodes)
    if report.episode:
        typer.echo("\n".join(["an episode:", *report.episode, ""]))
    for finding in report.findings:
        typer.echo(f"{finding.level:<8} {finding.what}" + (f": {finding.fix}" if finding.fix else ""))
    errors = sum(finding.level == "error" for finding in report.findings)
    if errors:
        raise ConfigError(f"{path}: {errors} error(s); fix them before training on it")


@app.command()
def status(
    name: Annotated[str, typer.Argument(metavar="RUN", help="Id, path or 'latest'.")] = "latest",
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Say what a run is doing or how it ended."""
    from milepost.cluster.runlog.status import status_lines

    for line in status_lines(runs.find(runs_dir, name)):
        typer.echo(line)


@app.command()
def clean(
    name: Annotated[str, typer.Argument(metavar="RUN", help="Id, path or 'latest'.")],
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Remove a run's buffer from the Redis that buffer.url_env names; its folder and checkpoints stay."""
    from milepost.cluster.replay import own_redis  # heavy front doors
    from milepost.cluster.replay.client import BufferRefused
    from milepost.cluster.settings import config as configs

    folder = runs.find(runs_dir, name)
    with folder.lock():
        try:
            url = configs.load(folder.resolved).buffer.url
            removed = asyncio.run(own_redis.remove(url, folder.run_id)) if url else None
        except BufferRefused as error:
            raise ConfigError(str(error)) from error
    if removed is None:
        typer.echo(f"{folder.run_id} keeps its buffer in its own folder, {folder.redis}: nothing to remove")
        return
    size = f"{removed.bytes / 1024**2:.1f} MiB of trajectories"
    typer.echo(f"{folder.run_id}: removed {removed.keys} keys with {size} from Redis; checkpoints stay")


@app.command()
def doctor(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="Check this config's needs as well.")] = None,
    overrides: Overrides = [],  # noqa: B006
    parity: Annotated[
        bool, typer.Option("--parity", help="Compare engine and learner log-probs; needs CONFIG.")
    ] = False,
) -> None:
    """Check versions, memory, ports, Redis and compiler; each line is ok or says what to do."""
    from milepost.cluster import doctor as checks  # heavy front door
    from milepost.cluster.settings import config as configs

    if parity and config is None:
        raise ConfigError("doctor --parity: give the CONFIG whose model is to be compared")
    failed = 0
    for finding in checks.examine(configs.load(config, overrides) if config else configs.RunConfig(), parity=parity):
        typer.echo(f"{finding.level:<5} {finding.what}" + (f": {finding.fix}" if finding.fix else ""))
        failed += finding.level == "fail"
    if failed:
        raise ConfigError(f"doctor: {failed} check(s) failed; the lines above say what to do")


def main() -> NoReturn:
    """Run the command line and leave the process with its exit code."""
    os.umask(0o077)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what was begun is ended in order
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # dotted paths of the user's own environments and rewards start here
    with readers_may_leave():
        sys.exit(_ended())


def _ended() -> int:
    """Run the command; the exit code of its end, whose one line is on stderr."""
    try:
        app(prog_name="milepost")
    except Exit as end:
        return _told(end)
    except (KeyboardInterrupt, SystemExit) as left:
        if isinstance(left, SystemExit) and left.code != _INTERRUPTED:
            raise
        return _told(Stopped("stopped before it was done; start it again"))
    except Exception as error:
        if (known := exit_of(error, folder=os.getcwd())) is not None:
            return _told(known)
        traceback.print_exc()
        print(f"milepost: unexpected {type(error).__name__}; please report the lines above", file=sys.stderr)
        return _EXIT_UNEXPECTED
    return 0


def _told(end: Exit) -> int:
    for line in str(end).splitlines():
        print(f"milepost: {line}", file=sys.stderr)
    return end.code


def _prepared(path: Path | None, overrides: Sequence[str], resume: str | None) -> tuple[RunConfig, RunFolder, bool]:
    """The config to train with, the run's folder, and whether that is a resumed run's."""
    from milepost.cluster.settings import config as configs
    from milepost.cluster.settings.resumption import newest_run

    if resume is None:
        resolved = configs.load(_given(path), overrides)
        folder = newest_run(resolved) if resolved.run.resume == "auto" else None
        if folder is None:
            from milepost.cluster import preflight  # heavier still: a wrong config is told of first

            preflight.check_start(resolved)
            return resolved, runs.create(Path(resolved.run.runs_dir), resolved.run.name), False
        typer.echo(f'run.resume = "auto": going on with {folder.run_id}')
    else:
        runs_dir = Path(configs.load(path, overrides).run.runs_dir) if path else Path("runs")
        folder = runs.find(runs_dir, resume)
        resolved = configs.load(path or folder.resolved, overrides)
        configs.refuse_change(configs.load(folder.resolved), resolved)
    from milepost.learner.zero import checkpoint

    runs.refuse_fewer(folder, resolved.run.iterations, done=checkpoint.newest_iteration(folder.checkpoints))
    return resolved, folder, True


def _given(path: Path | None) -> Path:
    if path is None:
        raise ConfigError("train: give a CONFIG, e.g. deploy/configs/local.toml, or --resume RUN")
    return path


if __name__ == "__main__":
    main()
