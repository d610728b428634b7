"""What a run starts from: its newest checkpoint that verifies, or the first policy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from milepost.cluster.base.exits import ConfigError, DependencyLost
from milepost.cluster.evaluate import first_policy
from milepost.cluster.reporter import Reporter
from milepost.cluster.runlog.runs import RunFolder
from milepost.cluster.settings.config import RunConfig
from milepost.learner.zero import checkpoint
from milepost.reward.judges.reward import JudgeReward
from milepost.reward.reward import load_reward


@dataclass(frozen=True, slots=True)
class Start:
    """Where a driver begins. Its folders stay as long as it runs, whatever checkpoints are pruned."""

    policy: Path
    """What every process loads, also one that replaces another later."""
    first: Path | None
    """The run's first policy, for the KL term and as what adapters are trained on; None where nobody asks for it."""
    found: checkpoint.Found | None
    """What the learner goes on from; None at the beginning of a run."""

    @property
    def iteration(self) -> int:
        """Iterations done."""
        return self.found.manifest.record.iteration if self.found else 0

    @property
    def version(self) -> int:
        """Version of the policy."""
        return self.found.manifest.record.policy_version if self.found else 0


def keep_judge(config: RunConfig, folder: RunFolder) -> None:
    """Where a judge is the reward: write its pins into the run's folder, or compare them with those it began with.

    Raises ConfigError where it is another judge: what it says is another reward.
    """
    reward = load_reward(config.reward.path) if config.reward.path else None
    if not isinstance(reward, JudgeReward):
        return
    file, judge = folder.path / "judge.json", reward.judge.config
    pins = json.dumps({"weights_digest": judge.weights_digest, "prompt_sha256": judge.prompt_sha256})
    if not file.exists():
        file.write_text(pins, encoding="utf-8")
    elif (began := file.read_text(encoding="utf-8")) != pins:
        raise ConfigError(
            f"judge {judge.name}: the run began with {began} ({file}), and this is {pins}: another reward; undo the "
            "change, or start a new run"
        )


def start_of(config: RunConfig, folder: RunFolder, reporter: Reporter, *, resume: bool) -> Start:
    """The newest checkpoint of a run that is resumed, else the first policy. Raises ConfigError, DependencyLost."""
    keep_judge(config, folder)
    wants_first = config.loss.kl_coef > 0 or config.lora.rank > 0
    found = newest_checkpoint(folder, reporter) if resume else None
    if resume and found is None:
        _require_beginning(folder, reporter)
    if found is None:
        policy = _first_policy(config, reporter)
        return Start(policy, policy if wants_first else None, None)
    version = found.manifest.record.policy_version
    folder.keep_start(found.path / "policy", version)
    folder.keep_policy(found.path / "policy", version)  # a kill may have come between a checkpoint and its policy
    return Start(folder.start, _first_policy(config, reporter) if wants_first else None, found)


def _require_beginning(folder: RunFolder, reporter: Reporter) -> None:
    """A run without a checkpoint begins again, but not silently, and not where one was written and is gone."""
    if folder.policy.exists():
        raise DependencyLost(
            f"{folder.checkpoints} is empty, though a checkpoint was written: restore it from a copy, or begin a new "
            f'run from the policy that it held: model.source = "folder", model.path = "{folder.policy}"'
        )
    status = folder.read_status()
    if status is not None and status.iteration:
        reporter.note(f"{status.iteration} iterations were done and no checkpoint was written: beginning again")


def newest_checkpoint(folder: RunFolder, reporter: Reporter) -> checkpoint.Found | None:
    """The newest checkpoint that verifies, None before the first one. Raises DependencyLost if none of them does."""
    try:
        found = checkpoint.newest_valid(folder.checkpoints)
    except checkpoint.CheckpointError as error:
        raise DependencyLost(f"{error}; restore one from a copy, or start a new run") from error
    for problem in found.problems if found else ():
        reporter.note(f"checkpoint passed over: {problem}")
    return found


def _first_policy(config: RunConfig, reporter: Reporter) -> Path:
    """The folder of the policy that a new run begins with. Raises ConfigError."""
    reporter.phase("preparing the first policy")
    return first_policy(config, reporter.note)
