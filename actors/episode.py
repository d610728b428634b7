"""Plays one episode: policy and environment take turns until it ends, and it ends as a Trajectory or as a Failure.

Every call into user code (environment and reward) has a deadline, which starts when the call does. All calls of an
episode, from the constructor to `close`, run on one thread, which is the episode's own; prompts are laid out there too,
so that a long observation does not hold up the event loop. As many calls run side by side as there are `places`.

User code that raises, hangs or returns nonsense ends its own episode as a Failure named by the boundary it crossed;
nothing it does reaches the run. A hung call keeps its place (Python cannot take it back), so it is counted in
`RolloutResources.hung` and the worker process retires; an episode that finds no free place ends at its own deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from milepost.actors.acting import Acting
from milepost.actors.context import Context, Layout
from milepost.actors.engine import Completion, Engine, EngineError
from milepost.actors.episode_thread import closing_error, first_line
from milepost.actors.resources import OpenTurn, RolloutResources
from milepost.actors.stopwatch import Stopwatch
from milepost.actors.user_code import BoundaryError, UserCode, count_if_hung
from milepost.envs import chance
from milepost.envs.contract import EnvPathError, Reset, Step, build_env, observe_reset
from milepost.envs.messages import ToolSchema
from milepost.envs.plain_values import ContractError
from milepost.envs.types import Failure, Outcome, Task, Trajectory, Turn
from milepost.reward.reward import TurnText

_Seen = TypeVar("_Seen", Reset, Step)


@dataclass(slots=True)
class _Episode:
    resources: RolloutResources
    task: Task
    later: int  # seed of what chance decides after the start
    acting: Acting
    user: UserCode
    watch: Stopwatch = field(default_factory=Stopwatch)
    env: Any = None
    turns: list[Turn] = field(default_factory=list)
    texts: list[TurnText] = field(default_factory=list)
    asked: OpenTurn | None = None  # in the turn under way
    cohort: str = ""
    success_reported: bool = False
    context_full: bool = False

    async def reset(self) -> Reset:
        def open_env() -> Reset:
            self.env = build_env(self.task.env, self.task.options)
            returned = chance.reset(self.env, seed=self.task.seed, later=self.later)
            return self.looked_at(returned, observe_reset(returned, self.env), "reset")

        reset: Reset = await self.user.call("reset", open_env, gate=self.resources.places)
        self.cohort = self.cohort if reset.cohort is None else reset.cohort
        return reset

    async def layout_for(self, tools: Sequence[ToolSchema]) -> Layout:
        """The layout of the conversation; tools of the environment are told of there, and calls of them are read."""
        if not tools:
            return self.resources.dialogue
        self.user.waits_for = "vLLM's parsers of tool calls"
        try:
            layout, self.acting.reader = await asyncio.to_thread(self.resources.readers.reader, tools)
        except ValueError as error:  # the chat template and the parsers speak of what the environment asks for
            raise BoundaryError("env", error) from error
        except Exception as error:
            raise BoundaryError("infra", error) from error
        return layout

    async def step(self, completion: Completion) -> Step:
        def ask_env() -> Step:
            returned, step = self.acting.step(self.env, completion.response_ids, completion.stopped)
            return self.looked_at(returned, step, "step")

        step: Step = await self.user.call("step", ask_env, gate=self.resources.places)
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
        ids: list[int] = await self.user.call("the layout of a prompt", prompt)
        return ids

    async def play(self, engine: Engine) -> Outcome:
        """Take turns with `engine` until the end; fills `turns`."""
        limits = self.resources.limits
        reset = self.acting.state = await self.reset()
        context = Context(await self.layout_for(reset.tools), window_turns=limits.window_turns)
        prompt = await self.lay_out(partial(context.open, reset.said))
        anchor, observation = reset.anchor, reset.observation
        while True:
            if len(prompt) > limits.max_prompt_tokens:
                return self.cut_short(len(prompt))
            asked_s = self.watch.seconds
            self.asked = OpenTurn(prompt, None, asked_s)
            completion, seconds = await self.respond(engine, prompt)
            self.asked = OpenTurn(prompt, completion, asked_s)
            started = time.monotonic()
            response = self.resources.decode(completion.response_ids)
            step = await self.step(completion)
            turn = _turn(prompt, completion, anchor, step, (asked_s, seconds, time.monotonic() - started))
            self.turns.append(turn)
            text = TurnText(observation=observation, response=response, next_observation=step.observation)
            self.texts.append(text)
            self.asked = None
            anchor, observation = step.anchor, step.observation
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
            raise BoundaryError("env", ContractError(message))
        self.context_full = True
        return "truncated"

    async def respond(self, engine: Engine, prompt: list[int]) -> tuple[Completion, float]:
        started = time.monotonic()
        self.user.waits_for = "the engine"
        try:
            completion = await engine.generate(prompt)
        except EngineError as error:
            raise BoundaryError("engine", error) from error
        return completion, time.monotonic() - started

    def close(self) -> None:
        """Have the environment closed and let the thread end, without waiting for either."""
        env, self.env = self.env, None
        observer = self.resources.observer

        def close() -> None:
            failed = closing_error(env) if env is not None else None
            if observer is not None:
                observer.closed(failed)

        with contextlib.suppress(RuntimeError):  # there was no thread to be had, so there is no environment
            count_if_hung(self.resources, self.user.thread.submit(close, self.resources.places))
        self.user.thread.end()


def _turn(
    prompt: list[int], completion: Completion, anchor: str, step: Step, seconds: tuple[float, float, float]
) -> Turn:
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
            started_s=seconds[0],
            generate_s=seconds[1],
            env_s=seconds[2],
            stopped=completion.stopped,
        )
    except ValueError as error:  # the environment's values were checked already: what is left is the engine's
        raise BoundaryError("engine", error) from error


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
    episode = _Episode(resources, task, later, Acting(resources.decode), UserCode(resources), cohort=task.cohort)
    try:
        async with asyncio.timeout(resources.limits.episode_timeout_s):
            with resources.engine_for_episode() as engine:
                outcome = await episode.play(engine)
            try:
                trajectory = Trajectory(
                    task=task,
                    group_id=group_id,
                    index=index,
                    turns=episode.turns,
                    outcome=outcome,
                    started_at=episode.watch.started_at,
                    seconds=episode.watch.seconds,
                    cohort=episode.cohort,
                    success_reported=episode.success_reported,
                    context_full=episode.context_full,
                )
            except ValueError as excess:  # each turn was in order: it is their rewards together
                raise BoundaryError("env", ContractError(str(excess))) from excess
            return resources.recorded(await episode.user.score(trajectory, episode.texts), episode.turns, None)
    except BoundaryError as failed:
        boundary, error = failed.boundary, failed.error
    except TimeoutError:
        limit = f"actors.episode_timeout_s = {resources.limits.episode_timeout_s:g}"
        boundary, error = "infra", TimeoutError(f"episode longer than {limit}; it waited for {episode.user.waits_for}")
    finally:
        episode.close()
    failure = Failure(
        task=task,
        group_id=group_id,
        index=index,
        boundary=boundary,
        error=type(error.__cause__ if isinstance(error, EnvPathError) and error.__cause__ else error).__name__,
        message=first_line(error),
        turn=len(episode.turns),
        started_at=episode.watch.started_at,
        seconds=episode.watch.seconds,
        cohort=episode.cohort,
    )
    return resources.recorded(failure, episode.turns, episode.asked)
