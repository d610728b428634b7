"""What a person sees in the terminal while a run goes on, and the table at its end.

On a terminal a live panel, elsewhere one plain line per iteration: the same facts in both. It only shows; it decides
nothing and keeps no more than the short history its sparklines need.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import IO, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from milepost.cluster.runlog.records import (
    EnvRecord,
    EvalRecord,
    IterationRecord,
    Record,
    evals,
    iterations,
)
from milepost.cluster.runlog.runs import RunFolder
from milepost.envs.types import Split
from milepost.reward.evaluators.summary import CohortSuccess

SPLITS: tuple[Split, ...] = ("train", "heldout", "ood")
_BARS = "▁▂▃▄▅▆▇█"
_HISTORY = 40
_REFRESH_PER_S = 4


class LiveView:
    """Shows a run as it goes. Use as a context manager; every method is cheap."""

    def __init__(self, *, run_id: str, iterations: int, out: IO[str] | None = None) -> None:
        """Shown on `out`, else on stdout."""
        self._console = Console(file=out)
        self._run_id = run_id
        self._iterations = iterations
        # The refresh thread reads these: they are replaced as a whole, never changed in place.
        self._success: tuple[float, ...] = ()
        self._seconds: tuple[float, ...] = ()
        self._last: IterationRecord | None = None
        self._evals: dict[Split, EvalRecord] = {}
        self._phase = ""
        self._activity = ""
        self._phase_began = self._activity_began = self._record_came = time.monotonic()
        is_live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live = (
            Live(
                get_renderable=self._render,
                console=self._console,
                refresh_per_second=_REFRESH_PER_S,
                transient=True,
                redirect_stdout=False,  # what others write has a place of its own
                redirect_stderr=False,
            )
            if is_live
            else None
        )

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def phase(self, text: str) -> None:
        """A new phase of the run (`starting engines`, `evaluating heldout`) begins; shown with its elapsed seconds."""
        self._end_phase()
        self._phase, self._phase_began = text, time.monotonic()
        self.activity("")
        if text and not self._live:
            self._print(f"{text} ...")

    def activity(self, text: str) -> None:
        """What goes on inside the iteration (`training`, `waiting for groups: 3 of 8`); only the live panel shows it.

        What comes before a colon names it: the rest may change while its seconds go on.
        """
        if text.partition(":")[0] != self._activity.partition(":")[0]:
            self._activity_began = time.monotonic()
        self._activity = text

    def note(self, text: str) -> None:
        """One line that stays: a restart, a warning."""
        self._print(text)

    def update(self, record: IterationRecord) -> None:
        """One more iteration is done."""
        now = time.monotonic()
        self._seconds = (*self._seconds, now - self._record_came)[-_HISTORY:]
        self._record_came, self._last = now, record
        if record.success is not None:
            self._success = (*self._success, record.success)[-_HISTORY:]
        if not self._live:
            self._print(plain_line(record, iterations=self._iterations))

    def update_eval(self, record: EvalRecord) -> None:
        """One split was evaluated."""
        self._evals = self._evals | {record.split: record}
        self._print(
            f"eval {record.split:<8} iteration {record.iteration:<5} success {success_in_words(record)}  "
            f"({record.episodes} episodes){parts_in_words(record.envs)}{parts_in_words(record.cohorts)}"
        )

    def finish(self, records: list[Record], folder: RunFolder) -> None:
        """Leave the live panel and print the summary of the run."""
        self._end_phase()
        self._phase = ""
        if self._live:
            self._live.stop()
        self._console.print(summary(records, folder))

    def _end_phase(self) -> None:
        if self._phase:
            self._print(f"{self._phase}: {_duration(time.monotonic() - self._phase_began)}")

    def _print(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def _render(self) -> RenderableType:
        rows: list[RenderableType] = []
        if self._last is not None:
            rows += [self._progress(self._last), Text(), self._numbers(self._last)]
        rows += [Text(line, style="dim") for line in self._doing()]
        return Panel(Group(*rows), title=f"milepost · {self._run_id}", title_align="left", border_style="cyan")

    def _doing(self) -> list[str]:
        now = time.monotonic()
        lines = [(self._phase, self._phase_began), (self._activity, self._activity_began)]
        return [f"{text} ... {_duration(now - began)}" for text, began in lines if text]

    def _progress(self, record: IterationRecord) -> RenderableType:
        row = Table.grid(padding=(0, 1))
        left = max(0, self._iterations - record.iteration)
        per_iteration = sum(self._seconds) / len(self._seconds) if self._seconds else 0.0
        row.add_row(
            Text(f"iteration {record.iteration}/{self._iterations}", style="bold"),
            ProgressBar(total=self._iterations, completed=record.iteration, width=30),
            Text(f"{_duration(left * per_iteration)} left" if left else "done"),
        )
        return row

    def _numbers(self, record: IterationRecord) -> RenderableType:
        table = Table.grid(padding=(0, 3))
        table.add_column(style="dim")
        table.add_column()
        table.add_row("success", f"{_percent(record.success)}  {sparkline(self._success)}{parts_in_words(record.envs)}")
        table.add_row("invalid", _invalid(record))
        table.add_row("groups", _variance(record))
        table.add_row("staleness", f"{_staleness(record)} versions")
        table.add_row("tokens/s", _number(record.tokens_per_s, digits=0))
        table.add_row("waiting", who_waits(record))
        table.add_row("buffer", f"{record.buffer_groups} groups ready, {record.buffer_bytes / 2**20:.1f} MiB in all")
        table.add_row("restarts", _restarts(record))
        for split, last in self._evals.items():
            table.add_row(f"eval {split}", f"{success_in_words(last)} at iteration {last.iteration}")
        return table


def summary(records: list[Record], folder: RunFolder) -> RenderableType:
    """A table of success before and after training per split, and where everything lies."""
    table = Table(title=f"milepost · {folder.run_id}", title_justify="left")
    for name in ("split", "before", "after", "episodes"):
        table.add_column(name)
    for split in SPLITS:
        found = evals(records, split)
        if found:
            after = success_in_words(found[-1]) if found[-1].iteration > found[0].iteration else "not evaluated"
            table.add_row(split, success_in_words(found[0]), after, str(found[-1].episodes))
            for name in found[-1].envs if len(found[-1].envs) > 1 else ():
                first, last = found[0].envs.get(name), found[-1].envs[name]
                has_trained = found[-1].iteration > found[0].iteration
                row = (
                    success_in_words(first) if first else "n/a",
                    success_in_words(last) if has_trained else "not evaluated",
                )
                table.add_row(f"  {name}", *row, str(last.episodes))
    done = iterations(records)
    facts = Table.grid(padding=(0, 2))
    facts.add_row("iterations", str(done[-1].iteration if done else 0))
    if done and done[-1].time_s is not None:
        facts.add_row("training time", _duration(done[-1].time_s))
    for name, path in (("report", folder.report), ("policy", folder.policy)):
        facts.add_row(name, Text(str(path), overflow="fold") if path.exists() else "not written")
    return Group(table, facts) if table.rows else facts


def sparkline(values: Sequence[float]) -> str:
    """Values in [0, 1] as a row of bars, one character each; a value outside is drawn at the edge."""
    top = len(_BARS) - 1
    return "".join(_BARS[round(min(1.0, max(0.0, value)) * top)] for value in values)


def who_waits(record: IterationRecord) -> str:
    """Which half of the system held the other up in this iteration.

    The learner waits while it has no groups. Workers wait when admission, which bounds staleness, lets no group start:
    that is the part of the learner's working time in which rollouts were not busy as well.
    """
    waited = record.wait_s or 0.0
    worked = sum(s or 0.0 for s in (record.train_s, record.commit_s, record.publish_s, record.check_s))
    learner = f"learner for groups {_duration(waited)}"
    if record.both_busy_share is None:
        return learner
    idle = max(0.0, worked - record.both_busy_share * (waited + worked))
    return f"{learner}, workers for learner {_duration(idle)}"


def plain_line(record: IterationRecord, *, iterations: int) -> str:
    """An iteration in one line, for people."""
    return (
        f"iteration {record.iteration}/{iterations}  success {_percent(record.success)}{parts_in_words(record.envs)}  "
        f"invalid {_invalid(record)}  groups: {_variance(record)}  staleness {_staleness(record)}  "
        f"tokens/s {_number(record.tokens_per_s, digits=0)}  waiting: {who_waits(record)}  "
        f"buffer: {record.buffer_groups} groups ready  restarts {_restarts(record)}"
    )


def _invalid(record: IterationRecord) -> str:
    """Of the turns; and of the responses those that were cut, where there are any."""
    cut = f", {_percent(record.cut_share)} cut" if record.cut_share else ""
    return f"{_percent(record.invalid_share)} of turns{cut}"


def _variance(record: IterationRecord) -> str:
    equal = _percent(record.zero_variance_share)
    return f"return std {_number(record.reward_std_within)}, all returns equal in {equal}"


def _staleness(record: IterationRecord) -> str:
    return f"{_number(record.staleness_mean)}, at most {record.staleness_max}"


def _restarts(record: IterationRecord) -> str:
    counts = (
        ("engine", record.engine_restarts),
        ("worker", record.worker_restarts),
        ("learner", record.learner_restarts),
    )
    return ", ".join(f"{count} {name}" for name, count in counts if count) or "none"


def success_in_words(record: EvalRecord | CohortSuccess) -> str:
    """Success with its interval."""
    return f"{record.success:.1%} [{record.success_low:.1%}, {record.success_high:.1%}]"


def parts_in_words(found: Mapping[str, CohortSuccess] | Mapping[str, EnvRecord]) -> str:
    """Success by environment or cohort where there are several."""
    if len(found) < 2:
        return ""
    return "  " + ", ".join(f"{name} {_percent(part.success)}" for name, part in found.items())


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.1%}"


def _number(value: float | None, *, digits: int = 2) -> str:
    return "n/a" if value is None else f"{value:,.{digits}f}"


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
