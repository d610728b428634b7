"""A folder of runs to look at, made by the project's own recorder: every fate, a hostile agent, a suite."""

import datetime
import shutil
from pathlib import Path

import msgspec

from milepost.cluster.evaluation import store
from milepost.cluster.evaluation.episodes import record
from milepost.cluster.evaluation.places import EVALUATIONS
from milepost.cluster.evaluation.results import PlayedSuite, results_of
from milepost.cluster.evaluation.suite import Scenario, Suite
from milepost.cluster.runlog.runs import RunFolder, Status
from milepost.cluster.trajectories.recording import EVALUATION
from milepost.envs.dialogue import Dialogue
from milepost.envs.types import Trajectory
from tests.actors.episode_rig import BROKEN, task
from tests.cluster.evaluation.played_results import POLICY
from tests.cluster.runlog.example_records import eval_record, iteration_record
from tests.cluster.trajectories.recorded import Played, closing, recorder, trained, unjudged

RUN, BARE = "20260101-000000-lake", "20260102-000000-bare"
SPIKE = 4
"""The iteration whose gradient norm stands out; its update judged the groups g00000001 and g00000005."""
EVIL = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>\x1b[31m\u202e\x00"
SUITE = "20260103-000000-counting"


def write_runs(runs_dir: Path, dialogue: Dialogue, policy: Path) -> Path:
    """Two runs: one with episodes, one that has trained and recorded none."""
    run, bare = RunFolder(runs_dir / RUN), RunFolder(runs_dir / BARE)
    for folder in (run, bare):
        folder.path.mkdir(parents=True)
        folder.resolved.write_text("")
        folder.write_status(Status(pid=1, phase="finished", iteration=12, iterations=12))
    _write_metrics(run, spike=9.0)
    _write_metrics(bare, spike=1.0)
    run.policy.mkdir()
    shutil.copy(policy / "tokenizer.json", run.policy)
    _write_episodes(run, Played(dialogue), policy)
    _write_suite(run, Played(dialogue), policy)
    return runs_dir


def _write_metrics(folder: RunFolder, *, spike: float) -> None:
    rows = [iteration_record(n, grad_norm=spike if n == SPIKE else 0.5) for n in range(1, 13)]
    records = [eval_record(0, "heldout", 0.25), *rows, eval_record(12, "heldout", 0.75)]
    folder.metrics.write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in records))


def _write_episodes(folder: RunFolder, played: Played, policy: Path) -> None:
    """Two recordings, as of a run that was resumed: g00000005 is pending in the first, and trained on in the second."""
    kept = played.group(task(), "g00000001")
    dropped = played.group(task(), "g00000002", ("up", "up"))
    old = played.group(task(), "g00000003")
    later = played.group(task(), "g00000005")
    played.play(task(f"{BROKEN}:RaisesInStep"), "g00000004", 0, say=f"up {EVIL}")
    played.play(task(), EVALUATION, 0)
    played.play(task(), EVALUATION, 1, "down", max_turns=2)
    with closing(first := recorder(folder.trajectories, policy)):
        first.add(played.told())
        first.judge(
            [
                trained(kept, version=SPIKE - 1),
                unjudged(dropped, "filtered", "zero_variance"),
                unjudged(old, "stale", "sampled by version 3, and the learner was at 9"),
            ]
        )
    with closing(second := recorder(folder.trajectories, policy)):
        second.judge([trained(later, version=SPIKE - 1)])


def _write_suite(folder: RunFolder, played: Played, policy: Path) -> None:
    """Two episodes of each of two scenarios: an agent that counts, and one that does nothing."""
    scenarios = tuple(
        Scenario(name=name, env=f"{BROKEN}:CountingEnv", seed=seed, cohort=name) for seed, name in enumerate("ab")
    )
    suite = Suite(name="counting", created=datetime.date(2026, 1, 1), sha256="0" * 64, scenarios=scenarios)
    results = [
        played.play(scenarios[n % 2].task, EVALUATION, n, say, max_turns=4)
        for n, say in enumerate(("up", "stay", "up", "stay"))
    ]
    trajectories = [result for result in results if isinstance(result, Trajectory)]
    place = folder.path / EVALUATIONS / SUITE
    place.mkdir(parents=True)
    recorded = record(trajectories, place / "trajectories", policy)
    found = PlayedSuite(policy=POLICY, trajectories=trajectories, failed={}, seconds=1.0)
    store.write(results_of(suite, found, recorded, None), place)
