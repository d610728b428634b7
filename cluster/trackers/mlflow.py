"""A run of MLflow in the experiment `milepost`, found again by the tag `milepost.run`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

# Read where mlflow is imported or opens a store: nothing is sent but to the URI, and one that names files means files.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunStatus

from milepost.cluster.trackers.tracker import Tracked

_EXPERIMENT = "milepost"
_TAG = "milepost.run"
_AT_A_TIME = 100
"""Parameters that one request may hold."""
_LONGEST = 500


def connected(uri: str) -> tuple[MlflowClient, str]:
    """A client of the tracking server and model registry at `uri`, and the id of the experiment, which is made."""
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment = client.get_experiment_by_name(_EXPERIMENT)
    return client, experiment.experiment_id if experiment else client.create_experiment(_EXPERIMENT)


class MLflow:
    """An open run."""

    def __init__(self, run: Tracked, uri: str) -> None:
        self._client, place = connected(uri)
        found = self._client.search_runs([place], filter_string=f"tags.`{_TAG}` = '{run.run_id}'")
        if found:
            self._id: str = found[0].info.run_id
            self._client.update_run(self._id, status=RunStatus.to_string(RunStatus.RUNNING))
            return
        self._id = self._client.create_run(place, run_name=run.run_id, tags={_TAG: run.run_id}).info.run_id
        parameters = [Param(key, str(value)[:_LONGEST]) for key, value in run.parameters.items()]
        for begin in range(0, len(parameters), _AT_A_TIME):
            self._client.log_batch(self._id, params=parameters[begin : begin + _AT_A_TIME])

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """One request for all numbers."""
        now = round(1000 * time.time())
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in numbers.items()])

    def end(self) -> None:
        """Say that the driver has ended."""
        self._client.set_terminated(self._id)
