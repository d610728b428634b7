"""What docs/design.md says of the rooms, compared with the table that the layers' test holds."""

import re

from tests.test_layers import DOORS, ROOT

DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")


def told_doors() -> dict[str, set[str]]:
    """The rooms of the table and what each imports."""
    rows = re.findall(r"^\| `([\w/]+)` \|[^|]+\|([^|]+)\|$", DESIGN, re.M)
    told = {room: (imports.strip(), set(re.findall(r"`([\w/]+)`", imports))) for room, imports in rows}
    return {
        room: told.keys() - {room} - names if imports.startswith("all") else names
        for room, (imports, names) in told.items()
    }


def test_the_table_of_rooms_says_which_imports_which() -> None:
    assert told_doors() == DOORS


def test_an_import_points_down_in_the_drawing_of_the_rooms() -> None:
    drawing = DESIGN.partition("## 2. ")[2].split("```")[1].splitlines()
    line = {
        room: next(n for n, text in enumerate(drawing) if re.search(rf"(?<![\w/]){name_of(room)}(?![\w/])", text))
        for room in DOORS
    }
    assert not [(room, other) for room, others in DOORS.items() for other in others if line[other] <= line[room]]


def name_of(room: str) -> str:
    """As the drawing writes it: within its layer, and a layer without rooms by its slash."""
    return f"{room}/" if room == "envs" else room.partition("/")[2] or room
