"""What a small policy learns from: episodes of an environment's own expert."""

from milepost.envs.types import Task
from milepost.learner.first_policy.demonstrations import demonstrate

EXPERTS = "tests.learner.first_policy.silent_experts"


def test_a_demonstration_ends_where_an_episode_does_with_the_first_success() -> None:
    task = Task(env=f"{EXPERTS}:ContentExpert", seed=0, split="train")
    (transcript,) = demonstrate([task], episodes=1, noise=0.0, draws=1, seed=0, progress=lambda _: None)
    assert [turn.solved for turn in transcript] == [False, True]
