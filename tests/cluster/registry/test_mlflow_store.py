"""Policies of a registry in MLflow, read with MLflow's own client."""

from __future__ import annotations

from pathlib import Path

import mlflow.artifacts
import pytest
from mlflow import MlflowClient

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.registry import mirror
from milepost.cluster.registry.mirror import Place
from milepost.cluster.registry.registry import Registry
from milepost.cluster.runlog.saved_policy import digest
from tests.cluster.registry.promoted import gate, played, promote


def promoted(folder: Path, *agents: str) -> Registry:
    """A registry into which policies of these names came, the last one being the champion."""
    asked = gate(folder)
    for agent in agents:
        promote(folder / "registry", played(folder / agent, "sound"), asked)
    return Registry(folder / "registry")


def connect(registry: Registry, uri: str, model: str = "milepost") -> list[int]:
    with registry.lock():
        return mirror.connect(registry, Place(uri, model))


def follow(registry: Registry) -> str:
    with registry.lock():
        return mirror.follow(registry)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return (tmp_path / "mlruns").as_uri()


def test_mlflow_holds_every_version_with_its_lineage_and_gives_the_champion_out(tmp_path: Path, uri: str) -> None:
    registry = promoted(tmp_path, "a", "b")
    assert connect(registry, uri) == [1, 2]
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    champion = client.get_model_version_by_alias("milepost", "champion")
    assert champion.tags["milepost.version"] == "2"
    assert champion.tags["milepost.policy_sha256"] == digest(registry.verified_policy(2))
    assert client.get_run(champion.run_id).data.metrics["success"] == 1
    mine = mlflow.artifacts.download_artifacts(artifact_uri=champion.source, dst_path=str(tmp_path / "taken"))
    assert digest(Path(mine)) == digest(registry.verified_policy(2))


def test_promotions_and_rollbacks_are_followed_and_nothing_is_copied_twice(tmp_path: Path, uri: str) -> None:
    registry = promoted(tmp_path, "a")
    assert follow(registry) == "", "nobody asked for a copy"
    assert connect(registry, uri) == [1]
    assert connect(registry, uri) == []
    promote(registry.path, played(tmp_path / "b", "sound"), gate(tmp_path))
    assert follow(registry) == ""
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    assert client.get_model_version_by_alias("milepost", "champion").tags["milepost.version"] == "2"
    with registry.lock():
        registry.roll_back(None, "too long")
    assert follow(registry) == ""
    assert client.get_model_version_by_alias("milepost", "champion").tags["milepost.version"] == "1"
    assert len(client.search_model_versions("name = 'milepost'")) == 2


def test_a_copy_that_broke_off_is_made_again_and_a_version_beside_ours_is_left_alone(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = promoted(tmp_path, "a")
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_model_version", lambda *_, **__: (_ for _ in ()).throw(OSError("gone")))
        with pytest.raises(ConfigError, match=r"did not take the registry .*: gone"):
            connect(registry, uri)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.create_model_version("milepost", source=(tmp_path / "a").as_uri())
    assert connect(registry, uri) == [1]
    assert client.get_model_version_by_alias("milepost", "champion").version == 2, "MLflow's number, not ours"


def test_a_model_that_holds_another_registry_is_refused(tmp_path: Path, uri: str) -> None:
    connect(promoted(tmp_path, "a"), uri)
    (tmp_path / "other").mkdir()
    other = promoted(tmp_path / "other", "c")
    with pytest.raises(ConfigError, match=r"holds another registry's version 1: name another one with --mlflow-model"):
        connect(other, uri)
    assert connect(other, uri, model="theirs") == [1]


def test_a_promotion_stands_when_mlflow_does_not_answer_and_the_reason_is_told(tmp_path: Path, uri: str) -> None:
    registry = promoted(tmp_path, "a")
    connect(registry, uri)
    (registry.path / "mlflow.json").write_text('{"uri": "nonsense://x", "model": "milepost"}')
    promote(registry.path, played(tmp_path / "b", "sound"), gate(tmp_path))
    assert "nonsense://x did not take the registry" in follow(registry)
    assert "tries it again" in follow(registry)
    assert registry.state().champion == 2
    (registry.path / "mlflow.json").write_text("{")
    assert "writes it anew" in follow(registry)


def test_a_password_in_the_uri_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    registry = promoted(tmp_path, "a")
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD"):
        connect(registry, "http://me:secret@127.0.0.1:1")
    assert not (registry.path / "mlflow.json").exists()
