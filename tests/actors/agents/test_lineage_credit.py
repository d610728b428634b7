"""Credit over the graph of all lineages of a group, on a group made by hand."""

import asyncio
from math import sqrt
from typing import Any

import pytest

from milepost.actors.agents.calls import Request
from milepost.actors.agents.lineages import ChatMessage
from milepost.envs.types import Group, Task, Trajectory
from milepost.learner.batch.sample import samples
from milepost.learner.credit.assignment import from_group
from milepost.learner.credit.strategies.crbc import CRBC, CRBCConfig
from tests.actors.agents.agent_rig import SayingEngine, episode_calls

TASK = Task(env="desk", seed=0, split="train")
ASKED: ChatMessage = {"role": "user", "content": "a"}
SUMMED_UP: ChatMessage = {"role": "user", "content": "so far: x"}
FOUND: ChatMessage = {"role": "tool", "content": "r", "tool_call_id": "1"}


def episode(index: int, requests: list[list[ChatMessage]], answers: list[str], outcome: Any) -> Trajectory:
    left = list(answers)
    calls = episode_calls(SayingEngine(lambda _: left.pop(0)))

    async def go() -> None:
        for messages in requests:
            await calls.answer(Request(messages=messages))

    asyncio.run(go())
    turns = calls.turns(float(outcome == "success"))
    return Trajectory(task=TASK, group_id="g", index=index, turns=turns, outcome=outcome)


def said(text: str) -> ChatMessage:
    return {"role": "assistant", "content": text}


def test_a_good_and_a_bad_call_of_one_episode_earn_differently_in_states_that_other_lineages_were_in():
    """`a x r p` is solved, its history summed up before p; `a x r q` and `a y` are not.

    Q(r,p) = 1/2 and Q(r,q) = 0, so V(r) = 1/4 and sigma(r) = 1/4; Q(a,x) = 1/8 in two visits and Q(a,y) = 0 in one, so
    V(a) = 1/12 and sigma(a) = sqrt(2)/24.
    """
    compacted = episode(0, [[ASKED], [SUMMED_UP, said("?"), FOUND]], ["x", "p"], "success")
    in_one = episode(1, [[ASKED], [ASKED, said("x"), FOUND]], ["x", "q"], "failure")
    other = episode(2, [[ASKED]], ["y"], "failure")
    assert [[(turn.lineage, turn.parent_lineage) for turn in each.turns] for each in (compacted, in_one)] == [
        [(0, None), (1, 0)],
        [(0, None), (0, None)],
    ]
    group = Group(group_id="g", task=TASK, trajectories=[compacted, in_one, other])
    credit = CRBC(CRBCConfig(beta=0.5)).assign(from_group(group))
    assert [each.tolist() for each in credit.step_adv] == [
        pytest.approx([1 / sqrt(2), 1.0]),
        pytest.approx([1 / sqrt(2), -1.0]),
        pytest.approx([-sqrt(2)]),
    ]
    good, bad = credit.total[1]
    (sample,) = samples(in_one, [good, bad])  # each token of the one sequence has the credit of its own call
    assert sample.advantages[sample.loss_mask].tolist() == pytest.approx([good, good, bad, bad])
