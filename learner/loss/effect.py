"""Keys of the objective that other keys leave without effect, so that nobody compares two settings that are one.

A key counts as set where it differs from its default: a resolved configuration names every key. Only what follows from
the settings alone is known here; that a clip range is never reached in practice is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pydantic import BaseModel

from milepost.learner.loss.objective import Objective

SURROGATE = ("objective", "ratio", "clip_low", "clip_high", "dual_clip", "tau_positive", "tau_negative")
ONLY_STEP = "learner.minibatches = 1, where every ratio is 1 in the only step of an update"


class _Idle(NamedTuple):
    """Keys without effect where `applies`."""

    applies: bool
    section: str
    keys: tuple[str, ...]
    because: str
    way_out: str


def without_effect(objective: Objective, *, minibatches: int) -> str | None:
    """The first key that was set and changes nothing, with the reason and the way out; None if every one does.

    Where an update makes one step, ratios are exactly 1 in it: all surrogates have the same gradient, nothing is
    clipped, and there is no later step to find proximal log-probs for. Weights of rollout against proximal policy
    (`offpolicy.importance` and the bands) work in every step.

    >>> from milepost.learner.loss.loss import LossConfig
    >>> print(without_effect(Objective(loss=LossConfig(kl_estimator="k1")), minibatches=1))
    loss.kl_estimator = 'k1' has no effect with loss.kl_coef = 0: set kl_coef, e.g. to 1e-3, or leave kl_estimator out
    >>> without_effect(Objective(loss=LossConfig(kl_estimator="k1", kl_coef=1e-3)), minibatches=1) is None
    True
    """
    sections: dict[str, BaseModel] = {
        "loss": objective.loss,
        "offpolicy": objective.offpolicy,
        "entropy": objective.entropy,
    }
    for rule in _rules(objective, minibatches):
        section = sections[rule.section]
        for key in rule.keys if rule.applies else ():
            value = getattr(section, key)
            if value != type(section).model_fields[key].default:
                name = f"{rule.section}.{key}"
                return f"{name} = {value!r} has no effect with {rule.because}: {rule.way_out}, or leave {key} out"
    return None


def _rules(objective: Objective, minibatches: int) -> Iterator[_Idle]:
    loss, offpolicy = objective.loss, objective.offpolicy
    more_steps = "set learner.minibatches to 2 or more"
    yield _Idle(minibatches == 1, "loss", SURROGATE, ONLY_STEP, more_steps)
    yield _Idle(minibatches == 1, "offpolicy", ("proximal",), ONLY_STEP, more_steps)
    gated, named = loss.objective == "sapo", f'loss.objective = "{loss.objective}"'
    yield _Idle(not gated, "loss", ("tau_positive", "tau_negative"), named, 'set objective = "sapo"')
    yield _Idle(gated, "loss", ("clip_low", "clip_high"), named, 'set objective = "clip"')
    yield _Idle(loss.objective != "clip", "loss", ("dual_clip",), named, 'set objective = "clip"')
    yield _Idle(loss.kl_coef == 0, "loss", ("kl_estimator",), "loss.kl_coef = 0", "set kl_coef, e.g. to 1e-3")
    weightless, cap = offpolicy.importance == "none", ("importance_cap",)
    yield _Idle(weightless, "offpolicy", cap, 'offpolicy.importance = "none"', 'set importance = "token"')
    bandless, level = offpolicy.rejection_band is None, ("rejection_level",)
    yield _Idle(bandless, "offpolicy", level, "no offpolicy.rejection_band", "set one, e.g. [0.5, 2.0]")
    plain, of_band = objective.entropy.band is None, ("penalty", "smoothing", "memory")
    yield _Idle(plain, "entropy", of_band, "no entropy.band", "set one, e.g. [0.8, 1.2]")
