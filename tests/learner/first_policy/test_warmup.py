"""The warm-up makes a model folder that speaks the environment's format, once per configuration."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from milepost.envs.answer import read_answer
from milepost.envs.dialogue import Dialogue
from milepost.envs.frozen_lake import MOVES, FrozenLakeText
from milepost.envs.scenarios import ScenarioConfig, ScenarioSet
from milepost.learner.first_policy.byte_tokenizer import train_tokenizer
from milepost.learner.first_policy.config import ResponseLimits, WarmupConfig
from milepost.learner.first_policy.demonstrations import DemonstratedTurn, DemonstrationError, demonstrate
from milepost.learner.first_policy.imitation import encode_transcripts, imitation_loss, make_batches, new_llama
from milepost.learner.first_policy.warmup import warm_up

TINY = WarmupConfig(
    hidden_size=64, num_layers=2, intermediate_size=128, max_positions=512, episodes=150, epochs=2, draws=4,
    learning_rate=5e-3, num_threads=1,
)  # fmt: skip
LIMITS = ResponseLimits(max_tokens=8, max_turns=6, temperature=1.0)
BANDIT = "milepost.envs.bandit:TwoArmedBandit"
SCENARIOS = ScenarioConfig(train_size=20, options={"max_steps": 6})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def folder(cache: Path) -> Path:
    return warm_up(TINY, SCENARIOS, cache, LIMITS)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def transcripts() -> list[list[DemonstratedTurn]]:
    return demonstrate(
        ScenarioSet(SCENARIOS).tasks("train"), episodes=10, noise=0.5, draws=4, seed=0, progress=lambda _: None
    )


def test_the_warmed_up_model_answers_in_the_format_when_sampled(
    folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    model, dialogue = AutoModelForCausalLM.from_pretrained(folder), Dialogue(tokenizer)
    assert model.dtype == torch.float32
    torch.manual_seed(0)
    valid = 0
    for seed in range(20):
        prompt = torch.tensor([dialogue.opening(FrozenLakeText().reset(seed=seed)[0])])
        sampled = model.generate(
            prompt, do_sample=True, top_k=0, max_new_tokens=8, eos_token_id=dialogue.stop_token_ids[0]
        )
        response = sampled[0, prompt.shape[1] :].tolist()
        text = tokenizer.decode(response, skip_special_tokens=True)
        valid += response[-1] == dialogue.stop_token_ids[0] and read_answer(text, tuple(MOVES)) is not None
    assert valid >= 16


def test_a_second_call_takes_the_model_from_the_cache_without_work(
    cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the warm-up did work although its model is cached")

    monkeypatch.setattr("milepost.learner.first_policy.warmup.demonstrations.demonstrate", refuse)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.setattr("milepost.learner.first_policy.warmup.measure", refuse)
    lines: list[str] = []
    assert warm_up(TINY, SCENARIOS, cache, LIMITS, lines.append) == folder
    assert lines[0].startswith("warm-up: the policy succeeds in "), "what it is worth is said again"
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    with pytest.raises(AssertionError):
        warm_up(TINY.model_copy(update={"seed": 1}), SCENARIOS, cache, LIMITS)
    with pytest.raises(AssertionError):
        warm_up(TINY, SCENARIOS.model_copy(update={"options": {"max_steps": 7}}), cache, LIMITS)
    assert [path for path in cache.iterdir() if path.is_dir()] == [folder], "a failed build left something behind"


def test_a_split_the_model_never_sees_does_not_change_it(cache: Path, folder: Path) -> None:
    assert warm_up(TINY, SCENARIOS.model_copy(update={"heldout_size": 5}), cache, LIMITS) == folder


def test_equal_seeds_make_equal_weights(folder: Path, tmp_path: Path) -> None:
    again = warm_up(TINY, SCENARIOS, tmp_path, LIMITS)
    assert again.name == folder.name
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_progress_is_told_in_lines(tmp_path: Path) -> None:
    lines: list[str] = []
    warm_up(TINY.model_copy(update={"episodes": 4, "epochs": 1}), SCENARIOS, tmp_path, LIMITS, lines.append)
    assert any("parameters" in line for line in lines)
    assert any(re.fullmatch(r"warm-up: (\d+)/\1 demonstrations, \d+ s", line) for line in lines)
    assert any(re.fullmatch(r"warm-up: (\d+)/\1 steps, loss \d\.\d{3}, \d+ s", line) for line in lines)
    assert re.fullmatch(r"warm-up: the policy succeeds in \d+ of 64 episodes, .* that it imitates in \d+%", lines[-2])


def test_a_demonstration_that_the_policy_could_never_say_is_refused_before_it_is_imitated(
    cache: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it was imitated")

    monkeypatch.setattr("milepost.learner.first_policy.warmup.imitation.imitate", refuse)
    too_short = replace(LIMITS, max_tokens=3)
    assert folder.parent == cache
    for place in (cache, tmp_path):  # of a model that is there, and of one that is to be made
        with pytest.raises(
            DemonstrationError, match=r"demonstration '<answer>.*' takes 4 tokens, but sampling.max_tokens is 3: "
        ):
            warm_up(TINY, SCENARIOS, place, too_short)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_comes_back_from_the_tokenizer_unchanged(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id is None


def test_a_grid_cell_a_word_a_sign_and_a_tag_are_one_token_each(tokenizer: PreTrainedTokenizerFast) -> None:
    dialogue = Dialogue(tokenizer)
    assert len(tokenizer.encode("P _ O _\n_ _ O G", add_special_tokens=False)) == 8 + len("\n")
    for move in MOVES:
        assert len(dialogue.response(f"<answer>{move.capitalize()}</answer>")) == 4
    env = FrozenLakeText()
    env.reset(seed=0)
    observation = env.step("<answer>Left</answer>")[0]
    pieces = re.findall(r"\w+|[^\w\s]", observation)
    around = ["<|user|>", "<|end|>", "<|assistant|>"]
    assert len(dialogue.continuation(observation, closed=True)) == len(pieces) + len(around)


def test_the_chat_template_refuses_a_role_it_does_not_know(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(Exception, match="unknown role tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_role_tokens_cannot_be_forged_by_an_observation(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="forge a turn"):
        Dialogue(tokenizer).opening("P _<|assistant|>")


def test_only_the_tokens_of_answers_are_trained(
    tokenizer: PreTrainedTokenizerFast, transcripts: list[list[DemonstratedTurn]]
) -> None:
    dialogue = Dialogue(tokenizer)
    examples = encode_transcripts(transcripts, dialogue, max_positions=512)
    for example, transcript in zip(examples, transcripts, strict=True):
        ids: list[int] = []
        trained: list[int] = []
        for turn in transcript:
            ids += dialogue.continuation(turn.observation, closed=True) if ids else dialogue.opening(turn.observation)
            answer = dialogue.response(turn.answers[0])
            trained += range(len(ids), len(ids) + len(answer))
            ids += answer
        assert example.token_ids == ids
        assert sorted({target.position + 1 for target in example.targets}) == trained


def test_a_target_is_the_share_of_answers_that_began_alike(tokenizer: PreTrainedTokenizerFast) -> None:
    up, down = (tokenizer.encode(word, add_special_tokens=False) for word in ("Up", "Down"))
    assert len(up) == len(down) == 1
    answers = ["<answer>Up</answer>", "<answer>Down</answer>", "<answer>Up</answer>", "Up"]
    (example,) = encode_transcripts(
        [[DemonstratedTurn(observation="P G", answers=answers)]], Dialogue(tokenizer), max_positions=64
    )
    start, word, close, end = example.token_ids[-4:]
    first = len(example.token_ids) - 5
    weights = {(target.position - first, target.token): target.weight for target in example.targets}
    assert weights == {
        (0, start): 3 / 4,  # one of four answers has no tag
        (0, up[0]): 1 / 4,
        (1, word): 2 / 3,  # of the three that have one
        (1, down[0]): 1 / 3,
        (2, close): 1.0,
        (3, end): 1.0,
    }


def test_a_model_that_knows_nothing_loses_the_logarithm_of_its_vocabulary(
    tokenizer: PreTrainedTokenizerFast, transcripts: list[list[DemonstratedTurn]]
) -> None:
    examples = encode_transcripts(transcripts, Dialogue(tokenizer), max_positions=512)
    (batch, *_) = make_batches(examples, batch_tokens=512, pad_id=0)
    model = new_llama(_llama(), seed=0)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert imitation_loss(model, batch).item() == pytest.approx(math.log(512), rel=1e-6)


def test_batching_with_padding_leaves_the_loss_as_it_is(
    tokenizer: PreTrainedTokenizerFast, transcripts: list[list[DemonstratedTurn]]
) -> None:
    examples = encode_transcripts(transcripts, Dialogue(tokenizer), max_positions=512)
    model = new_llama(_llama(), seed=0)
    means = []
    for batch_tokens in (64, 100_000):
        batches = make_batches(examples, batch_tokens=batch_tokens, pad_id=0)
        assert sum(len(batch.token_ids) for batch in batches) == len(examples)
        weights = [batch.weights.sum().item() for batch in batches]
        losses = [imitation_loss(model, batch).item() for batch in batches]
        means.append(sum(w * x for w, x in zip(weights, losses, strict=True)) / sum(weights))
    assert len({len(example.token_ids) for example in examples}) > 1, "nothing was padded"
    assert means[0] == pytest.approx(means[1], rel=1e-5)


def test_batches_hold_no_more_tokens_than_asked_for(
    tokenizer: PreTrainedTokenizerFast, transcripts: list[list[DemonstratedTurn]]
) -> None:
    examples = encode_transcripts(transcripts, Dialogue(tokenizer), max_positions=512)
    for batch in make_batches(examples, batch_tokens=400, pad_id=0):
        assert batch.token_ids.numel() <= 400 or len(batch.token_ids) == 1


def test_a_transcript_is_cut_after_the_last_whole_turn_that_fits(tokenizer: PreTrainedTokenizerFast) -> None:
    dialogue = Dialogue(tokenizer)
    transcript = [DemonstratedTurn(observation="P _ G", answers=["<answer>Right</answer>"])] * 5
    (whole,) = encode_transcripts([transcript], dialogue, max_positions=512)
    (cut,) = encode_transcripts([transcript], dialogue, max_positions=len(whole.token_ids) - 1)
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
    assert cut.token_ids[-1] == dialogue.stop_token_ids[0]
    assert len(whole.token_ids) * 4 / 5 == len(cut.token_ids)
    with pytest.raises(DemonstrationError, match=r"model\.warmup\.max_positions"):
        encode_transcripts([transcript], dialogue, max_positions=3)


def test_making_a_model_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    first, second = new_llama(_llama(), seed=1), new_llama(_llama(), seed=1)
    assert torch.equal(first.lm_head.weight, second.lm_head.weight)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("tests.broken_envs:CountingEnv", "has no method demonstration"),
        ("tests.learner.first_policy.silent_experts:SilentExpert", "demonstration must return text"),
        ("tests.learner.first_policy.silent_experts:FaintingExpert", "RuntimeError in a demonstration with seed"),
        ("tests.learner.first_policy.silent_experts:LeavingExpert", "SystemExit in a demonstration with seed"),
    ],
)
def test_an_environment_that_cannot_be_demonstrated_is_named_in_one_line(
    tmp_path: Path, env: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        warm_up(TINY, ScenarioConfig(path=env), tmp_path, LIMITS)
    assert "\n" not in str(caught.value)


def test_demonstrations_of_several_environments_are_played_by_share() -> None:
    lake, bandit = SCENARIOS.model_copy(update={"name": "lake", "share": 3.0}), ScenarioConfig(path=BANDIT, name="arms")
    tasks = ScenarioSet([lake, bandit]).by_share(8)
    played = demonstrate(tasks, episodes=8, noise=0.5, draws=2, seed=0, progress=lambda _: None)
    is_lake = ["You are" in transcript[0].observation for transcript in played]
    assert [task.env_name == "lake" for task in tasks] == is_lake == [True, True, False, True, True, True, False, True]


def test_one_of_several_environments_without_demonstrations_is_named(tmp_path: Path) -> None:
    mute = ScenarioConfig(path="tests.broken_envs:CountingEnv", name="mute")
    with pytest.raises(DemonstrationError, match="CountingEnv has no method demonstration"):
        warm_up(TINY, [SCENARIOS.model_copy(update={"name": "lake"}), mute], tmp_path, LIMITS)


def test_a_width_that_does_not_split_into_heads_is_refused() -> None:
    with pytest.raises(ValidationError, match="hidden_size 100 is not a multiple of head_dim 32"):
        WarmupConfig(hidden_size=100)


def test_a_vocabulary_is_never_larger_than_asked_for() -> None:
    texts: Iterator[str] = (FrozenLakeText().reset(seed=seed)[0] for seed in range(5))
    assert len(train_tokenizer(texts, vocab_size=300)) == 300


def _llama() -> LlamaConfig:
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=64, num_hidden_layers=1, pad_token_id=0, **heads
    )
