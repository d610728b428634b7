"""What the viewer finds in recorded files: filters, the row that counts, what is missing or broken."""

import doctest
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.viewer import contents, curves, graph, messages, tokens
from milepost.cluster.viewer.filters import Filters
from milepost.cluster.viewer.recorded import Recorded
from milepost.cluster.viewer.sources import Sources
from tests.cluster.viewer.viewed_run import EVIL, RUN, SUITE


@pytest.fixture
def recorded(viewed_runs: Path) -> Recorded:
    return Recorded(viewed_runs / RUN / "trajectories")


def found(recorded: Recorded, **asked: Any) -> list[tuple[str, int]]:
    listed = recorded.listed(Filters(**asked), {}, size=50)
    assert listed.total == len(listed.rows)
    return [(row["group_id"], row["index"]) for row in listed.rows]


def test_every_filter_finds_its_episodes_and_no_others(recorded: Recorded) -> None:
    g = {n: [(f"g0000000{n}", 0), (f"g0000000{n}", 1)] for n in range(1, 6)}
    evaluated = [("eval", 0), ("eval", 1)]
    assert len(found(recorded)) == 11
    assert sorted(found(recorded, fate="trained")) == g[1] + g[5]
    assert sorted(found(recorded, fate="filtered")) == g[2]
    assert sorted(found(recorded, fate="stale", outcome="truncated")) == g[3][1:]
    assert found(recorded, fate="failed") == [("g00000004", 0)]
    assert sorted(found(recorded, fate="evaluation")) == evaluated
    assert sorted(found(recorded, task="g00000002")) == g[2]
    assert len(found(recorded, task="0")) == 11  # the seed of all of them
    assert found(recorded, env="tests.broken_envs:RaisesInStep") == [("g00000004", 0)]
    # of those that count to 3 the return is 1, of the others 0; the one that broke off has none
    assert len(found(recorded, reward_min="0.5")) == 6
    assert len(found(recorded, reward_max="0.5")) == 4
    assert found(recorded, version="3", split="train", q="ONERROR=window") == [("g00000004", 0)]
    assert found(recorded, cohort="none") == []
    assert found(recorded, version="4") == []


def test_episodes_come_in_the_order_that_is_asked_for_page_by_page(recorded: Recorded) -> None:
    numbers = [
        row["episode"]
        for page in (1, 2, 3)
        for row in recorded.listed(Filters(order="oldest", page=page), {}, size=5).rows
    ]
    assert len(numbers) == 11
    assert numbers == sorted(numbers)
    shortest = recorded.listed(Filters(order="lowest reward"), {}, size=50).rows
    assert [row["reward"] for row in shortest[:-1]] == [0.0] * 4 + [1.0] * 6
    assert shortest[-1]["outcome"] is None


def test_of_an_episode_that_is_named_twice_the_later_row_counts(recorded: Recorded) -> None:
    assert sorted(row["fate"] for row in recorded.group("g00000005")) == ["trained", "trained"]
    assert recorded.choices().fate == {"trained": 4, "evaluation": 2, "filtered": 2, "stale": 2, "failed": 1}
    later = recorded.group("g00000005")[0]
    [earlier] = [row for n in range(13) if (row := recorded.episode(n))["fate"] == "pending" and row["index"] == 0]
    assert earlier["group_id"] == "g00000005"
    assert recorded.counting(earlier) == later["episode"] > earlier["episode"]
    assert recorded.beside(earlier)[0]["episode"] == earlier["episode"]


def test_the_groups_of_an_update_are_those_it_judged(recorded: Recorded) -> None:
    assert {row["group_id"] for row in recorded.judged(3)} == {"g00000001", "g00000005"}
    assert {row["group_id"] for row in recorded.judged(9)} == {"g00000002", "g00000003"}
    assert recorded.judged(7) == []


def test_an_evaluated_episode_is_compared_with_others_of_its_task(recorded: Recorded) -> None:
    [first, second] = [row for n in range(13) if (row := recorded.episode(n))["group_id"] == "eval"]
    assert [row["episode"] for row in recorded.beside(first)] == [first["episode"], second["episode"]]


def test_steps_are_those_of_the_episodes_in_order(recorded: Recorded) -> None:
    won, lost = recorded.group("g00000001")
    steps = recorded.steps([won["episode"], lost["episode"]])
    assert [step["anchor"] for step in steps[won["episode"]]] == ["0", "1", "2"]
    assert [step["turn"] for step in steps[lost["episode"]]] == list(range(10))
    assert steps[won["episode"]][0]["num_tokens"] == len(recorded.turns(won["episode"])[0]["response_ids"])


def test_a_score_of_a_suite_chooses_among_its_episodes(viewed_runs: Path) -> None:
    sources = Sources(viewed_runs, [RUN])
    [suite] = sources.suites(sources.run(RUN))
    assert suite.key == f"{RUN}:{SUITE}" == sources.get(suite.key).key
    scores = suite.scores()
    assert [scores[n]["success"] for n in range(4)] == [1.0, 0.0, 1.0, 0.0]

    def indices(**asked: Any) -> list[int]:
        return sorted(row["index"] for row in suite.recorded.listed(Filters(**asked), scores, size=9).rows)

    assert indices(score="success", score_max="0.5") == [1, 3]
    assert indices(score="step_efficiency", score_min="0.5") == [0, 2]
    assert indices(score="nothing") == []
    assert indices(cohort="b") == []  # CountingEnv names no cohort


@pytest.mark.parametrize(
    "asked", [{"fate": "lost"}, {"page": "0"}, {"reward_min": "nan"}, {"order": "x; DROP"}, {"x": "1"}]
)
def test_an_address_that_asks_for_what_there_is_not_is_refused(asked: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Filters(**asked)


def test_what_an_address_says_is_a_value_and_never_sql(recorded: Recorded) -> None:
    for text in ("'", "') OR true --", "%", "_", "\\"):
        assert found(recorded, q=text * 3, env=text) == []
        assert found(recorded, task=text, cohort=text) == []


def test_a_folder_without_files_says_so(tmp_path: Path) -> None:
    assert Recorded(tmp_path).is_empty
    with pytest.raises(ConfigError, match="holds no trajectories: none is recorded where"):
        Recorded(tmp_path).choices()


@pytest.fixture
def copied(viewed_runs: Path, tmp_path: Path) -> Path:
    """A folder whose name DuckDB would read as a pattern, to be spoiled."""
    return Path(shutil.copytree(viewed_runs / RUN / "trajectories", tmp_path / "a[1]*?"))


@pytest.mark.parametrize("table", ["episodes", "turns"])
def test_a_damaged_file_is_named_with_the_way_out(copied: Path, table: str) -> None:
    opened = Recorded(copied)
    assert opened.episode(0)["episode"] == 0
    damaged = min(copied.glob(f"{table}-*"))
    damaged.write_bytes(b"PAR1" + bytes(400))
    for reader in (Recorded(copied), *[opened] * (table == "turns")):
        with pytest.raises(ConfigError, match=r"cannot be read: .*; delete that file and the one beside it") as refused:
            reader.turns(0)
        assert "\n" not in str(refused.value)
        assert damaged.name in str(refused.value)


def test_a_file_of_another_format_is_refused(copied: Path) -> None:
    path = sorted(copied.glob("turns-*"))[0]
    path.write_bytes(path.read_bytes().replace(b"milepost.trajectories", b"milepost.trajectorieZ"))
    with pytest.raises(ConfigError, match=re.escape(path.name) + ": not of format 1"):
        Recorded(copied).choices()


def test_pairs_that_come_and_go_are_read_as_they_are(copied: Path, tmp_path: Path) -> None:
    recorded = Recorded(copied)
    [_, second] = sorted(copied.glob("episodes-*"))
    assert len(recorded.group("g00000005")) == 2
    second.rename(tmp_path / second.name)
    assert {row["fate"] for row in recorded.group("g00000005")} == {"pending"}
    (tmp_path / second.name).rename(second)
    assert {row["fate"] for row in recorded.group("g00000005")} == {"trained"}


def test_runs_that_are_not_there_or_share_an_id_are_refused(viewed_runs: Path, tmp_path: Path) -> None:
    twin = tmp_path / RUN
    twin.mkdir()
    (twin / "resolved.toml").write_text("")
    with pytest.raises(ConfigError, match="have one id"):
        Sources(viewed_runs, [RUN, str(twin)])
    with pytest.raises(ConfigError, match="no run 'nix'"):
        Sources(viewed_runs, ["nix"])
    with pytest.raises(ConfigError, match="there are none yet"):
        Sources(tmp_path / "empty", [])
    with pytest.raises(ConfigError, match=f"no run 'nix' is viewed here; there are: {RUN}"):
        Sources(viewed_runs, [RUN]).get("nix")


def test_examples_in_the_viewers_docstrings_are_true() -> None:
    for module in (contents, curves, messages, tokens):
        told = doctest.testmod(module)
        assert told.attempted
        assert not told.failed, module.__name__


def test_a_character_of_several_tokens_stands_at_its_last_one(viewed_runs: Path) -> None:
    tokenizer = tokens.tokenizer_of(Sources(viewed_runs, [RUN]).run(RUN).run)
    assert tokenizer is not None
    ids = tokenizer.encode("a é🙂b<|im_end|>", add_special_tokens=False).ids
    shown = tokens.texts(ids, tokenizer)
    assert "".join(shown) == "a é🙂b<|im_end|>"
    assert "" in shown
    assert shown[-1] == "<|im_end|>"
    assert tokens.texts([5, 7], None) == ["⟨5⟩", "⟨7⟩"]


def test_characters_that_cannot_be_seen_are_written_out() -> None:
    shown = messages.visible(EVIL)
    assert shown.endswith(r"\x1b[31m\u202e\x00")
    assert messages.visible("é 🙂\n\tx") == "é 🙂\n\tx"


def test_a_way_through_the_graph_has_the_numbers_of_its_turns() -> None:
    nodes = [{"label": t, "text": t, "kind": "state", "x": x, "y": 0.0} for t, x in (("A", 0.0), ("B", 156.0))]
    edges = [
        {"from": 0, "to": 0, "action": "wait", "invalid": False},
        {"from": 0, "to": 1, "action": "go", "invalid": False},
    ]
    turns = [{"edge": 0}, {"edge": 0}, {"edge": 1}]
    drawn = {"nodes": nodes, "edges": edges, "trajectories": [{"turns": turns}, {"turns": turns[2:]}]}
    found = graph.picture(drawn, [[-1.0, -3.0, 2.0], [4.0]], follow=0)
    wait, go = found.arrows
    assert (wait.steps, go.steps) == ("1, 2", "3")
    assert "taken 2×, credit -2 on the mean" in wait.told  # (-1 - 3) / 2
    assert "taken 2×, credit +3 on the mean" in go.told  # (2 + 4) / 2
    assert (wait.shade[0], go.shade) == ("n", "p5")
    assert [node.is_on for node in found.nodes] == [True, True]
    assert [node.is_on for node in graph.picture(drawn, [[None] * 3, [None]], follow=1).nodes] == [True, True]
