"""No token of a trained sample differs from what a real engine sampled, whatever an agent does with its history.

`make agent-tokens` plays the same for 10,000 calls.
"""

import argparse
import asyncio
import tempfile
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from milepost.actors.agents.agent_episode import AgentHost, run_agent_episode
from milepost.actors.agents.config import AgentConfig
from milepost.actors.agents.endpoint import Endpoint
from milepost.actors.agents.program import load_program
from milepost.actors.agents.replies import Replies
from milepost.actors.engine import Completion, Engine
from milepost.actors.resources import Limits, RolloutResources
from milepost.actors.tool_reading import ToolReaders
from milepost.actors.user_code import count_if_hung
from milepost.envs.dialogue import Dialogue
from milepost.envs.types import Task, Trajectory
from milepost.learner.batch.sample import samples
from tests.actors.running_engine import RunningEngine

pytestmark = pytest.mark.services
AGENT = "tests.actors.agents.wandering_agent:run"
_AT_ONCE = 16
_CALLS = 150


class Recorder:
    """A real engine, and all that it was asked and answered."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.sampled: Counter[tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]] = Counter()

    async def generate(self, prompt_ids: list[int]) -> Completion:
        completion = await self.engine.generate(prompt_ids)
        self.sampled[tuple(prompt_ids), tuple(completion.response_ids), tuple(completion.logprobs)] += 1
        return completion


async def play(recorder: Recorder, tokenizer: Any, calls: int) -> list[Trajectory]:
    """Episodes of the wandering agent, until the engine was asked `calls` times."""
    resources = RolloutResources(
        engine=recorder,
        dialogue=Dialogue(tokenizer),
        decode=lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)),
        places=threading.Semaphore(_AT_ONCE),
        readers=ToolReaders(tokenizer, Dialogue(tokenizer)),
        limits=Limits(
            max_turns=64,
            env_timeout_s=60.0,
            episode_timeout_s=300.0,
            max_prompt_tokens=400,
            max_observation_chars=100_000,
        ),
    )
    endpoint = Endpoint()
    await endpoint.start()
    host = AgentHost(
        program=load_program(AgentConfig(path=AGENT), partial(count_if_hung, resources)),
        endpoint=endpoint,
        layout=Dialogue(tokenizer),
        read=Replies(resources.readers, resources.decode, Dialogue(tokenizer).control_tokens).read,
        max_tokens=0,
        places=asyncio.Semaphore(16),
    )
    played: list[Trajectory] = []
    began, index = time.monotonic(), 0
    while sum(recorder.sampled.values()) < calls:
        task = Task(env=AGENT, seed=0, split="train", options={"steps": 8})
        some = [run_agent_episode(host, resources, task=task, group_id="g", index=index + k) for k in range(_AT_ONCE)]
        index += _AT_ONCE
        for result in await asyncio.gather(*some):
            assert isinstance(result, Trajectory), result
            played.append(result)
        asked = sum(recorder.sampled.values())
        print(f"{asked} of {calls} calls, {asked / (time.monotonic() - began):.0f} a second", flush=True)
    await endpoint.stop()
    return played


def compare(recorder: Recorder, played: list[Trajectory]) -> Counter[str]:
    """Every sampled token of every sample against the engine's own record; counts what was looked at."""
    left, seen = recorder.sampled.copy(), Counter[str]()
    for trajectory in played:
        cut = samples(trajectory, [0.0] * len(trajectory.turns))
        seen["lineages"] += len({turn.lineage for turn in trajectory.turns})
        seen["samples"] += len(cut)
        for sample in cut:
            for k in {int(k) for k in sample.turn_index[sample.loss_mask]}:
                at = (sample.turn_index == k).nonzero()[0]
                ids, end = sample.token_ids.tolist(), int(at[-1]) + 1
                key = (tuple(ids[: at[0]]), tuple(ids[at[0] : end]), tuple(trajectory.turns[k].logprobs))
                assert left[key] > 0, f"episode {trajectory.index}, turn {k}: the engine sampled nothing like it"
                assert at.tolist() == list(range(at[0], end))
                left[key] -= 1
                seen["calls"] += 1
                seen["tokens"] += len(at)
    assert not +left, f"{left.total()} answers of the engine are in no sample"
    return seen


@pytest.mark.timeout(300)
def test_every_trained_token_is_one_that_the_engine_sampled_behind_the_very_prompt_of_its_sample(
    engine: RunningEngine, tiny_policy: Path
):
    recorder = Recorder(engine.engine)
    played = engine.run(play(recorder, AutoTokenizer.from_pretrained(tiny_policy), _CALLS), timeout_s=240)
    seen = compare(recorder, played)
    assert seen["calls"] == sum(recorder.sampled.values()) >= _CALLS
    assert seen["samples"] == seen["lineages"] > len(played), "no episode had more than one lineage"


def main() -> None:
    """The same with an engine of its own."""
    from milepost.actors.engine import EngineConfig, SamplingConfig
    from milepost.actors.vllm import VLLMEngine
    from tests.conftest import write_tiny_policy

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--calls", type=int, default=10_000)
    calls = parser.parse_args().calls

    async def go(folder: Path) -> Counter[str]:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        config, sampling = EngineConfig(max_model_len=512, max_num_seqs=64), SamplingConfig(max_tokens=16)
        stop = Dialogue(tokenizer).stop_token_ids
        engine = VLLMEngine(folder, config, sampling, version=0, stop_token_ids=stop, seed=0)
        await engine.start()
        recorder = Recorder(engine)
        try:
            return compare(recorder, await play(recorder, tokenizer, calls))
        finally:
            engine.shutdown()

    with tempfile.TemporaryDirectory() as folder:
        seen = asyncio.run(go(write_tiny_policy(Path(folder))))
    print(f"equal: {seen['tokens']} tokens of {seen['calls']} calls in {seen['samples']} samples")


if __name__ == "__main__":
    main()
