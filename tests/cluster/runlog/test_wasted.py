"""Rollouts that teach nothing are told of: in the first evaluation, while it goes on, and at the end."""

from milepost.cluster.runlog.wasted import Limits, WastedRollouts, last_word, nothing_learnt
from tests.cluster.runlog.example_records import eval_record, iteration_record

LIMITS = Limits(max_tokens=16, max_model_len=1024)
CUT = "97.5% of the responses were cut at sampling.max_tokens = 16: raise it"
INVALID = "99.0% of the turns held no valid action"


def evaluation(**shares):
    record = eval_record(0, "train", 0.0)
    return type(record)(**({name: getattr(record, name) for name in record.__struct_fields__} | shares))


def empty(iteration, **changes):
    """An iteration of which the filter kept none of 8 groups."""
    values = {"groups_trained": 0, "groups_filtered": 8, "verdicts": {"zero_variance": 7, "low_score": 1}}
    return iteration_record(iteration, **(values | changes))


def test_the_first_evaluation_says_that_most_responses_are_cut_and_most_turns_invalid_and_later_ones_not_again():
    watch = WastedRollouts(LIMITS)
    said = watch.evaluation(evaluation(cut_share=0.975, invalid_share=0.99))
    assert said[0] == CUT
    assert said[1].startswith(INVALID)
    assert len(said) == 2
    assert watch.evaluation(evaluation(cut_share=0.975, invalid_share=0.99)) == []
    assert watch.iteration(iteration_record(1, cut_share=0.9, invalid_share=0.9)) == []


def test_a_context_that_ends_most_episodes_is_told_with_its_numbers():
    (line,) = WastedRollouts(LIMITS).evaluation(evaluation(context_full_share=0.625))
    assert line.startswith("62.5% of the episodes ended because their next prompt and sampling.max_tokens = 16 exceed ")
    assert "engine.max_model_len = 1024: raise that, set actors.window_turns, or shorten observations" in line


def test_half_of_the_responses_is_not_most_of_them_and_what_was_not_measured_says_nothing():
    watch = WastedRollouts(LIMITS)
    assert watch.evaluation(evaluation(cut_share=0.5, context_full_share=0.5, invalid_share=0.5)) == []
    assert watch.evaluation(evaluation(cut_share=None, invalid_share=None)) == []


def test_an_iteration_without_an_update_is_told_at_once_and_then_each_time_its_streak_has_doubled():
    watch = WastedRollouts(LIMITS)
    said = {i: watch.iteration(empty(i)) for i in range(1, 10)}
    assert [i for i, lines in said.items() if lines] == [1, 2, 4, 8]
    reasons = "the filter dropped all 8 groups (nothing to compare, their returns are equal: 7, "
    assert said[1] == [f"no update was made: {reasons}a filter.score below that of others: 1)"]
    assert said[4][0].startswith("no update was made, 4 iterations in a row: the filter dropped all 8 groups")
    assert watch.iteration(iteration_record(10)) == []
    assert watch.iteration(empty(11))[0].startswith("no update was made: ")


def test_a_run_of_which_no_iteration_made_an_update_says_why_and_what_became_of_the_policy():
    done = [empty(i, success=0.25 * i, cut_share=1.0, invalid_share=1.0) for i in (1, 2)]
    why = nothing_learnt(done, LIMITS)
    assert why.startswith("none of the 2 iterations made an update: the filter dropped all 16 groups (nothing to ")
    assert "; success was 37.5%; 100.0% of the responses were cut at sampling.max_tokens = 16: raise it; " in why
    assert why.endswith("; the policy is the one that the run began with")


def test_one_update_is_enough_to_have_learnt_and_a_run_without_iterations_wanted_none():
    assert nothing_learnt([empty(1), iteration_record(2), empty(3)], LIMITS) is None
    assert nothing_learnt([], LIMITS) is None


def test_the_last_word_is_about_the_last_ten_iterations():
    brief_at_last = [iteration_record(i, cut_share=1.0 if i <= 20 else 0.1) for i in range(1, 31)]
    assert last_word(brief_at_last, LIMITS) == []
    never = [iteration_record(i, cut_share=0.95 if i % 2 else 1.0) for i in range(1, 31)]
    assert last_word(never, LIMITS) == [CUT]
