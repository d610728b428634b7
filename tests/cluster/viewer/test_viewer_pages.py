"""The pages by address: what stands on them, how they lead to each other, and what no request can do."""

import re
import shutil
from collections import Counter, deque
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin

import pytest
from fastapi.testclient import TestClient

from milepost.cluster.runlog.runs import RunFolder
from milepost.cluster.viewer.app import make_app
from milepost.cluster.viewer.curves import charts, thinned, ticks
from milepost.cluster.viewer.graph import strength
from milepost.cluster.viewer.recorded import Recorded
from milepost.cluster.viewer.sources import Sources
from milepost.learner.credit.assignment import CreditGroup
from milepost.learner.credit.strategies.registry import build, settings
from tests.cluster.runlog.example_records import eval_record, iteration_record
from tests.cluster.viewer.viewed_run import BARE, EVIL, RUN, SPIKE, SUITE

HOST = "http://127.0.0.1:8000"


@pytest.fixture
def client(viewed_runs: Path) -> TestClient:
    return TestClient(make_app(Sources(viewed_runs, [])), base_url=HOST)


@pytest.fixture
def recorded(viewed_runs: Path) -> Recorded:
    return Recorded(viewed_runs / RUN / "trajectories")


class Read(HTMLParser):
    """Addresses, tags and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name == "href"]
        self.ids += [value or "" for name, value in attrs if name == "id"]


def texts(page: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


def kind(address: str) -> str:
    return re.sub(r"\d+", "N", re.sub(r"/run/[^/?]+", "/run", address.removeprefix(HOST)))


def test_every_link_leads_to_a_page_and_every_place_is_there(client: TestClient) -> None:
    """Of each kind of address the first two are followed."""
    followed: Counter[str] = Counter()
    waiting = deque([f"{HOST}/"])
    while waiting:
        address = waiting.popleft()
        answer = client.get(address)
        assert answer.status_code == 200, address
        page = Read(answer.text if answer.headers["content-type"].startswith("text/html") else "")
        for link in page.links:
            target, _, place = urljoin(address, link).partition("#")
            assert target.startswith((f"{HOST}/", "data:,"))
            if target == address and place:
                assert place in page.ids
            if target.startswith(HOST) and target not in waiting and followed[kind(target)] < 2:
                followed[kind(target)] += 1
                waiting.append(target)
    pages = {each.partition("?")[0] for each in followed}
    assert pages == {"/", "/style.css", "/run", "/run/iteration/N", "/run/group/gN", "/run/episode/N"}


def test_runs_stand_side_by_side_and_each_point_leads_to_its_iteration(client: TestClient) -> None:
    page = client.get("/").text
    assert page.count('class="line"') == 2 * page.count("<figure") + 2  # and held out, of both
    assert page.count(f'href="/run/{RUN}/iteration/{SPIKE}"') == page.count("<figure")
    assert f"{RUN}, iteration {SPIKE}: 9</title>" in page
    assert "25.0% → 75.0%" in page
    alone = client.get("/", params={"run": BARE}).text
    assert f'href="/run/{RUN}/iteration' not in alone
    assert f'href="/run/{BARE}/iteration/{SPIKE}"' in alone


def test_a_damaged_run_hides_no_other(viewed_runs: Path, tmp_path: Path) -> None:
    runs = Path(shutil.copytree(viewed_runs, tmp_path / "runs"))
    (runs / BARE / "metrics.jsonl").write_text("{}\n")
    page = TestClient(make_app(Sources(runs, [])), base_url=HOST).get("/").text
    assert "repair or delete the line" in page
    assert f'href="/run/{RUN}/iteration/{SPIKE}"' in page


def test_an_iteration_shows_its_groups_and_they_their_episodes(client: TestClient, recorded: Recorded) -> None:
    page = client.get(f"/run/{RUN}/iteration/{SPIKE}").text
    assert {link for link in Read(page).links if "/group/" in link} == {
        f"/run/{RUN}/group/g00000001",
        f"/run/{RUN}/group/g00000005",
    }
    for row in recorded.judged(SPIKE - 1):
        assert f'href="/run/{RUN}/episode/{row["episode"]}"' in page
    assert "policy version 3 became 4" in texts(page)
    assert "None of its episodes is recorded" in client.get(f"/run/{RUN}/iteration/2").text


def test_an_episode_tells_what_it_earned_and_why_it_was_kept(client: TestClient, recorded: Recorded) -> None:
    won, lost = (row["episode"] for row in recorded.group("g00000001"))
    told = texts(client.get(f"/run/{RUN}/episode/{won}").text)
    for words in ("trained on at version 3: selected", "policy version 3", "crbc", "loss mask on", "progress 33 %"):
        assert words in told
    stored = recorded.turns(won)[0]
    assert f"+{stored['credit']:.3g}" in told
    assert f"+{stored['advantage']:.3g}" in told
    assert "no valid one" in texts(client.get(f"/run/{RUN}/episode/{lost}").text)


def test_tokens_are_shaded_and_say_what_they_counted_for(client: TestClient, recorded: Recorded) -> None:
    won, lost = (row["episode"] for row in recorded.group("g00000001"))

    def shades(episode: int, **view: str) -> set[str]:
        page = client.get(f"/run/{RUN}/episode/{episode}", params={"show": "tokens", **view}).text
        return {found[0] for found in re.findall(r'class="t (\w)\d?"', page)}

    assert shades(won) == {"s"}
    assert shades(won, colour="advantage") == {"p"}
    assert shades(lost, colour="credit") == {"n"}
    assert shades(lost, colour="credit", strategy="starpo") == {"n"}
    page = client.get(f"/run/{RUN}/episode/{won}", params={"show": "tokens"}).text
    assert f'id="token-{won}-0-0"' in page
    assert "log-prob -0.500 · policy version 3 · trained on" in page
    ids = recorded.turns(won)[0]["response_ids"]
    assert page.count(f'id="token-{won}-0-') == len(ids)


def test_a_group_is_scored_again_by_any_strategy_that_finds_what_it_needs(client: TestClient) -> None:
    def said(strategy: str) -> str:
        return texts(client.get(f"/run/{RUN}/group/g00000001", params={"strategy": strategy}).text)

    assert "as stored, by crbc" in said("stored")
    assert "scored again by starpo with its default settings" in said("starpo")
    assert "entropy, which is not recorded" in said("stapo")
    page = client.get(f"/run/{RUN}/group/g00000001", params={"strategy": "starpo"}).text
    # Its two episodes: one counts to 3, the other says ten times what is no action.
    spelt = CreditGroup.from_walks("0 up 1 up 2 up 3 success", "0 " + "<invalid> 0 " * 10 + "truncated")
    won, lost = (turns[0] for turns in build(settings(strategy="starpo")).assign(spelt).total)
    assert page.count(f': credit {strength(won)}"') == 3
    assert page.count(f': credit {strength(lost)}"') == 10
    assert page.count("<polygon") == 5  # three times up; what is no action, which stays at 0; and its last time


def test_an_episode_that_was_judged_later_leads_to_the_row_that_counts(client: TestClient, recorded: Recorded) -> None:
    earlier = next(n for n in range(13) if recorded.episode(n)["fate"] == "pending")
    later = recorded.counting(recorded.episode(earlier))
    page = client.get(f"/run/{RUN}/episode/{earlier}").text
    assert "A later row of this episode counts" in page
    assert f'href="/run/{RUN}/episode/{later}"' in page
    assert "A later row" not in client.get(f"/run/{RUN}/episode/{later}").text


def test_filters_stand_in_the_address_and_in_the_form(client: TestClient) -> None:
    page = client.get(f"/run/{RUN}?fate=trained&reward_min=0.5&order=lowest+reward&cohort=").text
    assert '<option value="trained" selected>trained (4)</option>' in page
    assert 'name="reward_min" value="0.5"' in page
    assert "2 episodes of 11" in texts(page)
    suite = client.get(f"/run/{RUN}:{SUITE}?score=success&score_min=1").text
    assert "2 episodes of 4" in texts(suite)
    assert "<option selected>success</option>" in suite


@pytest.mark.parametrize("view", ["", "?show=text", "?show=tokens", "?strategy=starpo"])
def test_what_an_agent_said_is_shown_and_never_a_part_of_the_page(
    client: TestClient, recorded: Recorded, view: str
) -> None:
    [failed] = [row["episode"] for row in recorded.group("g00000004")]
    page = client.get(f"/run/{RUN}/episode/{failed}{view}").text
    read = Read(page)
    assert not {"script", "img", "iframe", "object", "style"} & read.tags
    assert not {name for name in read.attributes if name.startswith("on") or name == "style"}
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e]", page)
    if view != "?show=tokens":
        assert r"&lt;script&gt;window.hacked=1&lt;/script&gt;" in page
        assert r"\x1b[31m\u202e\x00" in page
    assert "broke off here" in page
    assert "window.hacked" in client.get(f"/run/{RUN}", params={"q": EVIL[:40]}).text


def test_an_address_that_is_hostile_is_shown_as_text(client: TestClient) -> None:
    for address in (
        f"/run/{RUN}/episode/{10**50}",
        f"/run/{RUN}?version={10**50}",
        f"/run/{EVIL[:30]}",
        f"/run/{RUN}/group/<script>",
        "/<script>",
        f"/run/{RUN}?q=<script>&fate=<script>",
    ):
        answer = client.get(address)
        assert answer.status_code in (400, 404)
        assert "script" not in Read(answer.text).tags


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "[::1]"])
def test_a_request_under_another_name_is_refused(client: TestClient, host: str) -> None:
    answer = client.get("/", headers={"host": host})
    assert answer.status_code == 400
    assert RUN not in answer.text
    assert client.get("/", headers={"host": "localhost:8000"}).status_code == 200


def test_nothing_can_be_written(client: TestClient) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        assert client.request(method, f"/run/{RUN}").status_code == 405
    methods = {method for route in client.app.routes for method in getattr(route, "methods", ())}  # type: ignore[attr-defined]
    assert methods == {"GET"}


def test_no_page_may_load_or_be_framed_by_anything(client: TestClient) -> None:
    for address in ("/", f"/run/{RUN}", "/nix", f"/run/{RUN}?fate=nix"):
        headers = client.get(address).headers
        assert "default-src 'none'; style-src 'self'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_what_is_not_there_is_said_in_a_line(client: TestClient, viewed_runs: Path) -> None:
    for address, words in (
        ("/run/nix", "no run 'nix' is viewed here; there are:"),
        (f"/run/{RUN}:nix", "was played on no suite 'nix'"),
        (f"/run/{RUN}/iteration/99", "has no iteration 99; it has 12"),
        (f"/run/{RUN}/episode/99", "no episode 99 in"),
        (f"/run/{RUN}/group/g9", "no group 'g9' in"),
    ):
        answer = client.get(address)
        assert answer.status_code == 404
        assert words in answer.text.replace("&#39;", "'")
    bare = client.get(f"/run/{BARE}")
    assert bare.status_code == 200
    assert "holds no trajectories" in bare.text
    assert RunFolder(viewed_runs / BARE).metrics.is_file()


def test_a_spike_is_a_point_however_long_the_run_is() -> None:
    values = [0.0] * 5000
    values[3001] = 7.0
    assert 3001 in thinned(values)
    assert len(thinned(values)) <= 160
    records = [iteration_record(n, grad_norm=7.0 if n == 3001 else 0.5) for n in range(1, 5001)]
    [chart] = [chart for chart in charts({"r": records}) if chart.field == "grad_norm"]
    [line] = chart.lines
    top = min(line.points, key=lambda point: point.y)
    assert (top.iteration, top.text) == (3001, "r, iteration 3001: 7")
    assert line.path.count("M") == 1


def test_a_value_that_was_not_finite_is_a_gap_and_what_never_happened_no_chart() -> None:
    records = [iteration_record(n, entropy=None if n == 3 else 1.0, episodes_failed=0) for n in range(1, 6)]
    found = {chart.field: chart for chart in charts({"r": [eval_record(0, "heldout", 0.5), *records]})}
    assert found["entropy"].lines[0].path.count("M") == 2
    assert len(found["entropy"].lines[0].points) == 4
    assert "episodes_failed" not in found
    assert [line.is_dashed for line in found["success"].lines] == [False, True]
    assert charts({"r": []}) == charts({}) == []


def test_ticks_hold_all_values_between_them() -> None:
    for low, high in ((0.0, 0.03), (-2.5, 900.0), (0.4, 0.4), (1e-7, 3e-7)):
        found = ticks(low, high, whole=False)
        assert found[0] <= low <= high <= found[-1] + 1e-12
        assert 1 <= len(found) <= 8
