"""A registry's numbers as `milepost serve` has them, with a promotion that was taken back."""

from __future__ import annotations

from pathlib import Path

from milepost.cluster.base.files import file_sha256
from milepost.cluster.registry.metrics import RegistryMetrics
from milepost.cluster.registry.registry import Evidence, Registry
from milepost.cluster.registry.trail import Lineage
from milepost.cluster.runlog.saved_policy import digest
from tests.cluster.registry.promoted import policy


def lineage_of(made: Path, file: Path) -> Lineage:
    """Of a policy whose results and gate are both `file`."""
    kept = file_sha256(file)
    return Lineage(
        source="p", policy_version=0, policy_sha256=digest(made), config_sha256=None, suite="s", suite_sha256="0" * 64,
        results_sha256=kept, gate_sha256=kept, measured={},
    )  # fmt: skip


def registry_metrics(folder: Path) -> RegistryMetrics:
    """Two promotions, one of them taken back, in a window that has closed."""
    made, there = policy(folder / "p", "w"), Registry(folder / "registry")
    files = Evidence(results=made / "config.json", gate=made / "config.json", config=None)
    there.make()
    with there.lock():
        for _ in range(2):
            there.promote(made, files, lineage_of(made, files.gate))
        there.roll_back(None, "slow")
    return RegistryMetrics(there, lambda: 1, window_s=0.0)
