"""A judge asks a real server: what is a judgement, what is none, and what is waited for."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from milepost.reward.judges.config import JudgeRefused
from milepost.reward.judges.judge import Judge
from tests.reward.judges.judge_rig import (
    WEIGHTS,
    Body,
    judge_config,
    judged,
    nonce_of,
    serving,
    transcript,
    user_text,
    verdict,
)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milepost.reward.judges.judge._PAUSE_S", 0.0)


def test_a_valid_answer_is_a_score_in_0_to_1_with_its_evidence_and_both_digests() -> None:
    with serving(lambda body: verdict(body, score=4, evidence=[0, 1])) as served:
        found = judged(served.url)
    assert (found.scores, found.evidence, found.failure) == (
        {"reasoning_quality": 0.75}, {"reasoning_quality": [0, 1]}, "",
    )  # fmt: skip
    assert (found.weights_digest, found.prompt_sha256) == (WEIGHTS, judge_config("http://h/v1").prompt_sha256)


def test_a_request_is_greedy_pinned_by_a_schema_and_never_carries_the_same_nonce() -> None:
    with serving(verdict) as served:
        judged(served.url, seed=7)
        judged(served.url, seed=7)
    first, second = served.asked
    assert (first["temperature"], first["seed"], first["model"]) == (0, 7, "judge-model")
    assert first["response_format"]["json_schema"]["schema"]["additionalProperties"] is False
    assert nonce_of(first) != nonce_of(second)
    assert len(nonce_of(first)) == 32
    assert served.keys == [None, None]


NOT_ASKED_FOR: dict[str, Callable[[Body], str]] = {
    "text before": lambda body: "Sure! " + verdict(body),
    "text after": lambda body: verdict(body) + "\nI hope this helps.",
    "a fence": lambda body: f"```json\n{verdict(body)}\n```",
    "no JSON": lambda _: "5",
    "nothing": lambda _: "",
    "a list": lambda body: f"[{verdict(body)}]",
    "above the scale": lambda body: verdict(body, score=6),
    "below the scale": lambda body: verdict(body, score=0),
    "a fraction": lambda body: verdict(body, score=3.5),
    "a whole fraction": lambda body: verdict(body, score=3.0),
    "a flag": lambda body: verdict(body, score=True),
    "a word": lambda body: verdict(body, score="5"),
    "not a number": lambda body: verdict(body, score=math.nan),
    "no evidence": lambda body: verdict(body, evidence=[]),
    "evidence beyond the end": lambda body: verdict(body, evidence=[2]),
    "evidence in words": lambda body: verdict(body, evidence="turn 1"),
    "an extra key": lambda body: verdict(body, approved=True),
    "an extra criterion": lambda body: verdict(body).replace('"scores": {', '"scores": {"kindness": 5, '),
    "another outcome's word": lambda body: verdict(body, outcome="won"),
    "a key twice": lambda body: verdict(body).replace('"score": 3', '"score": 1, "score": 5'),
    "no criterion": lambda body: verdict(body, scores={}),
    "another nonce": lambda body: verdict(body, nonce="0" * 32),
    "deep nesting": lambda _: "[" * 100_000,
}  # fmt: skip


@pytest.mark.parametrize("kind", NOT_ASKED_FOR)
def test_what_was_not_asked_for_is_no_score_and_is_asked_again(kind: str) -> None:
    with serving(NOT_ASKED_FOR[kind]) as served:
        found = judged(served.url, retries=2)
    assert (found.scores, found.contradicted, len(served.asked)) == ({}, False, 3)
    assert found.failure.startswith("asked 3 times: ")
    assert "\n" not in found.failure


def test_a_second_answer_that_is_valid_counts() -> None:
    answers = iter(["hm", None])

    def second(body: Body) -> str:
        return next(answers) or verdict(body)

    with serving(second) as served:
        assert judged(served.url).scores == {"reasoning_quality": 0.5}
        assert [body["seed"] for body in served.asked] == [0, 1]


async def never(_: Body) -> str:
    await asyncio.sleep(60)
    return ""


def answering(status: int) -> Callable[[Body], web.Response]:
    return lambda _: web.Response(status=status, text="out of order")


FAULTS: dict[str, tuple[Any, int, str]] = {
    "slow": (never, 2, "/v1/chat/completions did not answer within deadline_s = 0.3"),
    "busy": (answering(429), 2, "answers 429: out of order"),
    "broken": (answering(500), 2, "answers 500: out of order"),
    "another page": (lambda _: web.Response(text="<html>"), 2, "answers what is not JSON: <html>"),
    "elsewhere": (lambda _: web.Response(status=307, headers={"Location": "http://127.0.0.1:9/"}), 2, "answers 307"),
    "no choice": (lambda _: web.json_response({"model": "judge-model", "choices": []}), 2, "holds no message"),
    "no text": (lambda _: None, 2, "holds no text"),
    "endless": (lambda _: web.Response(text="x" * (5 * 1024**2)), 2, "larger than 4 MiB"),
    "too long a prompt": (answering(400), 1, "answers 400: out of order"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_server_does_wrongly_is_a_failure_that_names_it(fault: str) -> None:
    answer, calls, told = FAULTS[fault]
    with serving(answer) as served:
        found = judged(served.url, deadline_s=0.3 if fault == "slow" else 10)
        assert len(served.asked) == calls
    assert found.scores == {}
    assert told in found.failure


def test_an_answer_that_was_cut_is_no_score() -> None:
    with serving(verdict) as served:
        served.finish_reason = "length"
        assert judged(served.url).failure == "asked 2 times: its answer was cut at max_tokens = 1024"


def test_a_server_that_is_not_there_is_a_failure_that_names_its_address() -> None:
    found = judged("http://127.0.0.1:9/v1")
    assert found.failure.startswith("asked 2 times: http://127.0.0.1:9/v1/chat/completions: ClientConnector")


def test_an_answer_of_another_model_ends_all_judging() -> None:
    with serving(verdict) as served:
        served.says_model = "judge-model-v2"
        with pytest.raises(JudgeRefused, match="'judge-model' was asked and 'judge-model-v2' answered"):
            judged(served.url)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_server_that_refuses_the_key_or_the_model_ends_all_judging(status: int) -> None:
    with serving(answering(status)) as served, pytest.raises(JudgeRefused, match=f"answers {status}"):
        judged(served.url)


def test_the_key_comes_from_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(verdict) as served:
        with pytest.raises(JudgeRefused, match="the variable JUDGE_KEY is not set"):
            judged(served.url, api_key_env="JUDGE_KEY")
        monkeypatch.setenv("JUDGE_KEY", "s3cret")
        judged(served.url, api_key_env="JUDGE_KEY")
    assert served.keys == ["Bearer s3cret"]


AGAINST_THE_FACTS: dict[str, tuple[Callable[[Body], str], str]] = {
    "success": (
        lambda body: verdict(body, score=5, outcome="success"),
        "it says outcome success, the environment reported failure",
    ),
    "a turn without words": (
        lambda body: verdict(body, score=2, evidence=[0, 1]),
        "reasoning_quality: its evidence is turn 1, in which the agent wrote nothing",
    ),
}


@pytest.mark.parametrize("kind", AGAINST_THE_FACTS)
def test_a_verdict_against_the_facts_is_flagged_and_no_score(kind: str) -> None:
    answer, told = AGAINST_THE_FACTS[kind]
    with serving(answer) as served:
        found = judged(served.url, transcript("I look.", ":"))
    assert (found.scores, found.contradicted, found.failure, len(served.asked)) == ({}, True, told, 1)


def test_an_agent_that_wrote_nothing_can_have_the_lowest_score_alone() -> None:
    with serving(lambda body: verdict(body, score=1)) as served:
        assert judged(served.url, transcript("  ")).scores == {"reasoning_quality": 0.0}


def test_evidence_that_was_left_out_is_against_the_facts() -> None:
    with serving(lambda body: verdict(body, evidence=[15])) as served:
        found = judged(served.url, transcript(*["step " * 20] * 30), max_chars=1000)
    assert '"left_out": {"turns": ' in user_text(served.asked[0])
    assert found.failure == "reasoning_quality: its evidence is turn 15, which it was not shown"


def test_many_episodes_are_judged_in_their_order_a_few_at_a_time() -> None:
    busy = most = 0

    async def counting(body: Body) -> str:
        nonlocal busy, most
        busy, most = busy + 1, max(most, busy + 1)
        await asyncio.sleep(0.02)
        busy -= 1
        return verdict(body, score=1 + json.loads(user_text(body).splitlines()[3])["text"].count("!"))

    async def all_of(url: str) -> list[float]:
        judge = Judge(judge_config(url, parallel=2))
        until = asyncio.get_running_loop().time() + 60
        found = await judge.judge_all([transcript("a" + "!" * k) for k in (3, 0, 2, 1)], until)
        return [each.scores["reasoning_quality"] for each in found]

    with serving(counting) as served:
        assert asyncio.run(all_of(served.url)) == [0.75, 0.0, 0.5, 0.25]
    assert most == 2


def test_what_is_not_judged_in_time_has_failed_and_what_was_judged_stays() -> None:
    async def one_is_slow(body: Body) -> str:
        return await never(body) if "slow" in user_text(body) else verdict(body)

    async def both(url: str) -> list[str]:
        judge = Judge(judge_config(url, parallel=1, total_s=0.5))
        until = asyncio.get_running_loop().time() + 0.5
        return [each.failure for each in await judge.judge_all([transcript("x"), transcript("slow")], until)]

    with serving(one_is_slow) as served:
        assert asyncio.run(both(served.url)) == ["", "not judged when total_s = 0.5 were over"]
