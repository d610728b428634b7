"""However an episode goes and ends, its recorded text is what the engine was asked and answered, token for token."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from milepost.actors.agents.agent_episode import AgentHost, run_agent_episode
from milepost.actors.agents.config import AgentConfig
from milepost.actors.agents.endpoint import Endpoint
from milepost.actors.agents.program import load_program
from milepost.actors.engine import Completion
from milepost.actors.episode import run_episode
from milepost.actors.resources import RolloutResources
from milepost.actors.user_code import count_if_hung
from milepost.cluster.trajectories.recording import EVALUATION, RecordingQueue
from milepost.envs.dialogue import Dialogue
from milepost.envs.messages import AssistantMessage
from milepost.envs.types import Failure, Task, Trajectory
from tests.actors.episode_rig import HERE, ScriptedEngine, resources, task
from tests.cluster.trajectories.recorded import closing, recorder, rows
from tests.families.chat_templates import family_tokenizer

TOOLS = "tests.actors.tools.tool_envs"
CALL = '<tool_call>\n{"name": "open", "arguments": {}}\n</tool_call>'
Play = Callable[[RolloutResources], Any]


class Watched(ScriptedEngine):
    """Writes down every request with its answer."""

    asked: list[tuple[list[int], list[int]]]

    async def generate(self, prompt_ids: list[int]) -> Completion:
        answer = await super().generate(prompt_ids)
        self.asked.append((prompt_ids, answer.response_ids))
        return answer


def recorded(
    folder: Path, tokenizer: Any, play: Play, say: Callable[[list[int]], str], **limits: Any
) -> tuple[Trajectory | Failure, dict[str, Any]]:
    """The episode, and its row, after its text was compared with what the engine saw."""
    dialogue, queue = Dialogue(tokenizer), RecordingQueue()
    engine = Watched(dialogue, say)
    engine.asked = []

    async def go() -> Any:
        async with resources(dialogue, engine=engine, episode_timeout_s=240, **limits) as shared:
            shared.recorder = queue
            return await play(shared)

    result = asyncio.run(go())
    tokenizer.save_pretrained(folder / "policy")
    with closing(record := recorder(folder / "trajectories", folder / "policy")):
        record.add(queue.take())
    [row] = rows(folder / "trajectories", "episodes")
    ids, text, seen = [], "", []
    for turn in rows(folder / "trajectories", "turns"):
        ids = (ids if turn["continues"] else []) + turn["prompt_ids"]
        text = (text if turn["continues"] else "") + turn["prompt"]
        assert text == tokenizer.decode(ids, skip_special_tokens=False)
        seen.append((ids, turn["response_ids"]))
        ids, text = ids + turn["response_ids"], text + turn["response"]
        assert text == tokenizer.decode(ids, skip_special_tokens=False)
    assert sorted(seen) == sorted(engine.asked)
    assert row["num_turns"] == len(seen)
    return result, row


def in_environment(wanted: Task) -> Play:
    return lambda shared: run_episode(shared, task=wanted, group_id=EVALUATION, index=0)


@pytest.mark.parametrize(
    ("wanted", "limits", "outcome", "context_full"),
    [
        (task(f"{HERE}:Ends", reward=1.0), {}, "success", False),
        (task(f"{HERE}:Ends", success=0), {}, "failure", False),
        (task(target=9), {"max_turns": 2}, "truncated", False),
        (task(f"{HERE}:Lengthy", words=90), {"max_prompt_tokens": 400}, "truncated", True),
        (task(f"{HERE}:ForgesATurn"), {"max_turns": 2}, None, False),
    ],
)
def test_of_an_episode_in_an_environment(
    tmp_path: Path, dialogue: Dialogue, wanted: Task, limits: dict[str, int], outcome: str | None, context_full: bool
) -> None:
    result, row = recorded(tmp_path, dialogue._tokenizer, in_environment(wanted), lambda _: "up", **limits)  # type: ignore[attr-defined]
    assert row["outcome"] == outcome
    assert row["fate"] == ("failed" if outcome is None else "evaluation")
    assert getattr(result, "context_full", False) == context_full


def test_of_calls_of_tools_and_of_one_that_cannot_be_read(tmp_path: Path) -> None:
    said = iter(["I will. " + CALL, "<tool_call>\n{open", "Done."])
    result, row = recorded(
        tmp_path, family_tokenizer("qwen2.5"), in_environment(task(f"{TOOLS}:Door")), lambda _: next(said),
        max_prompt_tokens=10_000,
    )  # fmt: skip
    assert isinstance(result, Trajectory)
    assert [turn.action for turn in result.turns] == ["open {}", None, "Done."]
    assert row["outcome"] == "success"
    assert '"name": "open"' in rows(tmp_path / "trajectories", "turns")[0]["prompt"]


def test_of_thoughts_that_the_template_takes_back_at_the_next_question(tmp_path: Path) -> None:
    result, _ = recorded(
        tmp_path, family_tokenizer("qwen3"), in_environment(task(f"{TOOLS}:Talks")),
        lambda _: "<think>\nHm.\n</think>\n\nYes.", max_prompt_tokens=10_000,
    )  # fmt: skip
    assert isinstance(result, Trajectory)
    assert [turn["continues"] for turn in rows(tmp_path / "trajectories", "turns")] == [False, False]


@asynccontextmanager
async def hosted(shared: RolloutResources, path: str) -> AsyncIterator[AgentHost]:
    tokenizer = shared.dialogue._tokenizer  # type: ignore[attr-defined]

    def read(completion: Completion, _tools: Any, _calls_before: int) -> tuple[AssistantMessage, bool]:
        return AssistantMessage(content=tokenizer.decode(completion.response_ids, skip_special_tokens=True)), True

    endpoint = Endpoint()
    await endpoint.start()
    program = load_program(AgentConfig(path=path), lambda *given: count_if_hung(shared, *given))
    try:
        yield AgentHost(
            program=program, endpoint=endpoint, layout=shared.dialogue, read=read, max_tokens=0,
            places=asyncio.Semaphore(1),
        )  # fmt: skip
    finally:
        await endpoint.stop()


@pytest.mark.parametrize(
    ("program", "outcomes", "lineages"),
    [("wandering_agent:run", {"success", "failure"}, 3), ("odd_programs:raising", {None}, 1)],
)
def test_of_an_agent_program_with_several_conversations(
    tmp_path: Path, program: str, outcomes: set[str | None], lineages: int
) -> None:
    wanted = Task(env="agent", seed=1, split="train", options={"steps": 8})

    async def play(shared: RolloutResources) -> Trajectory | Failure:
        async with hosted(shared, f"tests.actors.agents.{program}") as host:
            return await run_agent_episode(host, shared, task=wanted, group_id=EVALUATION, index=0)

    answers = count(1)
    _, row = recorded(
        tmp_path,
        family_tokenizer("smollm2"),
        play,
        lambda _: f"answer {next(answers)}",
        max_prompt_tokens=10_000,
        max_turns=100,
        env_timeout_s=60,
    )
    assert row["outcome"] in outcomes
    turns = rows(tmp_path / "trajectories", "turns")
    assert len({turn["lineage"] for turn in turns}) >= lineages
    assert len(turns) >= lineages
