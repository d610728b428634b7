import json

from hypothesis import given
from hypothesis import strategies as st

from milepost.actors.agents.lineages import ChatMessage, Lineages, Place, state_key, tool_call
from tests.actors.agents.agent_rig import END, Letters, function_tool, ids_of, text_of

SYSTEM = {"role": "system", "content": "s"}


def user(text: str) -> ChatMessage:
    return {"role": "user", "content": text}


def said(text: str) -> ChatMessage:
    return {"role": "assistant", "content": text}


def play(lineages: Lineages, messages: list[ChatMessage], reply: ChatMessage) -> Place:
    place = lineages.place(messages, [])
    lineages.answered(place, reply, response_ids=[*ids_of(reply["content"]), END], stopped=True)
    return place


def test_a_request_that_goes_on_gets_the_sampled_tokens_and_what_came_after_them():
    lineages = Lineages(Letters())
    first = play(lineages, [user("a")], said("b"))
    second = play(lineages, [user("a"), said("b"), user("c")], said("d"))
    assert second.prompt_ids == [*first.prompt_ids, *ids_of("b"), END, *Letters().conversation([user("c")])]
    assert (first.begins, second.begins, second.lineage, lineages.count) == (True, False, 0, 1)


def test_an_edited_answer_begins_a_lineage_that_rewrites_its_parent():
    lineages = Lineages(Letters())
    play(lineages, [user("a"), said("x"), user("y")], said("b"))
    edited = play(lineages, [user("a"), said("edited"), user("c")], said("d"))
    assert (edited.begins, edited.lineage, edited.parent) == (True, 1, 0)
    assert text_of(edited.prompt_ids) == "user:aassistant:editeduser:c"


def test_a_compaction_and_a_sub_agent_are_lineages_with_the_one_under_way_as_their_parent():
    lineages = Lineages(Letters())
    play(lineages, [SYSTEM, user("a")], said("b"))
    sub = play(lineages, [{"role": "system", "content": "you are a sub-agent"}, user("q")], said("r"))
    back = play(lineages, [SYSTEM, user("a"), said("b"), user("r")], said("c"))
    compacted = play(lineages, [SYSTEM, user("summary of all that")], said("d"))
    assert [(p.lineage, p.parent, p.begins) for p in (sub, back, compacted)] == [
        (1, 0, True),
        (0, None, False),
        (2, 0, True),
    ]


def test_a_second_answer_to_the_same_history_is_a_branch_from_the_same_tokens():
    lineages = Lineages(Letters())
    play(lineages, [user("a")], said("b"))
    asked = [user("a"), said("b"), user("c")]
    one, two = lineages.place(asked, []), lineages.place(asked, [])
    assert one.prompt_ids == two.prompt_ids
    assert (two.begins, two.lineage, two.parent) == (True, 1, 0)


def test_a_request_that_was_withdrawn_leaves_its_place_to_the_next_one():
    lineages = Lineages(Letters())
    play(lineages, [user("a")], said("b"))
    asked = [user("a"), said("b"), user("c")]
    lineages.withdrawn(lineages.place(asked, []))
    assert not lineages.place(asked, []).begins


def test_a_beginning_that_was_withdrawn_leaves_no_lineage():
    lineages = Lineages(Letters())
    lineages.withdrawn(lineages.place([user("a")], []))
    again = lineages.place([user("a")], [])
    assert (again.lineage, again.parent, again.begins) == (0, None, True)


def test_other_tools_are_another_prompt():
    lineages = Lineages(Letters())
    play(lineages, [user("a")], said("b"))
    place = lineages.place([user("a"), said("b"), user("c")], [function_tool("add")])
    assert (place.begins, place.lineage) == (True, 1)


def test_a_client_that_writes_arguments_in_its_own_way_still_goes_on():
    lineages = Lineages(Letters())
    reply = said("") | {"tool_calls": [tool_call("1", "add", '{"b":2,"a":1}')]}
    play(lineages, [user("a")], reply)
    echoed = said("") | {"tool_calls": [tool_call("1", "add", json.dumps({"a": 1, "b": 2.0}, indent=1))]}
    result = {"role": "tool", "content": "3", "tool_call_id": "1"}
    assert not lineages.place([user("a"), echoed, result], []).begins


def test_a_state_is_its_newest_tool_results_whatever_was_said_before():
    result = {"role": "tool", "content": "7", "tool_call_id": "1"}
    assert state_key([user("a"), said(""), result]) == state_key([user("other"), said("z"), result])
    assert state_key([user("a"), said(""), result]) != state_key([user("a"), said(""), result | {"content": "8"}])


_TEXTS = st.text("ab", max_size=2)


@given(st.lists(st.tuples(st.integers(-1, 6), _TEXTS, _TEXTS), min_size=1, max_size=8))
def test_whatever_is_continued_every_prompt_begins_with_the_exact_tokens_of_the_call_it_continues(
    plan: list[tuple[int, str, str]],
):
    lineages = Lineages(Letters())
    calls: list[tuple[list[ChatMessage], list[int]]] = []
    """What was shown and answered, and the tokens of both."""
    for continued, asked, reply in plan:
        before, ids = calls[continued] if 0 <= continued < len(calls) else ([], [])
        messages = [*before, user(asked)]
        place = play(lineages, messages, said(reply))
        assert place.prompt_ids[: len(ids)] == ids
        calls.append(([*messages, said(reply)], [*place.prompt_ids, *ids_of(reply), END]))
    assert lineages.count <= len(plan)
