"""Which engine a request goes to, and how long it waits, on engines that answer as they are told."""

import asyncio
import contextlib
from types import SimpleNamespace

import pytest
from ray.exceptions import RayActorError

from milepost.actors.engine import Completion, EngineError
from milepost.cluster.pools import engines
from milepost.cluster.pools.engine_process import EngineActor
from milepost.cluster.pools.engines import Rotation, RoutedEngines
from milepost.envs.types import VersionSpan

ANSWER = Completion(response_ids=[1], logprobs=[0.0], versions=[VersionSpan(version=0, start=0, end=1)], stopped=True)


class Engine:
    """One that answers, unless it is dead or silent."""

    def __init__(self, *, dead: bool = False, silent: bool = False) -> None:
        self.dead, self.silent, self.asked = dead, silent, 0
        self.killed = asyncio.Event()
        self.generate = SimpleNamespace(remote=self._generate)

    async def _generate(self, _prompt: list[int]) -> Completion:
        self.asked += 1
        if self.silent:
            await self.killed.wait()
        if self.dead or self.silent:
            raise RayActorError
        return ANSWER


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_RETRY_S", 0.01)


def routed(
    *handles: Engine, worker: int = 0, is_growing: bool = False, request_s: float = 0.1, start_s: float = 5.0
) -> RoutedEngines:
    rotation = Rotation(list(handles), is_growing)
    return RoutedEngines(rotation, worker=worker, request_timeout_s=request_s, start_timeout_s=start_s)


async def episode_of_one_turn(engines: RoutedEngines) -> Completion:
    with engines.for_episode() as engine:
        return await engine.generate([5])


def test_a_request_without_an_engine_waits_for_the_one_that_is_being_started_and_fails_if_none_is() -> None:
    async def ask() -> None:
        engines = routed(is_growing=True)
        asked = asyncio.create_task(episode_of_one_turn(engines))
        await asyncio.sleep(0.3)  # three times its own deadline
        engines.set_rotation(Rotation([Engine()], is_growing=False))
        assert await asked == ANSWER
        with pytest.raises(EngineError, match="no completion within 0 s: no engine is in rotation"):
            await episode_of_one_turn(routed())

    asyncio.run(ask())


def test_it_waits_no_longer_than_an_engine_may_take_to_start() -> None:
    async def ask() -> None:
        async with asyncio.timeout(5):
            with pytest.raises(EngineError, match="no engine is in rotation"):
                await episode_of_one_turn(routed(is_growing=True, start_s=0.2))

    asyncio.run(ask())


def test_a_request_whose_engine_stopped_and_is_killed_is_sampled_on_its_replacement() -> None:
    async def ask() -> None:
        stopped, fresh = Engine(silent=True), Engine()
        engines = routed(stopped, request_s=0.2)
        asked = asyncio.create_task(episode_of_one_turn(engines))
        await asyncio.sleep(0.1)
        stopped.killed.set()
        engines.set_rotation(Rotation([], is_growing=True))
        await asyncio.sleep(0.3)
        engines.set_rotation(Rotation([fresh], is_growing=False))
        assert await asked == ANSWER

    asyncio.run(ask())


def test_an_engine_that_died_is_asked_last_until_the_rotation_says_otherwise() -> None:
    async def ask() -> tuple[int, int]:
        dead, alive = Engine(dead=True), Engine()
        engines = routed(dead, alive, request_s=5)
        for _ in range(4):
            assert await episode_of_one_turn(engines) == ANSWER
        return dead.asked, alive.asked

    assert asyncio.run(ask()) == (1, 4)


def test_an_episode_keeps_the_engine_with_the_fewest_episodes_at_its_first_prompt_and_loads_it_until_its_end() -> None:
    async def ask() -> None:
        one, two = Engine(), Engine()
        engines = routed(one, two)
        with contextlib.ExitStack() as playing:
            first, second = [playing.enter_context(engines.for_episode()) for _ in range(2)]
            await first.generate([5])
            for _ in range(3):
                await second.generate([5])
            await first.generate([5, 1])
            assert (one.asked, two.asked) == (2, 3)
            with engines.for_episode() as third:
                await third.generate([5])  # one episode each: the first of them
                await playing.enter_context(engines.for_episode()).generate([5])
            assert (one.asked, two.asked) == (3, 4)
            await episode_of_one_turn(engines)  # the third has ended
            assert (one.asked, two.asked) == (4, 4)

    asyncio.run(ask())


def test_an_episode_moves_where_its_engine_dies_or_leaves_the_rotation_and_stays_where_it_moved() -> None:
    async def ask() -> None:
        one, two, three = Engine(), Engine(), Engine()
        engines = routed(one, two, request_s=5)
        with engines.for_episode() as episode, engines.for_episode() as other:
            await episode.generate([5])
            await other.generate([5])
            one.dead = True
            await episode.generate([5])
            assert (one.asked, two.asked) == (2, 2)
            engines.set_rotation(Rotation([three, two], is_growing=False))
            await episode.generate([5])  # one with nothing to do is no reason
            assert (two.asked, three.asked) == (3, 0)
            engines.set_rotation(Rotation([three], is_growing=False))
            await episode.generate([5])
            engines.set_rotation(Rotation([two, three], is_growing=False))
            await episode.generate([5])
            await other.generate([5])
            assert (two.asked, three.asked) == (4, 2)

    asyncio.run(ask())


def test_workers_of_one_episode_each_begin_with_engines_in_turn() -> None:
    async def ask() -> list[int]:
        handles = [Engine(), Engine(), Engine()]
        workers = [routed(*handles, worker=number) for number in range(6)]
        with contextlib.ExitStack() as playing:
            for engines in workers:
                await playing.enter_context(engines.for_episode()).generate([5])
            await episode_of_one_turn(workers[4])  # which has one on the second engine: the third is next
        return [handle.asked for handle in handles]

    assert asyncio.run(ask()) == [2, 2, 3]


def test_the_calls_of_one_agent_go_to_one_engine_also_side_by_side() -> None:
    async def ask() -> list[int]:
        handles = [Engine(), Engine(), Engine()]
        with routed(*handles).for_episode() as engine:
            await asyncio.gather(*(engine.generate([5, call]) for call in range(4)))
        return [handle.asked for handle in handles]

    assert asyncio.run(ask()) == [4, 0, 0]


def test_an_engine_counts_the_requests_in_a_row_that_nobody_answered() -> None:
    class Core:
        """vLLM, as far as the actor asks it."""

        dead, version = False, 1

        def __init__(self) -> None:
            self.fails: Exception | None = None

        async def generate(self, *_: object) -> Completion:
            if self.fails:
                raise EngineError("no completion") from self.fails
            return ANSWER

        async def nothing(self, *_: object, **__: object) -> None:
            pass

        check = pause = commit = nothing

    async def count() -> list[int]:
        actor, core = EngineActor.__new__(EngineActor), Core()
        actor._engine, actor._in_flight, actor._paused, actor._unanswered = core, 0, False, 0
        actor._busy_s = actor._since = 0.0
        actor._metrics_port, actor._committed = 0, asyncio.Condition()
        counts = []
        for failure in (TimeoutError(), TimeoutError(), ValueError("the prompt is refused"), None, TimeoutError()):
            core.fails = failure
            with contextlib.suppress(EngineError):
                await actor.generate([5])
            counts.append((await actor.health()).unanswered)
        await actor.pause()
        with pytest.raises(EngineError):
            await actor.generate([5])  # it waits for weights
        counts.append((await actor.health()).unanswered)
        await actor.commit(1, False)
        return [*counts, (await actor.health()).unanswered]

    assert asyncio.run(count()) == [1, 2, 2, 0, 1, 1, 0]
