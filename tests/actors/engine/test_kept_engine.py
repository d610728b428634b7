"""Of several engines an episode keeps one, from its first prompt to its end, however it ends."""

import asyncio
import contextlib
from collections.abc import Iterator

from milepost.actors.engine import Completion, Engine, EngineError
from milepost.envs.dialogue import Dialogue
from tests.actors.agents.agent_rig import SayingEngine
from tests.actors.agents.test_agent_program import failed, function
from tests.actors.episode_rig import ScriptedEngine, failure, play, resources, task, trajectory


class OneForEach:
    """Gives each episode an engine, and says which episodes are under way."""

    def __init__(self, *engines: Engine) -> None:
        self.left, self.playing, self.ended = list(engines), 0, 0

    @contextlib.contextmanager
    def for_episode(self) -> Iterator[Engine]:
        self.playing += 1
        try:
            yield self.left.pop(0)
        finally:
            self.playing, self.ended = self.playing - 1, self.ended + 1


class Breaks:
    async def generate(self, prompt_ids: list[int]) -> Completion:
        raise EngineError(f"no answer to {len(prompt_ids)} tokens")


def test_an_episode_asks_the_engine_it_was_given_for_all_its_turns(dialogue: Dialogue) -> None:
    engines = OneForEach(ScriptedEngine(dialogue), ScriptedEngine(dialogue, lambda _: "down"), Breaks())

    async def three() -> None:
        async with resources(dialogue, engine=engines, max_turns=3) as here:
            up, down, broken = await asyncio.gather(*(play(here, task(), index) for index in range(3)))
        assert [turn.action for turn in trajectory(up).turns] == ["up"] * 3
        assert [turn.action for turn in trajectory(down).turns] == [None] * 3
        assert failure(broken).boundary == "engine"

    asyncio.run(three())
    assert (engines.playing, engines.ended) == (0, 3)


def test_all_calls_of_an_agent_go_to_the_engine_that_its_episode_was_given() -> None:
    engines = OneForEach(Breaks(), SayingEngine(lambda prompt: f"you said {prompt}"))
    assert failed(function("forgiving", engine=engines)).boundary == "engine"
    function("echo", engine=engines)
    assert (engines.playing, engines.ended, engines.left) == (0, 2, [])
