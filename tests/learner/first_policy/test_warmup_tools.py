"""The small model learns to call tools from an environment's demonstrations, in a layout that vLLM's parsers read."""

# ruff: noqa: ARG002

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from milepost.actors.acting import begin_tools
from milepost.actors.tool_reading import ToolReaders
from milepost.cluster.base.exits import ConfigError
from milepost.cluster.preflight import check_start
from milepost.cluster.settings.config import RunConfig, dump, load
from milepost.envs.contract import observe_reset
from milepost.envs.dialogue import Dialogue
from milepost.envs.messages import AssistantMessage, Message, ToolCall
from milepost.envs.plain_values import ContractError
from milepost.envs.scenarios import ScenarioConfig, ScenarioSet
from milepost.envs.types import Task
from milepost.learner.first_policy.byte_tokenizer import train_tokenizer
from milepost.learner.first_policy.config import ResponseLimits, WarmupConfig
from milepost.learner.first_policy.demonstrations import DemonstrationError, demonstrate
from milepost.learner.first_policy.imitation import encode_transcripts
from milepost.learner.first_policy.measure import measure
from milepost.learner.first_policy.warmup import warm_up
from tests.actors.tools.tool_envs import Door, Talks

HERE = "tests.learner.first_policy.test_warmup_tools"
DESK = "examples.order_desk.env:OrderDesk"
LIMITS = ResponseLimits(max_tokens=16, max_turns=6, temperature=1.0)
TOKENIZER = train_tokenizer([], vocab_size=300, has_tools=True)


class OpensTheDoor(Door):
    """Opens it, then says so; a text where it has nothing to call."""

    def demonstration(self, rng: random.Random, noise: float) -> str | AssistantMessage:
        return "It is open." if self.open else AssistantMessage(tool_calls=(CALL,))


class TalksToNobody(Talks):
    """Speaks in messages, the first of them a system prompt, and has no tools."""

    def demonstration(self, rng: random.Random, noise: float) -> str:
        return "open"


class SaysNothing(Door):
    def demonstration(self, rng: random.Random, noise: float) -> AssistantMessage:
        return AssistantMessage(content=" ")


class CallsWithoutTools(OpensTheDoor):
    def __init__(self) -> None:
        super().__init__()
        self.tools = []


ASKED = "Open the door."
CALL = ToolCall(id="call00000", name="open", arguments={})


def reading(tokenizer: Any, dialogue: Dialogue) -> Any:
    return partial(begin_tools, ToolReaders(tokenizer, dialogue))


def demonstrated(name: str) -> Any:
    task = Task(env=f"{HERE}:{name}", seed=0, split="train")
    (transcript,) = demonstrate([task], episodes=1, noise=0.0, draws=2, seed=0, progress=lambda _: None)
    return transcript


def test_the_template_tells_of_tools_and_writes_calls_as_hermes_does() -> None:
    layout = Dialogue(TOKENIZER).with_tools(Door().tools)
    assert layout.appends
    said = [Message(role="system", content="Be quick."), Message(role="user", content="Open it.")]
    assert TOKENIZER.decode(layout.opening(said)) == (
        "<|system|>Be quick.\nTools:\nopen {}<|end|><|user|>Open it.<|end|><|assistant|>"
    )
    assert layout.spoken(AssistantMessage(content="So: ", tool_calls=(CALL,))) == (
        'So: <tool_call>\n{"name": "open", "arguments": {}}\n</tool_call>'
    )
    result = [Message(role="tool", content="It is open.", tool_call_id="call00000")]
    assert TOKENIZER.decode(layout.continuation(result, closed=True)) == "<|tool|>It is open.<|end|><|assistant|>"


def test_without_tools_the_same_tokenizer_lays_text_out_as_the_one_for_text_does() -> None:
    for said in ("P _ G", [Message(role="system", content="Be quick."), Message(role="user", content="Go.")]):
        for_text = train_tokenizer([], vocab_size=300)
        shown = [each.decode(Dialogue(each).opening(said)) for each in (for_text, TOKENIZER)]
        assert shown[0] == shown[1]


def test_a_vocabulary_with_tools_is_never_larger_than_asked_for() -> None:
    texts = [
        f"the {word} order"
        for word in ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
    ]
    assert len(train_tokenizer(texts * 9, vocab_size=300, has_tools=True)) == 300


def test_a_demonstration_is_calls_and_texts_and_only_they_are_imitated() -> None:
    transcript = demonstrated("OpensTheDoor")
    assert [turn.answers[0] for turn in transcript] == [
        AssistantMessage(tool_calls=(CALL,)), AssistantMessage(content="It is open."),
    ]  # fmt: skip
    assert [turn.solved for turn in transcript] == [False, True]
    (example,) = encode_transcripts([transcript], Dialogue(TOKENIZER), max_positions=2000)
    imitated = [example.token_ids[target.position + 1] for target in example.targets]
    assert TOKENIZER.decode(imitated) == (
        '<tool_call>\n{"name": "open", "arguments": {}}\n</tool_call><|end|>It is open.<|end|>'
    )
    assert TOKENIZER.decode(example.token_ids).startswith("<|system|>Be quick.\nTools:\nopen {}<|end|><|user|>")


@pytest.mark.parametrize(
    ("name", "message"),
    [("SaysNothing", "must return text that is not empty"), ("CallsWithoutTools", "an environment without tools has")],
)
def test_a_demonstration_that_cannot_be_said_is_refused(name: str, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        demonstrated(name)


class Says:
    """A model that answers every prompt with the same tokens."""

    def __init__(self, ids: list[int]) -> None:
        self.config, self.ids = type("config", (), {"max_position_embeddings": 4000}), ids

    def generate(self, rows: Any, **_: object) -> Any:
        import torch

        return torch.cat([rows, torch.tensor([self.ids] * len(rows))], dim=1)


@pytest.mark.parametrize(("half", "share"), [(False, 1), (True, 0)])
def test_calls_of_the_policy_that_was_made_are_read_as_in_a_run(half: bool, share: int) -> None:
    """A whole call opens the door; half a call is told so and opens nothing, until the turns are over."""
    ids = Dialogue(TOKENIZER).with_tools(Door().tools).response(AssistantMessage(tool_calls=(CALL,)))
    model: Any = Says([*ids[: len(ids) // 2], ids[-1]] if half else ids)
    task = Task(env=f"{HERE}:OpensAtOnce", seed=0, split="train")
    found = measure(model, TOKENIZER, [task], LIMITS, reading)
    assert found.episodes >= 16  # a minute is enough for so many where a machine is busy
    assert (found.successes, found.alike) == (share * found.episodes, found.episodes)


class OpensAtOnce(Door):
    def step(self, message: AssistantMessage) -> Any:
        said, _, _, truncated, info = super().step(message)
        return said, float(self.open), self.open, truncated, info | {"success": self.open}


def test_a_warmed_up_model_speaks_calls_and_says_what_it_is_worth(tmp_path: Path) -> None:
    tiny = WarmupConfig(
        hidden_size=32, num_layers=1, intermediate_size=32, max_positions=512, episodes=40, draws=2, epochs=1
    )
    lines: list[str] = []
    folder = warm_up(tiny, ScenarioConfig(path=DESK, train_size=40), tmp_path, LIMITS, lines.append, reading)
    assert any(line.startswith("warm-up: the policy succeeds in ") for line in lines)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    task = ScenarioSet(ScenarioConfig(path=DESK)).tasks("heldout")[0]
    (transcript,) = demonstrate([task], episodes=1, noise=0.0, draws=1, seed=0, progress=lambda _: None)
    layout, _ = ToolReaders(tokenizer, Dialogue(tokenizer)).reader(transcript[0].tools)
    for turn in transcript:
        assert len(layout.response(turn.answers[0])) <= 12  # type: ignore[attr-defined]


def test_a_value_is_the_same_tokens_in_a_result_and_in_a_call() -> None:
    texts = ['{"order": 4, "state": "open"}', 'next {"order": {"type": "integer"}}', '{"order": 4}}\n'] * 50
    tokenizer = train_tokenizer(texts, vocab_size=400, has_tools=True)
    result, call = (tokenizer.tokenize(text) for text in ('{"order": 4, "state": "open"}', '{"order": 4}}\n'))
    assert result[:4] == call[:4]
    assert [tokenizer.convert_tokens_to_string([token]) for token in call] == ['{"', "order", '":', " 4", "}}\n"]


def test_messages_without_tools_are_laid_out_as_in_a_run(tmp_path: Path) -> None:
    tiny = WarmupConfig(hidden_size=32, num_layers=1, intermediate_size=32, max_positions=512, episodes=2, draws=1)
    folder = warm_up(tiny, ScenarioConfig(path=f"{HERE}:TalksToNobody", train_size=2), tmp_path, LIMITS)
    dialogue = Dialogue(AutoTokenizer.from_pretrained(folder))
    (example,) = encode_transcripts([demonstrated("TalksToNobody")], dialogue, max_positions=2000)
    opening = dialogue.opening([Message(role="system", content="Be quick."), Message(role="user", content=ASKED)])
    assert example.token_ids[: len(opening)] == opening


def config(**warmup: Any) -> RunConfig:
    return RunConfig.model_validate(
        {"agent": {"path": "examples.order_desk.program:run"}, "model": {"warmup": {"max_positions": 1024, **warmup}}}
    )


def test_the_environment_that_is_imitated_is_written_down_with_the_run(tmp_path: Path) -> None:
    dump(config(env=DESK), tmp_path / "resolved.toml")
    assert load(tmp_path / "resolved.toml") == config(env=DESK)


def test_a_run_of_an_agent_program_names_the_environment_that_is_imitated() -> None:
    check_start(config(env=DESK))
    with pytest.raises(ValueError, match=r"name an environment with its tools in model\.warmup\.env"):
        config()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere.at:All", "model.warmup.env: environment 'nowhere.at:All'"),
        ("examples.sql_desk:SqlDesk", "model.warmup.env: environment examples.sql_desk:SqlDesk has no method demonstr"),
    ],
)
def test_an_environment_that_cannot_be_imitated_is_refused_before_a_run(path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_start(config(env=path))


def test_an_environment_with_tools_and_without_an_expert_is_named(tmp_path: Path) -> None:
    with pytest.raises(DemonstrationError, match="SqlDesk has no method demonstration"):
        warm_up(WarmupConfig(episodes=1), ScenarioConfig(path="examples.sql_desk:SqlDesk"), tmp_path, LIMITS)
    assert observe_reset(Door().reset(), Door()).tools
