"""Versions and their champion: what a promotion keeps, what a kill leaves, and what is refused."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milepost.cluster.base.exits import ConfigError, GateRefused
from milepost.cluster.base.files import file_sha256
from milepost.cluster.evaluation import store
from milepost.cluster.registry import registry as registries
from milepost.cluster.registry import trail
from milepost.cluster.registry.registry import Evidence, Registry
from milepost.cluster.registry.trail import NotServed, Promoted, Refused, RolledBack
from milepost.cluster.runlog.saved_policy import digest
from tests.cluster.registry.promoted import SAFE, gate, played, policy, promote
from tests.cluster.registry.served_metrics import lineage_of


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "registry"


def test_a_promotion_keeps_a_copy_of_the_policy_and_its_lineage(tmp_path: Path, place: Path) -> None:
    file, asked = played(tmp_path / "a", "sound"), gate(tmp_path)
    assert promote(place, file, asked) == 1
    (tmp_path / "a" / "model.safetensors").write_text("trained further")
    there = Registry(place)
    assert there.state().champion == 1
    kept = there.verified_policy(1)
    assert (kept / "model.safetensors").read_text().startswith("('sound',)")
    [entry] = there.state().entries
    assert isinstance(entry.event, Promoted)
    lineage = entry.event.lineage
    assert (lineage.policy_sha256, lineage.config_sha256) == (digest(kept), None)
    assert (lineage.results_sha256, lineage.gate_sha256) == tuple(map(file_sha256, (file, asked)))
    assert lineage.measured["success"] == 1


def test_a_policy_that_the_gate_refuses_leaves_the_champion_and_its_reasons_in_the_trail(
    tmp_path: Path, place: Path
) -> None:
    asked = gate(tmp_path, absolute=[SAFE, {"metric": "success", "limit": 0.9, "cohort": "*"}])
    promote(place, played(tmp_path / "a", "sound"), asked)
    with pytest.raises(GateRefused) as refused:
        promote(place, played(tmp_path / "b", "rule breaker", others={"short-of-time": "idle"}), asked)
    lines = str(refused.value).splitlines()
    assert len(lines) == 2
    assert lines[0].endswith(f"does not pass {asked}: safety, all: 0.333 is below the limit of 1")
    assert lines[1].endswith("success, cohort hurried: 0.000 is below the limit of 0.9")
    state = Registry(place).state()
    assert state.champion == 1
    assert isinstance(event := state.entries[-1].event, Refused)
    assert event.reasons == [line.split(": ", 1)[1] for line in lines]
    assert sorted(path.name for path in (place / "versions").iterdir()) == ["1"]


def test_a_policy_that_changed_after_it_was_played_is_refused(tmp_path: Path, place: Path) -> None:
    file = played(tmp_path / "a", "sound")
    (tmp_path / "a" / "model.safetensors").write_text("trained further")
    with pytest.raises(ConfigError, match="the results are of a policy with digest"):
        promote(place, file, gate(tmp_path))


def test_the_champion_itself_is_not_promoted_again(tmp_path: Path, place: Path) -> None:
    file = played(tmp_path / "a", "sound")
    promote(place, file, gate(tmp_path))
    with pytest.raises(ConfigError, match="version 1, the champion, is this very policy already"):
        promote(place, file, gate(tmp_path))


def test_a_champion_that_other_scenarios_judged_needs_results_of_the_gates_suite(tmp_path: Path, place: Path) -> None:
    asked = gate(tmp_path, relative=[{"metric": "success", "undecided": "pass"}])
    (tmp_path / "older").mkdir()
    older = gate(tmp_path / "older", suite="0" * 64)
    first, second = played(tmp_path / "a", "idle"), played(tmp_path / "b", "sound")
    found = store.read(first)
    earlier = msgspec.structs.replace(found, suite=msgspec.structs.replace(found.suite, sha256="0" * 64))
    promote(place, store.write(earlier, tmp_path / "older"), older)
    with pytest.raises(ConfigError, match=r"version 1, the champion, was judged by suite .* with hash 0{12}"):
        promote(place, second, asked)
    with pytest.raises(ConfigError, match="version 1, the champion: the results are of a policy with digest"):
        promote(place, second, asked, champion=second)
    assert promote(place, second, asked, champion=first) == 2


def test_a_rollback_goes_to_what_the_champion_replaced_and_not_back_and_forth(tmp_path: Path, place: Path) -> None:
    asked, there = gate(tmp_path), Registry(place)
    for name in "abc":
        promote(place, played(tmp_path / name, "sound"), asked)
    with there.lock():
        assert there.roll_back(None, "slow") == RolledBack(version=2, left=3, reason="slow")
        assert there.roll_back(None, "slower").version == 1
        with pytest.raises(ConfigError, match="version 1 is the first champion; there is none to go back to"):
            there.roll_back(None, "slowest")
        assert there.roll_back(3, "it was the network").version == 3
        with pytest.raises(ConfigError, match="has no version 4; milepost policies lists"):
            there.roll_back(4, "typo")
        with pytest.raises(ConfigError, match="version 3 is the champion already"):
            there.roll_back(3, "again")
    assert there.state().champion == 3


@pytest.mark.parametrize("name", ["policy/model.safetensors", "results.json", "gate.toml"])
def test_a_version_whose_files_were_changed_is_not_gone_back_to(tmp_path: Path, place: Path, name: str) -> None:
    asked, there = gate(tmp_path), Registry(place)
    for each in "ab":
        promote(place, played(tmp_path / each, "sound"), asked)
    (there.folder(1) / name).write_text("other")
    with there.lock(), pytest.raises(ConfigError, match=r"1/.* was changed: "):
        there.roll_back(None, "slow")
    assert there.state().champion == 2


def test_who_cannot_have_the_lock_is_told_and_changes_nothing(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(place, played(tmp_path / "a", "sound"), gate(tmp_path))
    monkeypatch.setattr(registries, "_LOCK_WAIT_S", 0.0)
    with Registry(place).lock(), pytest.raises(ConfigError, match="is in use by another writer"):
        promote(place, played(tmp_path / "b", "sound"), gate(tmp_path))
    assert Registry(place).state().champion == 1


def dies_while_it_copies() -> None:
    copyfile = shutil.copyfile

    def half(source: Path, target: Path, **keywords: object) -> None:
        copyfile(source, target, **keywords)
        os.kill(os.getpid(), signal.SIGKILL)

    shutil.copyfile = half  # type: ignore[assignment]


def dies_before_its_entry() -> None:
    trail.append = lambda *_: os.kill(os.getpid(), signal.SIGKILL)


def dies_within_its_line() -> None:
    def half(folder: Path, _: object) -> None:
        with (folder / "audit.jsonl").open("ab") as file:
            file.write(b'{"number":2,"at":17')
        os.kill(os.getpid(), signal.SIGKILL)

    trail.append = half


@pytest.mark.parametrize("die", [dies_while_it_copies, dies_before_its_entry, dies_within_its_line])
def test_a_process_that_is_killed_in_the_middle_leaves_the_champion(
    tmp_path: Path, place: Path, die: Callable[[], None]
) -> None:
    asked, second = gate(tmp_path), played(tmp_path / "b", "sound")
    promote(place, played(tmp_path / "a", "sound"), asked)

    def killed() -> None:
        die()
        promote(place, second, asked)

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    there = Registry(place)
    assert there.state().champion == 1
    there.verified_policy(1)
    assert promote(place, second, asked) == 2
    there.verified_policy(2)
    assert sorted(path.name for path in place.iterdir()) == [".lock", "audit.head", "audit.jsonl", "versions"]
    assert sorted(path.name for path in (place / "versions").iterdir()) == ["1", "2"]


STEPS = st.lists(st.sampled_from(["promote", "back", "first", "refuse", "fail"]), max_size=8)


@settings(max_examples=15)
@given(STEPS)
def test_a_history_only_grows_and_the_champion_is_what_it_comes_to(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("steps")
    made, there = policy(folder / "p", "w"), Registry(folder / "registry")
    files = Evidence(results=made / "config.json", gate=made / "config.json", config=None)
    lineage = lineage_of(made, files.gate)
    there.make()
    replaced: dict[int, int | None] = {}
    champion, before = None, b""
    for step in steps:
        with there.lock():
            if step == "promote":
                version = there.promote(made, files, lineage)
                replaced[version], champion = champion, version
            elif step == "fail":
                there.record(NotServed(version=1, reason="no room"))
            elif step == "refuse":
                there.record(Refused(source="p", policy_version=0, policy_sha256="", gate_sha256="", reasons=["slow"]))
            elif champion is not None and (to := replaced[champion] if step == "back" else 1) not in (None, champion):
                there.roll_back(None if step == "back" else to, "slow")
                champion = to
        assert there.state().champion == champion
        written = there.path / "audit.jsonl"
        after = written.read_bytes() if written.exists() else b""
        assert after.startswith(before)
        before = after
