"""Adapters learn FrozenLake as well as the whole policy does, at a tenth of the bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from milepost.cluster.runlog.records import EvalRecord, evals, read_records
from tests.system.driving import ROOT, Driver

pytestmark = pytest.mark.sweep
_RUN_S = 1800
_SHORT = ("run.iterations=14", "learner.decay_steps=28", 'run.eval_splits=["heldout"]')
_ADAPTERS = ("lora.rank=8", "learner.lr=2e-3")


@pytest.mark.timeout(2 * _RUN_S)
def test_adapters_learn_as_well_as_the_whole_policy_at_a_tenth_of_the_bytes(
    tmp_path: Path, start: Callable[..., Driver]
) -> None:
    whole, whole_bytes = trained(start, tmp_path / "runs", "whole")
    adapters, bytes_of_adapters = trained(start, tmp_path / "runs", "adapters", *_ADAPTERS)
    for before, after in (whole, adapters):
        assert after.success_low > before.success_high
    assert adapters[1].success_high > whole[1].success_low, "within noise: 95 % intervals that overlap, or better"
    assert bytes_of_adapters <= whole_bytes / 10


def trained(
    start: Callable[..., Driver], runs: Path, name: str, *overrides: str
) -> tuple[tuple[EvalRecord, EvalRecord], int]:
    """Held-out success before and after a run of local.toml, from the same warm-up, and the bytes of a publish."""
    keys = (*_SHORT, *overrides, f"run.name={name}", f"run.runs_dir={runs}")
    driver = start("train", ROOT / "deploy/configs/local.toml", *(word for key in keys for word in ("--set", key)))
    assert driver.end(_RUN_S) == 0, driver.said()
    before, after = evals(read_records(driver.folder.metrics), "heldout")
    records = driver.records()
    (num_bytes,) = {record.publish_bytes for record in records}
    assert num_bytes is not None
    minutes = (records[-1].time_s or 0.0) / 60
    print(
        f"{name}: {before.success:.3f} -> {after.success:.3f} [{after.success_low:.3f}, {after.success_high:.3f}] "
        f"in {minutes:.1f} min, {num_bytes} bytes per publish"
    )
    return (before, after), num_bytes
