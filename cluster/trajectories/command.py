"""`milepost show`: recorded episodes of a run, for people like a chat, for programs as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from milepost.cluster.runlog import runs
from milepost.cluster.trajectories.fates import Fate

app = typer.Typer()
_EXAMPLES = """Examples:

  milepost show

  milepost show latest --worst --count 3

  milepost show latest --failed

  milepost show latest --task g00000012 --count 8

  milepost show latest --episode 1204 --json

  milepost show latest --count 100 --atif > episodes.jsonl
"""


@app.command(epilog=_EXAMPLES)
def show(  # noqa: PLR0913  the options of the command
    name: Annotated[str, typer.Argument(metavar="RUN", help="Id, path or 'latest'.")] = "latest",
    failed: Annotated[bool, typer.Option("--failed", help="Only episodes that could not be finished.")] = False,
    fate: Annotated[Fate | None, typer.Option(help="Only episodes of which this became.")] = None,
    task: Annotated[str | None, typer.Option(metavar="GROUP|SEED", help="Only of this group, or task's seed.")] = None,
    worst: Annotated[bool, typer.Option("--worst", help="Lowest rewards first, instead of the newest.")] = False,
    episode: Annotated[int | None, typer.Option(min=0, help="Only the one of this number.")] = None,
    count: Annotated[int, typer.Option(min=1, help="How many to show.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per episode.")] = False,
    as_atif: Annotated[bool, typer.Option("--atif", help="Print one ATIF v1.8 document per episode.")] = False,
    runs_dir: Annotated[
        Path, typer.Option("--runs-dir", metavar="DIR", help="Folder of the run folders.", callback=Path.expanduser)
    ] = Path("runs"),
) -> None:
    """Show recorded episodes turn by turn, with the credit of each turn."""
    from rich.console import Console  # heavy front doors

    from milepost.cluster.trajectories.atif import document
    from milepost.cluster.trajectories.reader import Wanted, read
    from milepost.cluster.trajectories.show import chat

    folder = runs.find(runs_dir, name)
    wanted = Wanted(episode=episode, fate="failed" if failed else fate, task=task, worst=worst, count=count)
    console = Console()
    for found in read(folder.trajectories, wanted):
        if as_atif:
            typer.echo(json.dumps(document(found, folder.run_id)))
        elif as_json:
            typer.echo(json.dumps(found.row | {"turns": found.turns}, default=str))
        else:
            console.print(chat(found))
