"""Event files for TensorBoard, in the folder `tensorboard` of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from milepost.cluster.trackers.tracker import Tracked


class TensorBoard:
    """A writer of event files; those of a resumed run lie beside the older ones, and replace what they repeat."""

    def __init__(self, run: Tracked) -> None:
        place = run.folder / "tensorboard"
        self._writer = SummaryWriter(str(place), purge_step=run.iteration + 1 if run.iteration else None)
        if not run.iteration:
            parameters = {key: _taken(value) for key, value in run.parameters.items() if value is not None}
            self._writer.add_hparams(parameters, {}, run_name=".")  # into the same folder

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write the numbers, and make them readable."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def end(self) -> None:
        """Close the files."""
        self._writer.close()


def _taken(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)
