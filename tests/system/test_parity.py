"""The parity check catches an engine that kept its old weights under a new version's name."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path

import pytest

from milepost.cluster import cli
from milepost.cluster.pools.engine_pool import EnginePool
from milepost.cluster.pools.weights import FileDelivery, Seconds
from milepost.cluster.runlog.records import iterations, read_records
from milepost.cluster.runlog.runs import find
from milepost.learner.zero import checkpoint
from tests.system.driving import ROOT, write_config

pytestmark = pytest.mark.services
_SKIPPED = 2


@pytest.mark.timeout(600)
def test_a_skipped_weight_update_ends_the_run_before_the_next_step(
    tmp_path: Path, tiny_policy: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    real_publish, kept = EnginePool.publish, tmp_path / "kept.safetensors"

    async def skipping(pool: EnginePool, weights: FileDelivery, *, rollback: bool = False) -> Seconds:
        """Version 2 is committed on the engine, but with the weights of version 1."""
        if weights.version == _SKIPPED - 1:
            shutil.copy(weights.path, kept)
            skipping_digest.append(weights.sha256)
        if weights.version == _SKIPPED:
            weights = dataclasses.replace(weights, path=kept, sha256=skipping_digest[0])
        return await real_publish(pool, weights, rollback=rollback)

    skipping_digest: list[str] = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(EnginePool, "publish", skipping)
    settings = {"iterations": 6, "checkpoint_every": 1}  # asynchronous: engines are asked, for groups are older
    config = write_config(tmp_path, tiny_policy, run=settings)
    monkeypatch.setattr(sys, "argv", ["milepost", "train", str(config)])
    with pytest.raises(SystemExit) as end:
        cli.main()

    assert end.value.code == 6
    [line] = [line for line in capfd.readouterr().err.splitlines() if line.startswith("milepost: ")]
    assert "learner and engine differ by" in line
    assert f"of version {_SKIPPED}" in line
    folder = find(tmp_path / "runs", "latest")
    records = iterations(read_records(folder.metrics))
    assert [record.iteration for record in records] == [1, 2]  # the second one published what it had not loaded
    assert all(record.parity is not None and record.parity < 1e-3 for record in records)
    saved = checkpoint.newest_valid(folder.checkpoints)
    assert saved is not None
    assert saved.manifest.record.policy_version == _SKIPPED
