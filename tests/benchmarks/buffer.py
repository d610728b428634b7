"""What the replay buffer costs beside a bare Redis that keeps the same bytes: `python -m tests.benchmarks.buffer`.

Groups of 8 episodes are put and taken, one after the other, by one process; before that the same bytes are SET and GOT,
through the same client, in the same server, which keeps an append-only file. Episodes are of 8 turns, as of FrozenLake
as text, of 30 turns up to a context of 32k tokens, and of 50 up to 192k. A cost is CPU seconds of this process and of
Redis together, so that who else uses the machine does not count; of several rounds it is the median. Issue, commit and
settlement of a group are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from milepost.cluster.replay import redis_server
from milepost.cluster.replay.wire import EncodedGroup, decode_group, encode, encode_task
from milepost.envs.types import Trajectory, Turn, VersionSpan
from tests.cluster.replay.buffer_rig import Rig, rig, task

GROUP_SIZE: Final = 8
VOCABULARY: Final = 150_000


@dataclass(frozen=True)
class Workload:
    """What is played in an episode, in tokens."""

    turns: int
    context: int
    """Of the last turn, its response included."""
    said: int
    """In a response."""

    def group(self, name: str) -> list[Trajectory]:
        """Its episodes, with other tokens in each."""
        return [self._episode(name, index) for index in range(GROUP_SIZE)]

    def _episode(self, name: str, index: int) -> Trajectory:
        draw, context, turns = random.Random(f"{name} {index}"), list[int](), list[Turn]()
        for k in range(1, self.turns + 1):
            shown = k * self.context // self.turns - self.said - len(context)
            context = context + draw.choices(range(VOCABULARY), k=shown)
            said = draw.choices(range(VOCABULARY), k=self.said)
            turns.append(
                Turn(
                    prompt_ids=context,
                    response_ids=said,
                    logprobs=[-0.5] * self.said,
                    versions=[VersionSpan(version=0, start=0, end=self.said)],
                    anchor=f"state {k - 1}",
                    next_anchor=f"state {k}",
                    action="on",
                    reward=0.0,
                )
            )
            context = context + said
        return Trajectory(task=task(), group_id=name, index=index, turns=turns, outcome="success")


WORKLOADS: Final = {
    "short": Workload(turns=8, context=380, said=16),
    "32k tokens": Workload(turns=30, context=32_768, said=400),
    "192k tokens": Workload(turns=50, context=196_608, said=1_000),
}


@dataclass(frozen=True)
class Row:
    """Of one workload; costs are CPU seconds of an episode."""

    workload: str
    entry_bytes: int
    """Of an episode, mean."""
    tokens: int
    """Of its last context."""
    raw: float
    """Its bytes set and got."""
    buffer: float
    """The episode put and taken."""
    wire: float
    """Encoded and decoded, without Redis."""

    @property
    def ratio(self) -> float:
        """Throughput of the buffer as a share of the bare server's."""
        return self.raw / self.buffer


def measure(rounds: int = 5) -> list[Row]:
    """A row for each workload."""
    with (
        tempfile.TemporaryDirectory(prefix="mp-bench-") as place,
        redis_server.start(Path(place), maxmemory_bytes=512 * 1024**2) as server,
    ):
        return asyncio.run(_measured(server.url, rounds))


async def _measured(url: str, rounds: int) -> list[Row]:
    rows = []
    async with rig(url, max_bytes=256 * 1024**2) as run:
        for name, workload in WORKLOADS.items():
            costs: list[tuple[float, float, float]] = []
            for number in range(rounds + 1):
                episodes = workload.group(f"{name.partition(' ')[0]}-{number}")
                payloads = [encode(episode) for episode in episodes]
                costs.append((await _raw(run, payloads), await _buffer(run, episodes), _wire(episodes)))
            raw, buffer, wire = (
                median(each[1:]) / GROUP_SIZE for each in zip(*costs, strict=True)
            )  # the first is cold
            size = sum(map(len, payloads)) // GROUP_SIZE
            rows.append(Row(name, size, workload.context, raw, buffer, wire))
    return rows


async def _raw(run: Rig, payloads: list[bytes]) -> float:
    began = await _seconds(run)
    for index, payload in enumerate(payloads):
        await run.link.command("SET", f"raw:{index}", payload)
    for index in range(len(payloads)):
        await run.link.command("GET", f"raw:{index}")
    return await _seconds(run) - began


async def _buffer(run: Rig, episodes: list[Trajectory]) -> float:
    name = episodes[0].group_id
    version = await run.ledger.version()
    assert await run.issue(name, size=len(episodes))
    began = await _seconds(run)
    for episode in episodes:
        await run.buffer.put(episode)
    (leased,) = (await run.take(1, version=version, max_staleness=1000)).groups
    seconds = await _seconds(run) - began
    assert leased.group.trajectories == episodes
    await run.buffer.commit(version + 1, {name: "trained"})
    await run.buffer.settle(version + 1)
    await run.ledger.set_versions(published=version + 1)
    return seconds


def _wire(episodes: list[Trajectory]) -> float:
    began = time.process_time()
    payloads = tuple(encode(episode) for episode in episodes)
    decode_group(EncodedGroup(group_id=episodes[0].group_id, task=encode_task(task()), trajectories=payloads))
    return time.process_time() - began


async def _seconds(run: Rig) -> float:
    """CPU seconds so far, of this process and of Redis."""
    told = await run.client.info("cpu")
    return time.process_time() + float(told["used_cpu_user"]) + float(told["used_cpu_sys"])


def main() -> None:
    """A line for each workload."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measured groups of each workload (default: %(default)s)")
    for row in measure(parser.parse_args().rounds):
        print(
            f"{row.workload}: {row.entry_bytes / 1024:.1f} KiB an episode, {row.entry_bytes / row.tokens:.1f} bytes a "
            f"token; {1000 * row.buffer:.2f} ms of CPU, of which the wire {1000 * row.wire:.2f}, against "
            f"{1000 * row.raw:.2f} of bare Redis: {row.ratio:.2f} of its throughput"
        )


if __name__ == "__main__":
    main()
