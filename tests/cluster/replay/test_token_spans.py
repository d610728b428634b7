"""What the tokens of an episode take on their way: in an entry, in Redis, and in what the learner's ranks are sent."""

import asyncio
import random
import struct
from dataclasses import dataclass
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from ray import cloudpickle

from milepost.cluster.pools import learners
from milepost.cluster.pools.learner_process import LearnerActor
from milepost.cluster.replay import token_spans
from milepost.cluster.replay.buffer import BufferConfig
from milepost.cluster.replay.token_spans import PackedTurn, TokenIds, pack, unpack
from milepost.cluster.replay.wire import WireError, decode_group, decode_trajectory, encode
from milepost.cluster.settings.run_section import RunSection
from milepost.envs.types import Group, Trajectory, Turn, VersionSpan
from milepost.learner.batch.sample import samples
from milepost.learner.recipe import UpdateOptions
from tests.cluster.replay.buffer_rig import encoded, rig, task

TURNS, CONTEXT, SAID = 30, 32_768, 400


def turn(prompt: list[int], said: list[int], *, lineage: int = 0) -> Turn:
    return Turn(
        prompt_ids=prompt,
        response_ids=said,
        logprobs=[-0.25 * k for k in range(len(said))],
        versions=[VersionSpan(version=0, start=0, end=len(said))],
        anchor="here " * 10,
        next_anchor="there " * 10,
        action="go on",
        reward=0.0,
        lineage=lineage,
    )


def episode(turns: list[Turn], group_id: str = "g", index: int = 0) -> Trajectory:
    return Trajectory(task=task(), group_id=group_id, index=index, turns=turns, outcome="success")


def long_episode(num_turns: int = TURNS, tokens: int = CONTEXT) -> Trajectory:
    """Turns that append, up to a context of so many tokens of a large vocabulary."""
    chance, context, turns = random.Random(0), [], []
    for k in range(1, num_turns + 1):
        context = context + chance.choices(range(150_000), k=k * tokens // num_turns - SAID - len(context))
        turns.append(turn(context, chance.choices(range(150_000), k=SAID)))
        context = context + turns[-1].response_ids
    assert len(context) == tokens
    return episode(turns)


def test_an_episode_of_30_turns_takes_at_most_12_bytes_for_each_of_its_32k_tokens_in_its_entry_and_in_redis(
    redis_url: str,
) -> None:
    played = long_episode()
    assert len(encode(played)) <= 12 * CONTEXT

    async def stored() -> int:
        async with rig(redis_url) as run:
            await run.issue("g", 1)
            assert await run.buffer.put(played) == "ok"
            return int(await run.client.memory_usage(run.store.payload("g")))

    assert 4 * CONTEXT < asyncio.run(stored()) <= 12 * CONTEXT


def test_an_episode_of_80_turns_up_to_52k_tokens_takes_a_twentieth_of_an_entry() -> None:
    assert len(encode(long_episode(80, 52_000))) <= BufferConfig().max_entry_bytes / 20


def test_what_32k_token_episodes_take_until_a_checkpoint_forces_none_before_it_is_due() -> None:
    update = 64 * len(encode(long_episode()))
    assert BufferConfig().consumed_bytes_limit // update >= 3 * RunSection().checkpoint_every


def test_a_rank_is_sent_at_most_12_bytes_for_each_token_and_lays_each_into_its_samples_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = Group(group_id="g", task=task(), trajectories=[long_episode()])
    monkeypatch.setattr(learners.ray, "put", cloudpickle.dumps)
    sent = asyncio.run(learners._for_ranks([encoded(group)]))
    assert len(sent) <= 12 * CONTEXT
    rank = LearnerActor.__new__(LearnerActor)
    rank._rank = SimpleNamespace(train=lambda groups, *_: groups, mutual_information=list)
    (there,) = rank.train(cloudpickle.loads(sent), 0, UpdateOptions())
    assert [there] == [group] == rank.mutual_information(cloudpickle.loads(sent))
    (sample,) = samples(there.trajectories[0], [0.0] * TURNS)
    assert len(sample) == CONTEXT
    prompts = [np.asarray(turn.prompt_ids) for turn in there.trajectories[0].turns]
    assert all(np.shares_memory(prompts[0], prompt) and not prompt.flags.writeable for prompt in prompts)


@dataclass
class Plan:
    """How a turn comes about: which earlier one it goes on from, what of that it keeps, what it adds and says."""

    source: int
    start: int
    cut: int
    added: list[int]
    said: list[int]
    lineage: int


IDS = st.lists(st.sampled_from([0, 1, 2, 2**31 - 1]), min_size=1, max_size=3)
PLANS = st.lists(
    st.builds(
        Plan, st.integers(-1, 5), st.integers(0, 2), st.sampled_from([0, 0, 1, 3]), IDS, IDS, lineage=st.integers(0, 2)
    ),
    min_size=1,
    max_size=6,
)


def played(plans: list[Plan]) -> Trajectory:
    """Turns that append, branch, break off in what they repeat (`cut`), or drop its beginning (`start`)."""
    turns: list[Turn] = []
    for plan in plans:
        before: list[int] = []
        if 0 <= plan.source < len(turns):
            source = turns[plan.source]
            before = [*source.prompt_ids, *source.response_ids][plan.start :]
        kept = before[: len(before) - plan.cut]
        turns.append(turn([*kept, *plan.added], plan.said, lineage=plan.lineage))
    return episode(turns)


TWO_GO_ON_FROM_THE_FIRST = [
    Plan(-1, 0, 0, [1], [2], lineage=0),
    Plan(0, 0, 0, [0], [1], lineage=1),
    Plan(0, 0, 0, [2], [2], lineage=0),
]


@given(PLANS)
@example(TWO_GO_ON_FROM_THE_FIRST)
def test_whatever_turns_repeat_of_each_other_comes_back_token_by_token(plans: list[Plan]) -> None:
    there = played(plans)
    back = decode_trajectory(encode(there))
    assert back == there
    assert [[*t.prompt_ids] for t in back.turns] == [t.prompt_ids for t in there.turns]
    assert encode(back) == encode(there)
    for ours, theirs in zip(*(samples(each, [0.0] * len(plans)) for each in (back, there)), strict=True):
        assert ours.token_ids.tolist() == theirs.token_ids.tolist()
        assert ours.rollout_logprobs.tolist() == theirs.rollout_logprobs.tolist()
    group = Group(group_id="g", task=task(), trajectories=[there])
    assert decode_group(encoded(group)) == group


def test_a_turn_holds_what_it_adds_to_the_one_that_it_goes_on_from_and_no_more() -> None:
    main = [turn([1, 2], [3]), turn([1, 2, 3, 4], [5]), turn([1, 2, 3, 4, 5, 6], [7])]
    sub = [turn([8, 9], [10], lineage=1), turn([8, 9, 10, 11], [12], lineage=1)]
    rewritten = turn([1, 2, 3, 4, 13], [14])
    packed = pack([main[0], sub[0], main[1], sub[1], main[2], rewritten])
    assert [(each.repeats, struct.unpack(f"<{len(each.ids) // 4}i", each.ids)) for each in packed] == [
        (None, (1, 2, 3)),
        (None, (8, 9, 10)),
        ((0, 3), (4, 5)),
        ((1, 3), (11, 12)),
        ((2, 5), (6, 7)),
        ((4, 4), (13, 14)),
    ]


def test_a_log_prob_that_is_no_float32_is_rounded_to_the_nearest() -> None:
    there = episode([msgspec.structs.replace(turn([1], [2]), logprobs=[-0.1])])
    (back,) = decode_trajectory(encode(there)).turns
    assert back.logprobs == [-0.10000000149011612]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt_ids": [2**31]}, "malformed: episode 0 of group g: a token id does not fit into 32 bits"),
        ({"prompt_ids": [-1]}, "malformed: episode 0 of group g: token id -1"),
        ({"logprobs": [-1e39]}, "malformed: episode 0 of group g: a log-prob does not fit into 32 bits: -1e+39"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_where_they_are_packed(change: dict[str, object], reason: str) -> None:
    with pytest.raises(WireError) as refused:
        encode(episode([msgspec.structs.replace(turn([1], [2]), **change)]))
    assert str(refused.value).startswith(reason)


def ints(*ids: int) -> bytes:
    return struct.pack(f"<{len(ids)}i", *ids)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"repeats": (1, 2)}, "turn 1 repeats 2 tokens of turn 1, which there are not"),
        ({"repeats": (-1, 2)}, "turn 1 repeats 2 tokens of turn -1"),
        ({"repeats": (0, 4)}, "turn 1 repeats 4 tokens of turn 0"),
        ({"repeats": (0, 0)}, "turn 1 repeats 0 tokens of turn 0"),
        ({"ids": ints(4, 5)[:-1]}, "turn 1: 7 bytes are no numbers of 4"),
        ({"ids": ints(4, -5)}, "token id -5"),
        ({"logprobs": b"\x00" * 3}, "turn 1: 3 bytes are no numbers of 4"),
        ({"logprobs": b"\x00" * 12}, "turn 1: 3 log-probs for 2 token ids"),
        ({"logprobs": b""}, "at least one prompt token and one response token"),
        ({"logprobs": b"\x00\x00\x80\xff"}, "a log-prob is not finite"),
        ({"versions": []}, "version spans do not cover the 1 response tokens"),
        ({"repeats": None, "ids": ints(5)}, "at least one prompt token and one response token"),
    ],
)
def test_spans_that_do_not_fit_are_refused_where_they_arrive(change: dict[str, object], reason: str) -> None:
    data = encode(episode([turn([1, 2], [3]), turn([1, 2, 3, 4], [5])]))
    plain = msgspec.msgpack.decode(data[4:])
    plain["turns"][1] |= change
    with pytest.raises(WireError, match="malformed") as refused:
        decode_trajectory(data[:4] + msgspec.msgpack.encode(plain))
    assert reason in str(refused.value)


def test_contexts_beyond_the_bound_are_refused_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    there = episode([turn([1, 2], [3]), turn([1, 2, 3, 4], [5]), turn([1, 6], [7])])  # 5 and 3 tokens
    monkeypatch.setattr(token_spans, "MAX_TOKENS", 8)
    data = encode(there)
    assert decode_trajectory(data) == there
    monkeypatch.setattr(token_spans, "MAX_TOKENS", 7)
    for refuse in (lambda: encode(there), lambda: decode_trajectory(data)):
        with pytest.raises(WireError, match=r"oversize: .*its contexts hold 8 tokens together, the limit is 7"):
            refuse()


def test_few_bytes_that_claim_many_tokens_are_refused_before_any_of_them_is_laid_out() -> None:
    first = pack([turn([1] * 99_999, [2])])
    again = PackedTurn(**{**msgspec.structs.asdict(first[0]), "repeats": (0, 100_000), "ids": ints(3)})
    with pytest.raises(token_spans.TooManyTokens, match="hold 40000400 tokens"):  # 400 contexts of 100,001
        unpack([*first, *[again] * 400])


def test_ids_that_are_viewed_are_as_good_as_a_list() -> None:
    ids = TokenIds(np.array([5, 6, 7], np.int32))
    assert [ids == other for other in ([5, 6, 7], [5, 6], TokenIds(np.array([5, 6, 7])), "567")] == [
        True,
        False,
        True,
        False,
    ]
    assert [5, 6, 7] == ids  # noqa: SIM300 (the list is asked first)
    assert (ids[1], ids[-1], ids[1:] == [6, 7], 6 in ids, list(ids), len(ids)) == (6, 7, True, True, [5, 6, 7], 3)
    assert type(ids[0]) is type(next(iter(ids))) is int
    assert repr(cloudpickle.loads(cloudpickle.dumps(ids[:2]))) == "TokenIds([5, 6])"
