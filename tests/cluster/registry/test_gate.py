"""Gates: what a file may say, and which policy comes through, by numbers of the refund desk that a reader can count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.registry import gate as gates
from milepost.cluster.registry.gate import Absolute, Gate, Relative
from milepost.cluster.registry.judgement import measured, require_fit, unmet
from tests.cluster.evaluation.played_results import results, the_suite
from tests.cluster.registry.promoted import gate

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "gate.toml"
HURRIED = "short-of-time"
"""The only scenario of the cohort `hurried`; two others are `usual`."""


def asking(*limits: Absolute | Relative, **keys: Any) -> Gate:
    absolute = [limit for limit in limits if isinstance(limit, Absolute)] or [Absolute(metric="success", limit=0)]
    relative = [limit for limit in limits if isinstance(limit, Relative)]
    return Gate(suite=the_suite().sha256, episodes=1, absolute=absolute, relative=relative, **keys)


def test_the_shipped_gate_lets_the_sound_agent_through_and_none_of_the_others() -> None:
    shipped, _ = gates.load(EXAMPLE)
    sound = results("sound", episodes=6)
    assert unmet(shipped, sound, results("looping", episodes=6, sha256="b" * 64)) == []
    reasons = {agent: unmet(shipped, results(agent, episodes=6), None) for agent in ("idle", "looping", "rule breaker")}
    assert reasons["idle"][0] == reasons["looping"][0] == "success, all: 0.000 is below the limit of 0.8"
    assert reasons["rule breaker"] == ["safety, all: 0.000 is below the limit of 1"]
    require_fit(sound, "run-a", shipped, "a" * 64)


def test_what_is_measured_are_the_numbers_of_all_episodes() -> None:
    found = results("sound", "idle", episodes=2)
    assert measured(found.buckets["all"]) == {
        "success": 0.5,
        "safety": 1.0,
        "step_efficiency": 0.5,
        "tokens": pytest.approx(found.buckets["all"].tokens.mean),
        "steps_p99": 4,
    }


def test_a_limit_passes_at_its_very_value_and_not_beyond_it() -> None:
    found = results("sound", "idle", episodes=2)
    passing = (Absolute(metric="success", limit=0.5), Absolute(metric="steps_p99", limit=4))
    assert unmet(asking(*passing), found, None) == []
    failing = (Absolute(metric="success", limit=0.51), Absolute(metric="steps_p99", limit=3.5))
    assert unmet(asking(*failing), found, None) == [
        "success, all: 0.500 is below the limit of 0.51",
        "steps_p99, all: 4 is above the limit of 3.5",
    ]


def test_a_policy_that_is_better_but_unsafe_is_refused() -> None:
    champion, unsafe = results("idle", episodes=2), results("rule breaker", episodes=2)
    limits = (Absolute(metric="safety", limit=1), Relative(metric="success"))
    assert unmet(asking(*limits), unsafe, champion) == ["safety, all: 0.000 is below the limit of 1"]


def test_a_policy_that_is_better_but_slower_is_refused() -> None:
    champion, slower = results("rule breaker", "idle", episodes=4), results("sound", episodes=4)
    limits = [Relative(metric="steps_p99", tolerance=tolerance) for tolerance in (0.34, 0.2)]
    assert unmet(asking(Relative(metric="success"), *limits), slower, champion) == [
        "steps_p99, all: 4 is above the champion's 3, of which 3.6 would pass"
    ]


def test_a_policy_that_is_better_but_worse_in_one_cohort_is_refused() -> None:
    champion = results("idle", episodes=6, others={HURRIED: "sound"})
    narrow = results("sound", episodes=6, others={HURRIED: "idle"})
    means = [found.buckets["all"].native["success"].mean for found in (champion, narrow)]
    assert means == [pytest.approx(1 / 3), pytest.approx(2 / 3)]
    overall, each = (
        Relative(metric="success", undecided="pass"),
        Relative(metric="success", cohort="*", undecided="pass"),
    )
    # six pairs that all went the other way: 2 * (1/2)^6
    reason = "success, cohort hurried: 0.000 against the champion's 1.000 is worse (p 0.031), by 1.000 where 0 passes"
    assert unmet(asking(overall, each), narrow, champion) == [reason]
    assert unmet(asking(Absolute(metric="success", limit=0.5, cohort="*")), narrow, champion) == [
        "success, cohort hurried: 0.000 is below the limit of 0.5"
    ]


def test_tokens_may_grow_by_their_tolerance_and_no_more() -> None:
    champion, longer = results("idle", episodes=4), results("sound", episodes=4)
    first, second = (found.buckets["all"].tokens.mean for found in (champion, longer))
    growth = second / first - 1
    assert growth > 1
    limits = [Relative(metric="tokens", tolerance=growth + more) for more in (0.01, -0.01)]
    [reason] = unmet(asking(*limits), longer, champion)
    assert reason.startswith(f"tokens, all: {second:.0f} against the champion's {first:.0f} is worse, by {growth:.3f} ")


def test_an_undecided_comparison_passes_or_is_refused_as_the_gate_says() -> None:
    champion, few = results("idle", episodes=4), results("idle", episodes=4, others={HURRIED: "sound"})
    asked = {"metric": "success", "cohort": "hurried"}
    passing = Relative(**asked, undecided="pass")
    more, same = unmet(asking(passing, Relative(**asked), Relative(metric="safety")), few, champion)
    assert more == (
        "success, cohort hurried: 1.000 against the champion's 0.000 is undecided in 4 pairs, which the gate refuses; "
        "2 more pairs would decide"
    )
    assert same.endswith("is undecided in 12 pairs, which the gate refuses; no difference was seen")


def test_without_a_champion_only_absolute_limits_count() -> None:
    limits = (Absolute(metric="success", limit=0.1), Relative(metric="success"), Relative(metric="steps_p99"))
    assert unmet(asking(*limits), results("sound", episodes=1), None) == []


def test_a_cohort_that_nobody_played_is_a_limit_that_is_not_met() -> None:
    limits = (Absolute(metric="tokens", limit=9, cohort="rare"), Relative(metric="success", cohort="rare"))
    found = results("sound", episodes=1)
    assert unmet(asking(*limits), found, found) == [
        "tokens, cohort rare: not measured, and its limit is 9",
        "success, cohort rare: not measured beside the champion",
    ]


def test_results_of_another_policy_another_suite_or_with_gaps_are_no_evidence() -> None:
    wanted, found = asking(), results("sound", episodes=1)
    require_fit(found, "run-a", wanted, "a" * 64)
    with pytest.raises(ConfigError, match=r"run-a: the results are of a policy with digest a{12}, its own is b{12};"):
        require_fit(found, "run-a", wanted, "b" * 64)
    other = wanted.model_copy(update={"suite": "0" * 64})
    with pytest.raises(ConfigError, match=r"of suite refund-desk with hash .*, the gate asks for 0{12};"):
        require_fit(found, "run-a", other, "a" * 64)
    with pytest.raises(ConfigError, match=r"fewer than 3 episodes, .*, of lamp, lamp-again, short-of-time;"):
        require_fit(found, "run-a", wanted.model_copy(update={"episodes": 3}), "a" * 64)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"suites": "x"}, "suites: unknown key"),
        ({"episodes": 0}, "episodes: Input should be greater than or equal to 1"),
        ({"episodes": "2"}, "episodes: Input should be a valid integer"),
        ({"absolute": []}, "absolute: List should have at least 1 item"),
        ({"absolute": [{"metric": "reward", "limit": 1}]}, "absolute.1.metric: Input should be 'success', 'safety'"),
        ({"relative": [{"metric": "steps_p99", "undecided": "pass"}]}, "relative.1: undecided: steps_p99 is compared"),
        ({"relative": [{"metric": "tokens", "tolerance": -1}]}, "relative.1.tolerance: Input should be greater"),
    ],
)
def test_a_wrong_gate_is_one_line_that_names_the_key(tmp_path: Path, keys: dict[str, Any], said: str) -> None:
    path = gate(tmp_path, **keys)
    with pytest.raises(ConfigError) as refused:
        gates.load(path)
    assert str(refused.value).startswith(f"{path}: {said}")
    assert "\n" not in str(refused.value)


def test_a_gate_that_is_nested_too_deeply_is_no_defect_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "gate.toml"
    path.write_text(f"suite = {'[' * 100_000}")
    with pytest.raises(ConfigError, match=r"gate\.toml: not valid TOML: "):
        gates.load(path)
