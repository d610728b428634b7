import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.envs.types import Task, Trajectory, Turn, VersionSpan
from milepost.learner.batch.sample import NO_TURN, NO_VERSION, Sample, samples
from tests.learner.token_turns import turn

TASK = Task(env="x:Y", seed=0, split="train")


def trajectory(turns: list[Turn]) -> Trajectory:
    return Trajectory(task=TASK, group_id="g", index=2, turns=turns, outcome="success")


def test_append_only_turns_become_one_sequence_with_a_mask_over_sampled_tokens():
    merged = samples(trajectory([turn([1, 2], [7, 8], version=3), turn([1, 2, 7, 8, 9], [5], version=4)]), [0.5, -1.0])
    assert len(merged) == 1
    sample = merged[0]
    assert sample.token_ids.tolist() == [1, 2, 7, 8, 9, 5]
    assert sample.loss_mask.tolist() == [False, False, True, True, False, True]
    assert sample.advantages.tolist() == [0, 0, 0.5, 0.5, 0, -1.0]
    assert sample.rollout_logprobs.tolist() == pytest.approx([0, 0, -0.5, -0.6, 0, -0.5])
    assert sample.versions.tolist() == [NO_VERSION, NO_VERSION, 3, 3, NO_VERSION, 4]
    assert sample.turn_lengths.tolist() == [0, 0, 2, 2, 0, 1]
    assert sample.turn_index.tolist() == [NO_TURN, NO_TURN, 0, 0, NO_TURN, 1]
    assert not sample.value_mask.any()
    assert (sample.group_id, sample.index, sample.num_trained, len(sample)) == ("g", 2, 3, 6)


def test_a_retokenised_history_gives_two_samples_instead_of_one():
    split = samples(trajectory([turn([1, 2], [7, 8]), turn([1, 2, 9, 10], [5])]), [1.0, 2.0])
    assert [s.token_ids.tolist() for s in split] == [[1, 2, 7, 8], [1, 2, 9, 10, 5]]
    assert [s.advantages.max() for s in split] == [1.0, 2.0]


def test_a_window_that_drops_the_oldest_turn_starts_a_new_run_that_later_turns_join():
    turns = [turn([1], [2]), turn([1, 2, 3], [4]), turn([3, 4, 5], [6]), turn([3, 4, 5, 6, 7], [8])]
    split = samples(trajectory(turns), [0.0, 1.0, 2.0, 3.0])
    assert [s.token_ids.tolist() for s in split] == [[1, 2, 3, 4], [3, 4, 5, 6, 7, 8]]
    assert split[1].advantages.tolist() == [0, 0, 0, 2, 0, 3]


def test_one_response_may_span_two_policy_versions():
    spans = [VersionSpan(version=5, start=0, end=1), VersionSpan(version=6, start=1, end=3)]
    mixed = Turn(
        prompt_ids=[1],
        response_ids=[2, 3, 4],
        logprobs=[-1.0] * 3,
        versions=spans,
        anchor="s",
        next_anchor="s",
        action=None,
        reward=0.0,
    )
    assert samples(trajectory([mixed]), [1.0])[0].versions.tolist() == [NO_VERSION, 5, 6, 6]


@pytest.mark.parametrize(("advantages", "message"), [([1.0, 2.0], "for 1 turns"), ([float("nan")], "not finite")])
def test_advantages_that_do_not_fit_are_refused_by_name(advantages: list[float], message: str):
    with pytest.raises(ValueError, match=f"trajectory g/2: .*{message}"):
        samples(trajectory([turn([1], [2])]), advantages)


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 9), min_size=1, max_size=3), st.booleans(), st.integers(1, 4)),
        min_size=1,
        max_size=6,
    )
)
def test_every_sampled_token_is_trained_exactly_once(plan: list[tuple[list[int], bool, int]]):
    turns: list[Turn] = []
    for observation, rewrite, count in plan:
        history = [] if rewrite or not turns else turns[-1].prompt_ids + turns[-1].response_ids
        turns.append(turn([*history, *observation], list(range(20, 20 + count))))
    cut = samples(trajectory(turns), np.arange(len(turns), dtype=np.float64))
    trained = [token for s in cut for token in s.token_ids[s.loss_mask].tolist()]
    assert trained == [token for t in turns for token in t.response_ids]
    assert [a for s in cut for a in s.advantages[s.loss_mask].tolist()] == [
        k for k, t in enumerate(turns) for _ in t.response_ids
    ]


def test_tokens_of_one_turn_may_differ_in_advantage():
    (sample,) = samples(trajectory([turn([1, 2], [7, 8]), turn([1, 2, 7, 8, 9], [5])]), [np.array([0.5, -0.5]), 2.0])
    assert sample.advantages.tolist() == [0, 0, 0.5, -0.5, 0, 2.0]


def test_a_critic_is_trained_before_the_first_tokens_of_a_turn_that_have_a_target():
    turns = [turn([1, 2], [7, 8]), turn([1, 2, 7, 8, 9], [5, 6])]
    (sample,) = samples(trajectory(turns), [0.0, 0.0], [np.array([0.25]), np.array([0.5, 1.0])])
    assert sample.value_mask.tolist() == [False, False, True, False, False, True, True]
    assert sample.value_targets.tolist() == [0, 0, 0.25, 0, 0, 0.5, 1.0]


def test_a_sample_from_turn_indices_is_the_one_that_a_trajectory_gives():
    turns = [turn([1, 2], [7, 8]), turn([1, 2, 7, 8, 9], [5])]
    (real,) = samples(trajectory(turns), [0.5, -1.0], [np.array([0.25]), np.array([0.0])])
    spelt = Sample.from_turn_index(
        [NO_TURN, NO_TURN, 0, 0, NO_TURN, 1],
        advantages=[0, 0, 0.5, 0.5, 0, -1.0],
        rollout_logprobs=real.rollout_logprobs.tolist(),
        value_targets=[None, None, 0.25, None, None, 0.0],
    )
    for name in ("loss_mask", "advantages", "rollout_logprobs", "turn_lengths", "turn_index", "value_mask"):
        np.testing.assert_array_equal(getattr(spelt, name), getattr(real, name), err_msg=name)
    assert spelt.value_targets.tolist() == real.value_targets.tolist()
