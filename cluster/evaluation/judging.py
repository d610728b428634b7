"""A judge asked about episodes that were played: its scores beside the others in the results, never among them.

It reads the stored trajectories after the results are written, so a judge that fails costs no episode. The scores of
the environment and those made from them stay as they are.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from milepost.cluster.base.exits import ConfigError, DependencyLost
from milepost.cluster.evaluation import store
from milepost.cluster.evaluation.episodes import judged
from milepost.cluster.evaluation.results import JudgedBy, Results, ScenarioPlayed, in_buckets
from milepost.cluster.runlog.saved_policy import digest
from milepost.cluster.trajectories.reader import Wanted, read
from milepost.reward.evaluators.buckets import Mean, means
from milepost.reward.evaluators.episode import Episode
from milepost.reward.judges.calibration import CalibrationItem, drifted, load_items, measure, unfit
from milepost.reward.judges.config import JudgeConfig, JudgeRefused, load_config
from milepost.reward.judges.identity import JudgeAway, family_of, model_type, verify
from milepost.reward.judges.judge import Judge
from milepost.reward.judges.prompt import prompt_sha256
from milepost.reward.judges.quoting import Transcript, TranscriptTurn
from milepost.reward.judges.verdict import Judgement

_ALL: Final = Wanted(episode=None, fate=None, task=None, worst=False, count=2**62)
_MADE_HERE: Final = "llama"
"""Model type of the small model that warm-up makes, and of SmolLM2."""
Judgements = Mapping[int, Judgement]
OpenedJudge = tuple[Judge, list[CalibrationItem]]
"""A judge that was verified, and its calibration episodes."""


def open_judge(file: Path, policy: Path) -> OpenedJudge:
    """The judge of a TOML file for the policy of a folder.

    Raises ConfigError where it is refused, DependencyLost where its server does not answer.
    """
    try:
        config = load_config(file)
        items = load_items(config)
    except JudgeRefused as error:
        raise ConfigError(str(error)) from error
    require_judge(config, policy)
    return Judge(config), items


def require_judge(config: JudgeConfig, policy: Path | None) -> None:
    """Verify the judge of the policy in a folder; None stands for one that is made here. Raises as `open_judge`."""
    try:
        asyncio.run(verify(config, _MADE_HERE if policy is None else model_type(policy), digest))
    except JudgeRefused as error:
        raise ConfigError(str(error)) from error
    except JudgeAway as error:
        raise DependencyLost(str(error)) from error


def add_judgements(path: Path, judge: Judge, items: list[CalibrationItem]) -> Results:
    """Judge the episodes beside the results at `path`, and write these again with the scores.

    Raises, with the results as they were: DependencyLost where no episode could be judged, or where the scores may not
    decide a promotion and the judge is to be of promotion grade; ConfigError where its server serves another model.
    """
    results = store.read(path)
    recorded = {row.row["index"]: transcript_of(judged(row)) for row in read(path.parent / "trajectories", _ALL)}
    try:
        found, calibrations = asyncio.run(_asked(judge, recorded, [item.transcript for item in items]))
    except JudgeRefused as error:
        raise ConfigError(f"{error}; results without judged scores: {path}") from error
    failed = [judgement.failure for judgement in found.values() if judgement.failure]
    if len(failed) == len(found):
        raise DependencyLost(_without(judge, f"judged none of {len(found)} episodes; the first: {failed[0]}", path))
    measured = measure(items, judge.config.criteria, *calibrations) if items else None
    reasons = unfit(judge.config, measured, len(failed))
    if reasons and judge.config.promotion_grade:
        raise DependencyLost(_without(judge, f"is not of promotion grade: {'; '.join(reasons)}", path))
    if drifted(judge.config, measured):
        print(f"milepost: WARNING: do not rely on judge {judge.config.name}: {'; '.join(reasons)}", file=sys.stderr)
    told = JudgedBy(
        name=judge.config.name,
        model=judge.config.model,
        family=family_of(judge.config),
        weights_digest=judge.config.weights_digest,
        prompt_sha256=prompt_sha256(judge.config),
        calibration=measured,
        unfit=reasons,
    )
    return store.read(store.write(_with(results, told, found), path.parent))


def transcript_of(episode: Episode) -> Transcript:
    """An episode as a judge is shown it."""
    turns = tuple(
        TranscriptTurn(agent=step.response, environment=step.observation, broken_rules=step.violations)
        for step in episode.steps
    )
    return Transcript(task=episode.task, outcome=episode.outcome, turns=turns)


async def _asked(
    judge: Judge, recorded: Mapping[int, Transcript], calibration: list[Transcript]
) -> tuple[Judgements, tuple[list[Judgement], list[Judgement]]]:
    """Judgements of the episodes by their index, and those of the calibration before and after them."""
    until = asyncio.get_running_loop().time() + judge.config.total_s
    before = await judge.judge_all(calibration, until)
    found = await judge.judge_all(list(recorded.values()), until)
    after = await judge.judge_all(calibration, until)
    return dict(zip(recorded, found, strict=True)), (before, after)


def _with(results: Results, judge: JudgedBy, found: Judgements) -> Results:
    size = len(results.scenarios)

    def judged_too(place: int, scenario: ScenarioPlayed) -> ScenarioPlayed:
        episodes = [
            msgspec.structs.replace(played, judged=found.get(played.number * size + place))
            for played in scenario.episodes
        ]
        return msgspec.structs.replace(scenario, episodes=episodes)

    scenarios = [judged_too(place, scenario) for place, scenario in enumerate(results.scenarios)]
    buckets = {
        name: msgspec.structs.replace(results.buckets[name], judged=_means(members))
        for name, members in in_buckets(scenarios).items()
        if name in results.buckets
    }
    return msgspec.structs.replace(results, scenarios=scenarios, judge=judge, buckets=buckets)


def _means(scenarios: list[ScenarioPlayed]) -> dict[str, Mean]:
    return means([p.judged.scores for scenario in scenarios for p in scenario.episodes if p.judged is not None])


def _without(judge: Judge, what: str, path: Path) -> str:
    return f"judge {judge.config.name} {what}; results without judged scores: {path}"
