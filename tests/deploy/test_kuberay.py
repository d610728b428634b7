"""`deploy/kuberay` as far as it can be judged without Kubernetes: names, ports, times and settings that must agree.

`make check-deploy` holds it against the schemas of Kubernetes, and of KubeRay where it is given them.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from milepost.cluster.settings.config import RunConfig, load

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
LOCKED = (DEPLOY / "requirements-gpu.lock").read_text()


def documents(name: str) -> dict[str, Any]:
    """Kind -> what a file has of it."""
    found = list(yaml.safe_load_all((DEPLOY / "kuberay" / name).read_text()))
    assert len({each["kind"] for each in found}) == len(found)
    return {each["kind"]: each for each in found}


PARTS, REDIS = documents("rayjob.yaml"), documents("redis.yaml")
JOB = PARTS["RayJob"]["spec"]
CLUSTER = JOB["rayClusterSpec"]
[WORKERS] = CLUSTER["workerGroupSpecs"]
PODS = {"head": CLUSTER["headGroupSpec"]["template"], "workers": WORKERS["template"]}
REDIS_POD = REDIS["StatefulSet"]["spec"]["template"]


def container(pod: dict[str, Any]) -> dict[str, Any]:
    """The only container of a pod template."""
    [found] = pod["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def environment(pod: dict[str, Any]) -> dict[str, Any]:
    """Variable -> where its value comes from."""
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container(pod).get("env", ())}


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """The configuration with which the job trains, as its pod would read it."""
    url = environment(PODS["head"])["MILEPOST_REDIS_URL"].replace("$(MILEPOST_REDIS_PASSWORD)", "p")
    monkeypatch.setenv("MILEPOST_REDIS_URL", url)
    program, train, file, *rest = shlex.split(JOB["entrypoint"])
    assert (program, train) == ("milepost", "train")
    assert rest[::2] == ["--set"] * (len(rest) // 2)
    return load(DEPLOY.parent / Path(file).relative_to("/milepost"), rest[1::2])


def test_the_entry_point_is_words_only_for_a_shell_of_the_submitter_reads_it() -> None:
    assert re.fullmatch(r"[\w ./=:-]+", JOB["entrypoint"])


def test_the_job_reaches_its_redis_which_keeps_and_evicts_nothing(config: RunConfig) -> None:
    assert config.buffer.url == "redis://:p@milepost-redis:6379/0"
    service = REDIS["Service"]
    assert (service["metadata"]["name"], service["spec"]["ports"][0]["port"]) == ("milepost-redis", 6379)
    assert service["spec"]["selector"].items() <= REDIS_POD["metadata"]["labels"].items()
    words = shlex.split(container(REDIS_POD)["command"][-1])
    settings = dict(zip(words[2::2], words[3::2], strict=True))
    assert (settings["--appendonly"], settings["--maxmemory-policy"]) == ("yes", "noeviction")
    assert settings["--requirepass"] == "$REDISCLI_AUTH"
    assert int(settings["--maxmemory"].removesuffix("gb")) * 1024**3 >= config.buffer.maxmemory_bytes
    [mount] = container(REDIS_POD)["volumeMounts"]
    assert settings["--dir"] == mount["mountPath"]
    assert container(REDIS_POD)["image"] == COMPOSE["services"]["redis"]["image"]


def test_both_sides_take_the_password_from_one_secret_and_only_our_pods_reach_redis() -> None:
    secret = {"secretKeyRef": {"name": "milepost-redis", "key": "password"}}
    assert environment(PODS["head"])["MILEPOST_REDIS_PASSWORD"] == secret
    assert environment(REDIS_POD)["REDISCLI_AUTH"] == secret
    [rule] = REDIS["NetworkPolicy"]["spec"]["ingress"]
    [source] = rule["from"]
    for pod in PODS.values():
        assert source["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert REDIS["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == REDIS_POD["metadata"]["labels"]


def test_the_head_has_a_gpu_for_every_engine_and_rank_and_the_pods_a_cpu_for_every_actor(config: RunConfig) -> None:
    limits = {name: container(pod)["resources"]["limits"] for name, pod in PODS.items()}
    gpus = {name: int(limit.get("nvidia.com/gpu", 0)) for name, limit in limits.items()}
    engines, ranks = config.engine.num_engines * config.engine.tensor_parallel_size, config.learner.ranks
    assert gpus == {"head": engines + ranks, "workers": 0}, "rank 0 must lie on the driver's host"
    cpus = sum(int(limit["cpu"]) for limit in limits.values())
    assert cpus >= config.engine.num_engines + ranks + config.actors.num_workers


def test_runs_and_models_lie_on_the_volume_that_every_node_mounts(config: RunConfig) -> None:
    claim = PARTS["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in PODS.values():
        places = {each["name"]: Path(each["mountPath"]) for each in container(pod)["volumeMounts"]}
        [shared] = [each["name"] for each in pod["spec"]["volumes"] if "persistentVolumeClaim" in each]
        assert Path(config.run.runs_dir).is_relative_to(places[shared])
        assert Path(config.model.path).is_relative_to(places[shared])
        [memory] = [each for each in pod["spec"]["volumes"] if each.get("emptyDir", {}).get("medium") == "Memory"]
        assert places[memory["name"]] == Path("/dev/shm")
        size, limit = memory["emptyDir"]["sizeLimit"], container(pod)["resources"]["limits"]["memory"]
        assert int(size.removesuffix("Gi")) < int(limit.removesuffix("Gi")), "shared memory counts as the container's"


def test_a_stop_has_time_for_a_checkpoint_before_ray_and_then_kubernetes_kill(config: RunConfig) -> None:
    ray = float(yaml.safe_load(JOB["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"])
    program, script, patience = container(PODS["head"])["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "python"
    assert (DEPLOY.parent / Path(script).relative_to("/milepost")).is_file()
    assert config.run.stop_grace_s < ray < float(patience) < PODS["head"]["spec"]["terminationGracePeriodSeconds"]


def test_a_job_that_is_tried_again_goes_on_with_its_run(config: RunConfig) -> None:
    assert JOB["backoffLimit"] > 0
    assert config.run.resume == "auto"


def test_prometheus_finds_the_port_on_which_the_driver_serves(config: RunConfig) -> None:
    ports = {each["name"]: each["containerPort"] for each in container(PODS["head"])["ports"]}
    assert ports["milepost"] == config.metrics.port
    assert (config.metrics.host, config.metrics.allow_remote) == ("0.0.0.0", True)
    assert PODS["head"]["metadata"]["annotations"]["prometheus.io/port"] == str(config.metrics.port)
    monitor = documents("podmonitor.yaml")["PodMonitor"]["spec"]
    assert {each["port"] for each in monitor["podMetricsEndpoints"]} <= ports.keys()
    for pod in PODS.values():
        assert monitor["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()


def test_series_carry_the_labels_that_rules_and_dashboards_go_by() -> None:
    scraped = yaml.safe_load((DEPLOY / "monitoring" / "prometheus.yml").read_text())["scrape_configs"][0]
    for each in documents("podmonitor.yaml")["PodMonitor"]["spec"]["podMetricsEndpoints"]:
        assert {rule["targetLabel"] for rule in each["relabelings"]} == {"job", "run", "instance"}
        for rule in each.get("metricRelabelings", ()):
            regexes = [told["regex"] for told in scraped["metric_relabel_configs"]]
            assert any(rule["regex"] in told for told in regexes), "as for runs of one machine"


def test_nothing_runs_as_root_or_holds_a_token_of_kubernetes() -> None:
    accounts = {parts["ServiceAccount"]["metadata"]["name"]: parts["ServiceAccount"] for parts in (PARTS, REDIS)}
    for pod in (*PODS.values(), REDIS_POD):
        assert accounts[pod["spec"]["serviceAccountName"]]["automountServiceAccountToken"] is False
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert container(pod)["securityContext"]["allowPrivilegeEscalation"] is False


def test_the_image_is_that_of_the_dockerfile_with_the_ray_that_is_locked() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", dockerfile, re.MULTILINE)
    assert [stage for base, stage in stages if base == "base"] == ["gpu", "cpu"]
    assert {container(pod)["image"] for pod in PODS.values()} == {"milepost:gpu"}
    assert "--target gpu --tag milepost:gpu" in dockerfile
    assert COMPOSE["services"]["train"]["build"]["target"] == "cpu"
    [user] = re.findall(r"^USER (\d+)$", dockerfile, re.MULTILINE)
    assert {pod["spec"]["securityContext"]["runAsUser"] for pod in PODS.values()} == {int(user)}
    assert f"\nray=={CLUSTER['rayVersion']}\n" in LOCKED


def test_a_container_needs_the_same_settings_under_compose_and_kubernetes(config: RunConfig) -> None:
    told = [word.partition("=") for word in COMPOSE["services"]["train"]["command"] if "=" in word]
    values = {key: value for key, _, value in told if key.split(".")[0] in ("buffer", "metrics")}
    for key, value in values.items():
        section, name = key.split(".")
        assert str(getattr(getattr(config, section), name)).lower() == value.lower()
    assert values.keys() == {"buffer.url_env", "metrics.host", "metrics.allow_remote", "metrics.port"}
