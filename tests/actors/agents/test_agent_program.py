"""Functions and commands as agent programs, played through the endpoint by real clients."""

import asyncio
import os
import ssl
import sys
import textwrap
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from milepost.actors.agents.agent_episode import AgentHost, run_agent_episode
from milepost.actors.agents.config import AgentConfig
from milepost.actors.agents.endpoint import Endpoint
from milepost.actors.agents.program import AgentPathError, load_program
from milepost.actors.engine import EngineError
from milepost.actors.resources import Limits, RolloutResources
from milepost.actors.tool_reading import ToolReaders
from milepost.actors.user_code import count_if_hung
from milepost.envs.types import Failure, Task, Trajectory
from tests.actors.agents.agent_rig import Letters, SayingEngine, read, text_of
from tests.actors.agents.odd_programs import FREED

HERE = "tests.actors.agents.odd_programs"
TASK = Task(env=HERE, seed=7, split="train", options={"level": 2})
Played = Trajectory | Failure


def play(config: AgentConfig, engine: Any = None, *, hung: list[int] | None = None, **limits: Any) -> Played:
    limits = {"max_turns": 3, "env_timeout_s": 0.2, "episode_timeout_s": 120.0} | limits
    limits = {"max_prompt_tokens": 10_000, "max_observation_chars": 10_000} | limits

    async def go() -> Played:
        resources = RolloutResources(
            engine=engine or SayingEngine(lambda prompt: f"you said {prompt}"),
            dialogue=Letters(),  # type: ignore[arg-type]
            decode=text_of,
            places=threading.Semaphore(4),
            readers=ToolReaders(None, Letters()),  # type: ignore[arg-type]
            limits=Limits(**limits),
        )
        endpoint = Endpoint()
        await endpoint.start()
        host = AgentHost(
            program=load_program(config, partial(count_if_hung, resources)),
            endpoint=endpoint,
            layout=Letters(),
            read=read,
            max_tokens=config.max_tokens,
            places=asyncio.Semaphore(16),
        )
        try:
            result = await run_agent_episode(host, resources, task=TASK, group_id="g", index=1)
            if hung is not None:
                await asyncio.sleep(limits["env_timeout_s"] + 0.1)
                hung.append(resources.hung)
            return result
        finally:
            await endpoint.stop()

    return asyncio.run(go())


def function(name: str, **limits: Any) -> Played:
    return play(AgentConfig(path=f"{HERE}:{name}"), **limits)


def command(*lines: str, **limits: Any) -> Played:
    return play(AgentConfig(command=(sys.executable, "-c", textwrap.dedent("\n".join(lines)))), **limits)


def played(result: Played) -> Trajectory:
    assert isinstance(result, Trajectory), result
    return result


def failed(result: Played) -> Failure:
    assert isinstance(result, Failure), result
    return result


def test_a_function_gets_the_task_and_a_client_and_its_reward_stands_at_the_last_turn():
    trajectory = played(function("echo"))
    assert (trajectory.outcome, trajectory.reward, trajectory.success_reported) == ("success", 0.75, True)
    (turn,) = trajectory.turns
    assert text_of(turn.prompt_ids) == "user:seed 7 level 2"
    assert turn.logprobs == [-0.5] * len(turn.response_ids)


def test_the_clients_of_all_episodes_share_the_certificates_that_were_loaded(monkeypatch: pytest.MonkeyPatch):
    given: list[Any] = []
    made = openai.DefaultAsyncHttpxClient
    monkeypatch.setattr("openai.DefaultAsyncHttpxClient", lambda **k: given.append(k.get("verify")) or made(**k))
    for _ in range(2):
        played(function("echo"))
    assert given[0] is given[1]
    assert isinstance(given[0], ssl.SSLContext)


def test_a_number_alone_is_a_reward_and_says_nothing_of_success():
    trajectory = played(function("number_only"))
    assert (trajectory.reward, trajectory.outcome, trajectory.success_reported) == (19.0, "success", False)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("silent", "AgentFailed", "without one call to the endpoint"),
        ("raising", "AgentFailed", "KeyError: 'no such drawer'"),
        ("exiting", "AgentFailed", "SystemExit: 3"),
        ("exiting_in_a_task", "AgentFailed", "SystemExit: 4"),
        ("unspeakable", "AgentFailed", "Unspeakable: (its message cannot be read)"),
        ("cancelling", "AgentFailed", "CancelledError: enough"),
        ("without_reward", "ContractError", "no 'reward', but ['score']"),
    ],
)
def test_a_program_that_ends_badly_is_a_failure_and_never_a_reward(name: str, error: str, message: str):
    failure = failed(function(name))
    assert (failure.boundary, failure.error) == ("env", error)
    assert message in failure.message


def test_a_program_that_waits_for_ever_ends_at_the_deadline_of_the_episode():
    hung: list[int] = []
    failure = failed(play(AgentConfig(path=f"{HERE}:endless"), episode_timeout_s=1.0, hung=hung))
    assert (failure.boundary, failure.error, failure.turn) == ("env", "TimeoutError", 1)
    assert "actors.episode_timeout_s = 1" in failure.message
    assert hung == [0]  # it was cancelled, and ended


def test_a_program_that_blocks_its_thread_is_counted_as_hung():
    hung: list[int] = []
    try:
        failure = failed(play(AgentConfig(path=f"{HERE}:blocking"), episode_timeout_s=1.0, hung=hung))
    finally:
        FREED.set()
    assert failure.error == "TimeoutError"
    assert hung == [1]


def test_a_program_that_is_stopped_by_a_limit_is_truncated_with_the_turns_it_had():
    trajectory = played(function("greedy"))
    assert (trajectory.outcome, len(trajectory.turns), trajectory.reward) == ("truncated", 3, 0.0)


def test_an_episode_that_ends_because_its_context_is_full_says_so():
    def more(prompt: str) -> str:
        return f"you said {prompt}"

    trajectory = played(function("greedy_for_context", engine=SayingEngine(more), max_prompt_tokens=20))
    assert (trajectory.outcome, trajectory.context_full, len(trajectory.turns)) == ("truncated", True, 1)
    assert not played(function("greedy")).context_full


def test_a_program_that_copes_with_a_limit_keeps_its_result():
    trajectory = played(function("not_enough", max_turns=2))
    assert (trajectory.outcome, len(trajectory.turns), trajectory.reward) == ("success", 2, 0.25)


def test_a_program_that_fails_because_the_engine_does_is_a_failure_of_the_engine():
    class Failing(SayingEngine):
        async def generate(self, _prompt_ids: list[int]) -> Any:
            raise EngineError("no engine is in rotation")

    failure = failed(function("echo", engine=Failing(str)))
    assert (failure.boundary, failure.message) == ("engine", "no engine is in rotation")


def test_a_command_gets_the_task_on_its_input_and_the_endpoint_in_its_environment():
    trajectory = played(
        command(
            "import json, os, sys, openai",
            "task = json.load(sys.stdin)",
            "assert os.environ['OPENAI_AGENTS_DISABLE_TRACING'] == '1'",
            "said = [{'role': 'user', 'content': f\"seed {task['seed']}\"}]",
            "openai.OpenAI().chat.completions.create(model='m', messages=said)",
            "print('thinking')",
            "print(json.dumps({'reward': 0.5, 'success': False}))",
        )
    )
    assert (trajectory.outcome, trajectory.reward) == ("failure", 0.5)
    assert text_of(trajectory.turns[0].prompt_ids) == "user:seed 7"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["import sys", "sys.exit('out of paper')"], "exit code 1: out of paper"),
        (["pass"], "printed nothing"),
        (["print('fine')"], "is no JSON: 'fine'"),
        (["print('x' * 70_000_000)", "import time", "time.sleep(60)"], "printed more than 67108864 bytes"),
        (["print(1.0)"], "without one call to the endpoint"),
        (["print('nan')"], "is no JSON"),
    ],
)
def test_a_command_that_ends_badly_is_a_failure_that_says_how(lines: list[str], message: str):
    failure = failed(command(*lines))
    assert failure.boundary == "env"
    assert message in failure.message


def test_a_command_that_leaves_a_server_behind_ends_with_its_own_process(tmp_path: Path):
    trajectory = played(
        command(
            "import openai, subprocess, sys",
            "said = [{'role': 'user', 'content': 'x'}]",
            "openai.OpenAI().chat.completions.create(model='m', messages=said)",
            "server = [sys.executable, '-c', 'import time; time.sleep(20)']",
            "left = subprocess.Popen(server, start_new_session=True)",
            f"open({str(tmp_path / 'pid')!r}, 'w').write(str(left.pid))",
            "print(0.5)",
        )
    )
    psutil.Process(int((tmp_path / "pid").read_text())).kill()  # a session of its own: nobody else ends it here
    assert trajectory.reward == 0.5


def test_a_proxy_of_the_machine_does_not_stand_before_the_endpoint(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "elsewhere")  # which the test puts back as it was
    assert played(function("echo")).reward == 0.75
    assert played(function("with_a_client_of_its_own")).reward == len("you said user:x")
    ask_by_command = [
        "import openai",
        "said = [{'role': 'user', 'content': 'x'}]",
        "openai.OpenAI(max_retries=0).chat.completions.create(model='m', messages=said)",
        "print(1)",
    ]
    assert played(command(*ask_by_command)).reward == 1


def test_an_engine_that_fails_and_a_program_that_says_nothing_of_it_is_no_reward_of_0():
    class FailsLater(SayingEngine):
        async def generate(self, prompt_ids: list[int]) -> Any:
            if self.prompts:
                raise EngineError("no engine is in rotation")
            return await super().generate(prompt_ids)

    failure = failed(function("forgiving", engine=FailsLater(str)))
    assert (failure.boundary, failure.turn) == ("engine", 1)


def test_a_command_that_is_not_there_is_said_to_be():
    failure = failed(play(AgentConfig(command=("/no/such/agent",))))
    assert failure.message == "/no/such/agent cannot be started: No such file or directory"


def test_a_command_ends_with_all_that_it_started_when_its_episode_does(tmp_path: Path):
    pids = tmp_path / "pids"
    failure = failed(
        command(
            "import os, subprocess, sys, time",
            "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])",
            f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')",
            "time.sleep(600)",
            episode_timeout_s=3.0,
        )
    )
    assert failure.error == "TimeoutError"
    started = [int(pid) for pid in pids.read_text().split()]
    assert len(started) == 2
    until = time.monotonic() + 10
    while any(_lives(pid) for pid in started) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(_lives(pid) for pid in started)


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE and pid != os.getpid()
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (f"{HERE}:not_async", "not an 'async def run"),
        (f"{HERE}:nothing", "has no 'nothing'"),
        ("no.such.module:run", "no module named 'no'"),
    ],
)
def test_an_agent_that_cannot_be_loaded_is_refused_by_its_path(path: str, message: str):
    with pytest.raises(AgentPathError, match=message):
        load_program(AgentConfig(path=path), lambda _: None)


def test_a_path_and_a_command_together_are_refused():
    with pytest.raises(ValueError, match=r"agent.path and agent.command are both set"):
        AgentConfig(path="a:b", command=("x",))
