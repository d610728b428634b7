"""Spans on their way to a real collector: what arrives, what is counted where it does not, and an end that waits."""

import socket
import time
from collections.abc import Iterator

import pytest

from milepost.cluster.tracing import tracing as module
from milepost.cluster.tracing.config import TracingConfig
from milepost.cluster.tracing.tracing import Tracing
from tests.cluster.tracing.collector import Collector, collecting
from tests.cluster.tracing.episodes import BEGAN, TEXTS, TRAINED, recording

pytestmark = pytest.mark.usefixtures("patient")
SPANS = 5
"""Of the episode that is told of here."""


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine an end may take any time."""
    monkeypatch.setattr(module, "_LAST_WORDS_S", 120.0)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


def tracing(url: str, **settings: object) -> Tracing:
    return Tracing(TracingConfig.model_validate({"endpoint": url} | settings), "r1")


def tell(of: Tracing, *, episodes: int = 1, group: str = "g1", number: int = 0) -> None:
    for index in range(episodes):
        of.episode(number + index, recording(group_id=group, index=index), TRAINED, TEXTS)


def test_an_episode_arrives_as_one_tree(collector: Collector) -> None:
    tell(sent := tracing(collector.url, service="shop"))
    sent.close()
    [spans] = collector.traces().values()
    by_name = {span.name: span for span in spans}
    root = by_name["invoke_agent higher_lower:HigherLower"]
    turns = [span for span in spans if span.name == "turn"]
    assert (root.parent_id, len(spans), len(turns)) == ("", SPANS, 2)
    assert {turn.parent_id for turn in turns} == {root.span_id}
    assert {span.parent_id for span in spans if span.name == "chat r1"} == {turn.span_id for turn in turns}
    assert (root.start, root.end) == (int(BEGAN) * 10**9, int(BEGAN + 3) * 10**9)
    assert sum(span.attributes.get("gen_ai.usage.output_tokens", 0) for span in spans) == 3
    assert [each["gen_ai.evaluation.name"] for each in root.evaluations] == ["reward", "success"]
    assert by_name["chat r1"].attributes["gen_ai.response.finish_reasons"] in (["stop"], ["length"])
    assert by_name["chat r1"].kind == 3, "a client's call"
    assert root.resource["service.name"] == root.resource["openinference.project.name"] == "shop"
    assert (sent.counts, sent.problem) == ({"sent": SPANS, "lost": 0}, "")


def test_a_trace_is_named_by_run_group_and_index_and_each_row_has_spans_of_its_own(collector: Collector) -> None:
    for number in (0, 7):
        tell(sent := tracing(collector.url), number=number)
        sent.close()
    [spans] = collector.traces().values()
    assert len({span.span_id for span in spans}) == 2 * SPANS
    assert {span.attributes["milepost.episode"] for span in spans if not span.parent_id} == {0, 7}


def test_headers_come_from_the_standard_variables(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api_key=secret")
    tell(sent := tracing(collector.url))
    sent.close()
    assert {headers["api_key"] for headers in collector.headers} == {"secret"}


def test_a_share_of_the_episodes_is_traced_whole_and_it_is_the_same_share_again(collector: Collector) -> None:
    found: list[set[str]] = []
    for _ in range(2):
        collector.spans.clear()
        tell(sent := tracing(collector.url, sample=0.25), episodes=200)
        sent.close()
        found.append(set(collector.traces()))
        assert {len(spans) for spans in collector.traces().values()} == {SPANS}
    assert found[0] == found[1]
    assert 25 <= len(found[0]) <= 75, "of 200, binomial: outside of this once in more than ten thousand tries"


def test_a_collector_that_refuses_is_told_of_once_and_what_is_lost_is_counted(collector: Collector) -> None:
    collector.status = 401
    tell(sent := tracing(collector.url), episodes=3)
    while not (problem := sent.problem):
        time.sleep(0.05)
    assert problem.startswith(f"{collector.url} does not take spans; the log says why")
    sent.close()
    assert sent.counts == {"sent": 0, "lost": 3 * SPANS}
    assert sent.problem == f"{3 * SPANS} of {3 * SPANS} spans did not reach {collector.url}"


@pytest.mark.timeout(25)  # OpenTelemetry alone would wait for half a minute
def test_a_collector_that_never_answers_delays_the_end_by_its_deadline_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
    monkeypatch.setattr(module, "_LAST_WORDS_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as taken:  # nobody answers here, and nobody refuses
        sent = tracing(f"http://127.0.0.1:{taken.getsockname()[1]}")
        tell(sent, episodes=2)
        sent.close()
    assert sent.counts == {"sent": 0, "lost": 2 * SPANS}
    assert sent.problem.startswith(f"{2 * SPANS} of {2 * SPANS} spans did not reach")


def test_where_there_is_no_room_whole_episodes_are_left_out(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WAITING_BYTES", 12 * 1024)  # 12 spans
    sent = tracing(collector.url)
    tell(sent, episodes=3)  # the batch of 12 that would be sent at once is not full
    assert "lower tracing.sample" in sent.problem
    sent.close()
    assert {len(spans) for spans in collector.traces().values()} == {SPANS}
    assert sent.counts == {"sent": 2 * SPANS, "lost": SPANS}


def test_what_cannot_be_told_is_said_and_raises_nothing(collector: Collector) -> None:
    sent = tracing(collector.url, text_chars=1)
    sent.episode(0, recording(), TRAINED, TEXTS[:1])  # as no recorder would
    sent.close()
    assert sent.problem.startswith("an episode could not be traced (IndexError")


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        ("127.0.0.1:4318", "is no http:// or https:// URL"),
        ("http://me:secret@127.0.0.1:4318", "OTEL_EXPORTER_OTLP_HEADERS"),
        ("http://127.0.0.1:4318/v1/traces", "give the base URL"),
    ],
)
def test_an_endpoint_that_cannot_be_meant_is_refused(endpoint: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        TracingConfig(endpoint=endpoint)
