"""A registry's policies in MLflow's model registry, where whoever looks there finds them and can take them from.

Every promotion becomes a version of one registered model, with the policy, its results and its gate as artifacts of a
run in the experiment `milepost`; the alias `champion` follows the trail. The trail decides: what somebody changes in
MLflow is not read, and the next promotion or rollback sets the alias again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.registry.registry import Registry
from milepost.cluster.registry.trail import Promoted
from milepost.cluster.trackers.mlflow import connected

CHAMPION: Final = "champion"
_VERSION, _POLICY = "milepost.version", "milepost.policy_sha256"


def follow(registry: Registry, uri: str, model: str) -> list[int]:
    """Copy the versions that the registered model `model` lacks, and set its alias; the versions copied.

    Raises ConfigError where MLflow refuses or does not answer, or the model there holds another registry's policies.
    """
    try:
        return _Model(uri, model).follow(registry)
    except (MlflowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"MLflow at {uri} did not take the registry {registry.path}: {reason}") from error


class _Model:
    def __init__(self, uri: str, name: str) -> None:
        self._client, self._experiment = connected(uri)
        self._name = name

    def follow(self, registry: Registry) -> list[int]:
        state = registry.state()
        there = self._versions()
        for version, promoted in state.promotions.items():
            known = there.get(str(version))
            if known and known.tags[_POLICY] != promoted.lineage.policy_sha256:
                raise ConfigError(
                    f"the model {self._name} of MLflow holds another registry's version {version}: name another one "
                    "with --mlflow-model"
                )
        missing = [version for version in state.promotions if str(version) not in there]
        for version in missing:
            registry.verified_policy(version)
            self._copy(registry.folder(version), state.promotions[version])
        if state.champion is not None:
            champion = (self._versions() if missing else there)[str(state.champion)]
            self._client.set_registered_model_alias(self._name, CHAMPION, champion.version)
        return missing

    def _versions(self) -> dict[str, ModelVersion]:
        """By the registry's number: MLflow counts what failed halfway, too."""
        found = self._client.search_model_versions(f"name = '{self._name}'")
        return {version.tags[_VERSION]: version for version in found if _VERSION in version.tags}

    def _copy(self, folder: Path, promoted: Promoted) -> None:
        lineage, client = promoted.lineage, self._client
        facts = {key: value for key, value in msgspec.to_builtins(lineage).items() if isinstance(value, str | int)}
        tags = {f"milepost.{key}": str(value) for key, value in facts.items()} | {_VERSION: str(promoted.version)}
        run = client.create_run(self._experiment, run_name=f"{self._name}-{promoted.version}", tags=tags)
        for name, value in lineage.measured.items():
            client.log_metric(run.info.run_id, name, value)
        client.log_artifacts(run.info.run_id, str(folder))
        if not client.search_registered_models(f"name = '{self._name}'"):
            client.create_registered_model(self._name)
        source = f"{run.info.artifact_uri}/policy"
        client.create_model_version(self._name, source, run_id=run.info.run_id, tags=tags)
        client.set_terminated(run.info.run_id)
