"""Two updates of a tiny model of each kind, in a real run: engine, learner and the way of weights between them."""

from pathlib import Path

import pytest

from tests.families.tiny_models import FAMILIES
from tests.families.training import DEADLINE_S, TRAINED, UPDATES, train

pytestmark = [pytest.mark.services, pytest.mark.sweep]
_PARITY_LIMIT = 1e-4
"""A tenth of learner.parity_limit's default."""


@pytest.mark.timeout(DEADLINE_S + 600)
@pytest.mark.parametrize("name", TRAINED)
def test_a_family_is_trained_and_served_after_every_update(name: str, tmp_path: Path) -> None:
    found = train(FAMILIES[name], tmp_path / "run")
    assert found.sampled_by == set(found.parity) == set(range(UPDATES + 1))
    assert max(*found.parity.values(), found.saved) < _PARITY_LIMIT
    assert found.moved > 100 * found.saved, "the engine serves what the updates made, and not what it began with"
    assert found.largest_change > 1e-4
