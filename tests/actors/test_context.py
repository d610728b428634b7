"""Prompts grow by appending ids: what the policy saw and said is never laid out again, unless a window says so."""

from typing import ClassVar

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from milepost.actors.context import LEFT_OUT, Context
from milepost.envs.dialogue import Dialogue
from milepost.envs.messages import Message
from milepost.learner.batch.sample import samples
from tests.cluster.replay.buffer_rig import trajectory
from tests.families.chat_templates import family_tokenizer

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="<|>"), max_size=20)
RESPONSES = st.tuples(st.lists(st.integers(2, 383), min_size=1, max_size=12), st.booleans(), TEXT)
"""Ids as a policy may sample them (not those that its text would encode to), closed or not, and what comes back."""


class Words:
    """A tokenizer of whole words, in which `u` opens an observation, `a` a response and `e` ends one."""

    eos_token_id, unk_token_id, all_special_ids = 0, None, (0,)
    added_tokens_decoder: ClassVar[dict[int, object]] = {}
    words = ("e", "u", "a", "x", "o0", "o1", "o2", *LEFT_OUT.split())

    def apply_chat_template(self, conversation: list[dict[str, str]], **_: object) -> str:
        opening = {"user": "u {} ", "assistant": "a {} e "}
        return "".join(opening[m["role"]].format(m["content"]) for m in conversation) + "a "

    def encode(self, text: str, **_: bool) -> list[int]:
        return [self.words.index(word) for word in text.split()]


def words(ids: list[int]) -> str:
    return " ".join(Words.words[i] for i in ids)


def test_the_worked_example() -> None:
    context = Context(Dialogue(Words()))
    assert words(context.open("o0")) == "u o0 a"
    assert words(context.extend([3, 0], True, "o1")) == "u o0 a x e u o1 a"
    assert words(context.extend([3, 3], False, "o2")) == "u o0 a x e u o1 a x x e u o2 a"  # it ran out: closed for it


@given(first=TEXT, turns=st.lists(RESPONSES, min_size=1, max_size=8))
def test_a_prompt_and_its_response_are_the_bit_exact_prefix_of_the_next_prompt(
    dialogue: Dialogue, first: str, turns: list[tuple[list[int], bool, str]]
) -> None:
    context = Context(dialogue)
    prompt = context.open(first)
    for sampled, stopped, observation in turns:
        response = [*sampled, dialogue.stop_token_ids[0]] if stopped else sampled
        before = [*prompt, *response]
        prompt = context.extend(response, stopped, observation)
        assert prompt[: len(before)] == before
        added = prompt[len(before) :]
        assert added == dialogue.continuation(observation, stopped)
        # One end of turn after the observation, and one after the response where the policy sampled none.
        assert added.count(dialogue.stop_token_ids[0]) == (1 if stopped else 2)


@given(first=TEXT, turns=st.lists(RESPONSES, min_size=1, max_size=12), window=st.integers(1, 6))
def test_a_window_keeps_its_last_turns_bit_exactly_behind_the_first_observation(
    dialogue: Dialogue, first: str, turns: list[tuple[list[int], bool, str]], window: int
) -> None:
    context = Context(dialogue, window_turns=window)
    prompt = context.open(first)
    assert prompt == dialogue.opening(first)
    observations, pieces, shown = [first], [], 1
    for response, stopped, observation in turns:
        appended = prompt + response + dialogue.continuation(observation, stopped)
        prompt = context.extend(response, stopped, observation)
        pieces.append(response + dialogue.continuation(observation, stopped))
        observations.append(observation)
        shown += 1
        if shown <= window:
            assert prompt == appended
            continue
        shown = max(window // 2, 1)
        kept = pieces[len(pieces) - shown + 1 :]
        opening = dialogue.opening(f"{first}\n{LEFT_OUT}\n{observations[-shown]}")
        assert prompt == opening + [token for piece in kept for token in piece]


def test_a_window_of_four_makes_seven_samples_of_twenty_turns() -> None:
    # Shown after each turn: 1 2 3 4, then the newer half of five turns, 2, and 3 4, and 2 again: every third turn anew.
    context = Context(Dialogue(Words()), window_turns=4)
    played = [trajectory("g", 0).turns[0]] * 20
    for k, turn in enumerate(played):
        prompt = context.extend(turn.response_ids, True, "o1") if k else context.open("o0")
        played[k] = replace(turn, prompt_ids=prompt)
    made = samples(replace(trajectory("g", 0), turns=played), [0.0] * 20)
    assert len(made) == 7
    # 20 responses of 2 tokens and an opening of 3; 13 turns append 3, and 6 begin with `u o0 [...] o1 a x e u o1 a`,
    # 8 + 5 tokens
    assert sum(len(sample) for sample in made) == 20 * 2 + 3 + 13 * 3 + 6 * 13


def test_a_window_of_one_shows_the_first_and_the_last_observation_only() -> None:
    context = Context(Dialogue(Words()), window_turns=1)
    context.open("o0")
    context.extend([3, 0], True, "o1")
    assert words(context.extend([3, 0], True, "o2")) == f"u o0 {LEFT_OUT} o2 a"


def test_a_reopened_context_remembers_nothing() -> None:
    context = Context(Dialogue(Words()))
    context.open("o0")
    context.extend([3, 0], True, "o1")
    assert words(context.open("o2")) == "u o2 a"
    assert words(context.extend([3, 0], True, "o1")) == "u o2 a x e u o1 a"


def test_a_window_over_messages_keeps_their_roles_in_turn() -> None:
    tokenizer = family_tokenizer("gemma")  # its template raises where two users follow each other
    context = Context(Dialogue(tokenizer), window_turns=2)
    context.open([Message(role="system", content="Be brief."), Message(role="user", content="o0")])
    response = [*tokenizer.encode("m", add_special_tokens=False), tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    context.extend(response, True, [Message(role="user", content="o1")])
    shown = tokenizer.decode(context.extend(response, True, [Message(role="user", content="o2")]))
    assert shown == (f"<bos><start_of_turn>user\nBe brief.\n\no0\n{LEFT_OUT}\no2<end_of_turn>\n<start_of_turn>model\n")


def test_a_window_over_tools_begins_with_the_task_and_the_oldest_result_that_is_shown() -> None:
    tokenizer = family_tokenizer("qwen2.5")
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    context = Context(Dialogue(tokenizer).with_tools([tool]), window_turns=1)
    context.open("Find it.")
    response = [*tokenizer.encode("m", add_special_tokens=False), tokenizer.eos_token_id]
    shown = tokenizer.decode(context.extend(response, True, [Message(role="tool", content="Nothing.")]))
    assert shown.endswith(
        f"<|im_start|>user\nFind it.\n{LEFT_OUT}<|im_end|>\n<|im_start|>user\n<tool_response>\nNothing.\n"
        "</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
