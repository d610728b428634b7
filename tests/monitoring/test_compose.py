"""`deploy/compose.yaml` as far as it can be judged without Docker: paths, ports, names and settings that must agree."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from milepost.cluster.settings.config import RunConfig, load

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Place in the container -> what lies there."""
    return {inside: outside for outside, inside, *_ in (each.split(":") for each in service.get("volumes", ()))}


def filled(text: str, **variables: str) -> str:
    """With the variables of the shell put in, as Compose does."""

    def value(found: re.Match[str]) -> str:
        name, default = found[1], found[2]
        return variables[name] if name in variables or default is None else default

    return re.sub(r"\$\{(\w+)(?::-([^}]*)|:\?[^}]*)?\}", value, text)


def trained(monkeypatch: pytest.MonkeyPatch, **variables: str) -> RunConfig:
    """The configuration with which the service trains."""
    for name, given in SERVICES["train"]["environment"].items():
        monkeypatch.setenv(name, filled(given, MILEPOST_REDIS_PASSWORD="p", **variables))
    train, config, *rest = [filled(word, **variables) for word in SERVICES["train"]["command"]]
    assert train == "train"
    assert rest[::2] == ["--set"] * (len(rest) // 2)
    return load(DEPLOY.parent / config, rest[1::2])


def test_everything_that_is_mounted_or_built_is_there() -> None:
    for service in SERVICES.values():
        for outside in mounts(service).values():
            assert outside in COMPOSE["volumes"] or (DEPLOY / outside).exists(), outside
    build = SERVICES["train"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    used = {outside for service in SERVICES.values() for outside in mounts(service).values()}
    assert used >= COMPOSE["volumes"].keys(), "a volume that nobody uses"


def test_nothing_is_published_beyond_loopback_and_no_password_has_a_default() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
    passwords = re.findall(r"\$\{(\w*PASSWORD\w*)([^}]*)\}", (DEPLOY / "compose.yaml").read_text())
    assert passwords
    assert all(way.startswith(":?") for _, way in passwords)


def test_the_service_reaches_its_redis_which_keeps_and_evicts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    config = trained(monkeypatch)
    assert config.buffer.url == "redis://:p@redis:6379/0"
    words = SERVICES["redis"]["command"][-1].split()
    settings = dict(zip(words[2::2], words[3::2], strict=True))
    assert settings["--appendonly"] == "yes"
    assert settings["--maxmemory-policy"] == "noeviction"
    assert settings["--requirepass"] == '"$$REDISCLI_AUTH"'
    assert int(settings["--maxmemory"].removesuffix("gb")) * 1024**3 >= config.buffer.maxmemory_bytes
    assert SERVICES["train"]["depends_on"] == {"redis": {"condition": "service_healthy"}}


def test_prometheus_scrapes_the_port_on_which_the_service_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    config, there = trained(monkeypatch), mounts(SERVICES["prometheus"])
    [targets] = json.loads((DEPLOY / there["/etc/prometheus/targets/train.json"]).read_text())
    assert targets["targets"] == [f"train:{config.metrics.port}"]
    assert (config.metrics.host, config.metrics.allow_remote) == ("0.0.0.0", True)
    scraped = yaml.safe_load((DEPLOY / there["/etc/prometheus/prometheus.yml"]).read_text())
    for rules in scraped["rule_files"]:
        place, name = rules.split("/")
        assert (DEPLOY / there[f"/etc/prometheus/{place}"] / name).is_file()
    [discovery] = scraped["scrape_configs"][0]["file_sd_configs"]
    assert discovery["files"] == ["targets/*.json"]


def test_grafana_is_provisioned_with_the_data_source_and_the_dashboards() -> None:
    service = SERVICES["grafana"]
    there, told = mounts(service), service["environment"]
    provisioning = DEPLOY / there["/etc/grafana/provisioning"]
    for file in provisioning.glob("*/*.yml"):
        for variable in re.findall(r"\$(\w+)", file.read_text()):
            assert variable in told
    assert list((DEPLOY / there[told["MILEPOST_DASHBOARDS"]]).glob("*.json"))
    name, port = told["MILEPOST_PROMETHEUS"].removeprefix("http://").split(":")
    assert f"127.0.0.1:{port}:{port}" in SERVICES[name]["ports"]


def test_spans_go_to_phoenix_only_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trained(monkeypatch).tracing.endpoint == ""
    told = re.search(r"MILEPOST_TRACING=http://(\w+):(\d+) .*--profile (\w+)", (DEPLOY / "compose.yaml").read_text())
    assert told is not None
    name, port, profile = told.groups()
    assert SERVICES[name]["profiles"] == [profile]
    assert f"127.0.0.1:{port}:{port}" in SERVICES[name]["ports"]
    asked = trained(monkeypatch, MILEPOST_TRACING=f"http://{name}:{port}")
    assert asked.tracing.endpoint == f"http://{name}:{port}"
