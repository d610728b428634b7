"""One family through the real engine and the learner's model: before an update of the weights, and after it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from transformers import AutoTokenizer

from milepost.actors.engine import EngineConfig, SamplingConfig
from milepost.actors.vllm import VLLMEngine
from milepost.cluster.pools.weights import lone_turn
from milepost.envs.dialogue import Dialogue
from milepost.envs.types import Turn
from milepost.learner.batch.pack import collate
from milepost.learner.batch.sample import lone_samples
from milepost.learner.zero.policy import batch_logprobs, load_policy

CONFIG = EngineConfig(max_model_len=256, max_num_seqs=16)
"""The process must start with its `environment`, for vLLM reads that at import."""
_TEMPERATURE = 0.8
_PROMPTS = 12


@dataclass
class Found:
    """Mean |log-prob of engine - of learner| in nats per token; None where it did not come to that."""

    before: float | None = None
    after: float | None = None
    moved: float | None = None
    """What the update changed: the same difference against the weights before it."""
    error: str = ""


async def probe(folder: Path) -> Found:
    """Start an engine on `folder`, compare, send it other weights, compare again."""
    found = Found()
    torch.set_num_threads(1)
    dialogue = Dialogue(AutoTokenizer.from_pretrained(folder))
    sampling = SamplingConfig(temperature=_TEMPERATURE, max_tokens=24)
    engine = VLLMEngine(folder, CONFIG, sampling, version=0, stop_token_ids=dialogue.stop_token_ids, seed=0)
    try:
        await engine.start()
        old, new = load_policy(folder).eval(), load_policy(folder).eval().requires_grad_(False)
        found.before = gap(old, await _sample(engine, dialogue), _TEMPERATURE)
        generator = torch.Generator().manual_seed(1)
        for tensor in new.parameters():
            tensor.add_(0.05 * torch.randn(tensor.shape, generator=generator))
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "new.safetensors"
            safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in new.named_parameters()}, path)
            await engine.pause()
            await engine.load(str(path))
            await engine.commit(1)
        turns = await _sample(engine, dialogue)
        found.after, found.moved = gap(new, turns, _TEMPERATURE), gap(old, turns, _TEMPERATURE)
    except Exception as error:
        found.error = f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:200]}"
    finally:
        engine.shutdown()
    return found


async def _sample(engine: VLLMEngine, dialogue: Dialogue) -> list[Turn]:
    prompts = [dialogue.opening(f"door {k} " + "left or right? " * (k % 5)) for k in range(_PROMPTS)]
    answers = await asyncio.gather(*(engine.generate(prompt) for prompt in prompts))
    pairs = list(zip(prompts, answers, strict=True))
    prompts += [p + answer.response_ids + dialogue.continuation("Again?", answer.stopped) for p, answer in pairs]
    answers += await asyncio.gather(*(engine.generate(prompt) for prompt in prompts[_PROMPTS:]))
    return [lone_turn(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]


def gap(model: Any, turns: list[Turn], temperature: float = 1.0) -> float:
    """Mean |log-prob as recorded - by `model`| over the sampled tokens, in nats."""
    batch = collate(lone_samples(turns))
    with torch.no_grad():
        logprobs, _ = batch_logprobs(model, batch, temperature)
    return float((logprobs - batch.rollout_logprobs)[batch.loss_mask].abs().mean())


if __name__ == "__main__":
    print("found", json.dumps(asdict(asyncio.run(probe(Path(sys.argv[1]))))), flush=True)
    os._exit(0)  # vLLM's threads would keep the process
