"""Which agents the scores tell apart: the trainer-native ones all, the lexical ones are fooled, as the docs say."""

from __future__ import annotations

import datetime
from pathlib import Path

import msgspec
import pytest

from milepost.actors.checks.check import check_env
from milepost.cluster.evaluation.episodes import judged, without_texts
from milepost.cluster.evaluation.reference import reference_of
from milepost.cluster.evaluation.suite import load
from milepost.reward.evaluators.lexical import lexical_scores
from milepost.reward.evaluators.native import NativeScores, native_scores
from tests.cluster.evaluation.scripted_agents import played

ROOT = Path(__file__).resolve().parents[3]
SCENARIO = load(ROOT / "examples" / "refund_desk.toml", today=datetime.date(2026, 11, 27)).scenarios[1]
GROUP = [
    ("sound", 0),
    ("sound", 1),
    ("idle", 0),
    *(("lucky", luck) for luck in range(8)),
    ("looping", 0),
    ("rule breaker", 0),
]
SHOWN = {"sound": 0, "idle": 0, "lucky": 3, "looping": 0, "rule breaker": 0}
"""The luck of the episode that is shown: of the lucky agent's eight, the one that it won."""
COLUMNS = (
    ("success", "goal_progress", "step_efficiency", "tool_selection", "safety", "trajectory_score"),
    ("task_completion", "goal_progress", "step_efficiency", "tool_selection", "action_safety", "reasoning_quality",
     "trajectory_score"),
)  # fmt: skip


def scores() -> dict[str, tuple[NativeScores, dict[str, float]]]:
    """Of each agent's episode, judged by those of all."""
    episodes = {who: judged(played(who[0], seed=SCENARIO.seed, luck=who[1])) for who in GROUP}
    reference = reference_of(list(episodes.values()), SCENARIO.expected)
    shown = {agent: episodes[agent, luck] for agent, luck in SHOWN.items()}
    return {
        agent: (native_scores(episode, reference, SCENARIO.expected), lexical_scores(episode, SCENARIO.expected))
        for agent, episode in shown.items()
    }


@pytest.fixture(scope="module")
def found() -> dict[str, tuple[NativeScores, dict[str, float]]]:
    return scores()


def test_the_desk_keeps_the_contract() -> None:
    assert {finding.level for finding in check_env("examples.refund_desk:RefundDesk").findings} == {"ok"}


def test_the_agents_do_what_their_names_say() -> None:
    outcomes = {(agent, luck): judged(played(agent, luck=luck)).outcome for agent, luck in GROUP}
    assert {who for who, outcome in outcomes.items() if outcome == "success"} == {
        ("sound", 0), ("sound", 1), ("lucky", 3), ("rule breaker", 0),
    }  # fmt: skip
    broke = [step.violations for step in judged(played("rule breaker")).steps]
    assert broke == [(), ("refund without the policy",), ()]


def test_the_trainer_native_scores_tell_each_of_four_agents_from_a_sound_one(found) -> None:
    sound = found["sound"][0]
    natives = {agent: native for agent, (native, _) in found.items()}
    assert all(
        native.trajectory_score < sound.trajectory_score for agent, native in natives.items() if agent != "sound"
    )
    assert (natives["idle"].success, natives["idle"].step_efficiency, natives["idle"].goal_progress) == (0, 0, 0)
    assert (natives["looping"].success, natives["looping"].step_efficiency) == (0, 0)
    # what the lucky one did worked, and mostly does not; what the other did worked, and is against a rule
    assert (natives["lucky"].success, natives["rule breaker"].success) == (1, 1)
    assert (natives["lucky"].tool_selection or 0) < (sound.tool_selection or 0) == 1
    assert (natives["lucky"].safety, natives["rule breaker"].safety, sound.safety) == (1, 0, 1)


def test_the_lexical_scores_are_fooled(found) -> None:
    sound = found["sound"][1]
    others = {agent: lexical for agent, (_, lexical) in found.items() if agent != "sound"}
    assert others["idle"]["trajectory_score"] == sound["trajectory_score"]  # it only said that it had done it
    assert all(lexical["task_completion"] == sound["task_completion"] for lexical in others.values())
    assert all(lexical["goal_progress"] > sound["goal_progress"] for lexical in others.values())
    assert all(lexical["reasoning_quality"] > sound["reasoning_quality"] for lexical in others.values())
    assert others["rule breaker"]["action_safety"] == 1


def test_texts_are_not_needed_for_the_trainer_native_scores(found) -> None:
    bare = {who: without_texts(judged(played(who[0], seed=SCENARIO.seed, luck=who[1]))) for who in GROUP}
    reference = reference_of(list(bare.values()), SCENARIO.expected)
    again = {agent: native_scores(bare[agent, luck], reference, SCENARIO.expected) for agent, luck in SHOWN.items()}
    for agent, (native, _) in found.items():
        assert msgspec.structs.asdict(again[agent]) == pytest.approx(msgspec.structs.asdict(native))
    assert "refund" not in "".join(step.action or "" for episode in bare.values() for step in episode.steps)


def tables() -> str:
    """What docs/evaluation.md shows of them."""
    blocks = []
    for kind, columns in enumerate(COLUMNS):
        rows = [["agent", *(column.replace("_", " ") for column in columns)], ["---"] * (len(columns) + 1)]
        for agent, told in scores().items():
            values = [(msgspec.structs.asdict(told[0]), told[1])[kind][column] for column in columns]
            rows.append([agent, *("-" if value is None else f"{value:.2f}" for value in values)])
        title = ("Trainer-native:", "Lexical:")[kind]
        blocks.append("\n".join([title, "", *(f"| {' | '.join(row)} |" for row in rows)]))
    return "\n\n".join(blocks)


def test_the_docs_show_these_very_numbers() -> None:
    docs = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert docs.partition("<!-- agents:begin -->\n")[2].partition("\n<!-- agents:end -->")[0] == tables(), tables()
