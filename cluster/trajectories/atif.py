"""A recorded episode as a document of ATIF v1.8, the trajectory format of Harbor, for other programs to read.

A turn becomes a step of the user, which holds what was shown since the last response, and one of the agent with ids and
log-probs as they were sampled. What the format has no field for stands in `extra`. Messages are the text of the token
ids: control tokens of the chat template stay in them, and nothing is taken out as reasoning or as a tool call.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import milepost
from milepost.cluster.trajectories.reader import Episode
from milepost.cluster.trajectories.recording import EVALUATION

SCHEMA: Final = "ATIF-v1.8"
_NOTES: Final = "Messages are the text of the token ids, control tokens of the chat template included."
_ABOUT_A_TURN: Final = (
    "anchor", "next_anchor", "reward", "progress", "tool", "credit", "step_credit", "compared", "advantage",
    "token_advantages", "trained", "versions", "generate_s", "env_s",
)  # fmt: skip


def document(episode: Episode, run_id: str) -> dict[str, Any]:
    """The document, ready for JSON; its root is `Trajectory` of harbor.models.trajectories."""
    row = episode.row
    steps = [step | {"step_id": number} for number, step in enumerate(_steps(episode.turns), start=1)]
    asked = [step["metrics"] for step in steps if "metrics" in step]
    return {
        "schema_version": SCHEMA,
        "session_id": run_id,
        "trajectory_id": f"{run_id}/{row['episode']}",
        "agent": {"name": "milepost", "version": milepost.__version__, "model_name": run_id},
        "steps": steps or [{"step_id": 1, "source": "system", "message": row["reason"]}],
        "notes": _NOTES,
        "final_metrics": {
            "total_prompt_tokens": sum(metrics["prompt_tokens"] for metrics in asked),
            "total_completion_tokens": sum(metrics["completion_tokens"] for metrics in asked),
            "total_steps": max(1, len(steps)),
            "extra": {name: row[name] for name in ("reward", "outcome", "success_reported")},
        },
        "extra": {"task_id": _task_id(row), "milepost": row | {"recorded_at": row["recorded_at"].isoformat()}},
    }


def _task_id(row: dict[str, Any]) -> str:
    """What the episodes that may be compared have in common: their group, or the task that was evaluated."""
    if row["group_id"] != EVALUATION:
        return str(row["group_id"])
    return " ".join(filter(None, (EVALUATION, row["env_name"], row["split"], str(row["seed"]))))


def _steps(turns: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    seen: list[int] = []
    for turn in turns:
        prompt = (seen if turn["continues"] else []) + turn["prompt_ids"]
        seen = prompt + turn["response_ids"]
        yield {"source": "user", "message": turn["prompt"]}
        if turn["response_ids"]:
            yield {
                "source": "agent",
                "message": turn["response"],
                "llm_call_count": 1,
                "metrics": {
                    "prompt_tokens": len(prompt),
                    "completion_tokens": len(turn["response_ids"]),
                    "prompt_token_ids": prompt,
                    "completion_token_ids": turn["response_ids"],
                    "logprobs": turn["logprobs"],
                },
                "extra": {name: turn[name] for name in _ABOUT_A_TURN if turn[name] is not None} | _action(turn),
            }


def _action(turn: dict[str, Any]) -> dict[str, Any]:
    """Of a turn that was played to its end: null where the response held no valid action."""
    return {} if turn["reward"] is None else {"action": turn["action"]}
