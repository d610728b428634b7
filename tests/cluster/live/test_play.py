"""`milepost play`: one episode, shown while it is played, with whoever answers."""

import io
import subprocess
import sys

import pytest

from tests.cluster.live.answering import ROOT, answering

pytestmark = pytest.mark.usefixtures("own_folder")
LAKE = "milepost.envs.frozen_lake:FrozenLakeText"
COUNT = "tests.broken_envs:CountingEnv"
DESK = "examples.sql_desk:SqlDesk"


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def typed(monkeypatch):
    """Lines on standard input."""

    def lines(*said: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in said)))

    return lines


def test_the_expert_of_an_environment_plays_it_to_its_end(call):
    code, out, err = call("play", LAKE, "--seed", 3)
    assert (code, err) == (0, "")
    assert out.startswith(f"{LAKE}, seed 3; its own expert (demonstration) answers")
    assert out.splitlines()[-1].startswith("success, reward 1, ")
    turns = [line for line in out.splitlines() if line.startswith("turn ")]
    assert [line.split(" · ")[0] for line in turns] == [f"turn {k}" for k in range(1, len(turns) + 1)]
    assert [line.split(" · ")[1] for line in turns] == ["reward 0"] * (len(turns) - 1) + ["reward 1"]


def test_the_answers_of_a_person_are_the_actions(call, typed):
    typed("up", "up", "up")
    code, out, _ = call("play", COUNT, "--human")
    assert code == 0
    assert out.splitlines()[-1] == "success, reward 1, 3 turns"
    assert out.count("action: up") == 3


def test_the_end_of_the_input_ends_it_in_order(call, typed):
    typed("up")
    code, out, err = call("play", COUNT, "--human")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "left before the end of the episode"


def test_options_and_the_task_reach_the_environment(call, typed):
    typed("up")
    assert call("play", COUNT, "--human", "--set", "target=1")[1].splitlines()[-1] == "success, reward 1, 1 turn"


def test_a_person_calls_tools_in_json_and_is_told_what_is_no_call(call, typed):
    typed('{"name": "tables"}', "{oops", '{"tool": "tables"}', "17")
    code, out, _ = call("play", DESK, "--human")
    assert code == 0
    assert "tools: tables(), query(sql)" in out
    assert 'tool: ["CREATE TABLE orders' in out
    assert out.count("that is no call") == 2
    assert out.splitlines()[-1] == "failure, reward 0, 2 turns"


def test_a_person_is_the_model_of_an_agent_program(call, typed):
    typed('{"name": "customers"}', "17")
    code, out, _ = call("play", "examples.agent.desk:run", "--human")
    assert code == 0
    assert "How many cents did" in out
    assert 'tool: ["Cy", "Dee"]' in out
    assert out.splitlines()[-1] == "failure, reward 0, 2 turns"


def test_an_agent_program_whose_person_leaves_is_left_too(call, typed):
    typed('{"name": "customers"}')
    code, out, err = call("play", "examples.agent.desk:run", "--human")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "left before the end of the episode"


def test_a_model_behind_a_server_plays_an_environment(call):
    with answering(lambda _: "up") as url:
        code, out, _ = call("play", COUNT, "--model", url)
    assert code == 0
    assert out.splitlines()[-1] == "success, reward 1, 3 turns"


def test_a_model_behind_a_server_calls_the_tools_of_an_environment_and_of_an_agent(call):
    for path, tool in ((DESK, "tables"), ("examples.agent.desk:run", "customers")):
        with answering(lambda prompt, tool=tool: "17" if "tool:" in prompt else f"CALL {tool} {{}}") as url:
            code, out, _ = call("play", path, "--model", url)
        assert code == 0
        assert out.splitlines()[-1] == "failure, reward 0, 2 turns"
        assert "tool: [" in out


@pytest.mark.parametrize("path", [COUNT, "examples.agent.desk:run"])
def test_a_server_that_is_not_there_is_named_in_one_line(call, path):
    code, _, err = call("play", path, "--model", "http://127.0.0.1:1/v1")
    assert code == 4
    assert err.startswith("milepost: http://127.0.0.1:1/v1 does not answer")
    assert len(err.splitlines()) == 1


def test_a_server_that_knows_no_such_model_is_told_of_with_the_way_out(call):
    with answering(lambda _: "up") as url:
        code, _, err = call("play", COUNT, "--model", f"{url}/nowhere")
    assert code == 2
    assert "gave no completion" in err
    assert "--model-name" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((COUNT,), "say who answers: --human, or --model"),
        (("examples.agent.desk:run",), "say who answers: --human, or --model"),
        ((LAKE, "--human", "--model", "x"), "both say who answers"),
        ((LAKE, "--model-name", "x"), "--model-name is for a server"),
        (("nowhere:Env",), "no module named 'nowhere'"),
        (("tests.broken_envs:ROOT",), "has no 'ROOT'"),
        (("tests.cluster.live.answering:answering",), "and no agent program: that is an 'async def run"),
        (("none.toml",), "none.toml: No such file"),
        ((LAKE, "--model", "no-such-folder"), "there is no such folder; a run's policy is"),
        (("tests.broken_envs:RaisesInStep", "--human"), "turn 0 failed with"),
    ],
)
def test_what_cannot_be_played_is_one_line_and_exit_2(call, typed, arguments, says):
    typed("up", "up", "up")
    code, _, err = call("play", *arguments)
    assert code == 2
    assert says in err
    assert len(err.splitlines()) == 1


def test_a_config_says_what_to_play_and_which_place_of_its_order(call):
    config = ROOT / "deploy" / "configs" / "lake_and_bandit.toml"
    titles = [call("play", config, "--seed", place)[1].splitlines()[0] for place in range(4)]
    assert {title.partition(":")[0] for title in titles} == {"milepost.envs.frozen_lake", "milepost.envs.bandit"}


def test_an_expert_plays_without_anything_heavy():
    script = (
        "import sys; from milepost.cluster import cli\n"
        "try: cli.main()\n"
        "finally: print([m for m in ('torch', 'vllm', 'ray', 'deepspeed', 'transformers', 'redis', 'pyarrow')"
        " if m in sys.modules])"
    )
    command = [sys.executable, "-c", script, "play", LAKE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "[]"
