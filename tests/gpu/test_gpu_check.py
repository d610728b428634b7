"""The check that a lent GPU is given, on the CPU with a tiny model: it runs through, and says what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.gpu_lock import GPU_LOCK, pins
from tests.gpu.check import Seen, problems, table
from tests.gpu.shapes import TINY, WAYS

ROOT = Path(__file__).parents[2]
GOOD: Mapping[str, Any] = {
    "loss": 1.0,
    "grad_norm": 2.0,
    "group_seconds": 0.5,
    "nan": True,
    "saved": {"moved": True, "same": True, "loss_difference": 0.0},
    "lengths": [{"tokens": 16, "seconds": 0.25, "peak": 2**30}, {"tokens": 32, "seconds": None, "peak": None}],
}
REFERENCE = Seen({"loss": 1.0, "grad_norm": 2.0}, np.array([-1.0, -2.0]))


def seen(**changes: Any) -> dict[str, Seen | str]:
    """A reference and one way that differs from it by 0.01 and 0.03 nats."""
    return {"float32": REFERENCE, "padded": Seen({**GOOD, **changes}, np.array([-1.01, -2.03]))}


@pytest.mark.services
def test_it_runs_through_on_a_cpu_for_every_way_of_laying_rows_out(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.check", "--tiny"],
        cwd=ROOT,
        env=os.environ | {"OUT": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "gpu_check.md").read_text()
    assert "Card: none (CPU)." in text
    for way in WAYS:
        for tokens in TINY.lengths:
            assert f"| {way} | {tokens} | - | " in text
        assert f"| {way} | refused | come back | " in text


def test_a_step_computes_what_its_weights_and_pairs_of_tokens_ask_for() -> None:
    # a layer: queries and output 4x4 each, keys and values 4x2 each, three of 4x8; 6 output columns of 10 x 4
    shape = replace(TINY, hidden=4, layers=1, heads=2, kv_heads=1, feed_forward=8, vocabulary=10)
    weights, pairs, output = (16 + 16 + 8 + 8 + 96) * 12, 4 * 12 * 12, 6 * 10 * 4
    assert shape.row_flops(12) == 6 * (weights + pairs + output)


def test_the_rows_of_a_group_begin_alike_and_then_differ() -> None:
    rows = TINY.group(seed=0)
    assert [len(row) for row in rows] == [18, 18, 17, 16]
    starts = {tuple(row.token_ids[: TINY.prompt]) for row in rows}
    assert len(starts) == 1
    assert len({tuple(row.token_ids[TINY.prompt :]) for row in rows}) == len(rows)
    assert all(row.num_trained == len(row) - TINY.prompt for row in rows)


def test_the_table_tells_speed_against_the_card_and_what_did_not_fit() -> None:
    text = table(seen(), replace(TINY, repeats=1), "NVIDIA H200")
    assert "| padded | 0.02 / 0.03 | 1 | 2 | 0.5 |" in text
    share = 100 * TINY.row_flops(16) / 0.25 / 989e12
    assert f"| padded | 16 | 1 | 0.25 | {TINY.row_flops(16) / 0.25 / 1e12:.3g} | {share:.1f} % |" in text
    assert "| padded | 32 | out of memory | - | - | - |" in text
    assert "| padded | 16 | 1 | 0.25 |" in table(seen(), TINY, "a card that nobody knows")
    assert " % |" not in table(seen(), TINY, "a card that nobody knows")


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (seen(), []),
        (seen(nan=False), ["padded: a step that was not finite was made"]),
        (seen(saved={"moved": False, "same": True}), ["padded: saved weights did not come back"]),
        (seen() | {"tree": "it did not end within 180 s"}, ["tree: it did not end within 180 s"]),
        (
            {"float32": REFERENCE, "padded": Seen(dict(GOOD), np.array([-1.2, -2.0]))},
            ["padded: log-probs are 0.1 nats from float32 on the mean, limit 0.05"],
        ),
        (
            {"float32": REFERENCE, "padded": Seen(dict(GOOD), np.array([np.nan, -2.0]))},
            ["padded: log-probs are nan nats from float32 on the mean, limit 0.05"],
        ),
    ],
)
def test_what_is_wrong_is_said_in_a_line(found: dict[str, Seen | str], told: list[str]) -> None:
    assert problems(found) == told


def test_the_wheels_have_the_locked_versions() -> None:
    wheels, lock = pins((Path(__file__).parent / "wheels.txt").read_text()), pins(GPU_LOCK.read_text())
    assert wheels
    assert {name: str(pin) for name, pin in wheels.items()} == {name: str(lock[name]) for name in wheels}
