"""A recorded run as promtool's input: what Prometheus would have scraped, with an iteration a minute.

The values are the recorded ones, through the code that serves them; only the pace is made up, for the alerts' windows
are minutes and small runs make several iterations in one.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from milepost.cluster.runlog import series as served
from milepost.cluster.runlog.records import IterationRecord, read_records
from milepost.cluster.runlog.series import Series


def replayed(metrics: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Series by name, with one value a minute in promtool's notation; evaluations count to the minute after them."""
    minute = 0
    monkeypatch.setattr(served.time, "time", lambda: 60.0 * minute)
    run = Series()
    values: dict[str, list[str]] = defaultdict(list)
    run.begin({})
    for record in read_records(metrics):
        if not isinstance(record, IterationRecord):
            run.evaluation(record)
            continue
        run.iteration(record)
        for family in run.registry.collect():
            for sample in family.samples:
                if sample.name.endswith(("_bucket", "_created")):
                    continue
                labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
                seen = values[f"{sample.name}{{{labels}}}" if labels else sample.name]
                seen += ["_"] * (minute - len(seen)) + [repr(float(sample.value))]
        minute += 1
    return {name: " ".join(each) for name, each in values.items()}
