"""A policy that learns one conversation with tool calls by heart, and an engine that serves it for a while."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch
from transformers import AutoModelForCausalLM

from milepost.actors.context import Context
from milepost.envs.dialogue import Dialogue
from milepost.envs.messages import AssistantMessage, Message, Said
from tests.actors.running_engine import RunningEngine
from tests.conftest import CHATML

_CALLS = (
    """{% for c in m.tool_calls or [] %}{{ '<tool_call>\n{"name": "' + c.function.name + '", "arguments": ' """
    """+ c.function.arguments | tojson + '}\n</tool_call>' }}{% endfor %}"""
)
_TURNS = CHATML.replace(" + '<|im_end|>\n' }}", " }}" + _CALLS + "{{ '<|im_end|>\n' }}")
_STEPS, _ENOUGH = 1500, 0.0005
"""A conversation of 130 such tokens is said to its end in 94 of 100 episodes."""


def template(shown: str) -> str:
    """A chat template with calls as Hermes models write them, that shows `shown` of each `tool`."""
    told = (
        "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ "
        + shown
        + " }}{% endfor %}<|im_end|>\n{% endif %}"
    )
    return told + _TURNS


def by_heart(
    layout: Dialogue, said: Said, exchanges: Sequence[tuple[AssistantMessage, Sequence[Message]]]
) -> tuple[list[int], list[bool]]:
    """The ids of a conversation that begins with `said`, and which are learnt: those of the answers in `exchanges`.

    Each answer comes with what the environment says to it, which is nothing for the last one.
    """
    context = Context(layout)
    ids = context.open(said)
    learnt = [False] * len(ids)
    for answer, results in exchanges:
        response = layout.response(answer)
        learnt += [True] * len(response)
        ids = context.extend(response, True, results) if results else [*ids, *response]
        learnt += [False] * (len(ids) - len(learnt))
    return ids, learnt


@contextmanager
def taught(engine: RunningEngine, policy: Path, ids: list[int], learnt: list[bool], folder: Path) -> Iterator[None]:
    """`engine` serves `policy` after it has learnt by heart those of `ids` that are `learnt`."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(policy, trust_remote_code=False)
    _write(model, before := folder / "before")
    labels = torch.tensor([[token if known else -100 for token, known in zip(ids, learnt, strict=True)]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(_STEPS):
        loss = model(input_ids=torch.tensor([ids]), labels=labels).loss
        if loss.item() < _ENOUGH:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < _ENOUGH
    _write(model, after := folder / "taught")
    engine.run(_serve(engine, after, 1))
    try:
        yield
    finally:
        engine.run(_serve(engine, before, 0))


def _write(model: torch.nn.Module, path: Path) -> None:
    safetensors.torch.save_file({name: tensor.data for name, tensor in model.named_parameters()}, path)


async def _serve(engine: RunningEngine, path: Path, version: int) -> None:
    await engine.engine.pause()
    await engine.engine.load(str(path))
    await engine.engine.commit(version, rollback=version == 0)
