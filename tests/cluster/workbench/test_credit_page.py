"""The graph page in a real browser: it is looked at, clicked and walked through, and nothing in it may run or load."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from milepost.cluster.workbench.credit_page import ScoredGroup, page, write_page
from milepost.learner.credit.assignment import INVALID, CreditGroup, CreditTrajectory, CreditTurn
from milepost.learner.credit.strategies.registry import build, settings
from tests.cluster.browsing import browser as browser
from tests.cluster.browsing import needs_browser
from tests.cluster.workbench.lake_groups import lake_group
from tests.learner.credit.toy4 import toy4

EVIL = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"


def scored(group: CreditGroup) -> ScoredGroup:
    strategies = {name: build(settings(strategy=name)) for name in ("crbc", "starpo")}
    return ScoredGroup(group, {name: strategy.assign(group) for name, strategy in strategies.items()})


def hostile_group() -> CreditGroup:
    long = "You stand in a hall. " * 40
    turns = (
        CreditTurn(EVIL, EVIL, long, 0.0, invalid=False, num_tokens=1, entropy=0.5),
        CreditTurn(long, INVALID, long, 1.0, invalid=True, num_tokens=1),
    )
    return CreditGroup(f"evil {EVIL}", (CreditTrajectory("success", turns), CreditTrajectory("failure", turns[:1])))


@pytest.fixture
def tab(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    """The page of TOY-4, a lake and a hostile group; at the end nothing has complained, and nothing was fetched."""
    path = tmp_path / "credit.html"
    groups = [scored(toy4()), scored(lake_group(3)), scored(hostile_group())]
    write_page(path, groups, title=f"groups <{EVIL}>", num_groups=7)
    tab = browser.new_page(viewport={"width": 1300, "height": 800})
    complaints: list[str] = []
    fetched: list[str] = []
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("request", lambda request: fetched.append(request.url))
    tab.goto(path.as_uri())
    tab.set_default_timeout(10_000)
    yield tab
    assert complaints == []
    assert fetched == [path.as_uri()]
    assert tab.evaluate("window.hacked") is None
    tab.close()


def rows(tab: Page) -> dict[str, list[str]]:
    """Strategy -> trajectory, step and total credit of the turn, as shown."""
    lines = tab.locator("#details table tr").all()[1:]
    return {
        cells[0]: cells[1:] for cells in ([c.inner_text().strip() for c in line.locator("td").all()] for line in lines)
    }


@needs_browser
def test_the_graph_shows_states_with_values_both_ends_and_every_transition(tab: Page) -> None:
    nodes = tab.locator("#graph .node")
    assert nodes.count() == 5
    texts = [node.locator("text").all_text_contents() for node in nodes.all()]
    assert texts == [["0.88", "A"], ["0.94", "B"], ["0.87", "C"], ["✓", "success"], ["✕", "no success"]]
    assert sorted(tab.locator("#graph .edge text").all_text_contents()) == ["p", "q", "r", "w", "w", "x", "y"]
    inside = tab.locator("#graph").bounding_box()
    for node in nodes.all():
        box = node.bounding_box()
        assert inside["x"] < box["x"]
        assert box["x"] + box["width"] < inside["x"] + inside["width"]
    expect(tab.locator("#source")).to_contain_text("a sample of 3 of 7 groups")


@needs_browser
def test_good_and_bad_actions_have_different_colours_and_a_loop_is_visible(tab: Page) -> None:
    colour = {
        edge.locator("title").text_content().split(":")[0]: edge.locator(".line").evaluate(
            "e => getComputedStyle(e).stroke"
        )
        for edge in tab.locator("#graph .edge").all()
    }
    assert colour["x"] != colour["y"]
    assert colour["p"] != colour["q"]
    loop = next(e for e in tab.locator("#graph .edge").all() if e.locator("title").text_content().startswith("w: 1 "))
    box = loop.locator(".line").bounding_box()
    assert min(box["width"], box["height"]) > 15


@needs_browser
def test_a_trajectory_is_walked_by_click_and_by_keys(tab: Page) -> None:
    tab.locator("#trajectories li").nth(1).locator("i").first.click()
    expect(tab.locator("#where")).to_have_text("Trajectory 2, turn 1 of 3")
    expect(tab.locator(".node.here")).to_contain_text("A")
    # By hand, see TOY-4: the first action of the second trajectory is good although it fails.
    assert rows(tab) == {"crbc": ["−0.866", "+1.000", "+4.134"], "starpo": ["−0.866", "–", "−0.866"]}
    tab.keyboard.press("ArrowRight")
    expect(tab.locator("#where")).to_have_text("Trajectory 2, turn 2 of 3")
    expect(tab.locator(".edge.now text")).to_have_text("q")
    assert rows(tab)["crbc"] == ["−0.866", "−1.414", "−7.937"]
    tab.get_by_role("button", name="Step on").click()
    expect(tab.get_by_role("button", name="Step on")).to_be_disabled()
    expect(tab.locator("#details")).to_contain_text("Next state, where it ended: truncated")
    tab.keyboard.press("ArrowUp")
    expect(tab.locator("#where")).to_have_text("Trajectory 1, turn 1 of 2")
    expect(tab.locator("#trajectories li[aria-selected=true]")).to_have_count(1)
    assert tab.locator(".edge.on").count() == 2
    tab.keyboard.press("Escape")
    expect(tab.locator(".node.here")).to_have_count(0)
    expect(tab.locator("#where")).to_have_text("Pick a trajectory and walk")


@needs_browser
def test_a_state_is_opened_by_keyboard_alone(tab: Page) -> None:
    tab.locator("#graph .node").nth(2).focus()
    tab.keyboard.press("Enter")
    expect(tab.locator("#details")).to_contain_text("met 4 times · value 0.8654 by crbc")
    cells = [row.inner_text().split() for row in tab.locator("#details table tr").all()[1:]]
    assert cells == [["w", "no", "success", "2", "−3.753"], ["r", "B", "1", "+9.526"], ["w", "C", "1", "−3.753"]]


@needs_browser
def test_strategies_and_kinds_of_credit_are_switched(tab: Page) -> None:
    tab.get_by_role("button", name="starpo").click()
    expect(tab.get_by_role("button", name="starpo")).to_have_attribute("aria-pressed", "true")
    expect(tab.locator("#legend")).to_contain_text("starpo estimates no state value")
    expect(tab.locator("#graph .node .inside").first).to_have_text("×4")
    tab.get_by_role("button", name="step credit only").click()
    expect(tab.locator("#legend")).to_contain_text("starpo gives no step credit here")
    tab.get_by_role("button", name="crbc").click()
    expect(tab.locator("#legend")).to_contain_text("+1.732")


@needs_browser
def test_another_group_brings_its_own_graph(tab: Page) -> None:
    tab.locator("#trajectories li").first.click()
    tab.select_option("#group", "1")
    group = lake_group(3)
    states = {turn.anchor for t in group.trajectories for turn in t.turns}
    expect(tab.locator("#graph .node.state")).to_have_count(len(states))
    expect(tab.locator("#trajectories li")).to_have_count(8)
    expect(tab.locator("#where")).to_have_text("Pick a trajectory and walk")
    assert "0,0" in tab.locator("#graph .node text").all_text_contents()


@needs_browser
def test_what_anchors_and_actions_say_is_shown_and_never_run(tab: Page) -> None:
    tab.select_option("#group", "2")
    tab.keyboard.press("Tab")
    tab.locator("#trajectories li").first.click()
    assert tab.locator("#details pre").first.text_content() == EVIL
    tab.keyboard.press("ArrowRight")
    assert tab.locator("#details pre").first.text_content() == "You stand in a hall. " * 40
    expect(tab.locator(".edge.now text")).to_have_text("(invalid)")
    assert all(len(label) <= 20 for label in tab.locator("#graph .node text").all_text_contents())
    assert tab.locator("img").count() == 0


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_either_colour_scheme(tab: Page, scheme: str) -> None:
    tab.emulate_media(color_scheme=scheme)
    colours = tab.evaluate("""() => ["#where", "#details .hint"].map((what) => {
        const style = getComputedStyle(document.querySelector(what));
        return [style.color, getComputedStyle(document.querySelector(".panel")).backgroundColor];
    })""")
    for ink, paper in colours:
        light, dark = sorted((luminance(ink), luminance(paper)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) > 4.5  # WCAG 2.2, level AA


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)`, WCAG 2.2."""
    shares = [int(x) / 255 for x in re.findall(r"\d+", colour)[:3]]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_page_needs_nothing_from_elsewhere_and_ends_its_data_only_once() -> None:
    text = page([scored(hostile_group())], title="{{data}}", num_groups=1)
    assert text.count("</script>") == 2
    assert "<title>milepost credit · {{data}}</title>" in text
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", text)


def test_a_page_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "credit.html"
    path.write_text("old")
    group = replace(toy4(), task_id="new")
    write_page(path, [scored(group)], title="t", num_groups=1)
    assert '"id":"new"' in path.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["credit.html"]
