"""What a policy did on a suite, as one JSON file: who played what, every episode by its states, scores and tables.

The texts of the episodes lie in the Parquet files beside it. Names of states, actions and arguments are kept as
digests: enough to score the episodes again beside another policy's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.evaluation.episodes import judged, without_texts
from milepost.cluster.evaluation.reference import reference_of
from milepost.cluster.evaluation.suite import Scenario, Suite
from milepost.cluster.trajectories.reader import Episode as Recorded
from milepost.envs.types import Trajectory
from milepost.reward.evaluators.buckets import Bucket, Scored, StepBucket, bucket, by_step
from milepost.reward.evaluators.episode import Episode, Expected
from milepost.reward.evaluators.lexical import lexical_scores
from milepost.reward.evaluators.native import NativeScores, native_scores
from milepost.reward.evaluators.signals import Prices
from milepost.reward.judges.calibration import Calibration
from milepost.reward.judges.verdict import Judgement

ALL = "all"


class SuiteTold(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which suite."""

    name: str
    created: str
    sha256: str


class PolicyTold(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which policy, and how it was sampled."""

    source: str
    """The run, or the model folder."""
    version: int
    sha256: str
    temperature: float
    max_tokens: int
    max_turns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayedSuite:
    """What an engine made of a suite."""

    policy: PolicyTold
    trajectories: list[Trajectory]
    """By their index as `tasks_in` numbers them."""
    failed: dict[str, str]
    seconds: float


class JudgedBy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which judge, and what is known of it."""

    name: str
    model: str
    family: str
    weights_digest: str
    prompt_sha256: str
    calibration: Calibration | None
    """None without calibration episodes."""
    unfit: list[str]
    """Why its scores may not decide a promotion; empty where they may."""


class Played(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One episode of a scenario."""

    number: int
    """From 0; equal numbers of two results share the luck that the environment draws after the start."""
    episode: Episode
    native: NativeScores
    lexical: dict[str, float]
    judged: Judgement | None = None
    """Of the judge, where one was asked."""


class ScenarioPlayed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One scenario, and its episodes that came to an end."""

    name: str
    env: str
    cohort: str
    expected: Expected
    episodes: list[Played]


class Results(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    format: Literal[1] = 1
    suite: SuiteTold
    policy: PolicyTold
    scenarios: list[ScenarioPlayed]
    failed: dict[str, str]
    """Scenarios that could not be played, with the reason."""
    judge: JudgedBy | None = None
    prices: Prices | None
    buckets: dict[str, Bucket]
    """Of all episodes, of every cohort, and of every environment where there are several."""
    steps: list[StepBucket]
    seconds: float


def scenario_played(scenario: Scenario, recorded: Mapping[int, Recorded]) -> ScenarioPlayed:
    """A scenario with its recorded episodes by number, scored. Raises ConfigError for a broken chain of states."""
    expected, played = scenario.expected, []
    episodes = {number: judged(found) for number, found in sorted(recorded.items())}
    if episodes:
        try:
            reference = reference_of(list(episodes.values()), expected)
        except ValueError as error:
            raise ConfigError(f"scenario {scenario.name}: {error}") from error
        played = [
            Played(
                number=number,
                episode=without_texts(episode),
                native=native_scores(episode, reference, expected),
                lexical=lexical_scores(episode, expected),
            )
            for number, episode in episodes.items()
        ]
    return ScenarioPlayed(
        name=scenario.name, env=scenario.env, cohort=scenario.cohort, expected=expected, episodes=played
    )


def results_of(suite: Suite, found: PlayedSuite, recorded: Sequence[Recorded], prices: Prices | None) -> Results:
    """The results of what was played, whose episodes were `recorded` in their order.

    Raises ConfigError where the states of an episode make no chain.
    """
    size = len(suite.scenarios)
    numbered = {t.index: row for t, row in zip(found.trajectories, recorded, strict=True)}
    scenarios = [
        scenario_played(scenario, {n // size: row for n, row in numbered.items() if n % size == place})
        for place, scenario in enumerate(suite.scenarios)
    ]
    scored = {scenario.name: _scored(scenario) for scenario in scenarios}
    buckets = {
        name: [each for s in members for each in scored[s.name]] for name, members in in_buckets(scenarios).items()
    }
    return Results(
        suite=SuiteTold(name=suite.name, created=suite.created.isoformat(), sha256=suite.sha256),
        policy=found.policy,
        scenarios=scenarios,
        failed=found.failed,
        prices=prices,
        buckets={name: bucket(members, prices) for name, members in buckets.items() if members},
        steps=by_step(buckets[ALL]),
        seconds=found.seconds,
    )


def in_buckets(scenarios: Sequence[ScenarioPlayed]) -> dict[str, list[ScenarioPlayed]]:
    """All scenarios, those of each cohort, and those of each environment where there are several."""
    buckets = {ALL: list(scenarios)}
    for cohort in sorted({scenario.cohort for scenario in scenarios} - {""}):
        buckets[f"cohort {cohort}"] = [scenario for scenario in scenarios if scenario.cohort == cohort]
    envs = sorted({scenario.env for scenario in scenarios})
    for env in envs if len(envs) > 1 else []:
        buckets[f"env {env}"] = [scenario for scenario in scenarios if scenario.env == env]
    return buckets


def _scored(scenario: ScenarioPlayed) -> list[Scored]:
    if not scenario.episodes:
        return []
    reference = reference_of([played.episode for played in scenario.episodes], scenario.expected)
    return [
        Scored(played.episode, reference, scenario.expected, played.native, played.lexical)
        for played in scenario.episodes
    ]


def as_json(results: Results) -> dict[str, Any]:
    """What `milepost eval --suite --json` prints: all but the episodes."""
    told: dict[str, Any] = msgspec.to_builtins(results)
    del told["scenarios"]
    return told
