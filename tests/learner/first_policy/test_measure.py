"""A policy that was just made is played for a few episodes, and what they come to is counted."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from milepost.envs.dialogue import Dialogue
from milepost.envs.scenarios import ScenarioConfig
from milepost.envs.types import Task
from milepost.learner.first_policy import measure as measuring
from milepost.learner.first_policy.config import ResponseLimits, WarmupConfig
from milepost.learner.first_policy.countdown import Countdown
from milepost.learner.first_policy.measure import Measured, measure
from milepost.learner.first_policy.warmup import warm_up
from tests.broken_envs import CountingEnv

HERE, BROKEN = "tests.learner.first_policy.test_measure", "tests.broken_envs"
LIMITS = ResponseLimits(max_tokens=8, max_turns=6, temperature=1.0)


class PaysByItsSeed(CountingEnv):
    """Says nothing of success; an episode's return is 0 or 1, by its task."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.pays = seed
        return super().reset(seed=seed, options=options)

    def step(self, response: str) -> Any:
        observation, reward, *rest, info = super().step(response)
        return observation, reward * self.pays, *rest, {key: x for key, x in info.items() if key != "success"}


class RaisesOnWhatNoExpertSays(CountingEnv):
    def step(self, response: str) -> Any:
        if response != "up":
            raise SystemExit(response)
        return super().step(response)


class Says:
    """A model that answers every prompt with one text, and its end."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, text: str) -> None:
        self.config = type("config", (), {"max_position_embeddings": 1024})
        self.answer = Dialogue(tokenizer).response(text)

    def generate(self, rows: torch.Tensor, **_: object) -> torch.Tensor:
        return torch.cat([rows, torch.tensor([self.answer] * len(rows))], dim=1)


@pytest.fixture(scope="module")
def tokenizer(tiny_policy: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(tiny_policy)


def of(text: str, tokenizer: PreTrainedTokenizerFast, env: str = f"{BROKEN}:CountingEnv") -> Measured:
    model: Any = Says(tokenizer, text)
    return measure(model, tokenizer, [Task(env=env, seed=seed, split="train") for seed in (0, 1)], LIMITS)


@pytest.mark.parametrize(("text", "successes"), [("up", 64), ("down", 0)])
def test_a_policy_whose_episodes_all_come_to_the_same_teaches_nothing(
    text: str, successes: int, tokenizer: PreTrainedTokenizerFast
) -> None:
    found = of(text, tokenizer)
    assert found == Measured(episodes=64, successes=successes, alike=64)
    assert found.teaches_nothing


def test_where_no_success_is_reported_returns_are_compared(tokenizer: PreTrainedTokenizerFast) -> None:
    found = of("up", tokenizer, f"{HERE}:PaysByItsSeed")
    assert found == Measured(episodes=64, successes=32, alike=32)
    assert not found.teaches_nothing


def test_episodes_that_the_environment_breaks_off_are_left_out(tokenizer: PreTrainedTokenizerFast) -> None:
    env = f"{HERE}:RaisesOnWhatNoExpertSays"
    assert of("down", tokenizer, env) == Measured(episodes=0, successes=0, alike=0)
    assert of("up", tokenizer, env).successes == 64


def test_prompts_of_different_lengths_are_answered_as_each_would_be_alone(tiny_policy: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    model, dialogue = AutoModelForCausalLM.from_pretrained(tiny_policy), Dialogue(tokenizer)
    nearly_greedy = ResponseLimits(max_tokens=6, max_turns=1, temperature=1e-4)
    task = Task(env=f"{BROKEN}:CountingEnv", seed=0, split="train")
    prompts = [dialogue.opening("0 " * length) for length in (1, 7, 30)]
    episodes = [measuring._Episode(task, number, ids=ids) for number, ids in enumerate(prompts)]
    together = measuring._responses(model, dialogue, episodes, nearly_greedy)
    assert together == [measuring._responses(model, dialogue, [one], nearly_greedy)[0] for one in episodes]
    assert len({tuple(ids) for ids in together}) > 1


def test_a_policy_that_cannot_be_taught_is_called_so(tmp_path: Path) -> None:
    lines: list[str] = []
    tiny = WarmupConfig(hidden_size=32, num_layers=1, intermediate_size=32, max_positions=256, episodes=4, draws=2)
    one_step = ScenarioConfig(train_size=20, options={"max_steps": 1})  # too few to reach the goal
    warm_up(tiny, one_step, tmp_path, LIMITS, lines.append)
    assert lines[-2] == ("warm-up: the policy succeeds in 0 of 64 episodes, the demonstrations that it imitates in 0%")
    assert lines[-1].startswith("warm-up: 64 of 64 episodes come to the same, so groups have nothing to compare and")
    assert "lower model.warmup.noise" in lines[-1]


def test_progress_says_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("milepost.learner.first_policy.countdown.time.monotonic", lambda: now)
    lines: list[str] = []
    clock = Countdown("warm-up", 400, lines.append)
    for count in range(1, 401):
        now = 100.0 + count / 20
        clock.done(count, "steps", ", loss 0.5")
    assert lines == [
        "warm-up: 200/400 steps, loss 0.5, about 10 s left",
        "warm-up: 400/400 steps, loss 0.5, 20 s",
    ]
