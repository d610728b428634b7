"""What settings of other training programs (verl, TRL, OpenRLHF, prime-rl) are called here.

For the complaint about a key that Milepost does not know. A name may mean a little more or less there; `Note` says it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

KEYS: Final[dict[str, str]] = {
    # verl
    "rollout.n": "run.group_size",
    "data.train_batch_size": "run.groups_per_iteration",
    "actor.ppo_mini_batch_size": "learner.minibatches",
    "actor.ppo_max_token_len_per_gpu": "learner.max_tokens_per_micro_batch",
    "actor.clip_ratio": "loss.clip_low",
    "clip_ratio_low": "loss.clip_low",
    "clip_ratio_high": "loss.clip_high",
    "kl_loss_coef": "loss.kl_coef",
    "entropy_coeff": "entropy.coef",
    "loss_agg_mode": "loss.aggregation",
    "adv_estimator": "credit.strategy",
    "max_response_length": "sampling.max_tokens",
    "tensor_model_parallel_size": "engine.tensor_parallel_size",
    "total_epochs": "run.iterations",
    "total_training_steps": "run.iterations",
    "save_freq": "run.checkpoint_every",
    "test_freq": "run.eval_every",
    "experiment_name": "run.name",
    "default_local_dir": "run.runs_dir",
    "enable_gradient_checkpointing": "learner.gradient_checkpointing",
    # TRL
    "num_generations": "run.group_size",
    "per_device_train_batch_size": "run.groups_per_iteration",
    "gradient_accumulation_steps": "learner.max_tokens_per_micro_batch",
    "max_completion_length": "sampling.max_tokens",
    "learning_rate": "learner.lr",
    "beta": "loss.kl_coef",
    "epsilon": "loss.clip_low",
    "epsilon_high": "loss.clip_high",
    "num_iterations": "learner.minibatches",
    "max_steps": "run.iterations",
    "num_train_epochs": "run.iterations",
    "scale_rewards": "credit.baseline",
    "loss_type": "loss.aggregation",
    "max_grad_norm": "learner.grad_clip",
    "save_steps": "run.checkpoint_every",
    "eval_steps": "run.eval_every",
    "output_dir": "run.runs_dir",
    "model_name_or_path": "model.path",
    "lora.r": "lora.rank",
    "lora_r": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_target_modules": "lora.target_modules",
    # OpenRLHF
    "lora_rank": "lora.rank",
    "target_modules": "lora.target_modules",
    "n_samples_per_prompt": "run.group_size",
    "rollout_batch_size": "run.groups_per_iteration",
    "train_batch_size": "run.groups_per_iteration",
    "actor_learning_rate": "learner.lr",
    "critic_learning_rate": "critic.lr",
    "init_kl_coef": "loss.kl_coef",
    "eps_clip": "loss.clip_low",
    "generate_max_len": "sampling.max_tokens",
    "advantage_estimator": "credit.strategy",
    "vllm_num_engines": "engine.num_engines",
    "pretrain": "model.path",
    # prime-rl
    "rollouts_per_example": "run.group_size",
    "max_async_level": "run.max_staleness",
    "seq_len": "engine.max_model_len",
    "batch_size": "run.groups_per_iteration",
}
"""Key, or its last words, elsewhere -> the key here."""
NOTES: Final[dict[str, str]] = {
    "run.groups_per_iteration": "in groups of run.group_size episodes",
    "run.iterations": "one iteration is one update",
    "learner.minibatches": "optimizer steps per iteration",
    "learner.max_tokens_per_micro_batch": "micro-batches are bounded in tokens, and their number follows",
}
"""Key here -> what differs."""


def hint(parts: Sequence[str]) -> str | None:
    """What the unknown key `parts` most likely means; None where no other program calls a setting so.

    >>> hint(["actor_rollout_ref", "rollout", "n"])
    'it is run.group_size here'
    """
    for first in range(len(parts)):
        key = KEYS.get(".".join(parts[first:]))
        if key is not None:
            note = f" ({NOTES[key]})" if key in NOTES else ""
            return f"it is {key} here{note}"
    return None
