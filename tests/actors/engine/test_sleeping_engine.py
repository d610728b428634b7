"""An engine that sleeps from one set of weights to the next; on a CPU all of it is real but the memory it gives up."""

import asyncio
from pathlib import Path

import pytest
import safetensors.torch
import torch
from transformers import LlamaForCausalLM

from milepost.envs.dialogue import Dialogue
from tests.actors.running_engine import RunningEngine

pytestmark = pytest.mark.services


def write(model: LlamaForCausalLM, path: Path) -> None:
    """The weights as a learner writes them."""
    safetensors.torch.save_file({name: tensor.data for name, tensor in model.named_parameters()}, path)


def test_a_request_to_a_sleeping_engine_is_answered_by_the_weights_and_under_the_version_it_wakes_up_with(
    engine: RunningEngine, dialogue: Dialogue, tiny_policy: Path, tmp_path: Path
) -> None:
    model = LlamaForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32).eval()
    write(model, tmp_path / "true")
    with torch.no_grad():
        for tensor in model.parameters():
            tensor += 0.02 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))
    write(model, tmp_path / "moved")
    vllm, prompt = engine.engine, dialogue.opening("lake")

    async def update_asleep() -> None:
        await vllm.sleep()
        asked = asyncio.create_task(vllm.generate(prompt))
        await vllm.pause()  # as every delivery does first
        await vllm.load(str(tmp_path / "moved"))
        await vllm.check()
        await asyncio.sleep(0.3)
        assert await vllm.llm.is_sleeping(), "its cache is not back"
        assert not asked.done()
        await vllm.commit(7)
        assert not await vllm.llm.is_sleeping()
        answer = await asked
        assert [(span.version, span.start) for span in answer.versions] == [(7, 0)]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer.response_ids])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits / engine.sampling.temperature, -1)
        found = expected.gather(1, torch.tensor(answer.response_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(answer.logprobs), found, atol=1e-3, rtol=0)

    async def put_back() -> None:
        await vllm.pause()
        await vllm.load(str(tmp_path / "true"))
        await vllm.commit(0, rollback=True)

    try:
        engine.run(update_asleep())
    finally:
        engine.run(put_back())
