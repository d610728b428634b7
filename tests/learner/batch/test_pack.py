import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from milepost.learner.batch.pack import Packing, Passed, collate, minibatches, passed_tokens, plan
from milepost.learner.batch.sample import NO_TURN, NO_VERSION, Sample


def sample(length: int, group: str = "g", index: int = 0, trained: int = 1) -> Sample:
    mask = np.zeros(length, dtype=np.bool_)
    mask[length - trained :] = True
    return Sample(
        group_id=group,
        index=index,
        token_ids=np.arange(1, length + 1),
        loss_mask=mask,
        advantages=np.where(mask, np.float32(0.5), np.float32(0)),
        rollout_logprobs=np.where(mask, np.float32(-1), np.float32(0)),
        versions=np.where(mask, 4, NO_VERSION),
        turn_lengths=np.where(mask, trained, 0),
        turn_index=np.where(mask, 0, NO_TURN),
        value_mask=np.zeros_like(mask),
        value_targets=np.zeros(len(mask), dtype=np.float32),
    )


def test_rows_are_padded_on_the_right_and_padding_trains_nothing():
    batch = collate([sample(4), sample(2)])
    assert batch.input_ids.tolist() == [[1, 2, 3, 4], [1, 2, 0, 0]]
    assert batch.loss_mask.tolist() == [[False, False, False, True], [False, True, False, False]]
    assert batch.versions.tolist() == [[-1, -1, -1, 4], [-1, 4, -1, -1]]
    assert batch.advantages.dtype == batch.rollout_logprobs.dtype == torch.float32
    assert batch.input_ids.dtype == torch.int64


def test_a_dummy_has_tokens_and_trains_on_nothing():
    dummy = collate([])
    assert dummy.input_ids.shape == (1, 2)
    assert not dummy.loss_mask.any()


def test_similar_lengths_share_a_micro_batch():
    ranks = plan([sample(n) for n in (3, 10, 4, 9)], num_ranks=1, max_tokens=20)
    assert [[len(s) for s in batch] for batch in ranks[0]] == [[10, 9], [4, 3]]


def test_a_sample_longer_than_the_limit_gets_a_micro_batch_of_its_own():
    ranks = plan([sample(50), sample(5), sample(5)], num_ranks=1, max_tokens=10)
    assert [[len(s) for s in batch] for batch in ranks[0]] == [[50], [5, 5]]


def test_one_micro_batch_is_halved_rather_than_leaving_a_rank_idle():
    ranks = plan([sample(5) for _ in range(4)], num_ranks=2, max_tokens=100)
    assert [[len(batch) for batch in batches] for batches in ranks] == [[2], [2]]


def test_a_single_sample_leaves_the_other_rank_a_dummy():
    ranks = plan([sample(5)], num_ranks=2, max_tokens=100)
    assert sorted(len(batches[0]) for batches in ranks) == [0, 1]


@pytest.mark.parametrize("kwargs", [{"num_ranks": 0, "max_tokens": 5}, {"num_ranks": 1, "max_tokens": 0}])
def test_a_plan_without_room_is_refused(kwargs: dict[str, int]):
    with pytest.raises(ValueError, match="cannot plan"):
        plan([sample(5)], **kwargs)


@given(
    st.lists(st.integers(2, 40), min_size=1, max_size=30),
    st.integers(1, 4),
    st.integers(1, 120),
    st.sampled_from(["tree", "padded"]),
)
def test_ranks_run_equally_many_micro_batches_within_the_limit_and_lose_no_sample(
    lengths: list[int], num_ranks: int, max_tokens: int, packing: Packing
):
    given_samples = [sample(n, "ab"[k % 2], index=k) for k, n in enumerate(lengths)]
    ranks = plan(given_samples, num_ranks=num_ranks, max_tokens=max_tokens, packing=packing)
    assert len(ranks) == num_ranks
    assert len({len(batches) for batches in ranks}) == 1
    placed = [s.index for batches in ranks for batch in batches for s in batch]
    assert sorted(placed) == list(range(len(lengths)))
    for batches in ranks:
        for batch in batches:
            assert len(batch) <= 1 or passed_tokens(batch, packing) <= max_tokens
    load = [[passed_tokens(batch, packing) for batch in batches] for batches in ranks]
    assert max(map(sum, load)) - min(map(sum, load)) <= max(map(max, load))


def test_minibatches_keep_groups_whole_and_balance_trained_tokens():
    pool = [sample(6, "a", trained=5), sample(6, "b", trained=2), sample(6, "c", trained=2), sample(6, "a", trained=1)]
    parts = minibatches(pool, 2)
    assert [[s.group_id for s in part] for part in parts] == [["a", "a"], ["b", "c"]]
    assert [len(part) for part in minibatches(pool, 8)] == [2, 1, 1]
    assert minibatches([], 2) == []
    with pytest.raises(ValueError, match="at least 1"):
        minibatches(pool, 0)


def test_a_large_micro_batch_ends_before_it_is_padding_and_a_small_one_does_not():
    long, short = [sample(1000, index=k) for k in range(2)], [sample(500, index=2 + k) for k in range(4)]
    assert [len(batch) for batch in plan([*long, *short], num_ranks=1, max_tokens=9000)[0]] == [2, 4]
    assert [len(batch) for batch in plan([sample(100), sample(10)], num_ranks=1, max_tokens=9000)[0]] == [2]


def test_trees_keep_a_group_together_and_count_shared_tokens_once():
    # two rows of a group: 1 2 3 4 and 1 2 3, so 4 distinct tokens and not 7
    groups = [sample(n, name) for name in "abc" for n in (4, 3)]
    (batches,) = plan(groups, num_ranks=1, max_tokens=8, packing="tree")
    assert [[s.group_id for s in batch] for batch in batches] == [["a", "a", "b", "b"], ["c", "c"]]
    ranks = plan(groups[:4], num_ranks=2, max_tokens=8, packing="tree")
    assert [[[s.group_id for s in batch] for batch in batches] for batches in ranks] == [[["a", "a"]], [["b", "b"]]]
    shares = Passed.of([[groups[:2]], [groups[2:4]]], "tree")
    assert (shares.padding_share, shares.prefix_share) == (0.0, pytest.approx(6 / 14))


def test_a_group_that_is_too_large_for_a_micro_batch_is_cut_between_samples():
    (batches,) = plan([sample(n) for n in (6, 5, 4)], num_ranks=1, max_tokens=5, packing="tree")
    assert [[len(s) for s in batch] for batch in batches] == [[6], [4, 5]]


def test_padding_is_what_a_pass_computes_for_nothing():
    ranks = [[(sample(6), sample(2)), ()], [(sample(3),), (sample(4),)]]
    # 6 + 6, 0, 3 and 4 positions for 6 + 2 + 3 + 4 tokens
    assert Passed.of(ranks, "padded").padding_share == pytest.approx(1 - 15 / 19)
    assert Passed.of([[()]], "padded") == Passed(0.0, 0.0)
