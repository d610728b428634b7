"""BFCL's multi-turn tasks: all of them solved by their own solutions, and calls that must not be executed."""

import ast
from pathlib import Path

import pytest

from milepost.envs.adapters.bfcl_env import BfclMultiTurn, Category
from milepost.envs.messages import AssistantMessage, ToolCall

pytestmark = pytest.mark.sweep
ANSWER = AssistantMessage(content="Done.")


def calls(env: BfclMultiTurn, request: int) -> AssistantMessage:
    """The solution of a request, as a policy would call it."""
    found = []
    for text in env._solution[request]:
        node = ast.parse(text, mode="eval").body
        assert isinstance(node, ast.Call)
        assert isinstance(node.func, ast.Name)
        names = list(env._parameters[node.func.id])
        arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
        arguments |= {name: ast.literal_eval(value) for name, value in zip(names, node.args, strict=False)}
        found.append(ToolCall(id=f"c{len(found)}", name=node.func.id, arguments=arguments))
    return AssistantMessage(tool_calls=tuple(found))


def play(env: BfclMultiTurn, solved: int) -> float:
    """Solve the first `solved` requests, only answer the others."""
    total = 0.0
    for request in range(len(env._solution)):
        if request < solved and env._solution[request]:
            *_, ended, _, info = env.step(calls(env, request))
            assert (ended, info["action_valid"]) == (False, True)
        _, reward, ended, _, info = env.step(ANSWER)
        total += reward
    assert ended
    assert info["success"] == (total == 1)
    return total


@pytest.mark.parametrize("category", ["base", "miss_param", "long_context"])
def test_every_task_is_solved_by_its_own_solution_and_by_nothing_less(category: Category) -> None:
    env = BfclMultiTurn(category=category)
    assert len(env._tasks) == 200
    for seed in range(200):
        said, info = env.reset(seed=seed)
        assert (info["cohort"], said[0].content) == (category, env._tasks[seed]["question"][0][0]["content"])
        needed = [number + 1 for number, solution in enumerate(env._solution) if solution]
        assert play(env, solved=needed[-1]) == 1
        env.reset(seed=seed)
        assert play(env, solved=needed[-1] - 1) == 0
    env.close()


def test_nothing_but_offered_tools_with_their_own_parameters_is_executed(tmp_path: Path) -> None:
    env = BfclMultiTurn()
    _, first = env.reset(seed=0)
    made = tmp_path / "made"
    code = f"__import__('pathlib').Path({str(made)!r}).touch()"
    for name, arguments in (
        (code, {}),
        ("__import__", {"name": "os"}),
        ("ls", {f"a=True), {code}, dict(b": 1}),
        ("ls", {"a": code}),
        ("cd", {"folder": f"') or {code} or ('"}),
    ):
        said, _, ended, _, info = env.step(
            AssistantMessage(tool_calls=(ToolCall(id="c", name=name, arguments=arguments),))
        )
        assert (said[0].role, ended) == ("tool", False)
        assert not made.exists()
        assert info["action_valid"] == (name in ("ls", "cd") and set(arguments) <= {"a", "folder"})
    assert first["anchor"] != info["anchor"]


def test_an_episode_leaves_no_instance_of_a_tool_behind() -> None:
    env = BfclMultiTurn()
    before = set(vars(env._executor))
    env.reset(seed=0)
    play(env, solved=9)
    assert set(vars(env._executor)) - before
    env.close()
    assert set(vars(env._executor)) == before


def test_a_request_takes_as_many_rounds_of_calls_as_the_package_allows() -> None:
    env = BfclMultiTurn()
    env.reset(seed=0)
    look = AssistantMessage(tool_calls=(ToolCall(id="c", name="ls", arguments={}),))
    ends = [env.step(look)[2] for _ in range(21)]
    assert ends == [False] * 20 + [True]


def test_a_category_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="category must be one of base, miss_param, long_context, it is 'miss_func'"):
        BfclMultiTurn(category="miss_func")  # type: ignore[arg-type]
