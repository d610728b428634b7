"""What a user reads whose environment has not got the package of an adapter."""

import sys
import tomllib

import pytest

from milepost.envs.contract import EnvPathError, build_env
from tests.test_layers import ROOT

EXTRAS = {
    "reasoning_gym_env:ReasoningGym": ("reasoning_gym", "reasoning-gym"),
    "textarena_env:TextArenaGame": ("textarena", "textarena"),
    "textworld_env:TextWorldGame": ("textworld", "textworld"),
}
SUITES = {"tau2_env:Tau2": "tau2", "bfcl_env:BfclMultiTurn": "bfcl_eval"}


@pytest.mark.parametrize("path", [*EXTRAS, *SUITES])
def test_one_line_says_which_package_is_missing_and_how_to_get_it(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, extra = EXTRAS.get(path) or (SUITES[path], "")
    for known in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, known)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EnvPathError) as refused:
        build_env(f"milepost.envs.adapters.{path}", {})
    said = str(refused.value)
    assert "\n" not in said
    assert "not installed" in said
    assert (f"pip install 'milepost[{extra}]'" if extra else "make worlds") in said


def test_the_extras_that_are_named_exist() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {extra for _, extra in EXTRAS.values()} <= declared.keys()
