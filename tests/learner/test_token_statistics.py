"""What is measured of tokens comes back to the right turns; the numbers are a real model's."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from milepost.envs.types import Group, Task, Trajectory, Turn
from milepost.learner.batch import pack
from milepost.learner.batch.pack import MicroBatch
from milepost.learner.batch.sample import samples
from milepost.learner.config import LearnerConfig
from milepost.learner.credit.assignment import from_group
from milepost.learner.credit.filter import FilterConfig
from milepost.learner.credit.modulators import AEMConfig
from milepost.learner.credit.strategies.crbc import CRBCConfig
from milepost.learner.credit.strategies.steppo import StepPOConfig
from milepost.learner.loss.critic import CriticConfig
from milepost.learner.loss.objective import Objective
from milepost.learner.recipe import Recipe
from milepost.learner.token_statistics import (
    STATISTICS,
    TokenIndex,
    TokenStatistics,
    compute_token_statistics,
    stripped,
)
from milepost.learner.zero.policy import load_policy
from milepost.learner.zero.token_policy import TokenPolicy, token_scores, token_values
from tests.learner.tiny_llama import save_tiny_llama
from tests.learner.token_turns import turn

TASK = Task(env="x:Y", seed=0, split="train")
TEMPERATURE = 0.8


def group(name: str, *episodes: list[Turn]) -> Group:
    members = [
        Trajectory(task=TASK, group_id=name, index=index, turns=turns, outcome="failure")
        for index, turns in enumerate(episodes)
    ]
    return Group(group_id=name, task=TASK, trajectories=members)


APPENDED = [turn([9, 1, 2], [3, 4]), turn([9, 1, 2, 3, 4, 5, 6], [7])]
BROKEN = [turn([9, 1], [3]), turn([9, 5], [4, 8, 2])]
GROUPS = [group("a", APPENDED, BROKEN), group("b", [turn([9], [1, 2, 3, 4])])]


class Alone:
    """One rank without an optimizer, over a real model: the part of a training engine that measuring uses."""

    rank = 0
    world_size = 1
    packing = "padded"

    def __init__(self, model: TokenPolicy) -> None:
        self.model = model
        self.calls: list[str] = []

    @torch.no_grad()
    def token_statistics(self, batches: Sequence[MicroBatch], *, temperature: float) -> list[tuple[Tensor, Tensor]]:
        self.calls.append("statistics")
        return [token_scores(self.model, batch, temperature)[:2] for batch in batches]

    @torch.no_grad()
    def token_logprobs(self, batches: Sequence[MicroBatch], *, temperature: float) -> list[Tensor]:
        self.calls.append("logprobs")
        return [token_scores(self.model, batch, temperature)[0] for batch in batches]

    @torch.no_grad()
    def token_values(self, batches: Sequence[MicroBatch]) -> list[Tensor]:
        self.calls.append("values")
        return [token_values(self.model, batch) for batch in batches]

    def all_sum_array(self, values: Any) -> Any:
        return values


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TokenPolicy:
    found = TokenPolicy(load_policy(save_tiny_llama(tmp_path_factory.mktemp("llama"))), valued=True)
    torch.manual_seed(0)
    torch.nn.init.normal_(found.head.weight)
    return found


def alone(model: TokenPolicy, context: list[int], response: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-probs, entropies and estimates of one response, by running nothing but it."""
    ids = torch.tensor([context + response])
    with torch.no_grad():
        out = model.policy(input_ids=ids, output_hidden_states=True)
        logs = (out.logits[0] / TEMPERATURE).log_softmax(-1)
        values = model.head(out.hidden_states[-1])[0]
    at = range(len(context) - 1, ids.shape[1] - 1)
    logprobs = np.array([logs[k, ids[0, k + 1]].item() for k in at])
    entropies = np.array([-(logs[k].exp() * logs[k]).sum().item() for k in at])
    return logprobs, entropies, np.array([values[k].item() for k in at])


def statistics(model: TokenPolicy, **more: Any) -> TokenStatistics:
    arguments: dict[str, Any] = {"needs": STATISTICS, "temperature": TEMPERATURE, "max_tokens": 12}
    return compute_token_statistics(Alone(model), GROUPS, **{**arguments, **more})  # type: ignore[arg-type]


def test_every_turn_gets_what_its_own_tokens_measure(model: TokenPolicy):
    credit_groups = statistics(model).filled([from_group(g) for g in GROUPS])
    for recorded, graph in zip(GROUPS, credit_groups, strict=True):
        for trajectory, credited in zip(recorded.trajectories, graph.trajectories, strict=True):
            for own, found in zip(trajectory.turns, credited.turns, strict=True):
                _, entropies, values = alone(model, own.prompt_ids, own.response_ids)
                assert found.entropy == pytest.approx(entropies.mean(), abs=1e-4)
                assert found.token_values == pytest.approx(values.tolist(), abs=1e-4)
                assert found.value == found.token_values[0]


def test_history_is_worth_what_its_removal_costs_and_nothing_where_there_is_none(model: TokenPolicy):
    credit_groups = statistics(model).filled([from_group(g) for g in GROUPS])
    gains = [[t.history_gain for t in trajectory.turns] for graph in credit_groups for trajectory in graph.trajectories]
    full, *_ = alone(model, [9, 1, 2, 3, 4, 5, 6], [7])
    without, *_ = alone(model, [9, 5, 6], [7])
    assert abs(full - without) > 1e-3
    assert gains == [[0.0, pytest.approx((full - without).item(), abs=1e-4)], [0.0, 0.0], [0.0]]


def test_only_what_is_needed_is_computed(model: TokenPolicy):
    calls = {}
    for need in sorted(STATISTICS):
        engine = Alone(model)
        found = compute_token_statistics(engine, GROUPS, needs={need}, temperature=TEMPERATURE, max_tokens=64)  # type: ignore[arg-type]
        calls[need] = engine.calls
        (credited, *_) = found.filled([from_group(g) for g in GROUPS])[0].trajectories[0].turns
        assert (credited.value is not None) is (need == "critic")
        assert (credited.history_gain is not None) is (need == "history_gain")
    assert calls == {"critic": ["values"], "entropy": ["statistics"], "history_gain": ["statistics", "logprobs"]}


def test_a_stripped_turn_keeps_the_first_token_what_was_appended_and_itself():
    (sample,) = samples(GROUPS[0].trajectories[0], [1.0, 2.0])
    (bare,) = stripped(sample)
    assert bare.token_ids.tolist() == [9, 5, 6, 7]
    assert bare.loss_mask.tolist() == [False, False, False, True]
    assert bare.turn_index.tolist() == [-1, -1, -1, 1]
    assert [len(stripped(part)) for part in samples(GROUPS[0].trajectories[1], [0.0, 0.0])] == [0, 0]


def test_numbers_spread_onto_other_micro_batches_are_the_same_numbers():
    index = TokenIndex(GROUPS)
    assert index.num_tokens == 2 + 1 + 1 + 3 + 4
    pool = [s for g in GROUPS for t in g.trajectories for s in samples(t, [0.0] * len(t.turns))]
    numbers = np.arange(1.0, 12.0)
    for rows in ([tuple(pool)], [tuple(pool[2:]), (), tuple(pool[:2])], [(s,) for s in reversed(pool)]):
        batches = [pack.collate(members) for members in rows]
        spread = index.spread(rows, batches, numbers)
        assert [s.shape for s in spread] == [b.loss_mask.shape for b in batches]
        assert all(not s[~b.loss_mask].any() for s, b in zip(spread, batches, strict=True))
        assert index.flat(rows, spread).tolist() == numbers.tolist()


def test_a_share_leaves_the_tokens_of_other_ranks_at_zero():
    index = TokenIndex(GROUPS)
    pool = [s for g in GROUPS for t in g.trajectories for s in samples(t, [0.0] * len(t.turns))]
    ones = [torch.ones(1, len(pool[-1]))]
    assert index.flat([(pool[-1],)], ones).tolist() == [0.0] * 7 + [1.0] * 4


def recipe(**more: Any) -> Recipe:
    arguments: dict[str, Any] = {"credit": CRBCConfig(), "filter": FilterConfig(), **more}
    return Recipe(learner=LearnerConfig(), objective=Objective(), critic=CriticConfig(), temperature=1.0, **arguments)


def test_nothing_is_needed_by_default_and_a_critic_exists_only_where_it_is_read():
    assert recipe().needs == frozenset()
    assert recipe().trained_critic is None
    assert recipe(credit=CRBCConfig(modulators=(AEMConfig(),))).needs == {"entropy"}
    assert recipe(filter=FilterConfig(score="entropy")).needs == {"entropy"}
    assert recipe(credit=StepPOConfig()).trained_critic == CriticConfig()


BETWEEN = [turn([9, 1], [3]), turn([8], [5, 6]), turn([9, 1, 3, 2], [4]), turn([8, 5, 6, 7], [10])]
"""Two lineages whose turns lie between each other: 0 and 2, 1 and 3."""


def test_numbers_of_lineages_that_lie_between_each_other_come_back_to_their_own_turns() -> None:
    between = group("c", BETWEEN)
    rows = [tuple(samples(between.trajectories[0], [0.0] * 4))]
    (main, sub) = rows[0]
    values = torch.zeros(2, max(len(main), len(sub)))
    for row, sample in enumerate(rows[0]):
        values[row, : len(sample)] = torch.from_numpy(sample.token_ids).float()
    index = TokenIndex([between])
    flat = index.flat(rows, [values])
    assert flat.tolist() == [3, 5, 6, 4, 10]
    (along,) = index.spread(rows, [pack.collate(rows[0])], flat)
    for row, sample in enumerate(rows[0]):
        assert along[row, : len(sample)][torch.from_numpy(sample.loss_mask)].tolist() == (
            sample.token_ids[sample.loss_mask].tolist()
        )


def test_a_turn_is_stripped_of_its_own_lineage_only() -> None:
    main, sub = samples(group("c", BETWEEN).trajectories[0], [0.0] * 4)
    assert [s.token_ids.tolist() for s in (*stripped(main), *stripped(sub))] == [[9, 2, 4], [8, 7, 10]]
