"""How the fields of records are called in Prometheus: (field, name after the prefix, help).

Names follow Prometheus: one prefix, base units, the unit as a suffix, shares in [0, 1] as `_ratio`. Labels come from
closed sets: states, reasons, phases, indexes of engines, names in the configuration. What names an episode, a task, a
process or a version is never a label.
"""

from __future__ import annotations

from typing import Any, Final

PREFIX: Final = "milepost_"
ITERATION: Final = (
    ("iteration", "iteration", "Finished iterations"),
    ("policy_version", "policy_version", "Policy version after the last update"),
    ("success", "success_ratio", "Share of finished episodes that reached the goal"),
    ("reward_mean", "reward_mean", "Mean return"),
    ("reward_std_within", "reward_within_group_std", "Root of the mean variance of the return inside a group"),
    ("reward_std_between", "reward_between_groups_std", "Root of the variance of the groups' mean returns"),
    ("zero_variance_share", "zero_variance_groups_ratio", "Share of groups whose returns are all equal"),
    ("turns_mean", "episode_turns_mean", "Mean number of turns of an episode"),
    ("invalid_share", "invalid_actions_ratio", "Share of turns without a valid action"),
    ("cut_share", "cut_responses_ratio", "Share of responses cut at sampling.max_tokens"),
    ("context_full_share", "context_full_ratio", "Share of episodes whose next prompt had no room in the context"),
    ("tokens_per_s", "tokens_per_second", "Tokens sampled per second"),
    ("staleness_mean", "staleness_mean_versions", "Mean policy versions between sampling and training"),
    ("staleness_max", "staleness_max_versions", "Largest number of versions between sampling and training"),
    ("mixed_version_share", "mixed_version_responses_ratio", "Share of responses of several policy versions"),
    ("loss", "loss", "Policy loss"),
    ("kl", "kl_nats", "Estimated KL divergence of the update"),
    ("entropy", "entropy_nats", "Mean entropy of the policy's next-token distribution"),
    ("clip_low", "clip_low_ratio", "Share of tokens clipped from below"),
    ("clip_high", "clip_high_ratio", "Share of tokens clipped from above"),
    ("grad_norm", "grad_norm", "Gradient norm before clipping"),
    ("advantage_abs_p99", "advantage_abs_p99", "99th percentile of the absolute step advantage"),
    ("ess", "effective_sample_size_ratio", "Effective sample size of the importance weights"),
    ("parity", "logprob_parity_abs_mean", "Mean absolute log-prob difference of engine and learner"),
    ("wait_s", "learner_wait_seconds", "Seconds the learner waited for groups in the last iteration"),
    ("train_s", "train_seconds", "Seconds of training in the last iteration"),
    ("commit_s", "commit_seconds", "Seconds to commit the last update, with its checkpoint where one was due"),
    ("publish_s", "publish_seconds", "Seconds of the last iteration until the learner might go on after an update"),
    ("publish_bytes", "publish_bytes", "Bytes of the newest weights, or adapters, on their way to each host"),
    ("check_s", "check_seconds", "Seconds to measure mutual information, beyond the wait for groups"),
    ("both_busy_share", "both_busy_ratio", "Share of the iteration with rollouts and training at once"),
    ("repetition", "response_repetition_ratio", "How much responses repeat across different prompts"),
    ("mutual_information", "mutual_information_nats", "Mutual information of prompts and responses"),
    ("value_loss", "value_loss", "Squared error of the critic"),
    ("explained_variance", "value_explained_variance_ratio", "Share of the returns' variance the critic explains"),
    ("buffer_groups", "buffer_groups", "Groups in the replay buffer that are ready"),
    ("buffer_bytes", "buffer_bytes", "Bytes in the replay buffer"),
    ("buffer_oldest_s", "buffer_oldest_seconds", "Age of the oldest ready group"),
    ("groups_open", "groups_open", "Groups in play"),
    ("groups_unsettled", "groups_unsettled", "Groups consumed that no checkpoint holds yet"),
    ("generate_s", "turn_generate_seconds", "Mean seconds of a turn in the engine"),
    ("env_s", "turn_env_seconds", "Mean seconds of a turn in the environment"),
    ("tool_calls", "tool_calls", "Turns of the last iteration that called a tool"),
    ("samples", "update_samples", "Token sequences of the last update"),
    ("prefix_breaks", "prefix_breaks", "Turns of the last update whose prompt did not continue the turn before"),
    ("padding_share", "padding_ratio", "Share of padding in the token positions of the last update"),
)
"""Of an iteration."""
ENVIRONMENT: Final = (
    ("reward_mean", "reward_mean", "Mean return by environment"),
    ("reward_std_within", "reward_within_group_std", "Root of the mean variance of the return inside a group"),
    ("zero_variance_share", "zero_variance_groups_ratio", "Share of groups whose returns are all equal"),
    ("turns_mean", "episode_turns_mean", "Mean number of turns of an episode"),
    ("invalid_share", "invalid_actions_ratio", "Share of turns without a valid action"),
)
"""Of one environment's part of an iteration; their names go on after `env_`."""
EVALUATION: Final = (
    ("success", "success_ratio", "Success in the last evaluation"),
    ("success_low", "success_low_ratio", "Lower bound of its 95 % Wilson interval"),
    ("success_high", "success_high_ratio", "Upper bound of its 95 % Wilson interval"),
    ("episodes", "episodes", "Episodes of the last evaluation"),
    ("turns_p50", "turns_p50", "Median of the turns of an episode in the last evaluation"),
    ("turns_p99", "turns_p99", "99th percentile (nearest rank) of the turns of an episode in the last evaluation"),
    ("sampled_tokens_mean", "sampled_tokens_mean", "Mean sampled tokens of an episode in the last evaluation"),
    ("prompt_tokens_mean", "prompt_tokens_mean", "Mean prompt tokens of an episode in the last evaluation"),
)
"""Of the last evaluation of a split; their names go on after `eval_`."""
RESTARTS: Final = {"engine": "engine_restarts", "worker": "worker_restarts", "learner": "learner_restarts"}
GROUPS: Final = {"trained": "groups_trained", "filtered": "groups_filtered", "stale": "groups_stale"}
EPISODES: Final = {"finished": "episodes", "failed": "episodes_failed"}
PHASES: Final = {"wait": "wait_s", "train": "train_s", "commit": "commit_s", "publish": "publish_s", "check": "check_s"}
SECONDS: Final = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""Upper bounds of the buckets of all histograms of seconds."""


def read(record: object, field: str) -> Any:
    """The value of a field that a table here names: a number, or None where it was not measured."""
    return getattr(record, field)
