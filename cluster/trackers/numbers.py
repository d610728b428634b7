"""A record of a run as flat numbers, under names that every tracker takes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from milepost.cluster.runlog.records import IterationRecord, Record

_NOT_TAKEN = re.compile(r"[^\w .:/-]", re.ASCII)
"""What MLflow, the strictest of them, refuses in a name."""


def numbers_of(record: Record) -> dict[str, float]:
    """The finite numbers of a record: `train/...` of an iteration, `eval/<split>/...` of an evaluation.

    What is nested joins its names by slashes: `train/update/entropy`.
    """
    place = "train" if isinstance(record, IterationRecord) else f"eval/{record.split}"
    return dict(_numbers(place, msgspec.to_builtins(record)))


def _numbers(place: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        key = f"{place}/{_NOT_TAKEN.sub('_', name)}"
        if isinstance(value, Mapping):
            yield from _numbers(key, value)
        elif isinstance(value, int | float) and math.isfinite(value):
            yield key, float(value)
