"""Digests of the weights that a real engine holds."""

from pathlib import Path

import pytest

from tests.actors.running_engine import RunningEngine
from tests.actors.test_vllm_engine import publish, write

pytestmark = pytest.mark.services


def test_digests_tell_other_weights_apart_and_are_those_of_whoever_holds_the_same(
    engine: RunningEngine, tiny_policy: Path, tmp_path: Path
) -> None:
    initial, perturbed = (write(tiny_policy, tmp_path / f"{noise}", noise=noise) for noise in (0.0, 0.02))
    at_first = engine.run(engine.engine.digests(8))
    try:
        publish(engine, perturbed, 1)
        others = engine.run(engine.engine.digests(8))
        assert others.keys() == at_first.keys() != set()
        assert [name for name in others if others[name] == at_first[name]] == []
        sample = engine.run(engine.engine.digests(1))
        assert 0 < len(sample) < len(others)
        assert sample.items() <= others.items()
    finally:
        publish(engine, initial, 0, rollback=True)
    assert engine.run(engine.engine.digests(8)) == at_first
