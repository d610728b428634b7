"""`milepost view` as a command: the server and its end, the file of an export, and what is refused in a line."""

import os
import re
import signal
import socket
import stat
import subprocess
import urllib.request
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.cluster.viewer.viewed_run import BARE, RUN
from tests.system.driving import MILEPOST, environment

Call = Callable[..., tuple[object, str, str]]
ROOT = Path(__file__).parents[3]
DEADLINE_S = 120


def test_a_server_prints_its_address_and_ends_on_ctrl_c(viewed_runs: Path) -> None:
    command = [*MILEPOST, "view", RUN, "--runs-dir", str(viewed_runs)]
    server = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        [url] = re.findall(r"http://127\.0\.0\.1:\d+/", server.stdout.readline())
        with urllib.request.urlopen(url, timeout=DEADLINE_S) as answer:
            page = answer.read().decode()
        assert f'href="/run/{RUN}"' in page
        assert BARE not in page
        server.send_signal(signal.SIGINT)
        out, err = server.communicate(timeout=DEADLINE_S)
        assert (server.returncode, out, err) == (0, "", "")
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()


class Places(HTMLParser):
    """The places in a file and the links to them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]


def test_an_export_is_one_file_that_names_nothing_outside_of_it(
    call: Call, own_folder: Path, viewed_runs: Path
) -> None:
    path = own_folder / "groups.html"
    asked = ["--group", "g00000001", "--group", "g00000004"]
    assert call("view", RUN, "--runs-dir", viewed_runs, "--export", path, *asked) == (
        0,
        f"{path}: g00000001, g00000004\n",
        "",
    )
    text = path.read_text()
    page = Places(text)
    assert len(page.ids) == len(set(page.ids))
    assert {link for link in page.links if link != "data:,"} <= {f"#{place}" for place in page.ids}
    assert {"group-g00000001", "group-g00000004", "turn-0-0", "token-0-0-0"} <= set(page.ids)
    assert not {"script", "img", "link", "form"} & page.tags - {"link"}
    assert "http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'" in text
    assert "&lt;script&gt;window.hacked=1" in text
    assert "url(" not in text
    assert "//" not in re.sub(r"\s//|</", "", text.replace("&lt;/", ""))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in own_folder.iterdir()] == ["groups.html"]


def test_an_export_without_groups_takes_those_whose_returns_differ(
    call: Call, own_folder: Path, viewed_runs: Path
) -> None:
    code, out, _ = call("view", viewed_runs / RUN, "--export", own_folder / "a.html")
    assert code == 0
    assert out == f"{own_folder / 'a.html'}: g00000003, g00000001, g00000005\n"  # the newest update first


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nix"], "no run 'nix' in"),
        ([RUN, "--group", "g1"], "view --group: only for --export FILE"),
        ([RUN, BARE, "--export", "a.html"], "view --export: one RUN, not 2"),
        ([RUN, "--export", "a.html", "--group", "g9"], "no group 'g9' in"),
        ([BARE, "--export", "a.html"], "holds no trajectories"),
        ([RUN, "--export", "missing/a.html"], "missing/a.html: No such file or directory; give another place by"),
    ],
)
def test_what_cannot_be_viewed_is_refused_in_a_line(
    call: Call, own_folder: Path, viewed_runs: Path, arguments: list[str], words: str
) -> None:
    code, out, err = call("view", *arguments, "--runs-dir", viewed_runs)
    assert (code, out) == (2, "")
    assert err.startswith("milepost: ")
    assert words in err
    assert err.count("\n") == 1
    assert not os.listdir(own_folder)


@pytest.mark.usefixtures("own_folder")
def test_a_port_that_is_taken_is_said_with_the_way_out(call: Call, viewed_runs: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = call("view", "--runs-dir", viewed_runs, "--port", port)
    assert code == 2
    assert err == f"milepost: view --port {port}: Address already in use; give another one, or leave it out\n"


def test_a_damaged_file_of_numbers_is_named(call: Call, own_folder: Path) -> None:
    run = own_folder / "runs" / "20260101-000000-torn"
    run.mkdir(parents=True)
    (run / "resolved.toml").write_text("")
    (run / "metrics.jsonl").write_text("{}\n")
    code, _, err = call("view", "torn", "--runs-dir", own_folder / "runs")
    assert code == 2
    assert "metrics.jsonl, line 1: " in err
    assert "repair or delete the line" in err
