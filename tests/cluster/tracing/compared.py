"""What a collector was told of episodes, compared with what was recorded of them."""

from __future__ import annotations

from typing import Any

from tests.cluster.tracing.collector import Came

Row = dict[str, Any]


def every_episode_is_traced(spans: list[Came], run_id: str, episodes: list[Row], turns: list[Row]) -> None:
    """As one tree: the episode, below it its turns, below each the call of the model; with tokens and credit."""
    below: dict[str, list[Came]] = {}
    roots: dict[int, Came] = {}
    for span in spans:
        below.setdefault(span.parent_id, []).append(span)
    for root in below.pop(""):
        roots[root.attributes["milepost.episode"]] = root
    assert sorted(roots) == [row["episode"] for row in episodes]
    for row in episodes:
        root = roots[row["episode"]]
        told = root.attributes
        assert root.name == f"invoke_agent {row['env']}"
        assert (told["milepost.run"], told["milepost.group"]) == (run_id, row["group_id"])
        assert (told["milepost.fate"], told.get("milepost.credit")) == (row["fate"], row["trajectory_credit"])
        assert [each["gen_ai.evaluation.score.value"] for each in root.evaluations] == [
            row["reward"], row["outcome"] == "success",
        ]  # fmt: skip
        own = sorted(below.pop(root.span_id), key=lambda span: span.attributes["agent.trajectory.step"])
        assert len(own) == row["num_turns"]
        sampled = 0
        for turn, turn_row in zip(own, [each for each in turns if each["episode"] == row["episode"]], strict=True):
            assert turn.trace_id == root.trace_id
            assert root.start <= turn.start <= turn.end <= root.end
            [chat] = below.pop(turn.span_id)
            one_turn_is_told(turn, turn_row, chat)
            sampled += chat.attributes["gen_ai.usage.output_tokens"]
        assert sampled == row["num_tokens"]
    assert not below, "spans without a parent"


def one_turn_is_told(turn: Came, row: Row, chat: Came) -> None:
    assert turn.attributes["milepost.anchor"] == row["anchor"]
    assert turn.attributes.get("milepost.advantage") == row["advantage"]
    assert turn.attributes["milepost.policy_version"] == max(span["version"] for span in row["versions"])
    assert chat.attributes["gen_ai.operation.name"] == "chat"
    assert chat.attributes["gen_ai.usage.output_tokens"] == len(row["response_ids"])
    assert (chat.start, chat.attributes["openinference.span.kind"]) == (turn.start, "LLM")
    assert abs((chat.end - chat.start) / 1e9 - row["generate_s"]) < 1e-5
    assert chat.attributes["output.value"] == row["response"][:40]
