"""No token of a trained sample differs from what a real engine sampled, whatever an agent does with its history.

`make agent-tokens` plays the same for 10,000 calls.
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from milepost.actors.agents.agent_episode import run_agent_episode
from milepost.envs.dialogue import Dialogue
from milepost.envs.types import Task, Trajectory
from tests.actors.agents.exact_tokens import AT_ONCE, Recorder, hosting
from tests.actors.running_engine import RunningEngine

pytestmark = pytest.mark.services
AGENT = "tests.actors.agents.wandering_agent:run"
_CALLS = 150
_SAY_EVERY_S = 10.0


async def play(recorder: Recorder, tokenizer: Any, calls: int) -> None:
    """Episodes of the wandering agent, compared one by one, until the engine was asked `calls` times."""
    task, numbers = Task(env=AGENT, seed=0, split="train", options={"steps": 8}), count()
    began = said = time.monotonic()

    async def one_after_another() -> None:
        nonlocal said
        while recorder.calls < calls:
            result = await run_agent_episode(host, resources, task=task, group_id="g", index=next(numbers))
            assert isinstance(result, Trajectory), result
            recorder.compare(result)
            if (now := time.monotonic()) >= said + _SAY_EVERY_S:
                said, rate = now, recorder.calls / (now - began)
                print(f"{recorder.calls} of {calls} calls, {rate:.1f} a second; {told(recorder.seen)}", flush=True)

    async with hosting(recorder, tokenizer, AGENT) as (host, resources):
        await asyncio.gather(*(one_after_another() for _ in range(AT_ONCE)))


def told(seen: Counter[str]) -> str:
    return (
        f"equal: {seen['tokens']} tokens of {seen['calls']} calls, in {seen['samples']} samples of "
        f"{seen['lineages']} lineages and {seen['episodes']} episodes"
    )


@pytest.mark.timeout(300)
def test_every_trained_token_is_one_that_the_engine_sampled_behind_the_very_prompt_of_its_sample(
    engine: RunningEngine, tiny_policy: Path
):
    recorder = Recorder(engine.engine)
    engine.run(play(recorder, AutoTokenizer.from_pretrained(tiny_policy), _CALLS), timeout_s=240)
    seen = recorder.all_compared()
    assert seen["calls"] >= _CALLS
    assert seen["samples"] == seen["lineages"] > seen["episodes"], "no episode had more than one lineage"


def main() -> None:
    """The same with an engine of its own."""
    from milepost.actors.engine import EngineConfig, SamplingConfig, environment

    config, sampling = EngineConfig(max_model_len=512, max_num_seqs=64), SamplingConfig(max_tokens=16)
    os.environ.update(environment(config))  # before vLLM is imported, which would else take most of the memory
    from milepost.actors.vllm import VLLMEngine
    from tests.conftest import write_tiny_policy

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--calls", type=int, default=10_000)
    calls = parser.parse_args().calls

    async def go(folder: Path) -> Counter[str]:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        stop = Dialogue(tokenizer).stop_token_ids
        engine = VLLMEngine(folder, config, sampling, version=0, stop_token_ids=stop, seed=0)
        await engine.start()
        recorder = Recorder(engine)
        try:
            await play(recorder, tokenizer, calls)
            return recorder.all_compared()
        finally:
            engine.shutdown()

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        seen = asyncio.run(go(write_tiny_policy(Path(folder))))
    print(f"{told(seen)}; {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
