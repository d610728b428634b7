"""`milepost policies | promote | rollback | history | serve`: which policy is in service, why, and the server of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from milepost.cluster.base.exits import ConfigError

if TYPE_CHECKING:
    from milepost.cluster.registry.registry import Registry

app = typer.Typer()
_DAY_S = 86400.0
RegistryDir = Annotated[
    Path, typer.Option("--registry", metavar="DIR", help="Folder of the registry.", callback=Path.expanduser)
]
RunsDir = Annotated[
    Path, typer.Option("--runs-dir", metavar="DIR", help="Folder of the run folders.", callback=Path.expanduser)
]
Window = Annotated[
    float, typer.Option("--window", min=0, metavar="DAYS", help="In which a rollback counts against a promotion.")
]


@app.command()
def policies(
    registry: RegistryDir = Path("registry"),
    mlflow: Annotated[
        str, typer.Option(metavar="URI", help="Copy them into MLflow's model registry, from now on.")
    ] = "",
    mlflow_model: Annotated[str, typer.Option(metavar="NAME", help="Of the registered model there.")] = "milepost",
) -> None:
    """List the policies that came through a gate, and which of them is the champion."""
    from milepost.cluster.registry import mirror, tables  # heavy front doors
    from milepost.cluster.registry.registry import Registry

    there = Registry(registry)
    state = there.state()
    if state.champion is None:
        raise ConfigError(f"{registry} has no policy yet; milepost promote RUN --gate FILE puts one there")
    typer.echo("\n".join(tables.policies(state)))
    if mlflow:
        with there.lock():
            copied = mirror.connect(there, mirror.Place(mlflow, mlflow_model))
        typer.echo(f"MLflow at {mlflow} holds them as the model {mlflow_model}; {len(copied)} copied")


@app.command()
def promote(
    name: Annotated[
        str, typer.Argument(metavar="RUN|RESULTS", help="A run with results of a suite, or a file of results.")
    ],
    gate: Annotated[Path, typer.Option(metavar="FILE", help="What the policy has to show: TOML.")],
    champion: Annotated[
        Path | None,
        typer.Option(metavar="RESULTS", help="The champion's results, where its own are of another suite."),
    ] = None,
    registry: RegistryDir = Path("registry"),
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Make a policy the champion, if what it did on the gate's suite meets every limit of the gate."""
    from milepost.cluster.registry import promotion  # heavy front doors
    from milepost.cluster.registry.registry import Registry

    there = Registry(registry)
    with promotion.candidate(name, runs_dir) as found:
        version = promotion.promote(there, found, gate, champion)
    typer.echo(f"version {version} is the champion: {found.results.policy.source}")
    _tell_mlflow(there)


@app.command()
def rollback(
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, for the audit trail.")],
    to: Annotated[
        int | None, typer.Option(metavar="VERSION", help="Which version; else the one that the champion replaced.")
    ] = None,
    registry: RegistryDir = Path("registry"),
) -> None:
    """Make an earlier version the champion again."""
    from milepost.cluster.registry.registry import Registry  # heavy front door

    if not (said := " ".join(reason.split())):
        raise ConfigError("rollback --reason: say why, the audit trail keeps it")
    there = Registry(registry)
    with there.lock():
        done = there.roll_back(to, said)
    typer.echo(f"version {done.version} is the champion again, in place of version {done.left}")
    _tell_mlflow(there)


@app.command()
def history(registry: RegistryDir = Path("registry"), window: Window = 7.0) -> None:
    """Tell the audit trail, once it is verified, and how often promotions were taken back."""
    from milepost.cluster.registry import tables  # heavy front doors
    from milepost.cluster.registry.registry import Registry
    from milepost.cluster.registry.rollbacks import rollback_rate

    state = Registry(registry).state()
    if not state.entries:
        raise ConfigError(f"{registry} has no history yet; milepost promote RUN --gate FILE begins it")
    rate = rollback_rate(state.entries, now=time.time(), window_s=window * _DAY_S)
    for line in tables.history(state, rate, window):
        typer.echo(line)


@app.command()
def serve(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on loopback; 0 takes a free one.")] = 8000,
    registry: RegistryDir = Path("registry"),
    start_timeout: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="In which a new version has to answer.")
    ] = 600.0,
    drain_timeout: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="In which an old one has to end its requests.")
    ] = 300.0,
    window: Window = 7.0,
    arguments: Annotated[
        list[str], typer.Argument(metavar="[-- VLLM ARGUMENTS]", help="For vllm serve.", show_default=False)
    ] = [],  # noqa: B006  typer copies it
) -> None:
    """Serve the champion by vLLM's OpenAI server, and follow promotions and rollbacks, until Ctrl-C."""
    from milepost.cluster.base.output import logging_to
    from milepost.cluster.registry import serve as serving  # heavy front doors
    from milepost.cluster.registry.registry import Registry
    from milepost.cluster.registry.serving import Limits

    there = Registry(registry.resolve())
    if there.state().champion is None:
        raise ConfigError(f"{registry} has no champion; milepost promote RUN --gate FILE makes one")
    limits = Limits(start_s=start_timeout, drain_s=drain_timeout)
    with logging_to(registry / "logs" / "serve.log"):
        serving.run(there, limits, arguments, port=port, window_s=window * _DAY_S)


def _tell_mlflow(registry: Registry) -> None:
    from milepost.cluster.registry import mirror  # heavy front door

    with registry.lock():
        if problem := mirror.follow(registry):
            typer.echo(f"milepost: {problem}", err=True)
