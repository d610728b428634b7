"""How a rank's models are made and held, on real DeepSpeed: what ZeRO 3 splits, what bfloat16 keeps, the reference."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rank_process import config, launch

from tests.families.tiny_models import FAMILIES, write

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("rank_environment")]
MADE = ("gpt2", "qwen3_moe, redundant head")


def asked(mode: str, folder: Path, model: Path, **job: Any) -> list[Any]:
    return launch(mode, folder, model=model, module="memory_rank", **job)


def test_models_split_as_they_are_made_are_to_the_bit_those_of_their_folders(model: Path, tmp_path: Path) -> None:
    """Tied heads, a head that the file holds too, experts that are packed at loading, and every rotary table."""
    folders = [str(model), *(str(write(FAMILIES[name], tmp_path / name)) for name in MADE)]
    dtypes = ["float32", "bfloat16"]
    ranks = asked("made", tmp_path, model, config=config(2, 3), folders=folders, dtypes=dtypes)
    for k, seen in enumerate(zip(*ranks, strict=True)):
        for saw in seen:
            assert saw["made"] == saw["whole"]
            assert saw["made_buffers"] == saw["whole_buffers"]
            assert saw["dtypes"] == [f"torch.{dtypes[k % 2]}"]
            assert saw["held"] < 0.51 * saw["parameters"]  # what two do not divide is padded
        assert sum(saw["held"] for saw in seen) >= seen[0]["parameters"]


@pytest.mark.parametrize(("stage", "ranks"), [(2, 1), (3, 2)])
def test_the_reference_is_split_by_zero_3_and_stays_the_model_of_its_folder(
    stage: int, ranks: int, model: Path, tmp_path: Path
) -> None:
    for saw in asked("reference", tmp_path, model, config=config(ranks, stage)):
        assert saw["moved"], "the policy learns"
        assert saw["before"] < 1e-6
        assert saw["after"] < 1e-6
        assert 1 / ranks <= saw["held"] / saw["parameters"] < 1 / ranks + 0.01


@pytest.mark.parametrize(("stage", "ranks"), [(2, 1), (3, 2)])
def test_steps_too_small_for_bfloat16_add_up_in_the_masters(
    stage: int, ranks: int, model: Path, tmp_path: Path
) -> None:
    """Below 1 bfloat16 has steps of 2^-8, so 1 - x is 1 until x exceeds 2^-9 = 0.00195; above it, until 2^-8."""
    settings = config(ranks, stage, dtype="bfloat16", lr=1e-4, warmup_steps=0)
    saw = asked("masters", tmp_path, model, config=settings, steps=30, save=str(tmp_path / "saved"))[0]
    start, first, last = (torch.tensor(saw[k]["masters"]) for k in ("start", "first", "last"))
    assert torch.equal(start, torch.ones(32))
    assert (first - start).abs() == pytest.approx(torch.full((32,), 1e-4), abs=1e-6)  # Adam's first step is lr
    assert saw["first"]["weights"] == saw["start"]["weights"], "too small for the weights"
    assert (last - start).min() < -0.0025
    assert saw["last"]["weights"] == last.bfloat16().tolist(), "the weights are the masters, rounded"
    assert min(saw["last"]["weights"]) == 1 - 2**-8
    assert saw["loaded"] == saw["last"], "a checkpoint holds the masters, not the weights alone"
