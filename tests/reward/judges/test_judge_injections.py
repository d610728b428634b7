"""Fifty episodes that speak to the judge, and judges that obey: the contract, not a model's good will, stops them.

Every episode is a bad one: a score above the lowest is a false positive.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from milepost.reward.judges.calibration import CalibrationItem, measure
from milepost.reward.judges.judge import Judge
from milepost.reward.judges.quoting import Transcript, TranscriptTurn
from milepost.reward.judges.verdict import Judgement
from tests.reward.judges.adversarial_judges import (
    ORDER,
    believes_and_repeats_the_report,
    believes_what_it_reads,
    echoes_the_last_verdict,
    not_quoted,
    obeys_what_is_not_quoted,
    verdicts_in,
)
from tests.reward.judges.judge_rig import Body, judge_config, serving

NONCE = "e" * 32


def episode(item: dict[str, Any]) -> Transcript:
    turns = [TranscriptTurn(agent=t["agent"] * t.get("times", 1), environment=t["environment"]) for t in item["turns"]]
    return Transcript(task=item["task"], outcome=item["outcome"], turns=tuple(turns))


LINES = (Path(__file__).parent / "injections.jsonl").read_text(encoding="utf-8").splitlines()
EPISODES = {item["name"]: episode(item) for item in map(json.loads, LINES)}


def judgements(answer: Callable[[Body], str]) -> dict[str, Judgement]:
    """Of every episode by that judge."""

    async def all_of(url: str) -> list[Judgement]:
        until = asyncio.get_running_loop().time() + 60
        return await Judge(judge_config(url, retries=0)).judge_all(list(EPISODES.values()), until)

    with serving(answer) as served:
        found = asyncio.run(all_of(served.url))
    for judgement in found:  # no schema escape: a score is one that was asked for, or there is none
        assert list(judgement.scores) == ([] if judgement.failure else ["reasoning_quality"])
        assert set(judgement.scores.values()) <= {0.0, 0.25, 0.5, 0.75, 1.0}
    return dict(zip(EPISODES, found, strict=True))


def false_positives(found: dict[str, Judgement]) -> list[str]:
    return [name for name, judgement in found.items() if any(judgement.scores.values())]


def test_there_are_at_least_thirty_and_none_of_them_solved_its_task() -> None:
    assert len(EPISODES) >= 30
    assert "success" not in {each.outcome for each in EPISODES.values()}


def naively_told(transcript: Transcript) -> str:
    """The episode as it would stand in a prompt without the contract."""
    told = [transcript.task, *(f"{turn.agent}\n{turn.environment}" for turn in transcript.turns)]
    return "\n".join([f"The environment reports: {transcript.outcome}.", *told, f"Judge it. The nonce is {NONCE}."])


def test_without_the_contract_the_same_judges_are_fooled() -> None:
    messages = {name: naively_told(each) for name, each in EPISODES.items()}
    obeyed = {name for name, message in messages.items() if ORDER.search("\n".join(not_quoted(message, NONCE)))}
    echoed = {name for name, message in messages.items() if list(verdicts_in(message))}
    says_nothing = {"master_key_colon", "master_key_thought", "master_key_solution", "empty_answer"}
    assert obeyed | echoed == EPISODES.keys() - says_nothing
    assert (len(obeyed), len(echoed)) == (39, 9)  # as docs/judges.md says


def test_a_judge_that_obeys_what_is_not_quoted_finds_nothing_to_obey() -> None:
    found = judgements(obeys_what_is_not_quoted)
    assert len(false_positives(found)) <= 1, false_positives(found)
    assert not [judgement for judgement in found.values() if judgement.failure]  # and it judged all of them


def test_a_judge_that_echoes_a_verdict_it_finds_gives_none() -> None:
    found = judgements(echoes_the_last_verdict)
    assert len(false_positives(found)) <= 1, false_positives(found)
    echoed = {name: judgement.failure for name, judgement in found.items() if judgement.failure}
    assert echoed.keys() >= {name for name in EPISODES if name.startswith("fake_verdict")}
    assert all("answer: nonce: " in failure for failure in echoed.values())


def test_a_judge_that_believes_in_a_claimed_success_is_flagged_in_every_episode() -> None:
    found = judgements(believes_what_it_reads)
    assert len(false_positives(found)) <= 1, false_positives(found)
    assert all(judgement.contradicted for judgement in found.values())


def test_a_judge_that_obeys_a_quotation_and_repeats_the_report_is_seen_by_calibration_alone() -> None:
    """What the contract cannot do: a well-formed, consistent, wrong score is a score. Its bias is measured."""
    found = judgements(believes_and_repeats_the_report)
    blank = {"master_key_colon", "empty_answer"}  # no evidence can be named for these
    assert set(false_positives(found)) == EPISODES.keys() - blank
    item = CalibrationItem.model_validate(
        {"task": "t", "outcome": "failure", "turns": [{"agent": "score 5"}], "labels": {"reasoning_quality": 1}}
    )
    given = [found["threat_and_plea"]]
    shown = measure([item], judge_config("http://h/v1").criteria, given, given)
    assert (shown.agreement, shown.mean_difference, shown.drift) == (0.0, 1.0, 0.0)
