"""A batch of several environments: each is filtered and scaled as if it were alone."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.envs.types import Group
from milepost.learner.credit.assignment import Credit, CreditGroup, from_group
from milepost.learner.credit.filter import FilterConfig, keep_groups
from milepost.learner.credit.scaling import scaled
from milepost.learner.credit.strategies.starpo import StarPO, StarPOConfig
from milepost.learner.environments import keep_groups_of_each, scaled_of_each
from tests.learner.credit.random_groups import groups
from tests.learner.test_own_credit_update import VERSION, LoneRank, group, rank

PLAIN = StarPO(StarPOConfig(baseline="dr_grpo"))
ONES = [np.ones(2), np.ones(2)]


def paying(engine: LoneRank, name: str, pay: float) -> Group:
    """Two trajectories of two turns in the environment `name`; the first one wins and gets `pay` for it."""
    plain = group(engine, size=2)
    task = msgspec.structs.replace(plain.task, env_name=name)
    trajectories = [
        msgspec.structs.replace(
            t,
            group_id=name,
            task=task,
            turns=[msgspec.structs.replace(turn, reward=pay * turn.reward) for turn in t.turns],
        )
        for t in plain.trajectories
    ]
    return Group(group_id=name, task=task, trajectories=trajectories)


def credited(*played: Group) -> tuple[list[CreditGroup], list[Credit]]:
    found = [from_group(each) for each in played]
    return found, [PLAIN.assign(each) for each in found]


def test_an_environment_that_pays_a_hundred_takes_no_place_from_one_that_pays_one() -> None:
    # Returns (1, 0) and (100, 0) have deviations .707 and 70.7. Together they sum up to 71.4, of which top_p wants
    # 89 %, 63.5: the second group alone has it. Apart, each group is the first of its own.
    engine = LoneRank()
    found, credits = credited(paying(engine, "lake", 1.0), paying(engine, "shop", 100.0))
    together = keep_groups(found, credits, FilterConfig())
    apart = keep_groups_of_each(["lake", "shop"], found, credits, FilterConfig())
    assert [verdict.reason for verdict in together] == ["low_score", "selected"]
    assert [verdict.reason for verdict in apart] == ["selected", "selected"]


def test_each_environment_is_brought_to_a_scale_of_its_own() -> None:
    # Advantages of +-.5 and +-50; on a common scale, the root of (.25 + 2500) / 2 = 35.36, the first would be .0141.
    _, credits = credited(paying(LoneRank(), "lake", 1.0), paying(LoneRank(), "shop", 100.0))
    together = scaled(credits, [ONES, ONES], "unit_rms")
    assert together[0].total[0] == pytest.approx([0.01414, 0.01414], abs=1e-5)
    apart = scaled_of_each(["lake", "shop"], credits, [ONES, ONES], "unit_rms")
    assert [credit.total[0].tolist() for credit in apart] == [[1.0, 1.0], [1.0, 1.0]]


def test_an_update_trains_on_every_environment_of_its_batch() -> None:
    engine = LoneRank()
    report = rank(engine, "LateTurns", fade=0.0).train(
        [paying(engine, "lake", 1.0), paying(engine, "shop", 100.0)], VERSION
    )
    assert [verdict.reason for verdict in report.verdicts] == ["selected", "selected"]


@given(batch=st.lists(st.tuples(st.sampled_from("abc"), groups()), min_size=1, max_size=6))
def test_verdicts_and_scale_of_an_environment_are_those_it_has_alone(batch: list[tuple[str, CreditGroup]]) -> None:
    names, found = [name for name, _ in batch], [each for _, each in batch]
    credits = [PLAIN.assign(each) for each in found]
    weights = [[np.ones(len(t.turns)) for t in each.trajectories] for each in found]
    verdicts = keep_groups_of_each(names, found, credits, FilterConfig())
    brought = scaled_of_each(names, credits, weights, "unit_rms")
    for name in set(names):
        at = [k for k, other in enumerate(names) if other == name]
        alone = [credits[k] for k in at]
        assert [verdicts[k] for k in at] == keep_groups([found[k] for k in at], alone, FilterConfig())
        for k, same in zip(at, scaled(alone, [weights[k] for k in at], "unit_rms"), strict=True):
            assert all(np.array_equal(x, y) for x, y in zip(brought[k].total, same.total, strict=True))
