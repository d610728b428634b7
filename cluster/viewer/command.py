"""`milepost view`: runs, groups, episodes and tokens in a browser, or a few groups in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from milepost.cluster.base.exits import ConfigError

app = typer.Typer()
_EXAMPLES = """Examples:

  milepost view

  milepost view latest

  milepost view 20261127-230759-lake 20261127-231238-lake --port 8000

  milepost view latest --export groups.html --group g00000012
"""


@app.command(epilog=_EXAMPLES)
def view(
    names: Annotated[
        list[str], typer.Argument(metavar="[RUN ..]", help="Ids, paths or 'latest'; nothing: all runs.")
    ] = [],  # noqa: B006  typer copies it
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="FILE", help="Write groups of one run into FILE instead.")
    ] = None,
    groups: Annotated[
        list[str], typer.Option("--group", metavar="GROUP", help="Of --export; may be repeated. Else the most telling.")
    ] = [],  # noqa: B006
    runs_dir: Annotated[
        Path, typer.Option("--runs-dir", metavar="DIR", help="Folder of the run folders.", callback=Path.expanduser)
    ] = Path("runs"),
) -> None:
    """Look at runs in a browser: curves, groups, episodes, tokens with what they earned. Reads only."""
    from milepost.cluster.viewer import export as exporting  # heavy front doors
    from milepost.cluster.viewer import server
    from milepost.cluster.viewer.sources import Sources

    if groups and export is None:
        raise ConfigError("view --group: only for --export FILE; in the browser, follow a point of a curve")
    if export is None:
        sources = Sources(runs_dir, names)
        sources.check()
        server.serve(sources, port, typer.echo)
        return
    if len(names) > 1:
        raise ConfigError(f"view --export: one RUN, not {len(names)}; a file holds groups of one")
    sources = Sources(runs_dir, names or ["latest"])
    written = exporting.export(sources.all()[0], export, groups)
    typer.echo(f"{export}: {', '.join(written)}")
