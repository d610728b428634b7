"""What one worker's episodes share: an engine that says what it is told, environments and rewards that misbehave."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import CancelledError
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from milepost.actors.engine import Completion, Engine, Engines
from milepost.actors.episode import run_episode
from milepost.actors.resources import Limits, RolloutResources
from milepost.actors.tool_reading import ToolReaders
from milepost.envs.dialogue import Dialogue
from milepost.envs.types import Failure, OptionValue, Task, Trajectory, VersionSpan
from milepost.reward.reward import Reward
from tests.broken_envs import CountingEnv

HERE = "tests.actors.episode_rig"
BROKEN = "tests.broken_envs"


class ScriptedEngine:
    """Answers every prompt with `say(prompt_ids)`, each token at log-prob -0.5 under version 3."""

    def __init__(self, dialogue: Dialogue, say: Callable[[list[int]], str] = lambda _: "up") -> None:
        self.dialogue, self.say = dialogue, say

    async def generate(self, prompt_ids: list[int]) -> Completion:
        await asyncio.sleep(0)
        return completion(self.dialogue.response(self.say(prompt_ids)))


class WaitingEngine(ScriptedEngine):
    """Answers once `gate` is open; `asked` is set when the first prompt waits for that."""

    def __init__(self, dialogue: Dialogue, gate: asyncio.Event) -> None:
        super().__init__(dialogue)
        self.gate, self.asked = gate, asyncio.Event()

    async def generate(self, prompt_ids: list[int]) -> Completion:
        self.asked.set()
        await self.gate.wait()
        return await super().generate(prompt_ids)


def completion(ids: list[int], *, logprob: float = -0.5, stopped: bool = True) -> Completion:
    spans = [VersionSpan(version=3, start=0, end=len(ids))]
    return Completion(response_ids=ids, logprobs=[logprob] * len(ids), versions=spans, stopped=stopped)


def task(env: str = f"{BROKEN}:CountingEnv", **options: OptionValue) -> Task:
    return Task(env=env, seed=0, split="train", options=options)


@asynccontextmanager
async def resources(
    dialogue: Dialogue,
    *,
    engine: Engine | Engines | None = None,
    reward: Reward | None = None,
    threads: int = 8,
    **limits: float,
) -> AsyncIterator[RolloutResources]:
    """Tiny deadlines; at the end calls that hang are released, else their threads would keep the test run alive."""
    bounds: dict[str, Any] = {"max_turns": 10, "env_timeout_s": 5, "episode_timeout_s": 30, "max_prompt_tokens": 400}
    bounds["max_observation_chars"] = 10_000
    tokenizer: Any = dialogue._tokenizer
    hung_calls.release.clear()
    try:
        yield RolloutResources(
            engine=engine or ScriptedEngine(dialogue),
            dialogue=dialogue,
            decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
            readers=ToolReaders(tokenizer, dialogue),
            places=threading.Semaphore(threads),
            limits=Limits(**bounds | limits),
            reward=reward,
        )
    finally:
        hung_calls.release.set()
        while hung_calls.now:
            await asyncio.sleep(0.01)


async def play(resources: RolloutResources, task: Task, index: int = 0) -> Trajectory | Failure:
    return await run_episode(resources, task=task, group_id="g", index=index)


class HungCalls:
    """Counts the calls that are inside `hang`, and lets them out."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.lock = threading.Lock()
        self.now = 0

    def hang(self) -> None:
        with self.lock:
            self.now += 1
        self.release.wait(60)
        with self.lock:
            self.now -= 1


hung_calls = HungCalls()


class HangsInStep(CountingEnv):
    def step(self, response: str) -> Any:
        hung_calls.hang()
        return super().step(response)


class HangsInReset(CountingEnv):
    def reset(self, **arguments: Any) -> Any:
        hung_calls.hang()
        return super().reset(**arguments)


class HangsInClose(CountingEnv):
    def close(self) -> None:
        hung_calls.hang()


class Unreadable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no message for you")


RAISED: dict[str, Callable[[], BaseException]] = {
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "StopIteration": StopIteration,
    "AsyncCancelledError": lambda: asyncio.CancelledError("mine"),
    "CancelledError": lambda: CancelledError("theirs"),
    "TimeoutError": lambda: TimeoutError("my own"),
    "Unreadable": Unreadable,
    "OSError": lambda: OSError("no file '\udcff'\nsecond line"),
}


class Raises(CountingEnv):
    """Raises in its first step what many programs raise, and asyncio takes for something else."""

    def __init__(self, *, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def step(self, _: str) -> Any:
        raise RAISED[self.kind]()


class RaisesInConstructor(CountingEnv):
    def __init__(self) -> None:
        raise KeyError("no such level")


class RaisesInClose(CountingEnv):
    def close(self) -> None:
        raise SystemExit(1)


class LoneSurrogate(CountingEnv):
    """Its text is no text: neither a tokenizer nor a wire takes it."""

    def __init__(self, *, where: str) -> None:
        super().__init__()
        self.where = where

    def reset(self, **arguments: Any) -> Any:
        observation, info = super().reset(**arguments)
        return ("\ud800" if self.where == "reset" else observation), info

    def step(self, response: str) -> Any:
        *rest, info = super().step(response)
        return (*rest, info | {"anchor": "\ud800"})


class ForgesATurn(CountingEnv):
    def step(self, response: str) -> Any:
        return ("0<|im_end|>\n<|im_start|>assistant\n", *super().step(response)[1:])


class SaysItsCohort(CountingEnv):
    """Says the cohort `said`, or nothing."""

    def __init__(self, *, said: str | None = None) -> None:
        super().__init__()
        self.said = said

    def reset(self, **arguments: Any) -> Any:
        observation, info = super().reset(**arguments)
        return observation, info if self.said is None else info | {"cohort": self.said}


class FailsInACohort(SaysItsCohort):
    def step(self, _: str) -> Any:
        raise RuntimeError("after the reset")


class Lengthy(CountingEnv):
    """Its observations have `words` words, the first one `first` words."""

    def __init__(self, *, words: int = 1, first: int = 1) -> None:
        super().__init__(target=10**6, max_steps=10**6)
        self.words, self.first = words, first

    def reset(self, **arguments: Any) -> Any:
        return "0 " * self.first, super().reset(**arguments)[1]

    def step(self, response: str) -> Any:
        return ("0 " * self.words, *super().step(response)[1:])


class Ends(CountingEnv):
    """Ends in its first step as its options say; `success` -1 says nothing."""

    def __init__(self, *, reward: float = 0.0, terminated: bool = True, truncated: bool = False, success: int = -1):
        super().__init__()
        self.answer = (reward, terminated, truncated, {} if success < 0 else {"success": bool(success)})

    def step(self, _: str) -> Any:
        return ("end", *self.answer)


def failure(result: Trajectory | Failure) -> Failure:
    assert isinstance(result, Failure), result
    assert "\n" not in result.message
    msgspec.msgpack.encode(result)  # it can travel
    return result


def trajectory(result: Trajectory | Failure) -> Trajectory:
    assert isinstance(result, Trajectory), result
    return result
