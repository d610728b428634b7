"""What it costs to record 100,000 episodes: `make bench-recording`, on an idle machine.

Episodes of FrozenLake, played once by a scripted policy, are told, judged and written again and again under new names,
as a worker, the driver's loop and its recording thread do in a run. CPU seconds are compared with the time in which the
run RUN played as many episodes (its own rate, from its metrics.jsonl).
"""

from __future__ import annotations

import argparse
import pickle
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
from transformers import AutoTokenizer

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.runlog import runs
from milepost.cluster.runlog.records import iterations, read_records
from milepost.cluster.trajectories.recorder import Recorder
from milepost.cluster.trajectories.recording import RecordingQueue
from milepost.envs.dialogue import Dialogue
from milepost.envs.frozen_lake import MOVES
from milepost.envs.types import Group, Task, Trajectory
from tests.actors.episode_rig import ScriptedEngine
from tests.cluster.trajectories.recorded import Played, recorder, trained
from tests.conftest import write_tiny_policy

_GROUPS, _GROUP_SIZE, _UPDATE = 32, 8, 8
_WAITING = 40_000_000
"""Bytes for the recording thread from which on the benchmark waits, as a run's pace would have it."""


@dataclass(slots=True)
class Cost:
    """CPU seconds."""

    worker: float = 0.0
    loop: float = 0.0
    thread: float = 0.0


def played(dialogue: Dialogue) -> list[Group]:
    """Groups of one task each, by a policy that walks at random."""
    player, draw, moves, groups = Played(dialogue), random.Random(0), list(MOVES), []
    engine = ScriptedEngine(dialogue, lambda _: f"<answer>{draw.choice(moves)}</answer>")
    for seed in range(_GROUPS):
        lake = Task(env="milepost.envs.frozen_lake:FrozenLakeText", seed=seed, split="train", options={})
        results = [player.play(lake, f"g{seed}", index, engine=engine) for index in range(_GROUP_SIZE)]
        members = [result for result in results if isinstance(result, Trajectory)]
        groups.append(Group(group_id=f"g{seed}", task=lake, trajectories=members))
    return groups


def renamed(groups: list[Group], number: int) -> Iterator[Group]:
    """The groups of one update, under names that no other update has."""
    for k in range(_UPDATE):
        group, name = groups[(number * _UPDATE + k) % len(groups)], f"g{number:06d}-{k}"
        members = [msgspec.structs.replace(t, group_id=name) for t in group.trajectories]
        yield Group(group_id=name, task=group.task, trajectories=members)


def update(queue: RecordingQueue, record: Recorder, groups: list[Group], cost: Cost) -> None:
    """One update's episodes from the worker that played them to the recording thread."""
    judged = [trained(group) for group in groups]
    began = time.thread_time()
    for group in groups:
        for trajectory in group.trajectories:
            queue.ended(trajectory, trajectory.turns, None)
    told = pickle.dumps(queue.take())  # as Ray sends it
    cost.worker += time.thread_time() - began
    began = time.thread_time()
    record.add(pickle.loads(told))
    record.judge(judged)
    cost.loop += time.thread_time() - began


def measure(folder: Path, policy: Path, groups: list[Group], episodes: int) -> Cost:
    """Record at least `episodes` episodes, at the pace at which they are written."""
    cost, queue = Cost(), RecordingQueue()
    record = recorder(folder, policy, group_size=_GROUP_SIZE)
    began, own = time.process_time(), time.thread_time()
    for number in range(-(-episodes // (_UPDATE * _GROUP_SIZE))):
        update(queue, record, list(renamed(groups, number)), cost)
        while record._waiting_bytes > _WAITING:
            time.sleep(0.01)
    record.close()
    while record._thread.is_alive():
        record.close()
    cost.thread = (time.process_time() - began) - (time.thread_time() - own)
    assert not record.lost
    return cost


def rate(name: str) -> float | None:
    """Episodes per second of a run in `runs`, None where there is none."""
    try:
        records = iterations(read_records(runs.find(Path("runs"), name).metrics))
    except ConfigError:
        return None
    played_s = records[-1].time_s if records else None
    return sum(each.episodes for each in records) / played_s if played_s else None


def main() -> None:
    """Measure, and print where the seconds go and what share of a run they are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", default="latest", help="id or path of a run, for its rate")
    parser.add_argument("--episodes", type=int, default=100_000)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mp-bench-") as place:
        policy = write_tiny_policy(Path(place) / "policy")
        groups = played(Dialogue(AutoTokenizer.from_pretrained(policy)))
        turns = [turn for group in groups for t in group.trajectories for turn in t.turns]
        cost = measure(Path(place) / "trajectories", policy, groups, chosen.episodes)
        size = sum(path.stat().st_size for path in (Path(place) / "trajectories").iterdir())
    per = len(turns) / (_GROUPS * _GROUP_SIZE)
    print(f"{chosen.episodes} episodes of {per:.1f} turns on average, {size / 2**20:.0f} MiB on the disk")
    hot, whole = cost.worker + cost.loop, cost.worker + cost.loop + cost.thread
    print(f"CPU seconds: workers {cost.worker:.1f}, driver's loop {cost.loop:.1f}, recording thread {cost.thread:.1f}")
    found = rate(chosen.run)
    if found is None:
        print(f"2 % of one core are reached at {0.02 * chosen.episodes / whole:.0f} episodes/s")
        return
    run_s = chosen.episodes / found
    print(
        f"{chosen.run} played {found:.1f} episodes/s, so it takes {run_s:.0f} s for as many: workers and loop "
        f"{hot / run_s:.2%} of one core, with the thread {whole / run_s:.2%}"
    )


if __name__ == "__main__":
    main()
