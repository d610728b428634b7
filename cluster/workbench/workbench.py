"""`milepost credit`: score recorded groups again, under several strategies, without a policy or a run.

Tables for people, JSON lines for programs, and a page with the graphs. Totals are as the strategies gave them, before
the scaling of a batch: compare signs, ranks and sizes within a strategy, not sizes between strategies.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import msgspec

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.runlog import runs
from milepost.cluster.workbench.atif_groups import is_atif
from milepost.cluster.workbench.credit_page import ScoredGroup, write_page
from milepost.cluster.workbench.scoring import SHOWN_FAULTS, Source, check, refuse, scored
from milepost.cluster.workbench.shown import Shown
from milepost.cluster.workbench.tables import Summary, show
from milepost.learner.credit.assignment import Credit, CreditGroup, Strategy


def locate(wanted: str, runs_dir: Path) -> Source:
    """What `wanted` names: a file of groups, a file or folder of ATIF documents, or a run by id, path or `latest`.

    Raises ConfigError if there is none.
    """
    path = Path(wanted)
    if path.is_dir() and not (path / "resolved.toml").is_file():
        if not _is_atif(path):
            raise ConfigError(f"{wanted}: no run's folder, and it holds no ATIF document; give one of both, or a file")
        return Source(path, str(path), is_growing=False, is_atif=True)
    if path.exists() and not path.is_dir():
        if not path.is_file():
            raise ConfigError(f"{wanted}: not a regular file; it is read twice, so give one that stays")
        return Source(path, str(path), is_growing=False, is_atif=_is_atif(path))
    if path.suffix in (".jsonl", ".json"):
        raise ConfigError(f"{wanted}: no such file; give one of groups or of ATIF documents, or a run")
    folder = runs.find(runs_dir, wanted)
    if not folder.groups.is_file():
        raise ConfigError(f"run {folder.run_id} has recorded no group yet; they are recorded when it trains on them")
    return Source(folder.groups, folder.run_id, is_growing=True)


def _is_atif(path: Path) -> bool:
    try:
        return is_atif(path)
    except OSError as error:
        raise ConfigError(f"{error.filename or path}: {error.strerror}; give what can be read") from error


def run(
    source: Source, chosen: dict[str, Strategy], *, as_json: bool, page: Path | None, task: str | None, skip_bad: bool
) -> None:
    """What `milepost credit` does after reading its arguments.

    Args:
        as_json: print JSON lines instead of tables; a graph page is then made only where `page` says so.
        page: where the graph page goes; None for its usual place.
        task: the group whose turns are shown, and at which the page opens; None for the one that tells most.

    Raises:
        ConfigError: nothing was scored, or not all and that was not allowed.
    """
    checked = check(source, chosen, task=task)
    refuse(checked, source, task=task, skip_bad=skip_bad)
    shown = Shown(task)
    groups = shown.watching(scored(source, chosen, checked, skip_bad=skip_bad))
    try:
        if as_json:
            _print_json(groups, sys.stdout)
        else:
            summary = _summed(groups, chosen)
        if not shown.groups or (task is not None and not shown.has_task):
            raise ConfigError("\n".join([*list(checked.faults.values())[:SHOWN_FAULTS], "nothing is left to show"]))
        if page is not None or not as_json:
            target = page or source.page
            _write(target, shown, source)
            print(f"graph: {target}", file=sys.stderr if as_json else sys.stdout)
        if not as_json:
            show(summary, shown.groups[0])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
        return
    if checked.unfinished:
        first, more = checked.unfinished[0], len(checked.unfinished)
        print(f"milepost: left out {more} episodes that broke off; first: {first}", file=sys.stderr)
    if checked.faults:
        first = next(iter(checked.faults.values()))
        count = f"{len(checked.faults)} of {checked.num_lines} {source.unit}"
        print(f"milepost: skipped {count}; first: {first}", file=sys.stderr)


def _summed(groups: Iterator[ScoredGroup], chosen: dict[str, Strategy]) -> Summary:
    summary = Summary(list(chosen))
    for one in groups:
        summary.add(one)
    return summary


def _print_json(groups: Iterator[ScoredGroup], out: TextIO) -> None:
    """One object per line, group and strategy, written as soon as it is scored."""
    for one in groups:
        for name, credit in one.credits.items():
            out.write(_json_line(one.group, name, credit))


def _json_line(group: CreditGroup, name: str, credit: Credit) -> str:
    line = {
        "task_id": group.task_id,
        "strategy": name,
        "traj_adv": credit.traj_adv.tolist(),
        "step_adv": [x.tolist() for x in credit.step_adv],
        "coverage": [x.tolist() for x in credit.coverage],
        "total": [x.tolist() for x in credit.total],
        "state_value": credit.state_value,
        "diagnostics": credit.diagnostics,
    }
    return msgspec.json.encode(line).decode() + "\n"


def _write(target: Path, shown: Shown, source: Source) -> None:
    try:
        write_page(target, shown.groups, title=source.name, num_groups=shown.num_groups)
    except OSError as error:
        raise ConfigError(f"{target}: {error.strerror}; give another place by --html FILE") from error
