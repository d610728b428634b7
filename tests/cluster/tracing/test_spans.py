"""The spans of an episode, worked out by hand: tree, times, tokens, credit, tools, and what is said of failures."""

import json
from typing import Any

from opentelemetry.semconv._incubating.attributes import gen_ai_attributes

from milepost.cluster.tracing.spans import SpanTold, Traced, spans_of
from milepost.cluster.trajectories.recording import EVALUATION, RecordedTurn, Recording
from milepost.cluster.trajectories.table import Judged
from tests.cluster.tracing.episodes import BEGAN, TEXTS, TRAINED, recording, turn

FAILED = Judged(fate="failed", reason="env: RuntimeError: broken")


def told(
    of: Recording | None = None, judged: Judged = TRAINED, *, number: int = 20, text_chars: int = 0
) -> list[SpanTold]:
    episode = Traced(run_id="r1", number=number, recording=of or recording(), judged=judged, texts=TEXTS)
    return spans_of(episode, text_chars)


def tools(*calls: dict[str, Any], action: str | None = None) -> RecordedTurn:
    return turn(action=action, tool={"calls": list(calls)})


def test_an_episode_has_a_span_for_itself_for_each_turn_and_each_call_of_the_model() -> None:
    spans = told()
    assert [(span.name, span.parent) for span in spans] == [
        ("invoke_agent higher_lower:HigherLower", None),
        ("turn", 0),
        ("chat r1", 1),
        ("turn", 0),
        ("chat r1", 3),
    ]
    assert [(span.start_s - BEGAN, span.end_s - BEGAN) for span in spans] == [
        (0, 3), (0.5, 1.75), (0.5, 1.5), (2, 2.75), (2, 2.5),
    ]  # fmt: skip
    assert [span.attributes["openinference.span.kind"] for span in spans] == ["AGENT", "CHAIN", "LLM", "CHAIN", "LLM"]
    assert [span.attributes.get("agent.trajectory.step") for span in spans] == [None, 0, 0, 1, 1]


def test_tokens_are_those_of_whole_prompts_and_of_responses() -> None:
    _, _, first, _, second = (span.attributes for span in told())
    assert (first["gen_ai.usage.input_tokens"], first["gen_ai.usage.output_tokens"]) == (3, 2)
    assert (second["gen_ai.usage.input_tokens"], second["gen_ai.usage.output_tokens"]) == (6, 1)
    assert (second["llm.token_count.prompt"], second["llm.token_count.total"]) == (6, 7)
    assert first["gen_ai.response.finish_reasons"] == ["stop"]
    assert second["gen_ai.response.finish_reasons"] == ["length"]


def test_spans_say_what_an_update_made_of_the_episode() -> None:
    episode, first, _, second, _ = told()
    assert episode.attributes["milepost.fate"] == "trained"
    assert episode.attributes["milepost.reason"] == "selected"
    assert episode.attributes["milepost.credit"] == 0.5
    assert [turn.attributes["milepost.credit"] for turn in (first, second)] == [0.25, 0.75]
    assert [turn.attributes["milepost.advantage"] for turn in (first, second)] == [0.125, 0.375]
    assert [turn.attributes["milepost.anchor"] for turn in (first, second)] == ["1..7", "3..7"]
    versions = [span.attributes["milepost.policy_version"] for span in (episode, first, second)]
    assert versions == [4, 3, 4]
    assert episode.evaluations == (
        {"gen_ai.evaluation.name": "reward", "gen_ai.evaluation.score.value": 1.0},
        {
            "gen_ai.evaluation.name": "success",
            "gen_ai.evaluation.score.value": 1.0,
            "gen_ai.evaluation.score.label": "success",
        },
    )
    assert second.evaluations == ({"gen_ai.evaluation.name": "reward", "gen_ai.evaluation.score.value": 1.0},)


def test_every_span_names_run_group_and_episode() -> None:
    for span in told():
        assert span.attributes["milepost.run"] == "r1"
        assert span.attributes["milepost.group"] == "g00000012"
        assert span.attributes["session.id"] == span.attributes["gen_ai.conversation.id"] == "r1/g00000012/3"


def test_episodes_of_evaluations_whose_numbers_recur_are_told_apart_by_their_rows() -> None:
    of = recording(group_id=EVALUATION, index=0)
    keys = {told(of, number=number)[0].attributes["session.id"] for number in (4, 900)}
    assert keys == {"r1/eval/row-4", "r1/eval/row-900"}


def test_nodes_of_the_graph_follow_the_lineages_of_an_agent_program() -> None:
    turns = (turn(), turn(lineage=1, parent_lineage=0), turn(lineage=0), turn(lineage=1, parent_lineage=None))
    spans = spans_of(Traced(run_id="r1", number=0, recording=recording(*turns), judged=FAILED, texts=[("", "")] * 4), 0)
    steps = [span.attributes for span in spans if span.name == "turn"]
    assert [step["graph.node.id"] for step in steps] == ["turn 0", "turn 1", "turn 2", "turn 3"]
    assert [step["graph.node.parent_id"] for step in steps] == ["episode", "turn 0", "turn 0", "turn 1"]


def test_each_call_of_a_tool_has_a_span_from_the_answer_to_the_end_of_the_step() -> None:
    calls = {"look": {"fits": True}, "buy": {"fits": False}, "fly": {"fits": False, "unknown": True}}
    called = tools(*({"name": name, **how} for name, how in calls.items()), action='look {"shelf": 2}')
    spans = told(recording(called, outcome="failure"), Judged(fate="evaluation"), text_chars=100)
    found = [span for span in spans if span.attributes.get("gen_ai.operation.name") == "execute_tool"]
    assert [(span.name, span.parent, span.error) for span in found] == [
        ("execute_tool look", 1, ""),
        ("execute_tool buy", 1, "the call failed"),
        ("execute_tool fly", 1, "there is no such tool"),
    ]
    assert {(span.start_s - BEGAN, span.end_s - BEGAN) for span in found} == {(1.5, 1.75)}
    assert found[0].attributes["gen_ai.tool.name"] == "look"
    assert found[0].attributes["gen_ai.tool.call.arguments"] == '{"shelf": 2}'
    assert "gen_ai.tool.call.arguments" not in found[1].attributes


def test_a_turn_that_broke_off_lasts_to_the_end_and_says_why() -> None:
    asked = RecordedTurn(prompt_ids=[6], continues=True, started_s=2.0)
    of = recording(turn(), asked, outcome=None, error="engine: EngineError: gone", seconds=4.0)
    episode, _, _, broken, chat = told(of, FAILED)
    assert (broken.start_s - BEGAN, broken.end_s - BEGAN) == (2, 4)
    assert {span.error for span in (episode, broken, chat)} == {"engine: EngineError: gone"}
    assert episode.evaluations == broken.evaluations == ()
    assert chat.attributes["gen_ai.usage.output_tokens"] == 0
    assert "gen_ai.response.finish_reasons" not in chat.attributes


def test_texts_are_left_out_unless_they_are_asked_for_and_then_bounded() -> None:
    assert not [name for span in told() for name in span.attributes if "value" in name or "messages" in name]
    chat = told(text_chars=4)[2].attributes
    assert (chat["input.value"], chat["output.value"]) == ("Find", "2")
    [asked], [answer] = (json.loads(str(chat[f"gen_ai.{way}.messages"])) for way in ("input", "output"))
    assert asked == {"role": "user", "parts": [{"type": "text", "content": "Find"}]}
    assert (answer["role"], answer["finish_reason"]) == ("assistant", "stop")


def test_every_gen_ai_name_is_one_of_the_semantic_conventions() -> None:
    known = {value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI_")}
    spans = told(recording(tools({"name": "look"}, action="look {}")), Judged(fate="late"), text_chars=10)
    used = {name for span in spans for name in span.attributes} | {
        name for span in spans for evaluation in span.evaluations for name in evaluation
    }
    assert {name for name in used if name.startswith("gen_ai.")} <= known
