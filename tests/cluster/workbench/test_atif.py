"""Trajectories in ATIF, of other tools and of ours: which groups and turns they are, and what is said of a bad one."""

import json
from pathlib import Path
from typing import Any

import pytest

from milepost.actors.agents.lineages import state_key
from milepost.cluster.workbench.atif_groups import MalformedDocument, Unfinished, read
from milepost.learner.credit.assignment import CreditGroup, CreditTrajectory
from milepost.learner.credit.interchange import Numbered

Json = dict[str, Any]


def key(*said: tuple[str, str]) -> str:
    """The state after these messages, as an agent program of a run would get it."""
    return state_key([{"role": role, "content": content} for role, content in said])


def call(name: str, number: int = 1, **arguments: object) -> Json:
    return {"tool_call_id": f"c{number}", "function_name": name, "arguments": arguments}


def result(content: str, number: int | None = 1) -> Json:
    return {"content": content} | ({} if number is None else {"source_call_id": f"c{number}"})


def agent(message: str = "", *calls: Json, results: list[Json] | None = None, **more: Any) -> Json:
    observed = {} if results is None else {"observation": {"results": results}}
    return {"source": "agent", "message": message} | ({"tool_calls": list(calls)} if calls else {}) | observed | more


def document(*steps: Json, reward: float | None = 1.0, **more: Any) -> Json:
    """With as little as the format allows."""
    numbered = [{"step_id": k} | step for k, step in enumerate(steps, start=1)]
    final = {} if reward is None else {"final_metrics": {"extra": {"reward": reward}}}
    return {"schema_version": "ATIF-v1.8", "agent": {"name": "a", "version": "1"}, "steps": numbered} | final | more


ASKED = {"source": "user", "message": "How many rows?"}
PLAIN = document(ASKED, agent("", call("count"), results=[result("3")]), agent("Three."))


def write(path: Path, *documents: Json) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(each) + "\n" for each in documents))
    else:
        path.write_text(json.dumps(documents[0], indent=2))
    return path


def groups(path: Path) -> list[CreditGroup]:
    found = list(read(path))
    assert [str(each) for each in found if not isinstance(each, Numbered)] == []
    return [each.group for each in found if isinstance(each, Numbered)]


def only(path: Path) -> CreditTrajectory:
    [group] = groups(path)
    [trajectory] = group.trajectories
    return trajectory


def walk(trajectory: CreditTrajectory) -> list[tuple[str, str, float]]:
    return [(turn.anchor, turn.action, turn.reward) for turn in trajectory.turns]


def test_a_document_with_the_least_that_is_allowed_is_a_trajectory(tmp_path: Path) -> None:
    found = only(write(tmp_path / "t.json", PLAIN))
    assert walk(found) == [
        (key(("user", "How many rows?")), "count {}", 0.0),
        (key(("tool", "3")), "Three.", 1.0),
    ]
    assert (found.outcome, found.success_reported) == ("success", False)
    assert [turn.num_tokens for turn in found.turns] == [1, 1]


def test_parallel_calls_are_one_action_and_their_results_one_state_in_whatever_order_they_came(tmp_path: Path) -> None:
    calls = (call("read", 1, path="a"), call("read", 2, path="b"))
    for name, results in (("1", [result("A", 1), result("B", 2)]), ("2", [result("B", 2), result("A", 1)])):
        write(tmp_path / f"{name}.json", document(ASKED, agent("", *calls, results=results), agent("Done.")))
    [group] = groups(tmp_path)
    first, second = (walk(each) for each in group.trajectories)
    assert first == second
    assert first[0][1] == 'read {"path": "a"}\nread {"path": "b"}'
    assert first[1][0] == key(("tool", "A"), ("tool", "B"))


def test_the_turns_of_sub_agents_follow_the_step_that_asked_for_them_in_the_document_or_in_a_file(
    tmp_path: Path,
) -> None:
    def helper(**more: Any) -> Json:
        return document({"source": "user", "message": "Look."}, agent("Found it."), reward=None, **more)

    write(tmp_path / "helper.json", helper())
    refs = [{"trajectory_id": "h"}], [{"trajectory_path": "helper.json", "session_id": "s"}]
    steps = [agent("", call("ask"), results=[result("It is 3.") | {"subagent_trajectory_ref": ref}]) for ref in refs]
    write(
        tmp_path / "main.json",
        document(ASKED, *steps, agent("3."), subagent_trajectories=[helper(trajectory_id="h")]),
    )
    looked, answered = key(("user", "Look.")), key(("tool", "It is 3."))
    assert walk(only(tmp_path)) == [
        (key(("user", "How many rows?")), "ask {}", 0.0),
        (looked, "Found it.", 0.0),
        (answered, "ask {}", 0.0),
        (looked, "Found it.", 0.0),
        (answered, "3.", 1.0),
    ]


def test_a_continued_trajectory_goes_on_in_the_next_file_without_what_was_copied(tmp_path: Path) -> None:
    write(
        tmp_path / "t.json",
        document(
            ASKED, agent("", call("count"), results=[result("3")]), reward=None, continued_trajectory_ref="t.1.json"
        ),
    )
    copied = agent("", call("count"), results=[result("3")], is_copied_context=True)
    write(tmp_path / "t.1.json", document(copied, {"source": "user", "message": "Go on."}, agent("3.")))
    assert walk(only(tmp_path)) == [
        (key(("user", "How many rows?")), "count {}", 0.0),
        (key(("tool", "3")), "3.", 1.0),
    ]


def test_a_step_without_a_model_is_no_turn_and_its_result_is_seen_by_the_next(tmp_path: Path) -> None:
    fixed = agent("", call("ls"), results=[result("a.txt")], llm_call_count=0)
    assert walk(only(write(tmp_path / "t.json", document(ASKED, fixed, agent("One file."))))) == [
        (key(("tool", "a.txt")), "One file.", 1.0)
    ]


def test_what_a_producer_says_of_states_actions_rewards_and_success_counts(tmp_path: Path) -> None:
    told = [{"anchor": "A", "action": "x", "reward": 0.5}, {"anchor": "B", "action": None, "next_anchor": "C"}]
    told[1] |= {"progress": 0.25}
    steps = [agent("said", extra=extra, metrics={"completion_tokens": 7}) for extra in told]
    final = {"extra": {"success": False, "reward": 9.0}}
    found = only(write(tmp_path / "t.json", document(*steps, reward=None, final_metrics=final)))
    assert walk(found) == [("A", "x", 0.5), ("B", "<invalid>", 0.0)]
    assert (found.outcome, found.success_reported) == ("failure", True)
    assert [(t.next_anchor, t.progress, t.num_tokens) for t in found.turns] == [("B", None, 7), ("C", 0.25, 7)]


def test_documents_are_grouped_by_task_by_trial_by_session_or_by_folder(tmp_path: Path) -> None:
    for trial, reward in (("fix__1", 1.0), ("fix__2", 0.0)):
        write(tmp_path / "job" / trial / "agent" / "trajectory.json", document(ASKED, agent("Done."), reward=None))
        told = {"task_name": "fix", "verifier_result": {"rewards": {"reward": reward}}}
        (tmp_path / "job" / trial / "result.json").write_text(json.dumps(told))
    sessions = [PLAIN | {"session_id": name} for name in ("s1", "s2", "s1")]
    write(tmp_path / "many.jsonl", *sessions, PLAIN | {"extra": {"task_id": "fix"}})
    write(tmp_path / "other" / "1.json", PLAIN)
    write(tmp_path / "other" / "2.json", PLAIN)
    (tmp_path / "other" / "notes.json").write_text("[]")
    found = {group.task_id: [t.reward for t in group.trajectories] for group in groups(tmp_path)}
    assert found == {"fix": [1.0, 0.0, 1.0], "s1": [1.0, 1.0], "s2": [1.0], str(tmp_path / "other"): [1.0, 1.0]}


BAD = [
    ({"schema_version": "ATIF-v9.9"}, "schema_version: Invalid enum value 'ATIF-v9.9'"),
    ({"stepz": []}, "Object contains unknown field `stepz`"),
    ({"steps": []}, "steps: Expected `array` of length >= 1"),
    ({"continued_trajectory_ref": "gone.json"}, "continued_trajectory_ref: there is no file gone.json beside t.json"),
    ({"final_metrics": None}, "final_metrics.extra.reward: no step has a reward in its extra, so the trajectory must"),
    ({"final_metrics": {"extra": {"reward": "1"}}}, "final_metrics.extra.reward: expected a number, got str"),
    (
        {"final_metrics": {"extra": {"reward": 1, "outcome": "won"}}},
        "final_metrics.extra.outcome: expected one of succ",
    ),
    ({"subagent_trajectories": [PLAIN]}, "each of subagent_trajectories needs a trajectory_id of its own"),
]
BAD_STEPS = [
    ({"source": "user", "message": "x", "tool_calls": []}, "steps[0]: tool_calls is for steps of the agent"),
    ({"message": 3}, "steps[0].message: Expected `str | array`, got `int`"),
    ({"step_id": 2}, "steps[0].step_id is 2; steps are numbered from 1"),
    ({"llm_call_count": 0, "reasoning_content": "hm"}, "steps[0]: a step with llm_call_count 0 has neither metrics"),
    ({"observation": {"results": [result("3", 7)]}}, "steps[0]: a result answers the call 'c7', which the step does"),
    (
        {"tool_calls": [call("f") | {"arguments": "{}"}]},
        "steps[0].tool_calls[0].arguments: Expected `object`, got `str`",
    ),
    ({"timestamp": "yesterday"}, "steps[0]: Invalid isoformat string: 'yesterday'"),
    ({"message": [{"type": "image"}]}, "steps[0].message[0]: a part of type image needs source alone"),
    ({"extra": {"anchor": 3}}, "steps[0].extra.anchor: expected a text, got int"),
    ({"source": "user"}, "steps: there is no step of the agent in which a model spoke"),
    (
        {"observation": {"results": [{"subagent_trajectory_ref": [{"trajectory_id": "h"}]}]}},
        "steps[0].observation: no sub-agent has the id 'h'",
    ),
]


@pytest.mark.parametrize(("changed", "complaint"), [
    *BAD, *(({"steps": [agent("x") | {"step_id": 1} | step]}, complaint) for step, complaint in BAD_STEPS)
])  # fmt: skip
def test_what_is_wrong_is_told_by_file_place_and_reason(tmp_path: Path, changed: Json, complaint: str) -> None:
    path = write(tmp_path / "t.json", PLAIN | changed)
    [found] = read(path)
    assert isinstance(found, MalformedDocument)
    assert str(found).startswith(f"{path}: ")
    assert complaint in str(found)
    assert "\n" not in str(found)


def test_an_episode_that_broke_off_is_left_out(tmp_path: Path) -> None:
    broken = PLAIN | {"final_metrics": {"extra": {"reward": 0.0, "outcome": None}}}
    found = list(read(write(tmp_path / "many.jsonl", PLAIN, broken)))
    assert [each.where for each in found if isinstance(each, Unfinished)] == [f"{tmp_path / 'many.jsonl'}, line 2"]
    assert [len(each.group.trajectories) for each in found if isinstance(each, Numbered)] == [1]
