import json
import math
import socket
import urllib.request

import msgspec
import pytest
from pydantic import ValidationError

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.runlog.endpoint import MetricsConfig
from milepost.cluster.runlog.gauges import ITERATION
from milepost.cluster.runlog.metrics import Metrics
from milepost.cluster.runlog.records import evals, iterations, read_records
from tests.cluster.runlog.example_records import cohort, eval_record, iteration_record


def scrape(metrics: Metrics) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics.port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}


def test_a_record_is_one_line_and_reads_back_equal(tmp_path):
    path = tmp_path / "metrics.jsonl"
    written = [eval_record(0, "heldout", 0.2), iteration_record(1), eval_record(1, "heldout", 0.3)]
    with Metrics(path) as metrics:
        metrics.record_eval(written[0])
        metrics.record(written[1])
        assert len(path.read_text().splitlines()) == 2, "a line is on disk as soon as it is recorded"
        metrics.record_eval(written[2])
    assert read_records(path) == written
    assert iterations(read_records(path)) == [written[1]]
    assert evals(read_records(path), "heldout") == [written[0], written[2]]


def test_gauges_show_the_last_record_and_counters_add_up(tmp_path):
    with Metrics(tmp_path / "m.jsonl") as metrics:
        metrics.record(iteration_record(1, engine_restarts=1))
        metrics.record(iteration_record(2, success=0.5, engine_restarts=3, nonfinite_total=2))
        metrics.record_eval(eval_record(2, "ood", 0.4))
        seen = scrape(metrics)
    assert seen["milepost_success_ratio"] == 0.5
    assert seen["milepost_iteration"] == 2
    assert seen["milepost_tokens_total"] == 6400
    assert seen['milepost_groups_total{state="filtered"}'] == 4
    assert seen['milepost_episodes_total{state="failed"}'] == 2
    assert seen['milepost_restarts_total{where="engine"}'] == 3
    assert seen['milepost_nonfinite_total{where="learner"}'] == 2
    assert seen['milepost_ledger_episodes{state="trained"}'] == 96
    assert seen['milepost_eval_success_ratio{split="ood"}'] == 0.4


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_null_on_disk_and_counted(tmp_path, bad):
    path = tmp_path / "m.jsonl"
    with Metrics(path) as metrics:
        metrics.record(iteration_record(1, loss=0.5))
        metrics.record(iteration_record(2, loss=bad))
        seen = scrape(metrics)
    assert json.loads(path.read_text().splitlines()[1])["loss"] is None
    assert iterations(read_records(path))[1].loss is None
    assert seen['milepost_nonfinite_total{where="loss"}'] == 1
    assert seen["milepost_loss"] == 0.5, "the gauge keeps the last finite value"


def test_the_number_of_series_does_not_grow_with_the_run(tmp_path):
    with Metrics(tmp_path / "m.jsonl") as metrics:
        metrics.record(iteration_record(1))
        before = len(scrape(metrics))
        for iteration in range(2, 300):
            metrics.record(iteration_record(iteration))
        assert len(scrape(metrics)) == before


def test_success_is_served_by_split_and_cohort_and_reads_back(tmp_path):
    evaluated = msgspec.structs.replace(
        eval_record(1, "ood", 0.5), cohorts={"easy": cohort(8, 6), "hard": cohort(8, 2)}
    )
    with Metrics(tmp_path / "m.jsonl") as metrics:
        metrics.record(iteration_record(1, cohorts={"easy": cohort(4, 3)}))
        metrics.record_eval(evaluated)
        seen = scrape(metrics)
    shown = {name: value for name, value in seen.items() if name.startswith("milepost_cohort_success_ratio")}
    assert shown == {
        'milepost_cohort_success_ratio{cohort="easy",split="rollouts"}': 0.75,
        'milepost_cohort_success_ratio{cohort="easy",split="ood"}': 0.75,
        'milepost_cohort_success_ratio{cohort="hard",split="ood"}': 0.25,
    }
    hard = evaluated.cohorts["hard"]
    assert seen['milepost_cohort_success_low_ratio{cohort="hard",split="ood"}'] == hard.success_low
    assert seen['milepost_cohort_success_high_ratio{cohort="hard",split="ood"}'] == hard.success_high
    assert read_records(tmp_path / "m.jsonl")[1] == evaluated


def test_without_cohorts_no_series_is_made_for_them(tmp_path):
    with Metrics(tmp_path / "m.jsonl") as metrics:
        metrics.record(iteration_record(1))
        metrics.record_eval(eval_record(1, "ood", 0.4))
        assert not [name for name in scrape(metrics) if "cohort" in name]


def test_cohorts_without_end_make_33_series_of_a_split_at_most(tmp_path):
    with Metrics(tmp_path / "m.jsonl") as metrics:
        for start in range(0, 300, 30):
            metrics.record(iteration_record(1, cohorts={str(n): cohort(2, n % 2) for n in range(start, start + 30)}))
        seen = {
            name: value for name, value in scrape(metrics).items() if name.startswith("milepost_cohort_success_ratio")
        }
    assert len(seen) == 33
    assert seen['milepost_cohort_success_ratio{cohort="other",split="rollouts"}'] == 0.25


def test_every_measured_field_is_served(tmp_path):
    counted = {"time_s", "episodes", "tokens", "groups_trained", "groups_filtered", "groups_stale", "episodes_failed"}
    counted |= {
        "nonfinite_total",
        "engines_serving",
        "engine_restarts",
        "worker_restarts",
        "learner_restarts",
        "ledger",
    }
    counted |= {"verdicts", "selection_bias", "update", "update_s", "transfer_s", "cohorts", "envs"}
    fields = set(iteration_record(1).__struct_fields__)
    assert {field for field, _, _ in ITERATION} == fields - counted
    with Metrics(tmp_path / "m.jsonl") as metrics:
        assert {f"milepost_{name}" for _, name, _ in ITERATION} <= scrape(metrics).keys()


def test_groups_are_counted_by_the_filters_reason_and_bias_is_shown_by_field(tmp_path):
    with Metrics(tmp_path / "m.jsonl") as metrics:
        for iteration in (1, 2):
            line = iteration_record(
                iteration, verdicts={"selected": 6, "zero_variance": 2}, selection_bias={"turns": -0.5}
            )
            update = {"mismatch_k3": 0.01, "explained_variance": float("nan")}
            line = msgspec.structs.replace(line, update=update, update_s={"proximal": 1.25})
            metrics.record(line)
        seen = scrape(metrics)
    assert seen['milepost_filter_verdicts_total{reason="selected"}'] == 12
    assert seen['milepost_filter_verdicts_total{reason="zero_variance"}'] == 4
    assert seen['milepost_selection_bias_std{field="turns"}'] == -0.5
    assert seen['milepost_update{measure="mismatch_k3"}'] == 0.01
    assert seen['milepost_update_seconds{phase="proximal"}'] == 1.25
    assert 'milepost_update{measure="explained_variance"}' not in seen
    assert read_records(tmp_path / "m.jsonl")[-1].update == {"mismatch_k3": 0.01, "explained_variance": None}


def test_a_taken_port_is_named_with_its_key(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            ConfigError, match=rf"metrics\.port {port} on 127\.0\.0\.1 cannot be used.*metrics\.port = 0"
        ):
            Metrics(tmp_path / "m.jsonl", port=port)


def test_the_endpoint_listens_on_loopback_only(tmp_path):
    with Metrics(tmp_path / "m.jsonl") as metrics:
        scrape(metrics)
        with pytest.raises(OSError):  # noqa: PT011  no listener on another loopback address of this machine
            socket.create_connection(("127.0.0.2", metrics.port), timeout=2)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_a_remote_host_needs_an_explicit_yes(host):
    with pytest.raises(ValidationError, match="no password"):
        MetricsConfig(host=host)
    assert MetricsConfig(host=host, allow_remote=True).host == host


def test_a_torn_last_line_is_left_out_and_cut_before_the_next_record(tmp_path):
    path = tmp_path / "m.jsonl"
    with Metrics(path) as metrics:
        metrics.record(iteration_record(1))
    path.write_bytes(path.read_bytes() + b'{"kind":"iteration","itera')
    assert read_records(path) == [iteration_record(1)]
    with Metrics(path) as metrics:
        metrics.record(iteration_record(2))
    assert read_records(path) == [iteration_record(1), iteration_record(2)]


def test_a_damaged_line_in_the_middle_is_named_by_number(tmp_path):
    path = tmp_path / "m.jsonl"
    with Metrics(path) as metrics:
        metrics.record(iteration_record(1))
        metrics.record(iteration_record(2))
    first, second = path.read_text().splitlines()
    path.write_text(f"{first}\n{second[:40]}\n{second}\n")
    with pytest.raises(ConfigError, match=r"m\.jsonl, line 2"):
        read_records(path)


def test_a_resumed_run_replaces_what_it_plays_again(tmp_path):
    path = tmp_path / "m.jsonl"
    before = eval_record(0, "train", 0.2)
    with Metrics(path) as metrics:
        metrics.record_eval(before)
        for iteration in range(1, 6):
            metrics.record(iteration_record(iteration, loss=1.0))
        metrics.record_eval(eval_record(5, "train", 0.9))
        metrics.record(iteration_record(4, loss=2.0))  # resumed from the checkpoint of iteration 3
    records = read_records(path)
    assert [(record.iteration, record.loss) for record in iterations(records)] == [(1, 1), (2, 1), (3, 1), (4, 2)]
    assert evals(records, "train") == [before]


def test_a_run_without_metrics_has_no_records(tmp_path):
    assert read_records(tmp_path / "none.jsonl") == []
