"""Writes docs/performance.md from measured figures. Pure; its words hold for any of them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Final

from tests.benchmarks.figures import (
    MOST_STOLEN,
    OTHER,
    PHASES,
    Run,
    Section,
    cpu_per_episode,
    overlapped_ceiling,
    phase_seconds,
    rate,
    sampled_rate,
    serial_ceiling,
    spread,
    stolen_share,
    typical,
)
from tests.benchmarks.workloads import GROUP_SIZE, GROUPS, TURNS
from tests.system.driving import ROOT

PAGE: Final = ROOT / "docs" / "performance.md"
PICTURE: Final = ROOT / "docs" / "performance.svg"
TITLES: Final = {
    "short": "Short prompts",
    "slow": "Short prompts, 200 ms a step of the game",
    "long-prompt": "Long prompts",
}
"""Of the sections of whole runs."""
BASE, PEER, OVERLAPPED, PADDED = "synchronous", "TRL", "asynchronous", "padded rows"
RATIOS: Final = ((BASE, PEER), (OVERLAPPED, PEER), (OVERLAPPED, BASE), (BASE, PADDED))
_NOT_MEASURED = "Not measured yet.\n"


def page(sections: Mapping[str, Section], gpu_table: str = "") -> str:
    """The whole page; what was not measured says so. `gpu_table`: as `tests.gpu.check` writes it."""
    parts = [_opening(sections), _summary(sections)]
    for name, title in TITLES.items():
        parts.append(f"## {title}\n\n" + (_whole_runs(sections[name]) if name in sections else _NOT_MEASURED))
    parts += [
        _phases(sections),
        _publishing(sections),
        "## The learner's step alone\n\n" + (_learner(sections["learner"]) if "learner" in sections else _NOT_MEASURED),
        "## The buffer\n\n" + (_buffer(sections["buffer"]) if "buffer" in sections else _NOT_MEASURED),
        "## On a GPU\n\n" + (gpu_table or _NO_GPU),
        _AGAIN,
    ]
    return "\n\n".join(_wrapped(block) for part in parts for block in part.strip().split("\n\n")) + "\n"


def _wrapped(block: str) -> str:
    """A paragraph in lines of 120 characters; tables, titles and pictures as they are."""
    if block.startswith(("|", "#", "!")):
        return block
    return textwrap.fill(" ".join(block.split("\n")), 120, break_long_words=False, break_on_hyphens=False)


def _opening(sections: Mapping[str, Section]) -> str:
    machines = {(s.machine.cores, s.machine.cpu) for s in sections.values()}
    days = sorted({s.machine.day for s in sections.values()})
    where = "; ".join(f"{cores} cores, {cpu}" for cores, cpu in sorted(machines)) or "nothing"
    when = f", {' and '.join(dict.fromkeys([days[0], days[-1]]))}" if days else ""
    return f"""# Performance

`make bench` measured this and wrote this page ({where}{when}). Ratios carry over to other machines better than absolute
numbers do: compare within a table.

Both workloads are FrozenLake 4x4 as text, played by a Llama of 3.3 M parameters in float32 that a warm-up taught the
answer format ([tests/benchmarks/workloads.py](../tests/benchmarks/workloads.py)). An update takes {GROUPS} groups of
{GROUP_SIZE} episodes of at most {TURNS} turns of 16 tokens. *Long prompts* put a handbook of about 2,000 tokens before
the game, the same in every episode. Engine and learner have one thread each, where nothing else is said. TRL's
GRPOTrainer plays the same game from the same token ids with the same policy and batch, vLLM in its process, float32 on
both sides, through `rollout_func`, with two threads, for it generates and trains in turns.

Runs take turns, and each section begins and ends with the synchronous one. An update during which the host of this
virtual machine gave more than {MOST_STOLEN:.0%} of the CPU time that it asked for to others is measured again, up to
three times; the least disturbed ones count. A rate is that of all these together, of several runs the median. CPU
seconds and memory are those of all processes of a run, Ray's and Redis's included; memory that processes share counts
once.
"""


def _summary(sections: Mapping[str, Section]) -> str:
    lines = [
        "## In short",
        "",
        "Episodes per second, one over the other:",
        "",
        f"| | {' | '.join(f'{one} / {other}' for one, other in RATIOS)} |",
        "|---" * (1 + len(RATIOS)) + "|",
    ]
    for name, title in TITLES.items():
        runs = sections[name].runs if name in sections else {}
        rates = {way: typical(found, rate) for way, found in runs.items()}
        told = (f"{rates[a] / rates[b]:.2f}" if {a, b} <= rates.keys() else "" for a, b in RATIOS)
        lines.append(f"| {title} | {' | '.join(told)} |")
    return "\n".join(lines)


def _whole_runs(section: Section) -> str:
    rates = {way: typical(runs, rate) for way, runs in section.runs.items()}
    return "\n".join([*_table(section.runs, rates), "", *_remarks(section.runs), "", *_ceilings(section, rates)])


def _table(ways: Mapping[str, Sequence[Run]], rates: Mapping[str, float]) -> Iterator[str]:
    yield "| | episodes/s | of synchronous | tokens/s sampled | trained | CPU s / episode | memory | start-up |"
    yield "|---|---|---|---|---|---|---|---|"
    for way, runs in ways.items():
        trained = rates[way] * median(run.context_tokens for run in runs)
        memory = median(run.memory_bytes for run in runs) / 2**30
        start_s = median(run.start_s for run in runs)
        yield (
            f"| {way} | {rates[way]:.2f} | {rates[way] / rates[BASE]:.2f} | {typical(runs, sampled_rate):,.0f} | "
            f"{trained:,.0f} | {typical(runs, cpu_per_episode):.3f} | {memory:.1f} GiB | {start_s:.0f} s |"
        )


def _remarks(ways: Mapping[str, Sequence[Run]]) -> Iterator[str]:
    turns = (f"{way} {median(run.turns for run in runs):.1f}" for way, runs in ways.items())
    context = median(run.context_tokens for run in ways[BASE])
    yield (
        f"Trained tokens are those of the final contexts, {context:,.0f} an episode. Turns of an episode: "
        f"{', '.join(turns)}."
    )
    yield (
        f"The {len(ways[BASE])} synchronous runs lie {spread(ways[BASE]):.0%} apart: do not read more into differences "
        "of that size."
    )
    stolen = (f"{way} {typical(runs, stolen_share):.1%}" for way, runs in ways.items())
    yield f"Of the CPU time that was asked for, the machine's host gave to others: {', '.join(stolen)}."
    if PEER not in ways:
        yield "TRL was not there: `make bench-trl` installs it, then `make bench` runs it beside."
    if (stored := ways[BASE][-1].stored_bytes) is not None:
        yield f"An episode takes {stored:,.0f} bytes in the buffer, {stored / context:.1f} a token of its context."


def _ceilings(section: Section, rates: Mapping[str, float]) -> Iterator[str]:
    """Of the same section, measured before its runs."""
    if not section.ceilings:
        return
    alone = {part: rate(passes) for part, passes in section.ceilings.items()}
    spent = {part: cpu_per_episode(passes) for part, passes in section.ceilings.items()}
    slower, serial = overlapped_ceiling(**alone), serial_ceiling(**alone)
    yield (
        f"Alone and with one thread, vLLM plays {alone['engine']:.2f} of these episodes per second at "
        f"{spent['engine']:.3f} CPU s each, its front end included, and a step in plain torch with prefix trees trains "
        f"on {alone['step']:.2f} at {spent['step']:.3f} CPU s. Side by side they reach at most the rate of the slower "
        f"one, {slower:.2f}; in turns, {serial:.2f}:"
    )
    yield "\n| | of the slower one | of both in turns |\n|---|---|---|"
    for way in (BASE, OVERLAPPED):
        yield f"| {way} | {rates[way] / slower:.0%} | {rates[way] / serial:.0%} |"
    whole = sum(spent.values())
    yield (
        f"\n{whole / typical(section.runs[BASE], cpu_per_episode):.0%} of a synchronous run's CPU seconds are what "
        "engine and step take alone.\n"
    )


def _phases(sections: Mapping[str, Section]) -> str:
    lines = [
        "## Phases of an update",
        "",
        "Shares of its time. `rollout` is what the learner waits for episodes, `publish` what it waits for weights to "
        "be on their way, `check` what it waits while its policy is measured. Of TRL two are known: the rollout, and "
        "all the rest as `train`.",
        "",
        f"![Seconds of an update by phase, for every way to train.]({PICTURE.name})",
        "",
        f"| | | {' | '.join((*PHASES, OTHER))} |",
        "|---" * (3 + len(PHASES)) + "|",
    ]
    for name in (name for name in TITLES if name in sections):
        for way, runs in sections[name].runs.items():
            spent = phase_seconds([update for run in runs for update in run.updates])
            whole = sum(spent.values())
            cells = (f"{spent[phase] / whole:.1%}" if phase in spent else "" for phase in (*PHASES, OTHER))
            lines.append(f"| {TITLES[name]} | {way} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _publishing(sections: Mapping[str, Section]) -> str:
    lines = [
        "## Publishing weights",
        "",
        "Milliseconds that the learner waits, that engines pause (from the request to pause to the commit), and of the "
        "parts of a publication.",
        "",
    ]
    found = {
        f"{TITLES[name]}, {way}": _medians(runs)
        for name in TITLES
        if name in sections
        for way, runs in sections[name].runs.items()
        if way in (BASE, OVERLAPPED)
    }
    parts = list(dict.fromkeys(part for told in found.values() for part in told))
    lines += [f"| | {' | '.join(parts)} |", "|---" * (len(parts) + 1) + "|"] if parts else [_NOT_MEASURED]
    for name, told in found.items():
        lines.append(f"| {name} | {' | '.join(f'{1000 * told[part]:.0f}' if part in told else '' for part in parts)} |")
    return "\n".join([*lines, ""])


def _medians(runs: Sequence[Run]) -> dict[str, float]:
    return {part: median(run.publish_s.get(part, 0.0) for run in runs) for part in runs[0].publish_s}


def _learner(section: Section) -> str:
    lines = [
        "A rank's step without credit and DeepSpeed, on one thread, random weights "
        "([tests/benchmarks/learner.py](../tests/benchmarks/learner.py), `make bench-learner`).",
        "",
        "| | padded rows | prefix trees | trees / padded |",
        "|---|---|---|---|",
    ]
    for name, rates in section.learner.items():
        ratio = rates["tree"] / rates["padded"]
        lines.append(f"| {name} | {rates['padded']:.2f} episodes per CPU s | {rates['tree']:.2f} | {ratio:.2f} |")
    return "\n".join([*lines, ""])


def _buffer(section: Section) -> str:
    lines = [
        "CPU milliseconds of an episode that is put and taken, by client and server together, beside those of a bare "
        "Redis that keeps the same bytes ([tests/benchmarks/buffer.py](../tests/benchmarks/buffer.py)).",
        "",
        "| episode | bytes | a token of its context | buffer | of it encoding | bare Redis | bare / buffer |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in section.buffer:
        lines.append(
            f"| {row.workload} | {row.entry_bytes:,} | {row.entry_bytes / row.tokens:.1f} | {1000 * row.buffer:.2f} | "
            f"{1000 * row.wire:.2f} | {1000 * row.raw:.2f} | {row.ratio:.2f} |"
        )
    return "\n".join(lines)


_NO_GPU: Final = (
    "Not run: no GPU was lent. `make gpu-check` measures the learner on one, and its table then stands here."
)
_AGAIN: Final = """## Again

`make bench` measures everything on an idle machine and says how long the rest takes; `make bench SECTIONS="short slow"`
measures some sections again and keeps the others. `make bench-trl` installs TRL beside, into an environment of its own.
`python -m tests.benchmarks.whole_runs` makes one run, `tests.benchmarks.ceilings` one of the parts alone, and
`tests.benchmarks.trl_peer` TRL's; each has `--help`. `make bench-recording` measures what recorded episodes cost.
"""
