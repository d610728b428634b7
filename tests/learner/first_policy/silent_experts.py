"""Environments whose demonstration fails in one way each."""

# ruff: noqa: ARG002

import random

from tests.broken_envs import CountingEnv


class SilentExpert(CountingEnv):
    def demonstration(self, rng: random.Random, noise: float) -> str:
        return ""


class FaintingExpert(CountingEnv):
    def demonstration(self, rng: random.Random, noise: float) -> str:
        raise RuntimeError("no idea")


class LeavingExpert(CountingEnv):
    def demonstration(self, rng: random.Random, noise: float) -> str:
        raise SystemExit(3)

    def close(self) -> None:
        raise SystemExit(4)
