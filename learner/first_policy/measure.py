"""How a policy that was just made plays: sampled episodes on training tasks, without an engine.

Reinforcement learning compares the episodes of a group. Where all of them come to the same there is nothing to compare,
and that is better known before a run than after it. Prompts are laid out as in a run, by appending. An episode that the
environment breaks off by an error is left out, as it is in a run. Not promised: the numbers of a run, whose engine,
window and reward are its own, or that an environment returns.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from milepost.envs import chance
from milepost.envs.contract import Reset, Step, build_env, observe_reset, observe_step
from milepost.envs.dialogue import Dialogue
from milepost.envs.messages import Said
from milepost.envs.types import Task
from milepost.learner.first_policy.config import ResponseLimits

logger = logging.getLogger(__name__)
_EPISODES = 64
_SIDE_BY_SIDE = 16
_MOST_S = 60.0
"""After which no further episodes are begun."""
_ALIKE_SHARE = 0.95


class Layout(Protocol):
    """How a conversation becomes token ids; a `Dialogue` is one."""

    def opening(self, said: Said) -> list[int]:
        """Ids of the first prompt."""
        ...

    def continuation(self, said: Said, closed: bool) -> list[int]:
        """Ids between a response, which ended by itself if `closed`, and the next one."""
        ...


Act = Callable[[Any, list[int], bool], Step]
"""What an environment makes of a response, which ended by itself or not."""
Begin = Callable[[Reset], tuple[Layout, Act]]
"""The layout that tells of the tools that were declared at a reset, and what becomes of responses: as in a run."""
ToolUse = Callable[[PreTrainedTokenizerFast, Dialogue], Begin]
"""How a policy with this tokenizer uses tools."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What the episodes came to."""

    episodes: int
    """Those that ended without an error."""
    successes: int
    alike: int
    """Episodes with the most frequent result: success or not where the environment reports it, else the return."""

    @property
    def teaches_nothing(self) -> bool:
        """Whether hardly any group would hold different results."""
        return self.episodes > 0 and self.alike >= _ALIKE_SHARE * self.episodes


@dataclass(slots=True)
class _Episode:
    task: Task
    number: int
    env: Any = None
    layout: Layout | None = None
    act: Act | None = None
    ids: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    success: bool = False
    result: bool | float | None = None
    """None while it goes on."""
    error: str = ""

    @contextlib.contextmanager
    def calling(self) -> Iterator[None]:
        """Around user code: what it raises ends this episode."""
        try:
            yield
        except (Exception, SystemExit, GeneratorExit) as error:  # a user's environment may raise anything
            logger.warning("an episode of the first policy failed: %s: %s", type(error).__name__, error)
            self.error, self.result = type(error).__name__, 0.0


def measure(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tasks: Sequence[Task],
    limits: ResponseLimits,
    tool_use: ToolUse | None = None,
) -> Measured:
    """Play up to 64 episodes, sampled at `limits.temperature`; fewer where that takes longer than a minute.

    `tool_use` may be None where no environment has tools.
    """
    dialogue = Dialogue(tokenizer)
    table = _Table(model, tokenizer, dialogue, limits, tool_use(tokenizer, dialogue) if tool_use else None)
    played: list[_Episode] = []
    latest = time.monotonic() + _MOST_S
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        while len(played) < _EPISODES and (not played or time.monotonic() < latest):
            numbers = range(len(played), min(len(played) + _SIDE_BY_SIDE, _EPISODES))
            played += table.play([_Episode(tasks[n % len(tasks)], n) for n in numbers])
    finished = [one for one in played if not one.error]
    results = Counter(one.result for one in finished)
    return Measured(
        episodes=len(finished),
        successes=sum(one.success for one in finished),
        alike=max(results.values(), default=0),
    )


@dataclass(frozen=True, slots=True)
class _Table:
    """What all episodes share."""

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    dialogue: Dialogue
    limits: ResponseLimits
    begin: Begin | None

    def play(self, episodes: list[_Episode]) -> list[_Episode]:
        """Play `episodes` side by side, a turn of all of them at a time."""
        room = self.model.config.max_position_embeddings - self.limits.max_tokens
        try:
            for one in episodes:
                with one.calling():
                    self._begin(one)
            while True:
                for one in episodes:
                    if one.result is None and (len(one.ids) > room or len(one.rewards) >= self.limits.max_turns):
                        one.result = sum(one.rewards)
                going = [one for one in episodes if one.result is None]
                if not going:
                    return episodes
                for one, response in zip(going, _responses(self.model, self.dialogue, going, self.limits), strict=True):
                    with one.calling():
                        _take(one, response, response[-1] in self.dialogue.stop_token_ids)
        finally:
            for one in episodes:
                with one.calling():
                    if one.env is not None:
                        one.env.close()

    def _begin(self, one: _Episode) -> None:
        one.env = build_env(one.task.env, one.task.options)
        later = chance.episode_seed(one.task.seed, "measure", one.number)
        reset = observe_reset(chance.reset(one.env, seed=one.task.seed, later=later), one.env)
        one.layout, one.act = self.dialogue, self._say
        if reset.tools:
            assert self.begin is not None
            one.layout, one.act = self.begin(reset)
        one.ids = one.layout.opening(reset.said)

    def _say(self, env: Any, response: list[int], _: bool) -> Step:
        text = str(self.tokenizer.decode(response, skip_special_tokens=True))
        return observe_step(env.step(text), text)


def _responses(
    model: LlamaForCausalLM, dialogue: Dialogue, episodes: Sequence[_Episode], limits: ResponseLimits
) -> list[list[int]]:
    """What the policy says to each prompt, the end of the turn included where it said it."""
    width, stops = max(len(one.ids) for one in episodes), dialogue.stop_token_ids
    rows = torch.tensor([[stops[0]] * (width - len(one.ids)) + one.ids for one in episodes])
    mask = torch.tensor([[0] * (width - len(one.ids)) + [1] * len(one.ids) for one in episodes])
    sampled = model.generate(
        rows,
        attention_mask=mask,
        do_sample=True,
        temperature=limits.temperature,
        top_k=0,
        max_new_tokens=limits.max_tokens,
        eos_token_id=stops,
        pad_token_id=stops[0],
    )
    return [_until_stop(row, stops) for row in sampled[:, width:].tolist()]


def _until_stop(ids: list[int], stops: Sequence[int]) -> list[int]:
    end = next((place + 1 for place, token in enumerate(ids) if token in stops), len(ids))
    return ids[:end]


def _take(one: _Episode, response: list[int], is_closed: bool) -> None:
    """Let the environment answer."""
    assert one.layout is not None
    assert one.act is not None
    step = one.act(one.env, response, is_closed)
    one.rewards.append(step.reward)
    one.ids = one.ids + response + one.layout.continuation(step.said, closed=is_closed)
    if step.terminated or step.truncated or step.success:
        one.success = step.success if step.success is not None else step.terminated and sum(one.rewards) > 0
        is_reported = step.success is not None and step.success_trains
        one.result = one.success if is_reported else sum(one.rewards)
