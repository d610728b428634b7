"""The viewer in a real browser: from a spike of a curve to a token, and what an agent said runs nowhere."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect

from milepost.cluster.viewer.app import make_app
from milepost.cluster.viewer.export import export
from milepost.cluster.viewer.recorded import Recorded
from milepost.cluster.viewer.sources import Sources
from tests.cluster.browsing import browser as browser
from tests.cluster.browsing import needs_browser
from tests.cluster.viewer.viewed_run import RUN, SPIKE

pytestmark = needs_browser


@pytest.fixture(scope="module")
def url(viewed_runs: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(make_app(Sources(viewed_runs, [])), log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


@pytest.fixture
def tab(browser: Browser) -> Iterator[Page]:
    """A tab in which, at the end, nothing has complained or run."""
    tab = browser.new_page(viewport={"width": 1300, "height": 900})
    complaints: list[str] = []
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("console", lambda message: complaints.append(message.text))
    tab.set_default_timeout(20_000)
    yield tab
    assert complaints == []
    assert tab.evaluate("window.hacked") is None
    tab.close()


def test_a_spike_in_a_curve_leads_to_a_token(tab: Page, url: str, viewed_runs: Path) -> None:
    tab.goto(f"{url}run/{RUN}")
    points = tab.locator("figure[data-field=grad_norm] a")
    heights = [point.locator("circle.dot").get_attribute("cy") for point in points.all()]
    spike = min(range(len(heights)), key=lambda place: float(heights[place] or "inf"))
    points.nth(spike).locator("circle.near").click()
    expect(tab.locator("h1")).to_contain_text(f"iteration {SPIKE}")
    tab.get_by_role("link", name="g00000001").click()
    expect(tab.locator(".members tr")).to_have_count(3)
    tab.locator(".members .cell").nth(1).click()
    won = Recorded(viewed_runs / RUN / "trajectories").group("g00000001")[0]["episode"]
    expect(tab.locator(f"#turn-{won}-1")).to_be_in_viewport()
    tab.get_by_role("link", name="tokens").click()
    token = tab.locator(f"#token-{won}-1-0")
    token.click()
    assert tab.url.endswith(f"/run/{RUN}/episode/{won}?show=tokens#token-{won}-1-0")
    told = token.evaluate("e => getComputedStyle(e, '::after').content")
    assert "log-prob -0.500" in told
    assert "policy version 3 · trained on" in told
    # The way of this episode is marked in the graph, and its turns are numbered there.
    expect(tab.locator(".arrow.on")).to_have_count(3)
    assert tab.locator(".arrow.on .step").all_text_contents() == [" 1", " 2", " 3"]
    tab.goto(tab.url)  # a deep link shows the same
    assert "log-prob -0.500" in tab.locator(f"#token-{won}-1-0").evaluate("e => getComputedStyle(e, '::after').content")


def test_forms_put_what_they_ask_for_into_the_address(tab: Page, url: str) -> None:
    tab.goto(f"{url}run/{RUN}")
    tab.locator("select[name=fate]").select_option("failed")
    tab.locator("input[name=q]").fill("window.hacked")
    tab.get_by_role("button", name="Show").click()
    assert "fate=failed" in tab.url
    assert "q=window.hacked" in tab.url
    expect(tab.locator("table.list tr")).to_have_count(2)
    tab.locator("table.list td a").first.click()
    expect(tab.locator("article.turn")).to_contain_text("<script>window.hacked=1</script>")
    tab.go_back()
    tab.locator("table.list td a").nth(1).click()
    tab.locator("select[name=strategy]").select_option("gigpo")
    tab.get_by_role("button", name="Score").click()
    assert tab.url.endswith("?strategy=gigpo")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_export_opens_from_the_file_system_and_fetches_nothing(
    tab: Page, viewed_runs: Path, tmp_path: Path, scheme: str
) -> None:
    path = tmp_path / "groups.html"
    export(Sources(viewed_runs, [RUN]).run(RUN), path, ["g00000001", "g00000004"])
    fetched: list[str] = []
    tab.on("request", lambda request: fetched.append(request.url))
    tab.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    tab.goto(path.as_uri())
    expect(tab.locator("section > h1")).to_have_count(2)
    assert (
        tab.evaluate("getComputedStyle(document.body).backgroundColor")
        == {
            "light": "rgb(246, 247, 249)",
            "dark": "rgb(16, 21, 27)",
        }[scheme]
    )
    tab.locator(".members .cell").first.click()
    expect(tab.locator("article.turn:target")).to_have_count(1)
    tab.locator("details summary", has_text="tokens, by log-prob").first.click()
    tab.locator(".tokens a").first.click()
    expect(tab.locator(".t:target")).to_have_count(1)
    assert fetched == [path.as_uri()]
