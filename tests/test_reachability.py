"""The check that finds code nobody reaches: on a small tree with one of each, and on this one."""

from pathlib import Path

import pytest

from tests.reachability import check
from tests.reachability.check import EXCEPTIONS, ROOT, findings

CLI = '''
"""Entry point."""
from dataclasses import dataclass, field
from functools import partial

import msgspec
from milepost.cluster.play import Player, helped, limit
from milepost.envs import words

USED = 3
UNUSED = 4


@dataclass
class Facts:
    read: int
    unread: int
    filled: list[int] = field(default_factory=list)
    always_one: int = 1
    sometimes_two: int = 2


class Wire(msgspec.Struct):
    told: int


def main():
    facts = Facts(read=USED, unread=1, sometimes_two=5)
    facts.filled.append(facts.read + facts.always_one + facts.sometimes_two)
    player = Player(words.first())
    player.unread_attribute = 2
    call = partial(helped, 1, second=2)
    return player.play(), call(), limit(1), Wire(told=1).told


def calls_only_itself():
    return calls_only_itself()


def called_by_dead_code():
    return 1


def dead():
    return called_by_dead_code()
'''
PLAY = """
import gymnasium


class Base:
    def __init__(self, word, times=1):
        self._word, self._times = word, times
        self.forgotten = 0

    def play(self):
        return self._step()

    def unused_method(self):
        return self.unused_method()


class Player(Base):
    def _step(self):
        return self._word * self._times

    @property
    def unused_property(self):
        return 1


class Game(gymnasium.Env):
    def __init__(self, *, size=4):
        self.size = size

    def render(self):
        return self._drawn()

    def _drawn(self):
        return self.size

    def _undrawn(self):
        return 0


def helped(first, second=0, third=0):
    return first + second + third


def limit(value, *, bound=None):
    return value if bound is None else min(value, bound)
"""
WORDS = '''
GREETING = "hello"


def first():
    return GREETING


def shown():
    """Only the README uses it."""
'''
FILES = {
    "cluster/cli.py": CLI,
    "cluster/play.py": PLAY,
    "envs/words.py": WORDS,
    "envs/forgotten.py": "def lost():\n    return 1\n",
    "pyproject.toml": '[project.scripts]\nmilepost = "milepost.cluster.cli:main"\n',
    "deploy/configs/a.toml": '[env]\npath = "milepost.cluster.play:Game"\noptions = { size = 5 }\n',
    "README.md": "```python\nfrom milepost.envs.words import shown\n```\n",
    "tests/test_cli.py": "from milepost.cluster.cli import dead\n\n\ndef test_dead():\n    assert dead() == 1\n",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_what_no_entry_point_leads_to_is_found_and_nothing_else(tree: Path) -> None:
    assert {what for _, what in findings(tree)} == {
        "constant cluster.cli.UNUSED",
        "unread field cluster.cli.Facts.unread",
        "unset field cluster.cli.Facts.always_one",
        "function cluster.cli.calls_only_itself",
        "function cluster.cli.called_by_dead_code",
        "function cluster.cli.dead",
        "unset parameter cluster.play.Base.__init__(times)",
        "unread attribute cluster.play.Base.forgotten",
        "method cluster.play.Base.unused_method",
        "method cluster.play.Player.unused_property",
        "method cluster.play.Game._undrawn",
        "unset parameter cluster.play.helped(third)",
        "unset parameter cluster.play.limit(bound)",
        "function envs.forgotten.lost",
    }


def test_a_finding_says_where_it_stands(tree: Path) -> None:
    line = CLI.splitlines().index("def dead():") + 1
    assert (f"cluster/cli.py:{line}", "function cluster.cli.dead") in findings(tree)


def test_an_example_is_an_entry_point(tree: Path) -> None:
    (tree / "examples").mkdir()
    (tree / "examples" / "loop.py").write_text(
        "from milepost.cluster.cli import dead\n\n\ndef unused():\n    pass\n\n\n"
        'if __name__ == "__main__":\n    dead()\n'
    )
    found = {what for _, what in findings(tree)}
    assert "function examples.loop.unused" in found
    assert not {"function cluster.cli.dead", "function cluster.cli.called_by_dead_code"} & found


def test_a_field_that_only_the_template_of_a_page_reads_is_read(tree: Path) -> None:
    template = tree / "cluster" / "game" / "pages" / "a.html"
    template.parent.mkdir(parents=True)
    template.write_text("{% for each in all %}<b>{{ each.unread }}</b>{% endfor %}")
    assert "unread field cluster.cli.Facts.unread" not in {what for _, what in findings(tree)}


def test_a_worked_example_counts_only_where_its_function_is_reached(tree: Path) -> None:
    shown = "def spelt(text):\n    return text\n\n\n"
    example = 'def %s(x):\n    """Say it.\n\n    >>> %s(spelt("a"))\n    \'a\'\n    """\n    return x\n\n\n'
    for name in ("main", "forgotten"):
        (tree / "envs" / f"{name}_example.py").write_text(shown + example % (name, name))
    block = "```python\nfrom milepost.envs.main_example import main\n```\n"
    (tree / "README.md").write_text(block)
    found = {what for _, what in findings(tree)}
    assert "function envs.main_example.spelt" not in found
    assert "function envs.forgotten_example.spelt" in found


def test_what_is_excepted_is_not_said_again(tree: Path) -> None:
    what = "function envs.forgotten.lost"
    assert what not in {found for _, found in findings(tree, {what: "a reason"})}


def test_every_exception_is_one() -> None:
    assert EXCEPTIONS.keys() <= {what for _, what in findings(ROOT)}


def test_somebody_reaches_everything_here() -> None:
    assert findings(ROOT, EXCEPTIONS) == []


def test_the_program_prints_each_finding_and_fails(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "ROOT", tree)
    with pytest.raises(SystemExit) as end:
        check.main()
    assert end.value.code == 1
    assert "envs/forgotten.py:1: nobody reaches function envs.forgotten.lost" in capsys.readouterr().out.splitlines()
