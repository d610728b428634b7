"""`make models`: every family through engine and learner, one after the other; writes the tables of docs/models.md.

It takes half a minute a family, so the suite runs one of them only (tests/actors/test_model_families.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from milepost.actors.engine import EngineConfig, environment
from milepost.learner.first_policy.model_check import check_model
from tests.families.refused import REFUSED, refusal
from tests.families.tiny_models import FAMILIES, Family, write

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "models.md"
_LIMIT = 1e-3
"""The default of learner.parity_limit."""


def probe(folder: Path, *, timeout_s: float = 240) -> dict[str, float | str | None]:
    """`tests.families.probe` in a process of its own."""
    env = os.environ | environment(EngineConfig()) | {"PYTHONPATH": str(ROOT)}
    del env["MILEPOST_ENGINE"]  # that is for processes that Ray starts
    command = [sys.executable, "-m", "tests.families.probe", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout_s, check=False)
    told = [line for line in done.stdout.splitlines() if line.startswith("found ")]
    if not told:
        return {"before": None, "after": None, "error": (done.stderr.strip().splitlines() or ["it said nothing"])[-1]}
    found: dict[str, float | str | None] = json.loads(told[-1].removeprefix("found "))
    return found


def row(name: str, family: Family, place: Path) -> str:
    """One line of the table."""
    folder = write(family, place / family.stem)
    check_model(folder, context_tokens=256)
    found = probe(folder)
    before, after = found["before"], found["after"]
    engine = "serves" if before is not None else str(found["error"])
    update = "taken" if after is not None else str(found["error"]) if before is not None else ""
    works = all(isinstance(gap, float) and gap < _LIMIT for gap in (before, after))
    return f"| {name} | {engine} | {_shown(before)} | {update} | {_shown(after)} | {'yes' if works else '**no**'} |"


def _shown(gap: float | str | None) -> str:
    return f"{gap:.0e}" if isinstance(gap, float) else ""


def main() -> None:
    """Replace the tables of the page."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="milepost-models-") as place:
        for name, family in FAMILIES.items():
            rows.append(row(name, family, Path(place) / name))
            print(rows[-1], flush=True)
        refused = [f"| {what} | {refusal(spoil, Path(place) / str(k))} |" for k, (what, spoil) in enumerate(REFUSED)]
    head = "| model family | engine | parity at the start | update | parity after it | can be trained |"
    _replace("families", "\n".join([head, "|---|---|---|---|---|---|", *rows]))
    _replace("refused", "| a folder | is refused with |\n|---|---|\n" + "\n".join(refused))


def _replace(mark: str, text: str) -> None:
    before, _, rest = PAGE.read_text().partition(f"<!-- {mark}:begin -->\n")
    _, _, after = rest.partition(f"<!-- {mark}:end -->")
    PAGE.write_text(f"{before}<!-- {mark}:begin -->\n{text}\n<!-- {mark}:end -->{after}")


if __name__ == "__main__":
    main()
