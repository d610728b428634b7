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


def test_calls_of_a_sub_agent_between_two_turns_leave_those_one_sequence():
    turns = [turn([1], [2]), turn([50], [51]), turn([50, 51, 52], [53]), turn([1, 2, 3], [4])]
    main, sub = samples(trajectory(turns), [0.0, 1.0, 2.0, 3.0])
    assert (main.token_ids.tolist(), main.advantages.tolist()) == ([1, 2, 3, 4], [0, 0, 0, 3])
    assert (sub.token_ids.tolist(), sub.turn_index.tolist()) == ([50, 51, 52, 53], [NO_TURN, 1, NO_TURN, 2])


def test_of_two_answers_to_one_history_the_first_is_continued_and_the_second_is_a_sample_of_its_own():
    turns = [turn([1], [2]), turn([1, 2, 3], [4]), turn([1, 2, 3], [5])]
    assert [s.token_ids.tolist() for s in samples(trajectory(turns), [0.0] * 3)] == [[1, 2, 3, 4], [1, 2, 3, 5]]


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 9), min_size=1, max_size=3), st.integers(-1, 5), st.integers(1, 4)),
        min_size=1,
        max_size=6,
    )
)
def test_every_sampled_token_is_trained_exactly_once_whatever_turn_is_continued(plan: list[tuple[list[int], int, int]]):
    turns: list[Turn] = []
    for observation, continued, count in plan:
        before = turns[continued] if 0 <= continued < len(turns) else None
        history = before.prompt_ids + before.response_ids if before else []
        turns.append(turn([*history, *observation], list(range(20, 20 + count))))
    cut = samples(trajectory(turns), np.arange(len(turns), dtype=np.float64))
    for k, t in enumerate(turns):
        (sample,) = [s for s in cut if (s.turn_index == k).any()]
        start = len(t.prompt_ids)
        assert np.flatnonzero(sample.turn_index == k).tolist() == list(range(start, start + len(t.response_ids)))
        assert sample.token_ids[: start + len(t.response_ids)].tolist() == t.prompt_ids + t.response_ids
        assert set(sample.advantages[sample.turn_index == k]) == {k}
    assert sum(s.num_trained for s in cut) == sum(len(t.response_ids) for t in turns)


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
