from types import SimpleNamespace
from typing import Any

import pytest

from tests.benchmarks import figures, process_tree
from tests.benchmarks.figures import Run, Update
from tests.cluster.runlog.example_records import iteration_record


def update(seconds: float, **changes: Any) -> Update:
    values: dict[str, Any] = {"cpu_s": 6.0, "episodes": 64, "sampled": 640, "stolen": 0.0, "phases": {}}
    return Update(seconds=seconds, **(values | changes))


def run(*updates: Update, **changes: Any) -> Run:
    values: dict[str, Any] = {"start_s": 25.0, "memory_bytes": 2**30, "turns": 6.0, "context_tokens": 200.0}
    return Run(updates=list(updates), **(values | changes))


def test_updates_begin_after_the_warm_up_and_take_what_lies_between_two_records() -> None:
    records = [iteration_record(number, time_s=time_s) for number, time_s in ((1, 30.0), (2, 40.0), (3, 48.0))]
    [only] = figures.updates_of(records, [5.0, 9.0, 16.0], [0.5, 0.25, 0.125], warm_up=2)
    assert (only.seconds, only.cpu_s, only.episodes, only.sampled, only.stolen) == (8.0, 7.0, 64, 3200, 0.125)
    assert only.phases == {"rollout": 2.0, "train": 4.0, "commit": 0.0, "publish": 1.0, "check": 0.0, "other": 1.0}


def test_phases_that_overlap_leave_nothing_for_the_rest() -> None:
    records = [iteration_record(1, time_s=8.0), iteration_record(2, time_s=14.0)]
    [only] = figures.updates_of(records, [0.0, 1.0], [0.0, 0.0], warm_up=1)
    assert only.phases["other"] == 0.0  # 2 + 4 + 1 s in 6


def test_a_rate_is_that_of_all_updates_together() -> None:
    updates = [update(8.0), update(24.0)]
    assert figures.rate(updates) == 4.0
    assert figures.sampled_rate(updates) == 40.0
    assert figures.cpu_per_episode(updates) == 12 / 128


def test_of_several_runs_the_median_counts() -> None:
    runs = [run(update(8.0)), run(update(64.0)), run(update(16.0))]
    assert figures.typical(runs, figures.rate) == 4.0
    assert figures.spread(runs) == 7.0


def test_the_updates_that_the_host_disturbed_least_count_in_their_order() -> None:
    updates = [update(8.0, stolen=0.03), update(16.0, stolen=0.2), update(9.0, stolen=0.0), update(12.0, stolen=0.06)]
    assert [each.seconds for each in figures.calm(updates)] == [8.0, 9.0]
    assert [each.seconds for each in figures.calmest(updates, 3)] == [8.0, 9.0, 12.0]
    assert figures.stolen_share(updates[:2]) == pytest.approx(0.115)


def test_stolen_time_is_a_share_of_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    still = SimpleNamespace(user=10.0, nice=0.0, system=5.0, irq=0.0, softirq=0.0, steal=1.0, idle=50.0)
    later = SimpleNamespace(user=13.0, nice=2.0, system=6.0, irq=0.0, softirq=0.0, steal=3.0, idle=90.0)
    looks = iter([still, later, later])
    monkeypatch.setattr(process_tree.psutil, "cpu_times", lambda: next(looks))
    host = process_tree.StolenTime()
    assert host.share() == 2 / 8
    assert host.share() == 0.0


def test_phases_are_means_over_updates() -> None:
    updates = [update(8.0, phases={"rollout": 2.0, "train": 6.0}), update(8.0, phases={"rollout": 4.0})]
    assert figures.phase_seconds(updates) == {"rollout": 3.0, "train": 3.0}


def test_an_episode_takes_the_bytes_of_the_buffer_over_the_episodes_it_holds() -> None:
    emptied = iteration_record(1, buffer_bytes=300, ledger={"finished": 0, "applied": 0})
    held = iteration_record(2, buffer_bytes=6400, ledger={"finished": 4, "applied": 60, "issued": 9})
    assert figures.stored_bytes([emptied, held]) == 100.0
    assert figures.stored_bytes([emptied]) is None


def test_engines_pause_from_the_request_to_the_commit() -> None:
    parts = {"gather": 0.5, "fetch": 0.25, "pause": 0.01, "load": 0.04, "commit": 0.05}
    told = figures.publish_parts([iteration_record(1, publish_s=1.0, transfer_s=parts)])
    assert told == pytest.approx({"learner waits": 1.0, "engines pause": 0.1} | parts)


def test_ceilings_of_a_run() -> None:
    assert figures.overlapped_ceiling(6.0, 3.0) == 3.0
    assert figures.serial_ceiling(6.0, 3.0) == 2.0
