"""`milepost init`: a folder with something to train, a test of it and a config, copied from `deploy/templates/`.

What it writes runs as it is, and is the user's from there on: nothing of it is read again by us.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

import milepost
from milepost.cluster.base.exits import ConfigError

app = typer.Typer()
Template = Literal["env", "tools", "agent"]
_SHOWN_BY: dict[Template, str] = {
    "env": "higher_lower:HigherLower",
    "tools": "stock_desk:StockDesk",
    "agent": "stock_agent:run --human",
}
"""What `milepost play` takes to show one."""
_IGNORED = "runs/\n__pycache__/\n.pytest_cache/\n"
_EXAMPLES = """Examples:

  milepost init my-project

  milepost init my-desk --template tools

  milepost init my-agent --template agent
"""


@app.command(epilog=_EXAMPLES)
def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A new folder, or an empty one.", callback=Path.expanduser)
    ],
    template: Annotated[
        Template,
        typer.Option(help="An environment, one with tools made of functions, or a program that calls an endpoint."),
    ] = "env",
) -> None:
    """Write a small project that plays, is tested and trains as it is, and say how."""
    write(folder, template)
    place = "" if folder.resolve() == Path.cwd() else f"  cd {folder}\n"
    programs = _programs()
    typer.echo(
        f"{folder} holds a project; play an episode, test it, train:\n\n{place}"
        f"  {programs}milepost play {_SHOWN_BY[template]}\n"
        f"  {programs}python -m pytest -q\n"
        f"  {programs}milepost train train.toml\n"
    )


def write(folder: Path, template: Template) -> None:
    """Copy a template to `folder`. Raises ConfigError where something is there already."""
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"init {folder}: the folder is not empty; give a new or an empty one")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"init {folder}: that is a file; give a new or an empty folder")
    source = Path(milepost.__file__).parent / "templates" / template
    shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    (folder / ".gitignore").write_text(_IGNORED, encoding="utf-8")


def _programs() -> str:
    """The folder of this program, with a slash, where the shell would not find it by its name."""
    here = Path(sys.executable).parent
    found = shutil.which("milepost")
    return "" if found is not None and Path(found).parent == here else f"{here}/"
