"""Agent episodes on an engine whose every answer is kept, and the samples they become compared with it."""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from milepost.actors.agents.agent_episode import AgentHost
from milepost.actors.agents.config import AgentConfig
from milepost.actors.agents.endpoint import Endpoint
from milepost.actors.agents.program import load_program
from milepost.actors.agents.replies import Replies
from milepost.actors.engine import Completion, Engine
from milepost.actors.resources import Limits, RolloutResources
from milepost.actors.tool_reading import ToolReaders
from milepost.actors.user_code import count_if_hung
from milepost.envs.dialogue import Dialogue
from milepost.envs.types import Trajectory
from milepost.learner.batch.sample import samples

AT_ONCE = 16


class Recorder:
    """A real engine, and all that it was asked and answered, until it is found in a sample."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.calls = 0
        self.seen = Counter[str]()
        """What was compared."""
        self._left: Counter[tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]] = Counter()

    async def generate(self, prompt_ids: list[int]) -> Completion:
        completion = await self.engine.generate(prompt_ids)
        self._left[tuple(prompt_ids), tuple(completion.response_ids), tuple(completion.logprobs)] += 1
        self.calls += 1
        return completion

    def compare(self, trajectory: Trajectory) -> None:
        """Every sampled token of its samples is one that the engine answered the very prompt of the sample with."""
        cut = samples(trajectory, [0.0] * len(trajectory.turns))
        lineages = len({turn.lineage for turn in trajectory.turns})
        self.seen.update(episodes=1, lineages=lineages, samples=len(cut))
        for sample in cut:
            for k in {int(k) for k in sample.turn_index[sample.loss_mask]}:
                at = (sample.turn_index == k).nonzero()[0]
                ids, end = sample.token_ids.tolist(), int(at[-1]) + 1
                key = (tuple(ids[: at[0]]), tuple(ids[at[0] : end]), tuple(trajectory.turns[k].logprobs))
                assert self._left[key] > 0, f"episode {trajectory.index}, turn {k}: the engine sampled nothing like it"
                assert at.tolist() == list(range(at[0], end))
                self._left[key] -= 1
                self.seen.update(calls=1, tokens=len(at))

    def all_compared(self) -> Counter[str]:
        """What was compared, which is all that the engine answered."""
        assert not +self._left, f"{self._left.total()} answers of the engine are in no sample"
        assert self.seen["calls"] == self.calls
        return self.seen


@asynccontextmanager
async def hosting(recorder: Recorder, tokenizer: Any, agent: str) -> AsyncIterator[tuple[AgentHost, RolloutResources]]:
    """What episodes of the agent function `agent` need to be played on `recorder`'s engine."""
    resources = RolloutResources(
        engine=recorder,
        dialogue=Dialogue(tokenizer),
        decode=lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)),
        places=threading.Semaphore(AT_ONCE),
        readers=ToolReaders(tokenizer, Dialogue(tokenizer)),
        limits=Limits(
            max_turns=64,
            env_timeout_s=60.0,
            episode_timeout_s=3600.0,
            max_prompt_tokens=400,
            max_observation_chars=100_000,
        ),
    )
    endpoint = Endpoint()
    await endpoint.start()
    host = AgentHost(
        program=load_program(AgentConfig(path=agent), partial(count_if_hung, resources)),
        endpoint=endpoint,
        layout=Dialogue(tokenizer),
        read=Replies(resources.readers, resources.decode, Dialogue(tokenizer).control_tokens).read,
        max_tokens=0,
        places=asyncio.Semaphore(AT_ONCE),
    )
    try:
        yield host, resources
    finally:
        await endpoint.stop()
