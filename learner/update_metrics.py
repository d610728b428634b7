"""The numbers an update reports, as sums over tokens that add up over micro-batches, ranks and steps.

A rate is made once, at the end, from two sums; means of means never occur. Names are stable: dashboards read them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields

import numpy as np
from torch import Tensor

from milepost.learner.batch.pack import MicroBatch
from milepost.learner.credit.assignment import Credit
from milepost.learner.credit.filter import Verdict
from milepost.learner.loss.mismatch import Mismatch
from milepost.learner.loss.offpolicy import OffPolicyConfig

logger = logging.getLogger(__name__)

PER_TOKEN = {
    "entropy": "entropy",
    "ratio": "ratio_mean",
    "approx_kl": "approx_kl",
    "clipped_low": "clip_fraction_low",
    "clipped_high": "clip_fraction_high",
    "clipped_dual": "clip_fraction_dual",
    "reference_kl": "reference_kl",
    "entropy_outside": "entropy_outside_share",
}
"""Sum over trained tokens -> name of its mean."""


def add(total: dict[str, float], more: Mapping[str, float]) -> None:
    """Add `more` to `total`, name by name, in place."""
    for name, value in more.items():
        total[name] = total.get(name, 0.0) + value


def parity_sums(batch: MicroBatch, logprobs: Tensor, version: int) -> dict[str, float]:
    """Parity sums: how many tokens are trained, how many `version` sampled, |learner - engine| in nats over these."""
    gap = (logprobs.detach() - batch.rollout_logprobs)[batch.loss_mask].abs().double()
    current = batch.versions[batch.loss_mask] == version
    return {
        "tokens": float(gap.numel()),
        "tokens_current": float(current.sum()),
        "parity_current": float(gap[current].sum()),
    }


def parity_sums_of(batches: Sequence[MicroBatch], logprobs: Sequence[Tensor], version: int) -> dict[str, float]:
    """`parity_sums` added up over micro-batches."""
    total: dict[str, float] = {}
    for batch, found in zip(batches, logprobs, strict=True):
        add(total, parity_sums(batch, found.to(batch.loss_mask.device), version))
    return total


def mismatch_sums(batch: MicroBatch, proximal: Tensor, config: OffPolicyConfig) -> dict[str, float]:
    """The sums of `Mismatch` between proximal and rollout policy, named `mismatch_...`."""
    return {f"mismatch_{name}": value for name, value in asdict(Mismatch.of(batch, proximal, config)).items()}


def mean(sums: Mapping[str, float], value: str, count: str) -> float | None:
    """`sums[value] / sums[count]`; None where nothing was counted."""
    return sums[value] / sums[count] if sums.get(count) else None


def token_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Means and shares over the trained tokens of an update; empty if there were none."""
    if not sums.get("tokens"):
        return {}
    rates = {name: sums[key] / sums["tokens"] for key, name in PER_TOKEN.items() if key in sums}
    mismatch = Mismatch(**{field.name: sums[f"mismatch_{field.name}"] for field in fields(Mismatch)})
    return rates | mismatch.metrics()


def measured(what: str, metrics: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What `metrics` gives; nothing, and a line in the log, where it raises: only numbers are lost, no step."""
    try:
        return metrics()
    except Exception as error:
        logger.warning("no metrics of %s in this update: %s: %s", what, type(error).__name__, error, exc_info=error)
        return {}


def credit_metrics(credits: Sequence[Credit], verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Advantage statistics of the kept groups: how large they are and where they come from; N groups judged."""
    metrics = {
        "groups": float(len(verdicts)),
        "groups_kept": float(sum(verdict.keep for verdict in verdicts)),
        "filter_score": float(np.mean([verdict.score for verdict in verdicts])) if verdicts else 0.0,
    }
    if not credits:
        return metrics
    totals = np.concatenate([turns for credit in credits for turns in credit.total])
    steps = np.concatenate([turns for credit in credits for turns in credit.step_adv])
    covered = np.concatenate([turns for credit in credits for turns in credit.coverage])
    return metrics | {
        "advantage_abs_p99": float(np.quantile(np.abs(totals), 0.99)),
        "advantage_trajectory_std": float(np.concatenate([credit.traj_adv for credit in credits]).std()),
        "advantage_step_std": float(steps.std()),
        "credit_coverage": float(covered.mean()),
    }
