"""A workload of `tests.benchmarks.workloads` trained by TRL's GRPOTrainer, with vLLM in its process (`rollout_func`).

Runs in an environment of its own (`make bench-trl`). The game, the prompts' token ids, the sampling, the batch and the
policy are those of Milepost's run; what is left to TRL is how episodes become an update. Prints one JSON object per
update: wall and CPU seconds since the one before, those of the rollout, episodes, turns, tokens that were sampled and
those of the final contexts.

vLLM's CPU build packs linear weights once they are loaded, and cannot load single ones into packed layers, as TRL does:
here they go in through vLLM's own layer-wise reload. And the engine computes in float32 as the trainer does, for
bfloat16, which vLLM takes where TRL says nothing, is slower on CPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil


@dataclass
class Episode:
    """One game under way: its layout as ids, and which of them the policy sampled."""

    env: Any
    ids: list[int]
    prompt: int
    """Tokens of the first prompt."""
    sampled: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    turns: int = 0
    reward: float = 0.0
    over: bool = False


class Rollout:
    """TRL's `rollout_func`: all episodes of an update, a turn of each at a time in one call of vLLM."""

    def __init__(self, workload: Any, tokenizer: Any, delay_s: float) -> None:
        from milepost.envs.dialogue import Dialogue
        from tests.benchmarks.workloads import GROUP_SIZE, GROUPS, HandbookLake

        self._new_env = lambda: HandbookLake(words=workload.words, delay_s=delay_s)
        self._tokenizer, self._dialogue = tokenizer, Dialogue(tokenizer)
        self._threads = ThreadPoolExecutor(GROUPS * GROUP_SIZE)
        self._limit = workload.max_model_len
        self.played: list[Episode] = []
        self.seconds = 0.0
        """That the last call took."""

    def __call__(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        """`prompts` are seeds of tasks, each as often as its group is large."""
        from vllm import SamplingParams

        began = time.monotonic()
        params = SamplingParams(
            temperature=1.0, max_tokens=16, stop_token_ids=self._dialogue.stop_token_ids, ignore_eos=True, logprobs=0,
            detokenize=False,
        )  # fmt: skip
        episodes = list(self._threads.map(self._open, prompts))
        while under_way := [episode for episode in episodes if not episode.over]:
            asked = [{"prompt_token_ids": episode.ids} for episode in under_way]
            answers = trainer.vllm_generation.llm.generate(asked, sampling_params=params, use_tqdm=False)
            list(self._threads.map(self._act, under_way, (answer.outputs[0] for answer in answers)))
        self.played, self.seconds = episodes, time.monotonic() - began
        return {
            "prompt_ids": [episode.ids[: episode.prompt] for episode in episodes],
            "completion_ids": [episode.ids[episode.prompt :] for episode in episodes],
            "logprobs": [episode.logprobs for episode in episodes],
            "env_mask": [episode.sampled for episode in episodes],
            "env_reward": [episode.reward for episode in episodes],
        }

    def _open(self, seed: str) -> Episode:
        env = self._new_env()
        said, _ = env.reset(seed=int(seed))
        ids = self._dialogue.opening(said)
        return Episode(env, ids, len(ids))

    def _act(self, episode: Episode, answer: Any) -> None:
        ids = list(answer.token_ids)
        episode.logprobs += [entry[token].logprob for token, entry in zip(ids, answer.logprobs, strict=True)]
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        said, reward, terminated, truncated, _ = episode.env.step(text)
        episode.turns += 1
        episode.reward += reward
        stopped = ids[-1] in self._dialogue.stop_token_ids
        following = [] if terminated or truncated else self._dialogue.continuation(said, stopped)
        episode.over = terminated or truncated or len(episode.ids) + len(ids) + len(following) > self._limit - 16
        episode.ids = [*episode.ids, *ids, *following]
        episode.sampled += [1] * len(ids) + [0] * len(following)
        episode.logprobs += [0.0] * len(following)


def main() -> None:
    """Train for some updates and tell of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", help="short or long-prompt")
    parser.add_argument("policy", type=Path, help="folder in Hugging Face format")
    parser.add_argument("--updates", type=int, default=6, help="(default: %(default)s)")
    parser.add_argument("--delay-s", type=float, default=0.0, help="seconds that a step of the game takes")
    parser.add_argument("--threads", type=int, default=1, help="of torch and of vLLM (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=16, help="of a micro-batch (default: %(default)s)")
    asked = parser.parse_args()
    os.environ |= {
        "OMP_NUM_THREADS": str(asked.threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1",
    }  # fmt: skip
    _train(asked)


def _train(asked: argparse.Namespace) -> None:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer
    from trl.generation import vllm_generation
    from vllm import LLM

    from tests.benchmarks.workloads import GROUP_SIZE, GROUPS, WORKLOADS

    tokenizer = AutoTokenizer.from_pretrained(asked.policy)
    workload = WORKLOADS[asked.workload]
    rollout = Rollout(workload, tokenizer, asked.delay_s)
    batch = GROUPS * GROUP_SIZE

    vllm_generation.LLM = partial(LLM, dtype="float32")

    class Told(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self._at = (time.monotonic(), _cpu_s())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            before, self._at = self._at, (time.monotonic(), _cpu_s())
            played = rollout.played
            told = {
                "wall_s": self._at[0] - before[0], "cpu_s": self._at[1] - before[1], "rollout_s": rollout.seconds,
                "episodes": len(played), "turns": sum(one.turns for one in played),
                "sampled": sum(sum(one.sampled) for one in played), "tokens": sum(len(one.ids) for one in played),
            }  # fmt: skip
            print(json.dumps(told), flush=True)

    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(asked.policy, dtype=torch.float32),
        reward_funcs=lambda env_reward, **_: env_reward,
        args=GRPOConfig(
            output_dir=os.environ.get("TMPDIR", "/tmp"), use_cpu=True, bf16=False, learning_rate=1e-6,
            per_device_train_batch_size=asked.rows, gradient_accumulation_steps=batch // asked.rows,
            num_generations=GROUP_SIZE, max_completion_length=workload.max_model_len, max_steps=asked.updates,
            use_vllm=True, vllm_mode="colocate", vllm_max_model_length=workload.max_model_len, beta=0.0,
            gradient_checkpointing=False, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"prompt": [str(seed) for seed in range(512)]}),
        processing_class=tokenizer,
        rollout_func=rollout,
        callbacks=[Told()],
    )  # fmt: skip
    trainer.vllm_generation.sync_weights = lambda: _reload(trainer.vllm_generation)
    trainer.train()


def _reload(generation: Any) -> None:
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    runner = generation.llm.llm_engine.model_executor.driver_worker.model_runner
    initialize_layerwise_reload(runner.model)
    runner.model.load_weights(generation._iter_named_params())
    finalize_layerwise_reload(runner.model, runner.model_config)
    generation.llm.reset_prefix_cache()


def _cpu_s() -> float:
    """Of this process and its children."""
    own = psutil.Process()
    times = [process.cpu_times() for process in [own, *own.children(recursive=True)]]
    return sum(one.user + one.system for one in times)


if __name__ == "__main__":
    main()
