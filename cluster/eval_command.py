"""`milepost eval` and `milepost compare`: how good a policy is, and whether another one is better."""

from __future__ import annotations

import datetime
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from milepost.cluster.base.examples import EXAMPLES
from milepost.cluster.base.exits import ConfigError
from milepost.cluster.base.output import logging_to, own_stdout
from milepost.cluster.runlog import runs
from milepost.cluster.runlog.runs import RunFolder
from milepost.envs.types import Split

if TYPE_CHECKING:
    from milepost.cluster.evaluation.judging import OpenedJudge
    from milepost.cluster.settings.config import RunConfig
    from milepost.reward.evaluators.signals import Prices

app = typer.Typer()
_SPLIT_EPISODES, _SCENARIO_EPISODES = 100, 4
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]
RunsDir = Annotated[
    Path, typer.Option("--runs-dir", metavar="DIR", help="Folder of the run folders.", callback=Path.expanduser)
]


@app.command("eval", epilog=EXAMPLES)
def evaluate(  # noqa: PLR0913  the options of the command
    name: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run: id, path or 'latest'. Or a model folder.")],
    config: Annotated[
        Path | None, typer.Option(metavar="CONFIG", help="What to play, and how: TOML, for a model folder.")
    ] = None,
    split: Annotated[Split | None, typer.Option(help="Which tasks to play, where it is no suite: heldout.")] = None,
    suite: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Play the scenarios of this file instead of a split.")
    ] = None,
    episodes: Annotated[
        int | None,
        typer.Option(min=1, help="Episodes to play: of each environment, 100; with --suite of each scenario, 4."),
    ] = None,
    max_age: Annotated[int, typer.Option(min=0, metavar="DAYS", help="Warn of a suite that is older.")] = 90,
    prices: Annotated[
        str, typer.Option(metavar="A,B,C", help="Of a million tokens: prompt, cached prompt, response; with --suite.")
    ] = "",
    judge: Annotated[
        Path | None,
        typer.Option(metavar="JUDGE", help="Have the model of this file judge the episodes too; with --suite."),
    ] = None,
    as_json: AsJson = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Play episodes with the policy of a run, or of a model folder, through the engine and report how it did."""
    from milepost.cluster.settings import config as configs

    if config is None and (Path(name) / "config.json").is_file():
        raise ConfigError(f"eval {name}: a model folder is no run; add --config CONFIG, which says what it plays")
    if (split and suite) or ((prices or judge) and not suite):
        which = "--split" if suite else "--prices" if prices else "--judge"
        raise ConfigError(f"eval {name}: {which} {'and' if suite else 'without'} --suite: what it says would not count")
    run = runs.find(runs_dir, name) if config is None else configs.load(config)
    with own_stdout() as stdout, logging_to(run.driver_log if isinstance(run, RunFolder) else runs_dir / "eval.log"):
        if suite is not None:
            asked = _Asked(
                suite=suite,
                judge=judge,
                episodes=episodes or _SCENARIO_EPISODES,
                prices=_prices(prices),
                max_age=max_age,
            )
            path, opened = _on_suite(run, name, asked, runs_dir)
            try:
                _have_judged(path, opened)
            finally:  # what was played is told, also where the judge fails
                print(_shown(path, as_json=as_json), file=stdout, flush=True)
            return
        from milepost.cluster import evaluate as evaluation  # heavy front door
        from milepost.cluster.evaluation.tables import sentence

        which, count = split or "heldout", episodes or _SPLIT_EPISODES
        if isinstance(run, RunFolder):
            result = evaluation.evaluate_run(run, split=which, episodes=count)
        else:
            result = evaluation.evaluate_model(run, Path(name).expanduser(), split=which, episodes=count)
        print(json.dumps(result, allow_nan=False) if as_json else sentence(result), file=stdout, flush=True)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="Results of a suite: file, folder, or a run with some.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Other results of that suite.")],
    as_json: AsJson = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Say where the policy of B is better or worse than that of A, or undecided, by their episodes of one suite."""
    import msgspec  # heavy front doors

    from milepost.cluster.evaluation import compare as comparing
    from milepost.cluster.evaluation import store, tables

    found = comparing.compare(store.find(first, runs_dir), store.find(second, runs_dir))
    typer.echo(msgspec.json.encode(found).decode() if as_json else tables.comparison_table(found))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """How a suite is to be played and judged."""

    suite: Path
    judge: Path | None
    episodes: int
    prices: Prices | None
    max_age: int


def _on_suite(run: RunFolder | RunConfig, name: str, asked: _Asked, runs_dir: Path) -> tuple[Path, OpenedJudge | None]:
    """Play a suite; where its results are, and the judge that is to be asked about them."""
    from milepost.cluster.evaluation import judging, suite

    today = datetime.date.today()
    loaded = suite.load(asked.suite, today=today)
    if (age := suite.age_days(loaded, today)) > asked.max_age:
        print(
            f"milepost: suite {loaded.name} is {age} days old, more than --max-age {asked.max_age}: what is asked of "
            "the policy may have changed since; look through it, and give it another date",
            file=sys.stderr,
        )
    model = Path(name).expanduser()
    policy = run.policy if isinstance(run, RunFolder) else model
    judge = None if asked.judge is None else judging.open_judge(asked.judge, policy)
    from milepost.cluster import evaluate as evaluation  # heavy front door

    if isinstance(run, RunFolder):
        path = evaluation.suite_of_run(run, loaded, episodes=asked.episodes, prices=asked.prices)
    else:
        path = evaluation.suite_of_model(
            run, model, loaded, episodes=asked.episodes, prices=asked.prices, runs_dir=runs_dir
        )
    return path, judge


def _have_judged(path: Path, opened: OpenedJudge | None) -> None:
    if opened is not None:
        from milepost.cluster.evaluation import judging

        judging.add_judgements(path, *opened)


def _shown(path: Path, *, as_json: bool) -> str:
    """What to print of results."""
    from milepost.cluster.evaluation import results, store, tables

    found = store.read(path)
    if as_json:
        return json.dumps(results.as_json(found) | {"file": str(path)}, allow_nan=False)
    return f"{tables.results_table(found)}\n\nresults  {path}"


def _prices(text: str) -> Prices | None:
    """Raises ConfigError unless it is empty or three numbers from 0."""
    from milepost.reward.evaluators.signals import Prices

    if not text:
        return None
    try:
        prompt, cached, response = map(float, text.split(","))
        if not all(0 <= price < float("inf") for price in (prompt, cached, response)):
            raise ValueError("a price is a number from 0")
    except ValueError as error:
        raise ConfigError(
            f"--prices {text}: {error}; give three numbers, of a million tokens of prompt, cached prompt and response, "
            "e.g. 0.5,0.05,2"
        ) from error
    return Prices(prompt=prompt, cached=cached, response=response)
