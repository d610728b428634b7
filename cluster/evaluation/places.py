"""Where results of suites lie. A module of its own, for the others load what plays and judges."""

from __future__ import annotations

from typing import Final

FILE: Final = "results.json"
EVALUATIONS: Final = "evaluations"
"""Folder of results, in a run's folder or beside the runs."""
