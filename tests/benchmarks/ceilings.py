"""What engine and learner do alone: the episodes of an update through vLLM, then a step on them in plain torch.

`engine` plays the groups of an update, all episodes at once, against a `VLLMEngine` in this process (vLLM's core is a
child of it), with an empty prefix cache, as after new weights; it leaves the episodes in a file. `step` trains on them
as `tests.benchmarks.learner` does, with prefix trees. Each has one thread, and the machine alone. Prints one JSON
object per pass; the first one, which makes what is made once, is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from milepost.actors.engine import EngineConfig, SamplingConfig
from milepost.learner.batch.sample import NO_TURN, Sample
from tests.benchmarks.figures import Pass
from tests.benchmarks.process_tree import ProcessTree
from tests.benchmarks.workloads import GROUP_SIZE, GROUPS, TURNS, WORKLOADS, HandbookLake, Workload

_MAX_TOKENS = 16


class Played(msgspec.Struct, frozen=True):
    """An episode: its layout as ids, which turn sampled each, and the log-probs of what was sampled."""

    seed: int
    ids: list[int]
    turns: list[int]
    logprobs: list[float]

    def sample(self, advantage: float) -> Sample:
        """As the learner trains on it; groups are those of one seed."""
        advantages, group = [advantage] * len(self.ids), str(self.seed)
        sample = Sample.from_turn_index(
            self.turns, advantages=advantages, rollout_logprobs=self.logprobs, group_id=group
        )
        sample.token_ids[:] = self.ids
        return sample


class RawEngine:
    """The engine and the game, with nothing between them but the layout of the conversation."""

    def __init__(self, workload: Workload, policy: Path, config: EngineConfig) -> None:
        from transformers import AutoTokenizer  # vLLM reads its environment when it is imported

        from milepost.actors.vllm import VLLMEngine
        from milepost.envs.dialogue import Dialogue

        self._workload, self._limit = workload, config.max_model_len - _MAX_TOKENS
        self._tokenizer = AutoTokenizer.from_pretrained(policy)
        self._dialogue = Dialogue(self._tokenizer)
        self.engine = VLLMEngine(
            policy, config, SamplingConfig(max_tokens=_MAX_TOKENS), version=0,
            stop_token_ids=self._dialogue.stop_token_ids, seed=0,
        )  # fmt: skip

    async def play(self, seed: int) -> Played:
        """One episode."""
        env = HandbookLake(words=self._workload.words)
        said, _ = env.reset(seed=seed)
        ids = self._dialogue.opening(said)
        turns, logprobs = [NO_TURN] * len(ids), [0.0] * len(ids)
        for turn in range(TURNS):
            answer = await self.engine.generate(ids)
            text = self._tokenizer.decode(answer.response_ids, skip_special_tokens=True)
            said, _, terminated, truncated, _ = env.step(text)
            ids = [*ids, *answer.response_ids]
            turns += [turn] * len(answer.response_ids)
            logprobs += answer.logprobs
            following = self._dialogue.continuation(said, answer.stopped)
            if terminated or truncated or len(ids) + len(following) > self._limit:
                break
            ids = [*ids, *following]
            turns += [NO_TURN] * len(following)
            logprobs += [0.0] * len(following)
        return Played(seed, ids, turns, logprobs)


async def _engine(raw: RawEngine, passes: int) -> tuple[list[Pass], list[Played]]:
    """All passes but the first, and the episodes of the last one."""
    await raw.engine.start()
    tree, found, played = ProcessTree(os.getpid()), list[Pass](), list[Played]()
    for number in range(passes + 1):
        await raw.engine.llm.reset_prefix_cache()
        cpu_s, began = tree.cpu_s(), time.monotonic()
        seeds = [number * GROUPS + group for group in range(GROUPS)]
        played = await asyncio.gather(*(raw.play(seed) for seed in seeds for _ in range(GROUP_SIZE)))
        spent = time.monotonic() - began
        found.append(Pass(seconds=spent, cpu_s=tree.cpu_s() - cpu_s, episodes=len(played)))
    raw.engine.shutdown()
    await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()}, timeout=10)  # its own, which see its end
    return found[1:], played


def _step(policy: Path, played: list[Played], passes: int) -> Iterator[Pass]:
    """All passes but the first."""
    import torch

    from tests.benchmarks.learner import Rank

    torch.set_num_threads(1)
    draw, rank = np.random.default_rng(0), Rank(policy, "tree")
    pool = [one.sample(float(draw.normal())) for one in played]
    for number in range(passes + 1):
        began = time.monotonic()
        cpu_s = rank.step(pool)
        if number:
            yield Pass(seconds=time.monotonic() - began, cpu_s=cpu_s, episodes=len(pool))


def main() -> None:
    """Measure one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("engine", "step"))
    parser.add_argument("workload", choices=tuple(WORKLOADS))
    parser.add_argument("policy", type=Path, help="folder in Hugging Face format")
    parser.add_argument("episodes", type=Path, help="file that `engine` writes and `step` reads")
    parser.add_argument("--passes", type=int, default=3, help="(default: %(default)s)")
    asked = parser.parse_args()
    if asked.part == "engine":
        workload = WORKLOADS[asked.workload]
        config = EngineConfig(**workload.config()["engine"])
        passes, played = asyncio.run(_engine(RawEngine(workload, asked.policy, config), asked.passes))
        asked.episodes.write_bytes(msgspec.json.encode(played))
    else:
        played = msgspec.json.decode(asked.episodes.read_bytes(), type=list[Played])
        passes = list(_step(asked.policy, played, asked.passes))
    for each in passes:
        print(msgspec.json.encode(each).decode(), flush=True)


if __name__ == "__main__":
    main()
