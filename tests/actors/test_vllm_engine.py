"""The real engine: its log-probs, versions and refusals, measured against `transformers` on the same weights."""

import asyncio
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import safetensors.torch
import torch
from transformers import LlamaForCausalLM

from milepost.actors.engine import Completion, EngineError
from milepost.actors.vllm import VLLMEngine
from milepost.envs.dialogue import Dialogue
from tests.actors.running_engine import RunningEngine

pytestmark = pytest.mark.services

EMBEDDING = "model.embed_tokens.weight"
Played = list[tuple[list[int], Completion]]


@dataclass(frozen=True)
class Weights:
    """One set of weights: as a file for the engine, as a model for the recomputation."""

    path: Path
    sha256: str
    model: LlamaForCausalLM

    def logprobs(self, prompt: list[int], response: list[int], temperature: float) -> torch.Tensor:
        """`[len(response)]`: of each response token given all before it."""
        with torch.no_grad():
            logits = self.model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        return torch.log_softmax(logits / temperature, -1).gather(1, torch.tensor(response)[:, None])[:, 0]


def write(policy: Path, path: Path, *, noise: float = 0.0, only: str = "") -> Weights:
    """`policy` with Gaussian `noise` on every tensor (or `only` one), a tied head once, as the learner writes it."""
    model = LlamaForCausalLM.from_pretrained(policy, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.named_parameters():
        if name == only or not only:
            tensor.data += noise * torch.randn(tensor.shape, generator=generator)
    safetensors.torch.save_file({name: tensor.data for name, tensor in model.named_parameters()}, path)
    return Weights(path, hashlib.sha256(path.read_bytes()).hexdigest(), model)


@pytest.fixture(scope="module")
def initial(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return write(tiny_policy, tmp_path_factory.mktemp("weights") / "initial.safetensors")


@pytest.fixture(scope="module")
def perturbed(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return write(tiny_policy, tmp_path_factory.mktemp("weights") / "perturbed.safetensors", noise=0.02)


@pytest.fixture
def updatable(engine: RunningEngine, initial: Weights) -> Iterator[RunningEngine]:
    """The session's engine, put back to version 0 whatever the test does to it."""
    yield engine
    publish(engine, initial, 0, rollback=True)
    assert engine.engine.version == 0


async def verify_and_load(engine: VLLMEngine, path: Path, sha256: str) -> None:
    await engine.verify(str(path), sha256)
    await engine.pause()
    await engine.load(str(path))


def publish(running: RunningEngine, weights: Weights, version: int, *, rollback: bool = False) -> None:
    running.run(verify_and_load(running.engine, weights.path, weights.sha256))
    running.run(running.engine.commit(version, rollback=rollback))


def prompts(dialogue: Dialogue, count: int = 16) -> list[list[int]]:
    return [dialogue.opening(f"lake {i} " + "_ O G P\n" * (i % 8)) for i in range(count)]


def play(running: RunningEngine, dialogue: Dialogue) -> Played:
    async def all_at_once() -> list[Completion]:
        return await asyncio.gather(*(running.engine.generate(prompt) for prompt in prompts(dialogue)))

    return list(zip(prompts(dialogue), running.run(all_at_once()), strict=True))


def gaps(played: Played, weights: Weights, temperature: float) -> torch.Tensor:
    """Absolute differences between the engine's log-probs and the recomputed ones, one per sampled token."""
    return torch.cat(
        [
            (weights.logprobs(prompt, c.response_ids, temperature) - torch.tensor(c.logprobs)).abs()
            for prompt, c in played
        ]
    )


def assert_sampled_by(played: Played, weights: Weights, running: RunningEngine) -> None:
    found = gaps(played, weights, running.sampling.temperature)
    assert found.numel() > 200
    assert found.max() < 1e-3
    assert found.mean() < 1e-4


def assert_not_sampled_by(played: Played, weights: Weights, running: RunningEngine) -> None:
    assert gaps(played, weights, running.sampling.temperature).max() > 1e-3


def spans(completion: Completion) -> list[tuple[int, int, int]]:
    return [(span.version, span.start, span.end) for span in completion.versions]


def test_log_probs_equal_an_independent_recomputation(
    engine: RunningEngine, dialogue: Dialogue, initial: Weights
) -> None:
    played = play(engine, dialogue)
    assert_sampled_by(played, initial, engine)
    assert all(torch.tensor(c.logprobs).tolist() == c.logprobs for _, c in played)  # float32: what wires keep exactly
    assert gaps(played, initial, 1.0).max() > 1e-2  # they are those at the sampling temperature, not at 1
    assert all(spans(c) == [(0, 0, len(c.response_ids))] for _, c in played)


@pytest.mark.parametrize("only", ["", EMBEDDING, "model.norm.weight"])
def test_log_probs_follow_new_weights_through_the_tied_head(
    only: str, updatable: RunningEngine, dialogue: Dialogue, initial: Weights, tiny_policy: Path, tmp_path: Path
) -> None:
    new = write(tiny_policy, tmp_path / "new.safetensors", noise=0.02, only=only)
    publish(updatable, new, 1)
    played = play(updatable, dialogue)
    assert_sampled_by(played, new, updatable)
    assert_not_sampled_by(played, initial, updatable)
    assert updatable.engine.version == 1
    assert all(spans(c) == [(1, 0, len(c.response_ids))] for _, c in played)


def test_requests_in_flight_survive_an_update_and_say_which_weights_sampled_what(
    updatable: RunningEngine, dialogue: Dialogue, initial: Weights, perturbed: Weights
) -> None:
    engine, asked = updatable.engine, prompts(dialogue)
    updated, out_of_step = asyncio.Event(), set()
    played: Played = []

    async def keep_asking(index: int, prompt: list[int]) -> None:
        # Its first response has room for few tokens, so that from then on no two requests are equally far.
        await engine.generate([5] * (updatable.config.max_model_len - 6 * (index + 1)))
        out_of_step.add(index)
        while not updated.is_set():
            played.append((prompt, await engine.generate(prompt)))

    async def update_under_load() -> None:
        async with asyncio.TaskGroup() as group:
            for index, prompt in enumerate(asked):
                group.create_task(keep_asking(index, prompt))
            while len(out_of_step) < len(asked):
                await asyncio.sleep(0.001)
            await verify_and_load(engine, perturbed.path, perturbed.sha256)
            await engine.commit(1)
            updated.set()

    updatable.run(update_under_load())
    across = [(prompt, c) for prompt, c in played if len(c.versions) == 2]
    assert len(across) >= len(asked) // 2  # all were under way; some may have been at their first token
    for prompt, completion in across:
        (_, _, cut), (_, _, end) = spans(completion)
        assert spans(completion) == [(0, 0, cut), (1, cut, end)]
        assert 0 < cut < end == len(completion.response_ids)
        temperature = updatable.sampling.temperature
        sampled, ids = torch.tensor(completion.logprobs), completion.response_ids
        old, new = (weights.logprobs(prompt, ids, temperature) for weights in (initial, perturbed))
        assert (sampled - old)[:cut].abs().max() < 1e-3
        assert (sampled - new)[cut:].abs().max() < 1e-3


def test_weights_with_one_flipped_bit_are_refused_and_the_old_ones_stay(
    updatable: RunningEngine, dialogue: Dialogue, initial: Weights, perturbed: Weights, tmp_path: Path
) -> None:
    blob = bytearray(perturbed.path.read_bytes())
    blob[-1000] ^= 1
    corrupted = tmp_path / "corrupted.safetensors"
    corrupted.write_bytes(blob)
    with pytest.raises(ValueError, match="hash to"):
        updatable.run(verify_and_load(updatable.engine, corrupted, perturbed.sha256))
    assert not updatable.run(updatable.engine.llm.is_paused()), "it was found before anything waited for it"
    assert updatable.engine.version == 0
    played = play(updatable, dialogue)
    assert_sampled_by(played, initial, updatable)
    assert all(spans(c) == [(0, 0, len(c.response_ids))] for _, c in played)


def test_an_older_version_is_refused_unless_the_learner_has_gone_back(
    updatable: RunningEngine, dialogue: Dialogue, initial: Weights, perturbed: Weights
) -> None:
    publish(updatable, perturbed, 5)
    for version in (5, 4):
        updatable.run(verify_and_load(updatable.engine, initial.path, initial.sha256))
        with pytest.raises(ValueError, match=f"version {version} is not newer than 5"):
            updatable.run(updatable.engine.commit(version))
        assert updatable.engine.version == 5
    updatable.run(updatable.engine.commit(4, rollback=True))
    played = play(updatable, dialogue)
    assert_sampled_by(played, initial, updatable)
    assert all(spans(c) == [(4, 0, len(c.response_ids))] for _, c in played)


def test_a_version_committed_without_its_weights_is_caught_by_recomputation(
    updatable: RunningEngine, dialogue: Dialogue, initial: Weights, perturbed: Weights
) -> None:
    updatable.run(updatable.engine.commit(1))
    played = play(updatable, dialogue)
    assert all(spans(c) == [(1, 0, len(c.response_ids))] for _, c in played)
    assert_not_sampled_by(played, perturbed, updatable)
    assert_sampled_by(played, initial, updatable)


def test_a_response_ends_at_its_first_stop_token_or_at_max_tokens(engine: RunningEngine, dialogue: Dialogue) -> None:
    stop, max_tokens = set(dialogue.stop_token_ids), engine.sampling.max_tokens
    answers: list[Completion] = []
    while len({c.stopped for c in answers}) < 2:
        assert len(answers) < 320, "both endings come within 20 rounds"
        answers += [completion for _, completion in play(engine, dialogue)]
    for completion in answers:
        assert not stop & set(completion.response_ids[:-1])
        assert completion.stopped == (completion.response_ids[-1] in stop)
        assert completion.stopped or len(completion.response_ids) == max_tokens
        assert len(completion.response_ids) == len(completion.logprobs) <= max_tokens


def test_a_response_takes_no_more_than_the_context_has_room_for(engine: RunningEngine) -> None:
    full = engine.config.max_model_len
    completion = engine.run(engine.engine.generate([5] * (full - 3)))
    assert len(completion.response_ids) == 3 or completion.stopped
    with pytest.raises(EngineError, match=r"fills engine\.max_model_len"):
        engine.run(engine.engine.generate([5] * full))


def test_a_prompt_that_vllm_refuses_is_an_engine_error(engine: RunningEngine) -> None:
    with pytest.raises(EngineError, match=r"\w+: .*"):
        engine.run(engine.engine.generate([10**6]))


async def nothing_is_left(engine: VLLMEngine) -> bool:
    await asyncio.sleep(0)
    return not engine.llm.output_processor.has_unfinished_requests()


def test_a_request_past_its_deadline_is_an_engine_error_and_is_aborted(
    engine: RunningEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.run(engine.engine.llm.pause_generation(mode="keep"))
    with monkeypatch.context() as patch:
        patch.setattr(engine.engine, "_config", engine.config.model_copy(update={"request_timeout_s": 0.2}))
        with pytest.raises(EngineError, match=r"engine\.request_timeout_s = 0\.2"):
            engine.run(engine.engine.generate([5, 6, 7]))
    assert engine.run(nothing_is_left(engine.engine))
    engine.run(engine.engine.llm.resume_generation())
    assert engine.run(engine.engine.generate([5, 6, 7])).response_ids


def test_a_request_that_vllm_gives_up_is_an_engine_error_and_no_short_answer(engine: RunningEngine) -> None:
    async def give_up() -> None:
        llm = engine.engine.llm
        await llm.pause_generation(mode="keep")
        try:
            asked = asyncio.create_task(engine.engine.generate([5, 6, 7]))
            while not llm.output_processor.request_states:
                await asyncio.sleep(0.001)
            await llm.abort(list(llm.output_processor.request_states), internal=True)
            with pytest.raises(EngineError, match="gave the request up"):
                await asked
        finally:
            await llm.resume_generation()

    engine.run(give_up())


def test_a_core_that_was_stopped_answers_no_check_and_one_that_goes_on_does(engine: RunningEngine) -> None:
    async def answers() -> bool:
        try:
            async with asyncio.timeout(1):
                await engine.engine.check()
        except TimeoutError:
            return False
        return True

    [core] = [p for p in psutil.Process().children(recursive=True) if "EngineCore" in "".join(p.cmdline())]
    assert engine.run(answers())
    core.suspend()
    try:
        assert not engine.run(answers())
    finally:
        core.resume()
    assert engine.run(engine.engine.generate([5, 6, 7])).response_ids
    assert engine.run(answers())
