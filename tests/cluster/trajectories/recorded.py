"""Episodes played through the worker's own code, told to a recorder, and read back from its files."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from milepost.actors.episode import run_episode
from milepost.cluster.trajectories.judgement import Judgement
from milepost.cluster.trajectories.recorder import Recorder
from milepost.cluster.trajectories.recording import Batch, RecordedTurn, RecordingQueue
from milepost.envs.dialogue import Dialogue
from milepost.envs.types import Failure, Group, Task, Trajectory
from milepost.learner.credit.assignment import from_group
from milepost.learner.credit.strategies.crbc import CRBC, CRBCConfig
from milepost.learner.episode_credit import episode_credits
from tests.actors.episode_rig import ScriptedEngine, resources

Row = dict[str, Any]


class Played:
    """What was played so far, each with what the worker's queue told of it."""

    def __init__(self, dialogue: Dialogue) -> None:
        self.dialogue = dialogue
        self.seen: dict[tuple[str, int], list[tuple[list[int], list[int]]]] = {}
        """(group, index) -> prompt and response of every request that the engine got."""
        self.queue = RecordingQueue()

    def play(self, task: Task, group_id: str, index: int, say: str = "up", **limits: Any) -> Trajectory | Failure:
        asked: list[tuple[list[int], list[int]]] = []
        self.seen[group_id, index] = asked

        class Engine(ScriptedEngine):
            async def generate(self, prompt_ids: list[int]) -> Any:
                asked.append((prompt_ids, []))
                answer = await super().generate(prompt_ids)
                asked[-1] = (prompt_ids, answer.response_ids)
                return answer

        async def go() -> Trajectory | Failure:
            engine = limits.pop("engine", None) or Engine(self.dialogue, lambda _: say)
            async with resources(self.dialogue, engine=engine, **limits) as shared:
                shared.recorder = self.queue
                return await run_episode(shared, task=task, group_id=group_id, index=index)

        return asyncio.run(go())

    def group(self, task: Task, group_id: str, says: tuple[str, ...] = ("up", "down")) -> Group:
        played = [self.play(task, group_id, index, say) for index, say in enumerate(says)]
        members = [result for result in played if isinstance(result, Trajectory)]
        return Group(group_id=group_id, task=task, trajectories=members)

    def told(self) -> Batch:
        return self.queue.take()


def recorder(folder: Path, policy: Path, *, max_bytes: int = 1 << 30, group_size: int = 2) -> Recorder:
    return Recorder(folder, policy=policy, max_bytes=max_bytes, group_size=group_size, strategy="crbc")


def trained(group: Group, *, version: int = 3) -> Judgement:
    """The group as an update trained on it: advantages are half the credit."""
    credit = CRBC(CRBCConfig()).assign(from_group(group))
    return Judgement(
        group=group,
        fate="trained",
        reason="selected",
        learner_version=version,
        credits=episode_credits(credit, credit),
    )


def unjudged(group: Group, fate: Any, reason: str) -> Judgement:
    return Judgement(group=group, fate=fate, reason=reason, learner_version=9, credits=[None] * len(group.trajectories))


def prompts(turns: Sequence[RecordedTurn]) -> Iterator[list[int]]:
    """The whole prompt of each turn, put together as docs/trajectories.md says."""
    seen: list[int] = []
    for turn in turns:
        prompt = seen + turn.prompt_ids if turn.continues else turn.prompt_ids
        yield prompt
        seen = prompt + turn.response_ids


def closing(*recorders: Recorder) -> ExitStack:
    """Closes them at the end of a `with` block."""
    stack = ExitStack()
    for each in recorders:
        stack.callback(each.close)
    return stack


def rows(folder: Path, name: str) -> list[Row]:
    """All rows of `episodes` or `turns`, in the order of writing."""
    return [row for path in sorted(folder.glob(f"{name}-*.parquet")) for row in pq.read_table(path).to_pylist()]


def turns_of(folder: Path, episode: int) -> list[Row]:
    return [row for row in rows(folder, "turns") if row["episode"] == episode]
