"""Tasks of reasoning-gym, answered by their own solution, by nonsense, and by answers that are worth a part."""

import random

import pytest
from gymnasium.utils import seeding

from milepost.envs.adapters.reasoning_gym_env import ReasoningGym
from milepost.envs.answer import write_answer

pytestmark = pytest.mark.sweep
DATASETS = ("chain_sum", "leg_counting", "countdown", "mini_sudoku", "family_relationships", "word_sorting")


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_dataset_s_own_answer_is_worth_1_and_one_to_nothing_is_worth_nothing(dataset: str) -> None:
    env = ReasoningGym(dataset=dataset)
    for seed in range(5):
        question, info = env.reset(seed=seed)
        assert (info["cohort"], env.reset(seed=seed)[0]) == (dataset, question)
        _, reward, ended, _, info = env.step(env.demonstration(random.Random(0), noise=0))
        assert (reward, ended, info["success"]) == (1.0, True, True)
        env.reset(seed=seed)
        _, reward, ended, _, info = env.step("no idea")
        assert (reward, ended, info["success"], info["action_valid"]) == (0.0, True, False, False)


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_answer_is_worth_what_the_package_s_scorer_says(dataset: str) -> None:
    import reasoning_gym

    env, seen = ReasoningGym(dataset=dataset), set()
    for seed in range(5):
        drawn = int(seeding.np_random(seed)[0].integers(2**31))
        theirs = reasoning_gym.create_dataset(dataset, seed=drawn, size=2)
        for answer in (theirs[0]["answer"], f"{theirs[0]['answer']} or so", theirs[1]["answer"], "-1"):
            text, _ = env.reset(seed=seed)
            assert theirs[0]["question"] in text
            _, reward, *_, info = env.step(f"I think so: {write_answer(answer)}")
            assert reward == theirs.score_answer(answer, theirs[0])
            assert info["success"] == (reward == 1)
            seen.add(reward)
    assert max(seen) == 1
    assert min(seen) < 1


def test_a_scorer_that_breaks_at_an_answer_gives_it_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    env = ReasoningGym()
    env.reset(seed=0)

    def breaks(answer: str, entry: object) -> float:
        raise ZeroDivisionError(answer, entry)

    monkeypatch.setattr(env._tasks, "score_answer", breaks)
    said, reward, *_ = env.step(write_answer("1/0"))
    assert (reward, said) == (0.0, "Score 0, ZeroDivisionError in the scorer.")


def test_the_package_s_configuration_is_handed_on() -> None:
    env = ReasoningGym(dataset="chain_sum", config={"min_terms": 6, "max_terms": 6})
    text, _ = env.reset(seed=1)
    assert sum(text.rpartition(":")[2].count(sign) for sign in ("+", " - ")) == 5
