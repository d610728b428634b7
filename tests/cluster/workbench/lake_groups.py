"""Groups of FrozenLake episodes played by a scripted policy that knows the way and often ignores it."""

import random

from milepost.envs.frozen_lake import FrozenLakeText
from milepost.learner.credit.assignment import INVALID, CreditGroup, CreditTrajectory, CreditTurn


def lake_group(seed: int, *, size: int = 4, noise: float = 0.5, episodes: int = 8, max_steps: int = 12) -> CreditGroup:
    rng = random.Random(seed)
    lake = FrozenLakeText(size=size, max_steps=max_steps)
    trajectories = tuple(_episode(lake, seed, noise, rng) for _ in range(episodes))
    return CreditGroup(f"lake-{seed}", trajectories)


def _episode(lake: FrozenLakeText, seed: int, noise: float, rng: random.Random) -> CreditTrajectory:
    _, info = lake.reset(seed=seed)
    turns: list[CreditTurn] = []
    while True:
        anchor = info["anchor"]
        said = "I would rather stay" if rng.random() < 0.05 else lake.demonstration(rng, noise)
        _, reward, terminated, truncated, info = lake.step(said)
        action = info["action"] or INVALID
        turns.append(
            CreditTurn(
                anchor,
                action,
                info["anchor"],
                reward,
                invalid=action == INVALID,
                num_tokens=rng.randint(4, 9),
                progress=info["progress"],
            )
        )
        if terminated or truncated:
            outcome = "success" if info["success"] else "failure" if terminated else "truncated"
            return CreditTrajectory(outcome, tuple(turns))
