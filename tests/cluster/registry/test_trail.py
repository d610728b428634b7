"""The audit trail: what is written stays, and what was changed by hand is named."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.registry import trail
from milepost.cluster.registry.trail import BEGINNING, NotServed, RolledBack

Lines = list[bytes]


def write(folder: Path, count: int) -> Path:
    for n in range(count):
        trail.append(folder, NotServed(version=n, reason=f"reason {n}"))
    return folder / "audit.jsonl"


def test_every_entry_carries_the_hash_of_the_line_before(tmp_path: Path) -> None:
    lines = write(tmp_path, 3).read_bytes().splitlines()
    told = [json.loads(line)["previous"] for line in lines]
    assert told == [BEGINNING, *(hashlib.sha256(line).hexdigest() for line in lines[:2])]
    entries, last = trail.read(tmp_path)
    assert [entry.number for entry in entries] == [1, 2, 3]
    assert last == hashlib.sha256(lines[-1]).hexdigest()


def test_a_registry_without_a_trail_has_no_entry(tmp_path: Path) -> None:
    assert trail.read(tmp_path) == ([], BEGINNING)


def changed(place: int) -> Callable[[Lines], Lines]:
    return lambda lines: [*lines[:place], lines[place].replace(b"reason", b"excuse"), *lines[place + 1 :]]


@pytest.mark.parametrize(
    ("tamper", "named"),
    [
        (changed(0), "entry 1 was changed"),
        (changed(1), "entry 2 was changed"),
        (changed(2), "entry 3 was changed"),
        (lambda lines: lines[1:], "entry 1 is not where it should be, entry 2 is"),
        (lambda lines: [lines[0], lines[2]], "entry 2 is not where it should be, entry 3 is"),
        (lambda lines: lines[:2], "entry 3 is gone, there were 3"),
        (lambda _: [], "entry 1 is gone, there were 3"),
        (lambda lines: [*lines[:2], b"{}"], "entry 3 was changed: it is none of ours"),
    ],
)
def test_a_changed_trail_is_refused_with_the_entry_named(
    tmp_path: Path, tamper: Callable[[Lines], Lines], named: str
) -> None:
    path = write(tmp_path, 3)
    path.write_bytes(b"".join(line + b"\n" for line in tamper(path.read_bytes().splitlines())))
    for use in (trail.read, lambda folder: trail.append(folder, NotServed(version=1, reason=""))):
        with pytest.raises(ConfigError, match=re.escape(f"{path}: {named}")):
            use(tmp_path)


def test_a_line_that_a_crash_cut_is_not_there_and_the_next_writer_takes_it_away(tmp_path: Path) -> None:
    path = write(tmp_path, 2)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"number":3,"at"')
    assert len(trail.read(tmp_path)[0]) == 2
    trail.append(tmp_path, RolledBack(version=1, left=2, reason="slow"))
    assert path.read_bytes().startswith(whole)
    assert len(trail.read(tmp_path)[0]) == 3


def test_an_entry_counts_that_was_written_before_its_head(tmp_path: Path) -> None:
    path = write(tmp_path, 2)
    before = (tmp_path / "audit.head").read_bytes()
    trail.append(tmp_path, NotServed(version=9, reason="late"))
    (tmp_path / "audit.head").write_bytes(before)
    assert len(trail.read(tmp_path)[0]) == 3
    trail.append(tmp_path, NotServed(version=10, reason="later"))
    assert len(path.read_bytes().splitlines()) == 4
