"""Results of scripted agents on the refund desk's suite, without an engine."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

from milepost.cluster.evaluation.results import PlayedSuite, PolicyTold, Results, results_of
from milepost.cluster.evaluation.suite import Suite, load
from milepost.reward.evaluators.signals import Prices
from tests.cluster.evaluation.scripted_agents import played

SUITE_FILE = Path(__file__).resolve().parents[3] / "examples" / "refund_desk.toml"
POLICY = PolicyTold(source="run-a", version=3, sha256="a" * 64, temperature=1.0, max_tokens=64, max_turns=8)


def the_suite() -> Suite:
    return load(SUITE_FILE, today=datetime.date(2026, 11, 27))


def results(
    *agents: str, episodes: int, prices: Prices | None = None, others: Mapping[str, str] = {}, **policy: Any
) -> Results:
    """What `agents` did, who take turns from one episode of a scenario to its next; `others` play some scenarios."""
    suite = the_suite()
    size = len(suite.scenarios)
    numbers = range(size * episodes)
    recorded = [
        played(others.get(s.name, agents[n // size % len(agents)]), seed=s.seed, luck=n)
        for n in numbers
        for s in [suite.scenarios[n % size]]
    ]
    found = PlayedSuite(
        policy=msgspec.structs.replace(POLICY, **policy),
        trajectories=[SimpleNamespace(index=n) for n in numbers],  # of an episode only its number is read
        failed={},
        seconds=1.0,
    )
    return results_of(suite, found, recorded, prices)
