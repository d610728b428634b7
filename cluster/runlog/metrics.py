"""What the run measures: one JSON line per iteration and per evaluation, and the same numbers for Prometheus.

The only file that imports prometheus_client. Labels come from closed sets (`state`, `where`, `reason` ...).
A value that is not finite is written as null, leaves its gauge as it was and is counted in
`milepost_nonfinite_total{where}`: comparisons with NaN never fire in PromQL, so alerts watch the counter.
The endpoint has no password: it is meant for the loopback interface, and `MetricsConfig` refuses others unless told.
"""

from __future__ import annotations

import ipaddress
import math
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server
from pydantic import BaseModel, ConfigDict, Field, model_validator

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.runlog.records import EvalRecord, IterationRecord, Number, Record
from milepost.reward.evaluators.summary import MAX_COHORTS, OTHER, CohortSuccess, together


class MetricsConfig(BaseModel):
    """Where Prometheus scrapes the driver."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="Interface of the metrics endpoint")
    port: int = Field(0, ge=0, le=65535, description="Port of the metrics endpoint; 0 takes a free one")
    allow_remote: bool = Field(False, description="Allow a host that other machines can reach; it has no password")

    @model_validator(mode="after")
    def _stays_on_loopback(self) -> Self:
        if not self.allow_remote and not _is_loopback(self.host):
            raise ValueError(
                f"host {self.host!r} is not a loopback address and the endpoint has no password; "
                "use 127.0.0.1 or set metrics.allow_remote = true"
            )
        return self


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class _GaugeOf:
    """How one field is called in Prometheus."""

    field: str
    name: str
    help: str


_GAUGES = tuple(
    _GaugeOf(*row)
    for row in (
        ("iteration", "iteration", "Finished iterations"),
        ("policy_version", "policy_version", "Policy version after the last update"),
        ("success", "success_ratio", "Share of finished episodes that reached the goal"),
        ("reward_mean", "reward_mean", "Mean return"),
        ("reward_std_within", "reward_within_group_std", "Root of the mean variance of the return inside a group"),
        ("zero_variance_share", "zero_variance_groups_ratio", "Share of groups whose returns are all equal"),
        ("turns_mean", "episode_turns_mean", "Mean number of turns of an episode"),
        ("invalid_share", "invalid_actions_ratio", "Share of turns without a valid action"),
        ("cut_share", "cut_responses_ratio", "Share of responses cut at sampling.max_tokens"),
        ("context_full_share", "context_full_ratio", "Share of episodes whose next prompt had no room in the context"),
        ("tokens_per_s", "tokens_per_second", "Tokens sampled per second"),
        ("staleness_mean", "staleness_mean_versions", "Mean policy versions between sampling and training"),
        ("staleness_max", "staleness_max_versions", "Largest number of versions between sampling and training"),
        ("mixed_version_share", "mixed_version_responses_ratio", "Share of responses of several policy versions"),
        ("loss", "loss", "Policy loss"),
        ("kl", "kl_nats", "Estimated KL divergence of the update"),
        ("entropy", "entropy_nats", "Mean entropy of the policy's next-token distribution"),
        ("clip_low", "clip_low_ratio", "Share of tokens clipped from below"),
        ("clip_high", "clip_high_ratio", "Share of tokens clipped from above"),
        ("grad_norm", "grad_norm", "Gradient norm before clipping"),
        ("advantage_abs_p99", "advantage_abs_p99", "99th percentile of the absolute step advantage"),
        ("ess", "effective_sample_size_ratio", "Effective sample size of the importance weights"),
        ("parity", "logprob_parity_abs_mean", "Mean absolute log-prob difference of engine and learner"),
        ("wait_s", "learner_wait_seconds", "Seconds the learner waited for groups in the last iteration"),
        ("train_s", "train_seconds", "Seconds of training in the last iteration"),
        ("commit_s", "commit_seconds", "Seconds to commit the last update, with its checkpoint where one was due"),
        ("publish_s", "publish_seconds", "Seconds to bring the weights into the engines"),
        ("check_s", "check_seconds", "Seconds to measure parity and mutual information"),
        ("both_busy_share", "both_busy_ratio", "Share of the iteration with rollouts and training at once"),
        ("repetition", "response_repetition_ratio", "How much responses repeat across different prompts"),
        ("mutual_information", "mutual_information_nats", "Mutual information of prompts and responses"),
        ("value_loss", "value_loss", "Squared error of the critic"),
        ("explained_variance", "value_explained_variance_ratio", "Share of the returns' variance the critic explains"),
        ("buffer_groups", "buffer_groups", "Groups in the replay buffer that are ready"),
        ("buffer_bytes", "buffer_bytes", "Bytes in the replay buffer"),
        ("buffer_oldest_s", "buffer_oldest_seconds", "Age of the oldest ready group"),
        ("groups_open", "groups_open", "Groups in play"),
        ("groups_unsettled", "groups_unsettled", "Groups consumed that no checkpoint holds yet"),
        ("generate_s", "turn_generate_seconds", "Mean seconds of a turn in the engine"),
        ("env_s", "turn_env_seconds", "Mean seconds of a turn in the environment"),
        ("tool_calls", "tool_calls", "Turns of the last iteration that called a tool"),
        ("samples", "update_samples", "Token sequences of the last update"),
        ("prefix_breaks", "prefix_breaks", "Turns of the last update whose prompt did not continue the turn before"),
        ("padding_share", "padding_ratio", "Share of padding in the token positions of the last update"),
    )
)
_ENV_GAUGES = (
    ("reward_mean", "reward_mean", "Mean return by environment"),
    ("reward_std_within", "reward_within_group_std", "Root of the mean variance of the return inside a group"),
    ("invalid_share", "invalid_actions_ratio", "Share of turns without a valid action"),
)
_RESTARTS = {"engine": "engine_restarts", "worker": "worker_restarts", "learner": "learner_restarts"}
_GROUPS = {"trained": "groups_trained", "filtered": "groups_filtered", "stale": "groups_stale"}
_EPISODES = {"finished": "episodes", "failed": "episodes_failed"}


class Metrics:
    """Writes records to `path` and serves them to Prometheus on `host:port` until `close`."""

    def __init__(self, path: Path, *, host: str = "127.0.0.1", port: int = 0) -> None:
        registry = CollectorRegistry()
        self._gauges = {row.field: Gauge(f"milepost_{row.name}", row.help, registry=registry) for row in _GAUGES}
        self._ledger = Gauge("milepost_ledger_episodes", "Episodes by ledger state", ["state"], registry=registry)
        self._eval = Gauge(
            "milepost_eval_success_ratio", "Success in the last evaluation", ["split"], registry=registry
        )
        self._cohorts = Gauge(
            "milepost_cohort_success_ratio",
            "Success by cohort, in the last evaluation of a split or the last iteration's rollouts",
            ["split", "cohort"],
            registry=registry,
        )
        self._known_cohorts: set[str] = set()
        self._env_success = Gauge(
            "milepost_env_success_ratio",
            "Success by environment, in the last evaluation of a split or the last iteration's rollouts",
            ["split", "env"],
            registry=registry,
        )
        self._envs = {
            field: Gauge(f"milepost_env_{name}", text, ["env"], registry=registry) for field, name, text in _ENV_GAUGES
        }
        self._env_episodes = Counter(
            "milepost_env_episodes", "Episodes by environment and end", ["env", "state"], registry=registry
        )
        self._episodes = Counter("milepost_episodes", "Episodes by end", ["state"], registry=registry)
        self._groups = Counter(
            "milepost_groups", "Groups the learner took, by what became of them", ["state"], registry=registry
        )
        self._verdicts = Counter(
            "milepost_filter_verdicts",
            "Groups by the filter's reason to keep or drop them",
            ["reason"],
            registry=registry,
        )
        self._update = Gauge("milepost_update", "What the learner measured, by name", ["measure"], registry=registry)
        self._update_s = Gauge(
            "milepost_update_seconds", "Seconds of the last update by phase", ["phase"], registry=registry
        )
        self._selection_bias = Gauge(
            "milepost_selection_bias_std",
            "How far trained episodes are from played ones",
            ["field"],
            registry=registry,
        )
        self._tokens = Counter("milepost_tokens", "Sampled tokens", registry=registry)
        self._restarts = Counter("milepost_restarts", "Restarted processes", ["where"], registry=registry)
        self._nonfinite = Counter("milepost_nonfinite", "Values that were not finite", ["where"], registry=registry)
        for counter, labels in ((self._restarts, _RESTARTS), (self._groups, _GROUPS), (self._episodes, _EPISODES)):
            for label in labels:
                counter.labels(label)
        self._nonfinite.labels("learner")
        self._cumulative: dict[str, int] = {}
        _cut_torn_line(path)
        self._file = open(path, "ab")  # noqa: SIM115  closed in close()
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            self._file.close()
            raise _unusable(host, port, error) from error
        self.port: int = self._server.server_port

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving and close the file. A second call does nothing."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)
        self._file.close()

    def record(self, record: IterationRecord) -> None:
        """Append one line, flushed, and move the gauges and counters."""
        self._write(record)
        for field, gauge in self._gauges.items():
            value = getattr(record, field)
            if value is not None and math.isfinite(value):
                gauge.set(value)
        for counter, fields in ((self._groups, _GROUPS), (self._episodes, _EPISODES)):
            for label, field in fields.items():
                counter.labels(label).inc(getattr(record, field))
        self._tokens.inc(record.tokens)
        for label, field in _RESTARTS.items():
            self._restarts.labels(label).inc(self._growth(field, getattr(record, field)))
        self._nonfinite.labels("learner").inc(self._growth("nonfinite_total", record.nonfinite_total))
        for reason, count in record.verdicts.items():
            self._verdicts.labels(reason).inc(count)
        _set_labelled(self._update, record.update)
        _set_labelled(self._update_s, record.update_s)
        _set_labelled(self._selection_bias, record.selection_bias)
        self._set_cohorts("rollouts", record.cohorts)
        self._set_envs(record)
        for state, count in record.ledger.items():
            self._ledger.labels(state).set(count)

    def record_eval(self, record: EvalRecord) -> None:
        """Append one line, flushed, and move the split's gauge."""
        self._write(record)
        self._eval.labels(record.split).set(record.success)
        self._set_cohorts(record.split, record.cohorts)
        for name, found in record.envs.items():
            self._env_success.labels(record.split, name).set(found.success)

    def _set_envs(self, record: IterationRecord) -> None:
        """The names are those of the configuration, so they are few."""
        for name, found in record.envs.items():
            for label, field in _EPISODES.items():
                self._env_episodes.labels(name, label).inc(getattr(found, field))
            if found.success is not None:
                self._env_success.labels("rollouts", name).set(found.success)
            for field, gauge in self._envs.items():
                _set_labelled(gauge, {name: getattr(found, field)})

    def _set_cohorts(self, split: str, cohorts: Mapping[str, CohortSuccess]) -> None:
        """Only the first `MAX_COHORTS` names of a run become labels: an environment may make names without end."""
        rest = []
        for name, found in cohorts.items():
            if name != OTHER and (name in self._known_cohorts or len(self._known_cohorts) < MAX_COHORTS):
                self._known_cohorts.add(name)
                self._cohorts.labels(split, name).set(found.success)
            else:
                rest.append(found)
        if rest:
            self._cohorts.labels(split, OTHER).set(together(rest).success)

    def _write(self, record: Record) -> None:
        for field in record.__struct_fields__:
            value = getattr(record, field)
            if isinstance(value, float) and not math.isfinite(value):
                self._nonfinite.labels(field).inc()
        self._file.write(msgspec.json.encode(record) + b"\n")  # msgspec writes NaN and inf as null
        self._file.flush()

    def _growth(self, field: str, total: int) -> int:
        grown = max(0, total - self._cumulative.get(field, 0))
        self._cumulative[field] = total
        return grown


def _set_labelled(gauge: Gauge, values: Mapping[str, Number]) -> None:
    for label, value in values.items():
        if value is not None and math.isfinite(value):
            gauge.labels(label).set(value)


def require_port(config: MetricsConfig) -> None:
    """Raises ConfigError unless the endpoint could listen now; nobody keeps the port until it does."""
    try:
        socket.create_server((config.host, config.port)).close()
    except OSError as error:
        raise _unusable(config.host, config.port, error) from error


def _unusable(host: str, port: int, error: OSError) -> ConfigError:
    return ConfigError(
        f"metrics.port {port} on {host} cannot be used: {error.strerror}; set metrics.port = 0 for a free one"
    )


def _cut_torn_line(path: Path) -> None:
    """Drop what a killed driver left after the last newline, so that the next record starts on a line of its own."""
    if not path.exists():
        return
    with open(path, "rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
        os.fsync(file.fileno())
