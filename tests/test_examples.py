"""The examples are run as a reader runs them."""

import re
import runpy
from pathlib import Path

import pytest

from milepost.actors.checks.check import check_env

ROOT = Path(__file__).parent.parent
ONE_FILE_LOOP = ROOT / "examples" / "one_file_loop.py"


def test_the_loop_in_one_file_learns_the_better_arm_and_credits_it_above_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # where it keeps its first policy
    monkeypatch.setattr("sys.argv", [str(ONE_FILE_LOOP), "--iterations", "12", "--seed", "0"])
    runpy.run_path(str(ONE_FILE_LOOP), run_name="__main__")
    shown = capsys.readouterr().out
    success = [int(share) for share in re.findall(r"^iteration \d+/12  success (\d+)%", shown, re.M)]
    assert len(success) == 12
    assert success[0] < 70  # the first policy flips a coin; three spreads of 64 episodes are 19 points
    assert sum(success[-3:]) / 3 > 85
    earned = {what: float(mean) for what, mean in re.findall(r"^  (better arm|other arm) +([+-]\d\.\d\d)", shown, re.M)}
    assert earned["better arm"] > 0 > earned["other arm"]


@pytest.mark.parametrize("path", ["examples.sql_desk:SqlDesk", "rooms:Rooms"])
def test_environments_with_tools_take_few_lines_and_keep_the_contract(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms, _ = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "tools.md").read_text(encoding="utf-8"), re.S)
    (tmp_path / "rooms.py").write_text(rooms, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    written = rooms if path.startswith("rooms") else (ROOT / "examples" / "sql_desk.py").read_text(encoding="utf-8")
    own = written.partition("class ")[2].splitlines()
    assert len([line for line in own if line.strip()]) < 40
    assert {finding.level for finding in check_env(path).findings} == {"ok"}
