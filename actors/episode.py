"""Plays one episode: policy and environment take turns until it ends, and it ends as a Trajectory or as a Failure.

Every call into user code (environment and reward) has a deadline, which starts when the call does. All calls of an
episode, from the constructor to `close`, run on one thread, which is the episode's own; prompts are laid out there too,
so that a long observation does not hold up the event loop. `actors.env_threads` calls run side by side.

User code that raises, hangs or returns nonsense ends its own episode as a Failure named by the boundary it crossed;
nothing it does reaches the run. A hung call keeps its place (Python cannot take it back), so it is counted in
`RolloutResources.hung` and the worker process retires; an episode that finds no free place ends at its own deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from milepost.actors.context import Context
from milepost.actors.engine import Completion, EngineError
from milepost.actors.episode_thread import EpisodeThread
from milepost.actors.resources import RolloutResources
from milepost.envs import chance
from milepost.envs.contract import EnvPathError, Reset, Step, build_env, observe_reset, observe_step
from milepost.envs.plain_values import ContractError
from milepost.envs.types import Boundary, Failure, Outcome, Task, Trajectory, Turn
from milepost.reward.reward import apply

logger = logging.getLogger(__name__)

_Seen = TypeVar("_Seen", Reset, Step)


class _EpisodeError(Exception):
    """Carries the boundary an error crossed out of the episode's body."""

    def __init__(self, boundary: Boundary, error: BaseException) -> None:
        super().__init__(boundary)
        self.boundary: Boundary = boundary
        self.error = error


@dataclass(slots=True)
class _Episode:
    resources: RolloutResources
    task: Task
    later: int
    """Seed of what chance decides after the start."""
    thread: EpisodeThread = field(default_factory=EpisodeThread)
    env: Any = None
    turns: list[Turn] = field(default_factory=list)
    cohort: str = ""
    success_reported: bool = False
    waits_for: str = ""
    """What the episode is waiting for, for the message at its deadline."""

    async def in_thread(
        self,
        what: str,
        call: Callable[[], Any],
        *,
        boundary: Boundary = "env",
        gate: AbstractContextManager[object] | None = None,
    ) -> Any:
        loop = asyncio.get_running_loop()
        begun = asyncio.Event()

        def caught() -> tuple[Any, BaseException | None]:
            # As a value: StopIteration, SystemExit and CancelledError mean something else to asyncio than to user code.
            try:
                loop.call_soon_threadsafe(begun.set)
                return call(), None
            except BaseException as error:
                return None, error

        limit = self.resources.limits.env_timeout_s
        self.waits_for = f"a thread for {what}"
        try:
            job = self.thread.submit(caught, gate)
        except RuntimeError as error:  # the system gives no more threads
            raise _EpisodeError("infra", error) from error
        try:
            await begun.wait()
            self.waits_for = what
            async with asyncio.timeout(limit):
                value, raised = await asyncio.shield(asyncio.wrap_future(job))
        except TimeoutError:
            self.resources.hung += 1
            message = f"{what} did not return within actors.env_timeout_s = {limit:g}"
            raise _EpisodeError(boundary, TimeoutError(message)) from None
        except asyncio.CancelledError:
            if not job.cancel():  # it runs, and its own time is not over
                self.resources.count_if_hung(job)
            raise
        if raised is not None:
            raise _EpisodeError(boundary, raised) from raised
        return value

    async def reset(self) -> Reset:
        def open_env() -> Reset:
            self.env = build_env(self.task.env, self.task.options)
            returned = chance.reset(self.env, seed=self.task.seed, later=self.later)
            return self.looked_at(returned, observe_reset(returned), "reset")

        reset: Reset = await self.in_thread("reset", open_env, gate=self.resources.places)
        self.cohort = self.cohort if reset.cohort is None else reset.cohort
        return reset

    async def step(self, text: str) -> Step:
        def ask_env() -> Step:
            returned = self.env.step(text)
            return self.looked_at(returned, observe_step(returned, text), "step")

        step: Step = await self.in_thread("step", ask_env, gate=self.resources.places)
        return step

    def looked_at(self, returned: object, seen: _Seen, method: str) -> _Seen:
        """`seen`, shown to the observer. Raises ContractError for an observation beyond the bound."""
        limit = self.resources.limits.max_observation_chars
        if len(seen.observation) > limit:
            raise ContractError(
                f"{method}: the observation has {len(seen.observation)} characters; shorten it, or raise "
                f"actors.max_observation_chars = {limit}"
            )
        if self.resources.observer is not None:
            self.resources.observer.seen(self.env, returned, seen)
        return seen

    async def lay_out(self, prompt: Callable[[], list[int]]) -> list[int]:
        ids: list[int] = await self.in_thread("the layout of a prompt", prompt)
        return ids

    async def score(self, trajectory: Trajectory) -> Trajectory:
        reward = self.resources.reward
        if reward is None:
            return trajectory
        scored: Trajectory = await self.in_thread(
            "reward", lambda: apply(reward, trajectory), boundary="reward", gate=self.resources.places
        )
        return scored

    async def play(self) -> Outcome:
        """Take turns until the end; fills `turns`."""
        limits = self.resources.limits
        reset = await self.reset()
        context = Context(self.resources.dialogue, window_turns=limits.window_turns)
        prompt = await self.lay_out(partial(context.open, reset.said))
        anchor = reset.anchor
        while True:
            if len(prompt) > limits.max_prompt_tokens:
                return self.cut_short(len(prompt))
            completion, seconds = await self.respond(prompt)
            started = time.monotonic()
            step = await self.step(self.resources.decode(completion.response_ids))
            turn = _turn(prompt, completion, anchor, step, (seconds, time.monotonic() - started))
            self.turns.append(turn)
            anchor = step.anchor
            self.success_reported |= step.success is not None and step.success_trains
            outcome = _outcome(step, self.turns, limits.max_turns)
            if outcome is not None:
                return outcome
            said = (completion.response_ids, completion.stopped, step.said)
            prompt = await self.lay_out(partial(context.extend, *said))

    def cut_short(self, needed: int) -> Outcome:
        if not self.turns:
            room = self.resources.limits.max_prompt_tokens
            message = f"the first prompt has {needed} tokens, engine.max_model_len leaves room for {room}: raise it"
            raise _EpisodeError("env", ContractError(message))
        return "truncated"

    async def respond(self, prompt: list[int]) -> tuple[Completion, float]:
        started = time.monotonic()
        self.waits_for = "the engine"
        try:
            completion = await self.resources.engine.generate(prompt)
        except EngineError as error:
            raise _EpisodeError("engine", error) from error
        return completion, time.monotonic() - started

    def close(self) -> None:
        """Have the environment closed and let the thread end, without waiting for either."""
        env, self.env = self.env, None
        observer = self.resources.observer

        def close() -> None:
            failed = _closing_error(env) if env is not None else None
            if observer is not None:
                observer.closed(failed)

        with contextlib.suppress(RuntimeError):  # there was no thread to be had, so there is no environment
            self.resources.count_if_hung(self.thread.submit(close, self.resources.places))
        self.thread.end()


def _turn(prompt: list[int], completion: Completion, anchor: str, step: Step, seconds: tuple[float, float]) -> Turn:
    try:
        return Turn(
            prompt_ids=prompt,
            response_ids=completion.response_ids,
            logprobs=completion.logprobs,
            versions=completion.versions,
            anchor=anchor,
            next_anchor=step.anchor,
            action=step.action,
            reward=step.reward,
            progress=step.progress,
            tool=step.tool,
            generate_s=seconds[0],
            env_s=seconds[1],
        )
    except ValueError as error:  # the environment's values were checked already: what is left is the engine's
        raise _EpisodeError("engine", error) from error


def _outcome(step: Step, turns: list[Turn], max_turns: int) -> Outcome | None:
    if step.terminated or step.success:
        solved = step.success if step.success is not None else sum(turn.reward for turn in turns) > 0
        return "success" if solved else "failure"
    return "truncated" if step.truncated or len(turns) >= max_turns else None


async def run_episode(resources: RolloutResources, *, task: Task, group_id: str, index: int) -> Trajectory | Failure:
    """Play `task` once. What chance decides after the start is the same whenever this episode is played.

    Never raises for what an environment, a reward or an engine does; only cancellation passes.
    """
    later = chance.episode_seed(task.seed, group_id, index)
    episode = _Episode(resources=resources, task=task, later=later, cohort=task.cohort)
    started = time.monotonic()
    try:
        async with asyncio.timeout(resources.limits.episode_timeout_s):
            outcome = await episode.play()
            try:
                trajectory = Trajectory(
                    task=task,
                    group_id=group_id,
                    index=index,
                    turns=episode.turns,
                    outcome=outcome,
                    seconds=time.monotonic() - started,
                    cohort=episode.cohort,
                    success_reported=episode.success_reported,
                )
            except ValueError as excess:  # each turn was in order: it is their rewards together
                raise _EpisodeError("env", ContractError(str(excess))) from excess
            return await episode.score(trajectory)
    except _EpisodeError as failed:
        boundary, error = failed.boundary, failed.error
    except TimeoutError:
        limit = f"actors.episode_timeout_s = {resources.limits.episode_timeout_s:g}"
        boundary, error = "infra", TimeoutError(f"episode longer than {limit}; it waited for {episode.waits_for}")
    finally:
        episode.close()
    return Failure(
        task=task,
        group_id=group_id,
        index=index,
        boundary=boundary,
        error=type(error.__cause__ if isinstance(error, EnvPathError) and error.__cause__ else error).__name__,
        message=first_line(error),
        turn=len(episode.turns),
        cohort=episode.cohort,
    )


def first_line(error: BaseException) -> str:
    """What an error says, in one line that can be kept: of 300 characters at most, and of text only."""
    try:
        text = str(error)
    except Exception:  # a user's exception may fail at that, too
        text = "(its message cannot be read)"
    return (text.splitlines() or [""])[0][:300].encode(errors="replace").decode()


def _closing_error(env: Any) -> BaseException | None:
    try:
        env.close()
    except BaseException as error:
        # The episode is over and counted; what close() raises can change nothing about it.
        logger.warning("environment close() raised %s: %s", type(error).__name__, first_line(error))
        return error
    return None
