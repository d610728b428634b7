"""Tools of a real MCP server, started with each episode of the environment that docs/tools.md shows."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from milepost.envs.contract import build_env, observe_reset, observe_step
from milepost.envs.messages import AssistantMessage, ToolCall

HERE = Path(__file__).parent
SERVER = shlex.join([sys.executable, str(HERE / "counting_server.py")])
pytestmark = [pytest.mark.services, pytest.mark.timeout(240)]


@pytest.fixture
def counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The path of the environment in the docs."""
    told = (HERE.parent.parent / "docs" / "tools.md").read_text(encoding="utf-8")
    (snippet,) = [code for code in re.findall(r"```python\n(.*?)```", told, re.S) if "McpToolEnv" in code]
    (tmp_path / "counter.py").write_text(snippet, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "counter:Counter"


def calls(name: str, **arguments: Any) -> AssistantMessage:
    return AssistantMessage(tool_calls=(ToolCall(id="call00000", name=name, arguments=arguments),))


def servers() -> int:
    return sum("counting_server.py" in " ".join(child.cmdline()) for child in psutil.Process().children(recursive=True))


def test_a_server_of_its_own_plays_each_episode_and_ends_with_it(counter: str) -> None:
    env = build_env(counter, {"server": SERVER})
    try:
        for _ in range(2):  # each begins with a counter at 0: seed 0 adds 5
            reset = observe_reset(env.reset(seed=0), env)
            assert reset.observation == "The counter is at 5. Bring it to 7, then say done."
            assert [tool["function"]["name"] for tool in reset.tools] == ["add", "fail"]
            assert servers() == 1
        for call, result, valid in (
            (calls("fail"), "Error: ", True),
            (calls("add", number="x"), "Nothing was done: $.number: 'x' is not of type 'integer'", False),
            (calls("add", number=2), "The counter is at 7.", True),
        ):
            step = observe_step(env.step(call), "x")
            assert step.observation.startswith(result)
            assert (step.action is not None) == valid
        assert observe_step(env.step(AssistantMessage(content="done")), "x").success
    finally:
        env.close()
    assert servers() == 0
