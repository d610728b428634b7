"""`check_env`: an environment's contract as something its author runs before a training does.

It plays a few short episodes: with the environment's own demonstrations where it has them, else with actions it says
are admissible, else with text sampled from its action space. Not promised: that an environment which passes is solvable
or honest. It does not bound time either: one that hangs, hangs the check.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, Literal

import gymnasium
import msgspec

from milepost.envs.contract import (
    ContractError,
    Demonstrator,
    EnvPathError,
    Reset,
    Step,
    build_env,
    observe_reset,
    observe_step,
)

MAX_TURNS = 50
GARBAGE = ("", "x" * 10_000, "\N{SNOWMAN}\u202e\x00 <answer></answer> {}[]\\n\U0001f9ca")

Level = Literal["error", "warning", "ok"]


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    level: Level
    what: str
    fix: str = ""
    """What the author should do; empty if all is well."""


class _Episode(msgspec.Struct):
    start: Reset
    responses: list[str]
    steps: list[Step]

    @property
    def states(self) -> list[tuple[str, str]]:
        """(observation, anchor) at the start and after every step."""
        return [(self.start.observation, self.start.anchor)] + [(s.observation, s.anchor) for s in self.steps]

    @property
    def ended(self) -> bool:
        return bool(self.steps) and (self.steps[-1].terminated or self.steps[-1].truncated)


def check_env(
    path_or_class: str | type[Any], options: Mapping[str, object] | None = None, *, episodes: int = 3
) -> list[Finding]:
    """What is right and wrong with an environment, seen in `episodes` >= 1 seeds played twice; errors come first."""
    try:
        env = build_env(path_or_class, options or {})
        twin = build_env(path_or_class, options or {})
    except EnvPathError as error:
        return [Finding("error", str(error), "correct the path, the module or the options")]
    findings = [Finding("ok", "it loads and can be built twice"), *_spaces(env)]
    if findings[-1].level == "error":
        return [findings[-1], findings[0]]
    try:
        played = [_play(env, seed) for seed in range(episodes)]
        replayed = [_replay(twin, seed, episode.responses) for seed, episode in enumerate(played)]
        findings += [Finding("ok", f"{episodes} seeds, played twice, keep the contract"), *_garbage(env)]
        findings += _determinism(played, replayed) + _anchors(played + replayed) + _endings(played)
    except ContractError as error:
        findings.append(Finding("error", str(error), "return what milepost.envs.contract describes"))
    except Exception as error:  # a user's environment may raise anything
        findings.append(_raised("an episode", error))
    findings += _closing(env, twin)
    order: tuple[Level, ...] = ("error", "warning", "ok")
    return sorted(findings, key=lambda finding: order.index(finding.level))


def _play(env: Any, seed: int) -> _Episode:
    rng = random.Random(seed)
    env.action_space.seed(seed)
    returned = env.reset(seed=seed)
    episode = _Episode(observe_reset(returned), [], [])
    while not episode.ended and len(episode.steps) < MAX_TURNS:
        admissible = returned[-1].get("admissible_actions")
        if isinstance(env, Demonstrator):
            response = env.demonstration(rng, 0.5)
        else:
            response = rng.choice(admissible) if admissible else str(env.action_space.sample())
        returned = env.step(response)
        episode.responses.append(response)
        episode.steps.append(observe_step(returned, response))
    return episode


def _replay(env: Any, seed: int, responses: list[str]) -> _Episode:
    start = observe_reset(env.reset(seed=seed))
    return _Episode(start, responses, [observe_step(env.step(response), response) for response in responses])


def _spaces(env: Any) -> list[Finding]:
    names = ("observation_space", "action_space")
    wrong = [name for name in names if not isinstance(getattr(env, name, None), gymnasium.spaces.Text)]
    if wrong:
        what = f"no gymnasium.spaces.Text in {' and '.join(wrong)}"
        return [Finding("error", what, "set it in __init__, for instance Text(max_length=2000)")]
    return [Finding("ok", "both spaces are text")]


def _determinism(played: list[_Episode], replayed: list[_Episode]) -> list[Finding]:
    fix = "draw all randomness from self.np_random, after super().reset(seed=seed)"
    for seed, (one, two) in enumerate(zip(played, replayed, strict=True)):
        if one.start.observation != two.start.observation:
            return [Finding("error", f"reset(seed={seed}) gives another observation the second time", fix)]
        for turn, (a, b) in enumerate(zip(one.steps, two.steps, strict=True)):
            if msgspec.structs.replace(a, anchor="") != msgspec.structs.replace(b, anchor=""):
                what = f"with seed {seed} and the same responses, turn {turn} goes another way the second time"
                return [Finding("error", what, fix)]
    return [Finding("ok", "equal seeds and responses give equal episodes")]


def _anchors(episodes: list[_Episode]) -> list[Finding]:
    """Suspicions only: an observation need not show the whole state."""
    fix = "give info['anchor'] a key of the state alone: no step counter, no history, no clock, no id()"
    for episode in episodes:
        anchors: dict[str, str] = {}
        for observation, anchor in episode.states:
            if anchors.setdefault(observation, anchor) != anchor:
                pair = f"{anchors[observation][:60]!r} and {anchor[:60]!r}"
                return [Finding("warning", f"one observation has two anchors in one episode, {pair}", fix)]
        for turn, step in enumerate(episode.steps):
            if step.action is None and step.anchor != episode.states[turn][1]:
                return [Finding("warning", f"turn {turn} had no valid action, yet the anchor changed", fix)]
    halves = zip(episodes[: len(episodes) // 2], episodes[len(episodes) // 2 :], strict=True)
    for seed, (one, two) in enumerate(halves):
        pairs = zip(one.states, two.states, strict=True)
        if any(a[0] == b[0] and a[1] != b[1] for a, b in pairs):
            return [Finding("warning", f"seed {seed} played twice: equal observations, other anchors", fix)]
    return [Finding("ok", "anchors look like keys of states")]


def _endings(played: list[_Episode]) -> list[Finding]:
    ended = [episode for episode in played if episode.ended]
    if not ended:
        what = f"none of {len(played)} episodes ended within {MAX_TURNS} turns"
        return [Finding("warning", what, "return truncated=True after a number of turns of your choice")]
    if any(episode.steps[-1].success is None for episode in ended):
        return [Finding("warning", "an episode ended without info['success']", "say whether the task was solved")]
    return [Finding("ok", "episodes end and say whether they succeeded")]


def _garbage(env: Any) -> list[Finding]:
    """The replies no author thinks of. Called after the episodes, so what raises here raises because of the text."""
    for text in GARBAGE:
        try:
            observe_reset(env.reset(seed=0))
            observe_step(env.step(text), text)
        except Exception as error:  # a user's environment may raise anything
            return [_raised(f"the response {text[:20]!r} ({len(text)} characters)", error)]
    return [Finding("ok", "empty, very long and odd responses are survived")]


def _closing(*envs: Any) -> list[Finding]:
    for env in envs:
        try:
            env.close()
        except Exception as error:  # a user's environment may raise anything
            return [_raised("close()", error)]
    return [Finding("ok", "it closes")]


def _raised(what: str, error: Exception) -> Finding:
    fix = "treat any text as a turn: no change, info['action_valid'] = False"
    if not what.startswith("the response"):
        fix = "run it with these options outside Milepost to see the traceback"
    return Finding("error", f"{what} raised {type(error).__name__}: {error}", fix)
