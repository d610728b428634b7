"""An engine of ours in this process, on a model folder, with no Ray around it: for one episode, or one conversation."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from milepost.actors.agents.calls import EpisodeCalls
from milepost.actors.agents.lineages import Lineages
from milepost.actors.agents.replies import Replies
from milepost.actors.engine import Engine, EngineConfig, environment
from milepost.actors.tool_reading import ToolReaders
from milepost.cluster.base.exits import ConfigError, DependencyLost
from milepost.cluster.base.surroundings import make_usable
from milepost.cluster.live.plan import PolicySettings
from milepost.envs.chat_template import TemplateError
from milepost.envs.dialogue import Dialogue
from milepost.learner.first_policy.model_check import ModelError, check_model, load_tokenizer

_MOST_CONTEXT = 4096
"""Tokens of a context that nobody asked for; longer ones take memory."""
_UNBOUNDED = 2**62
_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnEngine:
    """An engine that serves, and how its tokens are read and written."""

    engine: Engine
    dialogue: Dialogue
    readers: ToolReaders
    decode: Callable[[list[int]], str]
    max_prompt_tokens: int

    @property
    def replies(self) -> Replies:
        """What reads answers to agent programs."""
        return Replies(self.readers, self.decode, self.dialogue.control_tokens)

    def calls(self) -> EpisodeCalls:
        """A conversation without an end, exact to the token as in a run."""
        return EpisodeCalls(
            engine=self.engine,
            lineages=Lineages(self.dialogue),
            read=self.replies.read,
            decode=self.decode,
            max_calls=_UNBOUNDED,
            max_prompt_tokens=self.max_prompt_tokens,
            max_tokens=0,
        )


@contextlib.asynccontextmanager
async def started(model: Path, settings: PolicySettings) -> AsyncIterator[OwnEngine]:
    """An engine on `model`, ended afterwards. Raises ConfigError for a folder that cannot serve, DependencyLost."""
    config = _judged(model, settings)
    tokenizer = load_tokenizer(model)
    dialogue = Dialogue(tokenizer, settings.actors.system_prompt)
    names = {"tool_parser": settings.actors.tool_parser, "reasoning_parser": settings.actors.reasoning_parser}
    os.environ.update(environment(config))
    list(make_usable())
    from milepost.actors.vllm import VLLMEngine  # vLLM: it reads the variables when it comes in

    engine = None
    try:
        stop = dialogue.stop_token_ids
        engine = VLLMEngine(model, config, settings.sampling, version=0, stop_token_ids=stop, seed=_SEED)
        await engine.start()
    except Exception as error:  # vLLM raises many kinds
        if engine is not None:
            engine.shutdown()
        raise DependencyLost(f"vLLM cannot serve {model}: {' '.join(str(error).split())[:300]}") from error
    try:
        yield OwnEngine(
            engine=engine,
            dialogue=dialogue,
            readers=ToolReaders(tokenizer, dialogue, **names),
            decode=lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)),
            max_prompt_tokens=config.max_model_len - settings.sampling.max_tokens,
        )
    finally:
        engine.shutdown()


def _judged(model: Path, settings: PolicySettings) -> EngineConfig:
    """The engine's settings for a model that passed. Raises ConfigError."""
    config = settings.engine
    wanted = 1 if settings.takes_models_context else config.max_model_len
    try:
        found = check_model(model, context_tokens=wanted, system_prompt=settings.actors.system_prompt)
    except (ModelError, TemplateError) as error:
        raise ConfigError(str(error)) from error
    context = int(min(_MOST_CONTEXT, found.positions)) if settings.takes_models_context else config.max_model_len
    if settings.sampling.max_tokens >= context:
        raise ConfigError(
            f"sampling.max_tokens = {settings.sampling.max_tokens} leaves no room for a prompt in a context of "
            f"{context} tokens: lower it"
        )
    # The first answer waits for kernels that are compiled; nobody else waits behind it.
    return config.model_copy(update={"max_model_len": context, "request_timeout_s": config.start_timeout_s})
