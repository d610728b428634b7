"""A family whose updates vLLM on CPU takes only with our help; `make models` runs all of them."""

from pathlib import Path

import pytest

from tests.families.table import probe
from tests.families.tiny_models import FAMILIES, write

pytestmark = pytest.mark.services


@pytest.mark.timeout(300)
def test_an_update_reaches_packed_experts_and_a_tied_head_that_the_file_holds_too(tmp_path: Path) -> None:
    found = probe(write(FAMILIES["qwen3_moe, redundant head"], tmp_path / "model"))
    assert not found["error"]
    assert float(found["before"] or 1) < 1e-4
    assert float(found["after"] or 1) < 1e-4
    assert float(found["moved"] or 0) > 1e-2  # the update changed what the engine serves
