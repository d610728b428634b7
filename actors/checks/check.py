"""`check_env`: an environment's contract as something its author runs before a training does.

It plays short episodes through the code that a run plays them with (`rehearsal.py`): a new environment and a thread for
each, some of them side by side, under deadlines. Twenty of them are random, five for each of four tasks:
there it looks how often states are met again. Not promised: that an environment which passes is solvable or honest.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import gymnasium
import msgspec

from milepost.actors.checks.luck import shared
from milepost.actors.checks.made_up import mistaken_messages
from milepost.actors.checks.recurrence import recurrence
from milepost.actors.checks.rehearsal import Characters, Rehearsal, Response, parting, rehearse
from milepost.actors.resources import Limits
from milepost.actors.worker import ActorConfig
from milepost.envs.contract import EnvPathError, load_env_class
from milepost.envs.messages import action_of, tool_names
from milepost.envs.types import OptionValue, Task

MAX_TURNS = 50
GARBAGE = ("", "x" * 10_000, "\N{SNOWMAN}\u202e\x00 <answer></answer> {}[]\\n\U0001f9ca")
_CONTROL = re.compile(
    r"<\|(?:im_start|im_end|im_sep|end|user|assistant|system|endoftext|end_of_text|begin_of_text|eot_id|eom_id|"
    r"start_header_id|end_header_id|start_of_role|end_of_role)\|>|<(?:start_of_turn|end_of_turn|bos|eos)>"
)
"""Control tokens of the policies that this project makes and of widely used ones."""
_LIKE_CONTROL = re.compile(r"<\|[^|<>\s]{1,40}\|>|</?s>|<pad>|\[/?INST\]")
"""What might be one of others."""
_RANDOM_TASKS, _RANDOM_EPISODES = 4, 5
_RANDOM_S = 60.0
"""After which no further task is begun at random."""
_MOST_FIRST_CHARS = 2**16
"""Of a first observation: about 16 000 tokens. A check knows no engine, so it cannot know the room there is."""
_ACTORS = ActorConfig()
_LIMITS = Limits(
    max_turns=MAX_TURNS,
    env_timeout_s=_ACTORS.env_timeout_s,
    episode_timeout_s=_ACTORS.episode_timeout_s,
    max_observation_chars=_ACTORS.max_observation_chars,
    max_prompt_tokens=2**62,
)

Level = Literal["error", "warning", "ok"]


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    level: Level
    what: str
    fix: str = ""
    """What the author should do; empty if all is well."""


class Report(msgspec.Struct, frozen=True):
    """What `check_env` found."""

    findings: list[Finding]
    """Errors come first, then warnings."""
    episode: list[str]
    """An episode that was played, in lines for people; empty where none could be begun."""


class _Seed(msgspec.Struct):
    """One task: as it was played first, the same episode again, and another episode with the same responses."""

    first: Rehearsal
    again: Rehearsal
    other: Rehearsal

    @property
    def all(self) -> tuple[Rehearsal, ...]:
        return (self.first, self.again, self.other)


def check_env(path: str, options: Mapping[str, OptionValue] | None = None, *, episodes: int = 3) -> Report:
    """What is right and wrong with the environment at `package.module:Class`, on `episodes` >= 1 seeds."""
    try:
        load_env_class(path)
        tasks = [Task(env=path, seed=seed, split="train", options=dict(options or {})) for seed in range(episodes)]
    except (EnvPathError, ValueError) as error:
        return Report([Finding("error", str(error), "correct the path, the module or the options")], [])
    order: tuple[Level, ...] = ("error", "warning", "ok")
    findings, shown = asyncio.run(_examined(tasks))
    return Report(sorted(findings, key=lambda finding: order.index(finding.level)), shown.transcript())


async def _examined(tasks: Sequence[Task]) -> tuple[list[Finding], Rehearsal]:
    """What was found, and the episode to show: the first one, or the one that failed."""
    seeds: list[_Seed] = []
    for task in tasks:
        first = await _played(task)
        if first.complaint:
            return [_failed(first), *_closing([first])], first
        again, other = await asyncio.gather(_played(task, first.responses), _played(task, first.responses, index=1))
        seeds.append(_Seed(first, again, other))
        for rehearsal in (again, other):
            if rehearsal.complaint:
                return [_failed(rehearsal, "played again: "), *_closing([rehearsal])], rehearsal
    groups = await _random_groups(tasks[0])
    played = [rehearsal for group in groups for rehearsal in group]
    for rehearsal in played:
        if rehearsal.complaint:
            return [_failed(rehearsal, "played at random: "), *_closing([rehearsal])], rehearsal
    findings = [
        Finding("ok", "it loads and can be built twice"),
        Finding("ok", f"{len(tasks)} seeds, played again, keep the contract"),
    ]
    findings += _spaces(seeds[0].first) + await _garbage(tasks[0], seeds[0].first)
    findings += _determinism(seeds) + _luck(seeds) + (_anchors(seeds) or _recurrence(groups))
    findings += _endings(seeds) + _texts(seeds)
    return findings + _closing([rehearsal for seed in seeds for rehearsal in seed.all] + played), seeds[0].first


async def _random_groups(task: Task) -> list[list[Rehearsal]]:
    """Random episodes of the first few tasks, those of a task side by side."""
    groups: list[list[Rehearsal]] = []
    latest = time.monotonic() + _RANDOM_S
    for seed in range(_RANDOM_TASKS):
        one = msgspec.structs.replace(task, seed=seed)
        group = await asyncio.gather(*(_played(one, index=index, says=index + 1) for index in range(_RANDOM_EPISODES)))
        groups.append(group)
        if any(rehearsal.complaint for rehearsal in group) or time.monotonic() > latest:
            break
    return groups


async def _played(task: Task, script: Sequence[Response] | None = None, index: int = 0, says: int = 0) -> Rehearsal:
    """One episode; `says` tells random responses of one task apart."""
    layout = Characters()
    rehearsal = Rehearsal(layout=layout, decode=layout.decode, script=script, seed=task.seed + 1000 * says)
    limits = _LIMITS if script is None else replace(_LIMITS, max_turns=len(script))
    return await rehearse(rehearsal, task, limits=limits, index=index)


def _failed(rehearsal: Rehearsal, when: str = "") -> Finding:
    complaint = rehearsal.complaint
    if rehearsal.was_not_built:
        fix = "correct the path, the module or the options"
    elif " raised " in complaint:
        fix = "run it with these options outside Milepost to see the traceback; here it has a thread of its own"
    elif " did not return within " in complaint:
        fix = "let it return sooner; a run waits for actors.env_timeout_s"
    else:
        fix = "return what milepost.envs.contract describes"
    return Finding("error", when + complaint, fix)


def _spaces(rehearsal: Rehearsal) -> list[Finding]:
    if rehearsal.start is not None and rehearsal.start.tools:
        return [Finding("ok", f"it has the tools {', '.join(tool_names(rehearsal.start.tools))}")]
    wrong = [name for name, space in rehearsal.spaces.items() if not isinstance(space, gymnasium.spaces.Text)]
    if wrong:
        what = f"no gymnasium.spaces.Text in {' and '.join(wrong)}; a run gives and takes text all the same"
        return [Finding("warning", what, "set it in __init__, for instance Text(max_length=2000)")]
    return [Finding("ok", "both spaces are text")]


async def _garbage(task: Task, seen: Rehearsal) -> list[Finding]:
    """The replies no author thinks of."""
    tools = seen.start.tools if seen.start else ()
    for said in (*GARBAGE, *(mistaken_messages(tools) if tools else ())):
        rehearsal = await _played(task, [said])
        if rehearsal.complaint:
            text = said if isinstance(said, str) else action_of(said)
            what = f"the response {text[:40]!r} ({len(text)} characters): {rehearsal.complaint}"
            return [Finding("error", what, "treat any text as a turn: no change, info['action_valid'] = False")]
    return [Finding("ok", "empty, very long and odd responses are survived")]


def _determinism(seeds: Sequence[_Seed]) -> list[Finding]:
    fix = "draw all randomness from self.np_random, after super().reset(seed=seed)"
    for number, seed in enumerate(seeds):
        if _observations(seed.first)[0] != _observations(seed.again)[0]:
            return [Finding("error", f"reset(seed={number}) gives another observation the second time", fix)]
        turn = parting(seed.first, seed.again)
        if turn is not None:
            what = f"with seed {number} and the same responses, turn {turn} goes another way the second time"
            return [Finding("error", what, fix)]
    return [Finding("ok", "equal seeds and responses give equal episodes")]


def _luck(seeds: Sequence[_Seed]) -> list[Finding]:
    """The episodes of a task are to start alike and have luck of their own."""
    for number, seed in enumerate(seeds):
        starts = [_observations(rehearsal)[0] for rehearsal in seed.all]
        if starts[0] == starts[1] != starts[2]:
            what = f"reset(seed={number}) gives another observation in another episode of the task"
            fix = 'draw the start from seed alone; options["episode_seed"] is for what happens later'
            return [Finding("error", what, fix)]
    generators = sorted({name for seed in seeds for name in shared(seed.first.luck, seed.other.luck[0])})
    if generators:
        what = f"all episodes of a task share the luck of {', '.join(generators[:3])}: comparing them compares one draw"
        fix = 'draw from self.np_random in step(), or seed it in reset() with options["episode_seed"]'
        return [Finding("warning", what, fix)]
    if any(parting(seed.first, seed.other) is not None for seed in seeds):
        return [Finding("ok", "the episodes of a task start alike, and each has luck of its own")]
    return [Finding("ok", "the episodes of a task start alike, and no luck was seen afterwards")]


def _anchors(seeds: Sequence[_Seed]) -> list[Finding]:
    """Suspicions only: an observation need not show the whole state, and what a tool answers seldom does."""
    fix = "give info['anchor'] a key of the state alone: no step counter, no history, no clock, no id()"
    for rehearsal in (rehearsal for seed in seeds for rehearsal in seed.all):
        anchors: dict[str, str] = {}
        states = _states(rehearsal)
        for observation, anchor in states:
            of_tools = rehearsal.start is not None and rehearsal.start.tools
            if anchors.setdefault(observation, anchor) != anchor and not of_tools:
                pair = f"{anchors[observation][:60]!r} and {anchor[:60]!r}"
                return [Finding("warning", f"one observation has two anchors in one episode, {pair}", fix)]
        for turn, step in enumerate(rehearsal.steps):
            if step.action is None and step.anchor != states[turn][1]:
                return [Finding("warning", f"turn {turn} had no valid action, yet the anchor changed", fix)]
    for number, seed in enumerate(seeds):
        pairs = [*zip(_states(seed.first), _states(seed.again), strict=False)]
        pairs.append((_states(seed.again)[0], _states(seed.other)[0]))
        if any(a[0] == b[0] and a[1] != b[1] for a, b in pairs):
            return [Finding("warning", f"seed {number} played twice: equal observations, other anchors", fix)]
    return []


def _recurrence(groups: Sequence[Sequence[Rehearsal]]) -> list[Finding]:
    """Whether states are met again, as credit by state transition needs it."""
    found = recurrence([[rehearsal.anchors for rehearsal in group] for group in groups])
    if found.complaint is not None:
        return [Finding("warning", *found.complaint)]
    return [Finding("ok", f"anchors look like keys of states: {found.in_words}")]


def _states(rehearsal: Rehearsal) -> list[tuple[str, str]]:
    """(observation, anchor) at the start and after every step."""
    return [(seen.observation, seen.anchor) for seen in (rehearsal.start, *rehearsal.steps) if seen is not None]


def _observations(rehearsal: Rehearsal) -> list[str]:
    return [observation for observation, _ in _states(rehearsal)]


def _endings(seeds: Sequence[_Seed]) -> list[Finding]:
    last = [seed.first.steps[-1] for seed in seeds]
    ended = [step for step in last if step.terminated or step.truncated or step.success]
    if not ended:
        what = f"none of {len(seeds)} episodes ended within {MAX_TURNS} turns"
        return [Finding("warning", what, "return truncated=True after a number of turns of your choice")]
    if any(step.success is None for step in ended):
        what = (
            "an episode ended without info['success']: credit goes by returns, and an episode whose rewards add up to "
            "more than 0 counts as a success"
        )
        return [Finding("warning", what, "say whether the task was solved")]
    if not all(step.success_trains for step in ended):
        return [Finding("ok", "episodes end and say whether they succeeded, for people: credit goes by returns")]
    return [Finding("ok", "episodes end and say whether they succeeded: credit goes by that")]


def _texts(seeds: Sequence[_Seed]) -> list[Finding]:
    """What depends on a policy, which a check does not know: control tokens and the room for a first prompt."""
    longest = max(len(_observations(seed.first)[0]) for seed in seeds)
    if longest > _MOST_FIRST_CHARS:
        what = f"the first observation has {longest} characters, some {longest // 4} tokens: no room for a first prompt"
        return [Finding("error", what, "shorten it, for instance show the beginning and a way to read on")]
    texts = [text for seed in seeds for text in _observations(seed.first)]
    fix = "write it otherwise, for instance with spaces between its characters"
    kinds: tuple[tuple[Level, re.Pattern[str]], ...] = (("error", _CONTROL), ("warning", _LIKE_CONTROL))
    for level, pattern in kinds:
        found = next((match for text in texts if (match := pattern.search(text))), None)
        if found:
            what = f"an observation holds {found[0]!r}: where that is a control token of the policy, the episode fails"
            return [Finding(level, what, fix)]
    return [Finding("ok", "observations leave room and hold no control token that is known here")]


def _closing(rehearsals: Sequence[Rehearsal]) -> list[Finding]:
    for error in (rehearsal.close_error for rehearsal in rehearsals):
        if error is not None:
            fix = "let close() raise nothing"
            return [Finding("error", f"close() raised {type(error).__name__}: {error}", fix)]
    if not all(rehearsal.has_closed.is_set() for rehearsal in rehearsals):
        return [Finding("error", f"close() was not done within {_LIMITS.env_timeout_s:g} s", "let it return sooner")]
    return [Finding("ok", "it closes")]
