"""A run of Weights & Biases under the run's own id: in files of the run's folder, or online.

Not run against its server here; offline runs are sent there by `wandb sync`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import wandb

from milepost.cluster.trackers.tracker import Tracked

_LOGIN_S = 30


class WeightsAndBiases:
    """An open run."""

    def __init__(self, run: Tracked, mode: Literal["offline", "online"]) -> None:
        self._run = wandb.init(
            project="milepost",
            id=run.run_id,
            name=run.run_id,
            dir=str(run.folder),
            mode=mode,
            config=dict(run.parameters),
            resume="allow",
            settings=wandb.Settings(silent=True, console="off", login_timeout=_LOGIN_S),
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Hand the numbers to wandb's own process."""
        self._run.log(dict(numbers), step=step)

    def end(self) -> None:
        """Wait until they are written, and sent where it is online."""
        self._run.finish()
