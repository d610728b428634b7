"""`milepost play` and `milepost talk`: one episode, or one conversation, before and after a training."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.live.quiet import own_terminal
from milepost.cluster.runlog import runs
from milepost.cluster.runlog.saved_policy import pinned_policy

if TYPE_CHECKING:
    from milepost.cluster.live.plan import Plan, PolicySettings
    from milepost.cluster.live.play import Ending
    from milepost.cluster.live.view import View

app = typer.Typer()
_PLAY_EXAMPLES = """Examples:

  milepost play milepost.envs.frozen_lake:FrozenLakeText

  milepost play my_env:MyEnv --human --seed 3 --set size=8

  milepost play my_env:MyEnv --model runs/20261127-120000-mine/policy

  milepost play my_agent:run --model http://127.0.0.1:8000/v1

  milepost play deploy/configs/local.toml --set env.options.size=5
"""
_TALK_EXAMPLES = """Examples:

  milepost talk latest

  milepost talk models/my-model --system "You answer in one word." --temperature 0.3

  milepost talk latest --serve --port 8000
"""


@app.command(epilog=_PLAY_EXAMPLES)
def play(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="package.module:Name of an environment or an agent; or a CONFIG.")
    ],
    model: Annotated[
        str, typer.Option(metavar="DIR|URL", help="Who answers: a model folder, or an OpenAI-compatible server.")
    ] = "",
    model_name: Annotated[str, typer.Option(metavar="NAME", help="Which of the server's models; else its first.")] = "",
    human: Annotated[bool, typer.Option("--human", help="You answer: each line is an answer.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Which task; of a CONFIG, its place in the order of a run.")] = 0,
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="K=V", help="Option of PATH, or value of a CONFIG; may be repeated.")
    ] = [],  # noqa: B006  typer copies it
) -> None:
    """Play one episode and show it: with an expert of the environment's, a model, or yourself."""
    from milepost.cluster.live import play as playing  # heavy front doors
    from milepost.cluster.live.partners import Server
    from milepost.cluster.live.plan import planned

    if human and model:
        raise ConfigError("play: --human and --model both say who answers; give one of them")
    if model_name and not _is_url(model):
        raise ConfigError("play: --model-name is for a server; give its URL with --model")
    plan = planned(path, overrides, seed)
    if human:
        _play_by_hand(plan)
    elif model and not _is_url(model):
        if not (folder := Path(model).expanduser()).is_dir():
            raise ConfigError(f"play --model {model}: there is no such folder; a run's policy is runs/<id>/policy")
        with own_terminal() as stdout:
            view = _view(stdout)
            view.note(f"{_title(plan)}; {model} answers, once an engine serves it ...")
            _tell(view, asyncio.run(playing.play_sampled(plan, folder, view)))
    elif model or plan.has_expert:
        view = _view(sys.stdout)
        view.note(f"{_title(plan)}; {model or 'its own expert (demonstration)'} answers")
        partner = Server(model, model_name) if model else None
        _tell(view, asyncio.run(playing.play_spoken(plan, partner, view)))
    else:
        raise ConfigError(
            f"play {path}: it shows no way to play itself (no demonstration), so say who answers: --human, or --model "
            "with a model folder or the URL of a server"
        )


def _play_by_hand(plan: Plan) -> None:
    from milepost.cluster.live.partners import Human
    from milepost.cluster.live.play import play_spoken
    from milepost.cluster.live.terminal import Left, Terminal

    terminal = Terminal(sys.stdout)
    view = _view(sys.stdout, echoed=sys.stdin.isatty())
    view.note(f"{_title(plan)}; you answer, each line is one; Ctrl-D ends")
    try:
        _tell(view, terminal.conduct(play_spoken(plan, Human(terminal), view)))
    except Left:
        view.note("\nleft before the end of the episode")


def _view(out: IO[str], *, echoed: bool = False) -> View:
    from rich.console import Console  # heavy front doors

    from milepost.cluster.live.view import View

    return View(Console(file=out, highlight=False), echoed=echoed)


def _title(plan: Plan) -> str:
    return f"{plan.task.env}, seed {plan.task.seed}"


def _tell(view: View, ending: Ending) -> None:
    view.ended(ending.outcome, ending.reward)


def _is_url(model: str) -> bool:
    return model.startswith(("http://", "https://"))


@app.command(epilog=_TALK_EXAMPLES)
def talk(  # noqa: PLR0913  the options of the command
    name: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run: id, path or 'latest'. Or a model folder.")],
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System prompt; else that of the run.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.01, max=5, help="Sampling temperature; else as trained.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer; else as trained.")] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Serve it to OpenAI's and Anthropic's clients.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of --serve; 0 takes a free one.")] = 0,
    runs_dir: Annotated[
        Path, typer.Option("--runs-dir", metavar="DIR", help="Folder of the run folders.", callback=Path.expanduser)
    ] = Path("runs"),
) -> None:
    """Talk to a run's newest policy, or to a model folder, in the terminal; or serve it on loopback until Ctrl-C."""
    from milepost.cluster.live import talk as talking  # heavy front doors
    from milepost.cluster.live.terminal import Left, Terminal

    with contextlib.ExitStack() as stack:
        policy, settings, title = _policy_of(name, runs_dir, stack)
        settings = settings.changed(system_prompt=system, temperature=temperature, max_tokens=max_tokens)
        out = stack.enter_context(own_terminal())

        def say(text: str) -> None:
            print(text, file=out, flush=True)

        say(f"starting an engine on {title} ...")
        if serve:
            with contextlib.suppress(KeyboardInterrupt):
                asyncio.run(talking.serve(policy, settings, port, say))
        else:
            terminal = Terminal(out)
            with contextlib.suppress(Left):
                terminal.conduct(talking.chat(policy, settings, terminal, say))


def _policy_of(name: str, runs_dir: Path, stack: contextlib.ExitStack) -> tuple[Path, PolicySettings, str]:
    """A policy's folder, how it is served, and what it is called. Raises ConfigError."""
    from milepost.cluster.live.plan import settings_of, unsaid  # heavy front doors
    from milepost.cluster.settings import config as configs

    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return folder, unsaid(), name
    run = runs.find(runs_dir, name)
    policy, version = stack.enter_context(pinned_policy(run))
    return policy, settings_of(configs.load(run.resolved)), f"{run.run_id}, policy version {version}"
