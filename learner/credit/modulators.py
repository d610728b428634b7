"""Entropy modulation: a turn's entropy makes its advantage larger or smaller, whatever strategy earned it.

They run on whole batches, after the strategy and before scaling, in the order they are configured in. They need the
mean token entropy of every turn, computed by the learner: top-k log-probs of an engine give no entropy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from milepost.learner.credit.assignment import Credit, CreditGroup, Floats, Need, Strategy
from milepost.learner.credit.readings import required

PerTurn = tuple[Floats, ...]
"""G arrays `[T_i]`."""


class AEMConfig(BaseModel):
    """Adaptive entropy modulation: confident turns weigh more, within their group; no sign changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: Literal["aem"] = Field(
        "aem", description="Adaptive entropy modulation (AEM): turns of low entropy weigh more within their group"
    )
    sharpness: float = Field(
        1.0, gt=0, description="Inverse temperature of the weights: how fast they fall with the normalised entropy"
    )
    min_range_nats: float = Field(0.1, gt=0, description="Entropy range in nats below which a group is not modulated")


class EMPGConfig(BaseModel):
    """Entropy-modulated policy gradients: confident turns weigh more, a confident next one earns a bonus; centred."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: Literal["empg"] = Field(
        "empg",
        description="Entropy-modulated policy gradients (EMPG): turns of low entropy weigh more, clear next turns "
        "earn a bonus",
    )
    sharpness: float = Field(
        1.0, gt=0, description="Inverse temperature of the weights: how fast they fall with the normalised entropy"
    )
    bonus_sharpness: float = Field(
        1.0,
        gt=0,
        description="Inverse temperature of the bonus: how fast it falls with the next turn's normalised entropy",
    )
    bonus: float = Field(
        0.05,
        ge=0,
        description="Future clarity bonus: added to the advantage where the next turn has the batch's lowest entropy",
    )


def _named(value: Any) -> Any:
    """The modulator that a table of settings names."""
    return value.get("name") if isinstance(value, dict) else getattr(value, "name", None)


ModulatorConfig = Annotated[
    Annotated[AEMConfig, Tag("aem")] | Annotated[EMPGConfig, Tag("empg")],
    Discriminator(
        _named,
        custom_error_type="unknown_modulator",
        custom_error_message='a modulator is a table with a known name: { name = "aem" } or { name = "empg" }',
    ),
]


def needs(strategy: Strategy, modulators: Sequence[ModulatorConfig]) -> frozenset[Need]:
    """What a strategy and its modulators together read beyond states, actions and rewards."""
    return strategy.requires | ({"entropy"} if modulators else frozenset())


def modulate(
    groups: Sequence[CreditGroup], credits: Sequence[Credit], modulators: Sequence[ModulatorConfig]
) -> list[Credit]:
    """Apply `modulators` one after the other to the totals of a batch; without any, the credits come back as they are.

    `total` changes, and `token_total` with it where there is one: a token gets what its turn gets. Advantages before
    weighting (`traj_adv`, `step_adv`) stay. The largest weight of a turn is the diagnostic `<name>_weight_max`.

    Args:
        groups: N groups of the batch.
        credits: one per group, in order.

    Raises:
        ValueError: groups and credits differ in number, or a turn has no entropy; names group, trajectory and turn.

    >>> from milepost.learner.credit.strategies.starpo import StarPO, StarPOConfig
    >>> group = CreditGroup.from_walks("A x B success", "A y C failure", entropy=[0.2, 0.7])
    >>> credit = StarPO(StarPOConfig(baseline="dr_grpo")).assign(group)  # 0.5 and -0.5
    >>> [changed] = modulate([group], [credit], [AEMConfig(sharpness=1.0)])  # exp(0) and exp(-1), over their mean
    >>> [x.round(3).tolist() for x in changed.total]
    [[0.731], [-0.269]]
    """
    if len(groups) != len(credits):
        raise ValueError(f"{len(groups)} groups with {len(credits)} credits; pass one credit per group, in order")
    changed = list(credits)
    if not groups or not modulators:
        return changed
    entropies = [required(group, "entropy") for group in groups]
    for modulator in modulators:
        changed = (
            _aem(entropies, changed, modulator) if modulator.name == "aem" else _empg(entropies, changed, modulator)
        )
    return changed


def _aem(entropies: Sequence[PerTurn], credits: Sequence[Credit], config: AEMConfig) -> list[Credit]:
    """Adaptive entropy modulation (AEM, arXiv 2605.00425), within each group.

        H_n = (H - min) / (max - min),  alpha = exp(-sharpness H_n) / mean of the group's turns,  A' = alpha A

    alpha is 1 where the range is under `min_range_nats`. alpha > 0, so no sign changes.
    """
    changed = []
    for group, credit in zip(entropies, credits, strict=True):
        flat = np.concatenate(group)
        alpha = np.ones(len(flat))
        if np.ptp(flat) >= config.min_range_nats:
            alpha = _weights(flat, config.sharpness)
        changed.append(_mapped(credit, _like(alpha, group), np.multiply, name=config.name))
    return changed


def _empg(entropies: Sequence[PerTurn], credits: Sequence[Credit], config: EMPGConfig) -> list[Credit]:
    """Entropy-modulated policy gradients (EMPG, arXiv 2509.09265), over the batch.

        H_n = (H - min) / (max - min)
        g_t = exp(-sharpness H_n,t) / mean of the batch's turns,  f_t = exp(-bonus_sharpness H_n,t+1), 0 on last turns
        A'  = g A + bonus f,  less its mean over the batch

    As published, centring makes a small positive advantage of an uncertain turn negative; AEM does not do that. Ours:
    a batch whose entropies are all equal is centred only; token advantages are centred over tokens.
    """
    flat = np.concatenate([h for group in entropies for h in group])
    varies = np.ptp(flat) > 0
    weight = _weights(flat, config.sharpness) if varies else np.ones(len(flat))
    clarity = np.exp(-config.bonus_sharpness * _normalised(flat)) if varies else np.zeros(len(flat))
    ends = np.cumsum([sum(len(h) for h in group) for group in entropies])[:-1]
    changed = []
    for group, credit, g, f in zip(entropies, credits, np.split(weight, ends), np.split(clarity, ends), strict=True):
        weighted = _mapped(credit, _like(g, group), np.multiply, name=config.name)
        next_clarity = tuple(np.append(x[1:], 0.0) for x in _like(f, group))
        changed.append(_mapped(weighted, tuple(config.bonus * x for x in next_clarity), np.add))
    return _centred(changed)


def _centred(credits: Sequence[Credit]) -> list[Credit]:
    """Less the batch's mean: of turns for `total`, of tokens for `token_total`."""
    turn_mean = np.mean(np.concatenate([x for credit in credits for x in credit.total]))
    tokens = [x for credit in credits for turns in credit.token_total or () for x in turns]
    token_mean = np.mean(np.concatenate(tokens)) if tokens else 0.0
    return [
        replace(
            credit,
            total=tuple(x - turn_mean for x in credit.total),
            token_total=None
            if credit.token_total is None
            else tuple(tuple(x - token_mean for x in turns) for turns in credit.token_total),
        )
        for credit in credits
    ]


def _normalised(entropy: Floats) -> Floats:
    """`[N]` in [0, 1]; the entropies must differ."""
    lowest = np.min(entropy)
    normalised: Floats = (entropy - lowest) / (np.max(entropy) - lowest)
    return normalised


def _weights(entropy: Floats, sharpness: float) -> Floats:
    """`[N]` positive weights of mean 1, falling with the entropy; the entropies must differ."""
    falling = np.exp(-sharpness * _normalised(entropy))
    weights: Floats = falling / np.mean(falling)
    return weights


def _like(flat: Floats, turns: PerTurn) -> PerTurn:
    """Cut an array over all turns of a group into the shapes of `turns`."""
    return tuple(np.split(flat, np.cumsum([len(x) for x in turns])[:-1]))


def _mapped(
    credit: Credit, numbers: PerTurn, apply: Callable[[Floats, Floats], Floats], *, name: str | None = None
) -> Credit:
    """`apply(advantage, number of the turn)` for turns and tokens; the largest number is reported under `name`."""
    tokens = credit.token_total
    reported = {} if name is None else {f"{name}_weight_max": float(max(np.max(x) for x in numbers))}
    return replace(
        credit,
        total=tuple(apply(x, y) for x, y in zip(credit.total, numbers, strict=True)),
        token_total=None
        if tokens is None
        else tuple(
            tuple(apply(x, np.asarray(y)) for x, y in zip(turns, ys, strict=True))
            for turns, ys in zip(tokens, numbers, strict=True)
        ),
        diagnostics={**credit.diagnostics, **reported},
    )
