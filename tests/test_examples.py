"""The examples are run as a reader runs them."""

import re
import runpy
from pathlib import Path

import pytest

ONE_FILE_LOOP = Path(__file__).parent.parent / "examples" / "one_file_loop.py"


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
