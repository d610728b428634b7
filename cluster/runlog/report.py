"""`report.html`: a run at a glance, in one file that needs nothing else.

Made from what lies in the run folder, so it works during the run and after a crash. It repeats the measured numbers; it
does not judge them.
"""

from __future__ import annotations

import html
import os
from collections.abc import Mapping
from pathlib import Path

from milepost.cluster.runlog import figures
from milepost.cluster.runlog.console import SPLITS
from milepost.cluster.runlog.figures import Line
from milepost.cluster.runlog.records import (
    EnvRecord,
    EvalRecord,
    IterationRecord,
    Number,
    Record,
    iterations,
    read_records,
)
from milepost.cluster.runlog.runs import RunFolder, removed_unless_done
from milepost.reward.evaluators.summary import CohortSuccess

_CSS = """
:root{color-scheme:light}
*{box-sizing:border-box}
body{margin:0;background:#f1f5f9;color:#0f172a;font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}
main{max-width:1180px;margin:0 auto;padding:32px 20px 64px}
header p{margin:2px 0 0;color:#64748b}
h1{font-size:24px;margin:0;letter-spacing:-.01em}
h2{font-size:15px;margin:0 0 2px}
section p{margin:0 0 8px;color:#64748b;font-size:13px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(128px,1fr));gap:10px;margin:20px 0}
.tile,section{background:#fff;border:1px solid #e2e8f0;border-radius:10px;box-shadow:0 1px 2px #0f172a0a}
.tile{padding:10px 14px}
.tile b{display:block;font-size:17px;font-weight:650;letter-spacing:-.02em;white-space:nowrap}
.tile span{color:#64748b;font-size:13px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,480px),1fr));gap:16px}
section{padding:16px 18px;overflow:hidden}
section.wide{grid-column:1/-1}
svg{width:100%;height:auto;display:block}
svg text{font-family:inherit!important}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:5px 12px 5px 0;border-bottom:1px solid #e2e8f0;font-size:14px}
th{color:#64748b;font-weight:500}
td.n,th.n{text-align:right}
pre{margin:0;font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-x:auto;white-space:pre}
summary{cursor:pointer;font-weight:600}
details pre{margin-top:10px}
"""


_TIME = (
    Line("wait_s", "wait for groups"),
    Line("check_s", "mutual information"),
    Line("update_s.credit", "credit"),
    Line("update_s.measure", "measure"),
    Line("update_s.pack", "pack"),
    Line("update_s.proximal", "proximal"),
    Line("update_s.parity", "check parity"),
    Line("update_s.update", "update"),
    Line("update_s.critic", "critic"),
    Line("update_s.other", "other training"),
    Line("commit_s", "commit, checkpoint"),
    Line("publish_s", "publish weights"),
)


def write_report(folder: RunFolder) -> Path:
    """Write the report of a run, finished or not, atomically. Returns its path.

    Raises ConfigError if `metrics.jsonl` is damaged.
    """
    records = read_records(folder.metrics)
    scratch = folder.path / f".report-{os.getpid()}.tmp"
    with removed_unless_done(scratch):
        scratch.write_text(_page(records, folder), encoding="utf-8")
        os.replace(scratch, folder.report)
    return folder.report


def _page(records: list[Record], folder: RunFolder) -> str:
    done = iterations(records)
    evals = [record for record in records if isinstance(record, EvalRecord)]
    status = folder.read_status()
    state = f"{status.phase}, {status.iteration} of {status.iterations} iterations" if status else "no status yet"
    cards = (
        _cards(done, evals) if done or evals else "<section class=wide><p>No iteration is recorded yet.</p></section>"
    )
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width,initial-scale=1'>"
        f"<title>milepost · {html.escape(folder.run_id)}</title><style>{_CSS}</style></head><body><main>"
        f"<header><h1>{html.escape(folder.run_id)}</h1><p>milepost · {html.escape(state)}</p></header>"
        f"{_tiles(done, evals)}<div class=cards>{_eval_table(evals)}{_part_tables(done, evals)}"
        f"{cards}{_env_cards(done)}{_ledger(done)}{_config(folder)}</div>"
        "</main></body></html>\n"
    )


def _cards(done: list[IterationRecord], evals: list[EvalRecord]) -> str:
    """The curves; each card says in one line what to look for."""
    spread = (
        Line("reward_std_within", "standard deviation inside a group"),
        Line("zero_variance_share", "share of groups whose returns are all equal"),
    )
    stale = (Line("staleness_mean", "mean"), Line("staleness_max", "largest"))
    rows = (Line("prefix_breaks", "prefix breaks"), Line("samples", "samples"))
    padding = (Line("padding_share", "padding"),)
    turn_s = (Line("generate_s", "engine"), Line("env_s", "environment"))
    fates = (Line("groups_trained", "trained"), Line("groups_filtered", "filtered"), Line("groups_stale", "too stale"))
    both = (Line("both_busy_share", "rollouts and training at once"),)
    clipped = (Line("clip_low", "clipped low"), Line("clip_high", "clipped high"))
    shape = (Line("turns_mean", "turns of an episode"),)
    invalid = (Line("invalid_share", "turns without a valid action"),)
    cards = (
        ("Success", "Episodes that reach the goal; bars are 95 % intervals.", figures.success(done, evals), True),
        ("Reward inside groups", "Falls before success when a policy collapses.", figures.curves(done, spread), False),
        ("Staleness", "Policy versions between sampling and training.", figures.curves(done, stale), False),
        ("Loss", "Moves around zero; watch for jumps.", figures.curves(done, (Line("loss", "policy loss"),)), False),
        ("KL of the update", "Nats per token.", figures.curves(done, (Line("kl", "KL"),)), False),
        ("Entropy", "Nats per token.", figures.curves(done, (Line("entropy", "entropy"),)), False),
        ("Gradient norm", "Before clipping.", figures.curves(done, (Line("grad_norm", "gradient norm"),)), False),
        ("Time", "Where the learner's seconds go.", figures.stacked(done, _TIME, unit="seconds", is_wide=True), True),
        ("A turn", "Mean seconds.", figures.curves(done, turn_s), False),
        ("Sequences", "A prefix break begins a sample of its own.", figures.curves(done, rows), False),
        ("Padding", "Share of the token positions of an update.", figures.curves(done, padding, is_share=True), False),
        ("Groups", "What became of the groups the learner took.", figures.stacked(done, fates, unit="groups"), False),
        ("Overlap", "Share of the time with both halves at work.", figures.curves(done, both, is_share=True), False),
        ("Throughput", "Sampled tokens per second.", figures.curves(done, (Line("tokens_per_s", "tokens/s"),)), False),
        ("Clipping", "Share of tokens outside the trust region.", figures.curves(done, clipped), False),
        ("Episode length", "Turns.", figures.curves(done, shape), False),
        ("Invalid actions", "Should go to zero.", figures.curves(done, invalid, is_share=True), False),
    )  # fmt: skip
    return "".join(_card(title, note, svg, is_wide=is_wide) for title, note, svg, is_wide in cards)


def _card(title: str, note: str, body: str, *, is_wide: bool = False) -> str:
    return f"<section{' class=wide' if is_wide else ''}><h2>{title}</h2><p>{note}</p>{body}</section>"


def _tiles(done: list[IterationRecord], evals: list[EvalRecord]) -> str:
    tiles: list[tuple[str, str]] = []
    for split in SPLITS:
        mine = [record for record in evals if record.split == split]
        if len(mine) > 1:
            tiles.append((f"{mine[0].success:.0%} → {mine[-1].success:.0%}", f"success, {split}"))
    if done:
        tiles.append((str(done[-1].iteration), "iterations"))
        tiles.append((f"{sum(record.episodes for record in done):,}", "episodes"))
        tiles.append((f"{sum(record.tokens for record in done):,}", "sampled tokens"))
        restarts = done[-1].engine_restarts + done[-1].worker_restarts + done[-1].learner_restarts
        tiles.append((str(restarts), "restarts"))
        tiles.append((str(done[-1].nonfinite_total), "non-finite values"))
    return (
        "<div class=tiles>" + "".join(f"<div class=tile><b>{b}</b><span>{s}</span></div>" for b, s in tiles) + "</div>"
    )


def _eval_table(evals: list[EvalRecord]) -> str:
    if not evals:
        return ""
    rows = "".join(
        f"<tr><td>{record.split}</td><td class=n>{record.iteration}</td><td class=n>{record.policy_version}</td>"
        f"<td class=n>{record.success:.1%}</td><td class=n>{record.success_low:.1%} – {record.success_high:.1%}</td>"
        f"<td class=n>{record.episodes}</td></tr>"
        for record in evals
    )
    head = (
        "<tr><th>split</th><th class=n>iteration</th><th class=n>policy version</th><th class=n>success</th>"
        "<th class=n>95 % interval</th><th class=n>episodes</th></tr>"
    )
    return _card("Evaluations", "Played through the inference engine.", f"<table>{head}{rows}</table>", is_wide=True)


def _env_cards(done: list[IterationRecord]) -> str:
    """Curves per environment where there are several."""
    names = sorted({name for record in done for name in record.envs})
    kinds = (
        ("Success by environment", "Episodes of the iteration that reach the goal.", "success", True),
        ("Reward by environment", "Mean return, each in its own unit.", "reward_mean", False),
        ("Spread by environment", "Standard deviation of the return inside a group.", "reward_std_within", False),
        ("Invalid actions by environment", "Should go to zero.", "invalid_share", True),
        ("Failed episodes by environment", "An iteration's.", "episodes_failed", False),
    )
    return "".join(
        _card(title, note, figures.curves(done, [Line(f"envs.{n}.{field}", n) for n in names], is_share=is_share))
        for title, note, field, is_share in kinds
        if len(names) > 1
    )


def _part_tables(done: list[IterationRecord], evals: list[EvalRecord]) -> str:
    """Success by environment where environments have names, and by cohort where episodes have one."""
    last: dict[str, EvalRecord | IterationRecord] = {record.split: record for record in evals}
    if done:
        last["rollouts"] = done[-1]
    envs = "".join(_part_rows(split, record, record.envs) for split, record in last.items())
    cohorts = "".join(_part_rows(split, record, record.cohorts) for split, record in last.items())
    return _part_table("environment", envs) + _part_table("cohort", cohorts)


def _part_rows(
    split: str, record: EvalRecord | IterationRecord, parts: Mapping[str, CohortSuccess] | Mapping[str, EnvRecord]
) -> str:
    return "".join(
        f"<tr><td>{split}</td><td>{html.escape(name)}</td><td class=n>{record.iteration}</td>"
        f"<td class=n>{_percent(found.success)}</td>"
        f"<td class=n>{_percent(found.success_low)} – {_percent(found.success_high)}</td>"
        f"<td class=n>{found.episodes}</td></tr>"
        for name, found in parts.items()
    )


def _part_table(kind: str, rows: str) -> str:
    head = (
        f"<tr><th>split</th><th>{kind}</th><th class=n>iteration</th><th class=n>success</th>"
        "<th class=n>95 % interval</th><th class=n>episodes</th></tr>"
    )
    note = "In the last evaluation of a split, and in the last iteration."
    return _card(f"Success by {kind}", note, f"<table>{head}{rows}</table>", is_wide=True) if rows else ""


def _percent(value: Number) -> str:
    return "n/a" if value is None else f"{value:.1%}"


def _ledger(done: list[IterationRecord]) -> str:
    counts = done[-1].ledger if done else {}
    if not counts:
        return ""
    rows = "".join(
        f"<tr><td>{html.escape(state)}</td><td class=n>{count:,}</td></tr>" for state, count in counts.items()
    )
    total = f"<tr><th>issued</th><th class=n>{sum(counts.values()):,}</th></tr>"
    note = "Every issued episode is in exactly one state."
    return _card("Ledger", note, f"<table><tr><th>state</th><th class=n>episodes</th></tr>{rows}{total}</table>")


def _config(folder: RunFolder) -> str:
    if not folder.resolved.is_file():
        return ""
    text = html.escape(folder.resolved.read_text(encoding="utf-8"))
    body = f"<details><summary>resolved.toml</summary><pre>{text}</pre></details>"
    return _card("Configuration", "Every value the run used, defaults included.", body)
