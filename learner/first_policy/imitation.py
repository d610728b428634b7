"""Supervised training of a small Llama on transcripts: the loss falls on the expert's answers and nothing else.

Where the expert was asked several times in a state, the target of a token is the share of answers that go on with it,
given that they began alike. In expectation that is the cross-entropy on one answer, with far less variance: with a
noisy expert, a small model learns from 16 answers what it does not learn from one. Plain torch, fp32, one process.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Sequence

import msgspec
import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from milepost.envs.dialogue import Dialogue
from milepost.learner.first_policy.countdown import Countdown
from milepost.learner.first_policy.demonstrations import DemonstratedTurn, DemonstrationError
from milepost.learner.first_policy.layouts import Layouts

_WARM_UP_SHARE = 0.05
_LAST_LR_SHARE = 0.02
_MAX_GRAD_NORM = 1.0
_MEAN_OF_LAST = 100


class Target(msgspec.Struct, frozen=True):
    """The token after `position` should be `token` with probability `weight`."""

    position: int
    token: int
    weight: float


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """One transcript in token ids. The weights of the targets of a position sum to 1."""

    token_ids: list[int]
    targets: list[Target]


class ExampleBatch(msgspec.Struct, frozen=True, kw_only=True):
    """Right-padded examples as tensors; K targets in total. `positions` index the flattened `[B * L]` rows."""

    token_ids: Tensor
    """`[B, L]`"""
    positions: Tensor
    """`[K]`"""
    tokens: Tensor
    """`[K]`"""
    weights: Tensor
    """`[K]`"""


def encode_transcripts(
    transcripts: Sequence[Sequence[DemonstratedTurn]], dialogue: Dialogue, *, max_positions: int
) -> list[Example]:
    """The transcripts as a policy would see and write them, each cut after the last whole turn that fits.

    Raises `DemonstrationError` if not even the first turn fits, and `ObservationError` for a forged control token.
    """
    layouts = Layouts(dialogue)
    examples = []
    for transcript in transcripts:
        ids: list[int] = []
        targets: list[Target] = []
        for turn in transcript:
            layout = layouts.of(turn.tools)
            prompt = layout.following(turn.observation) if ids else layout.opening(turn.observation)
            answers = [layout.response(answer) for answer in turn.answers]
            length = len(ids) + len(prompt) + len(answers[0])
            if length > max_positions:
                break
            ids = ids + prompt
            targets += _targets(answers, first_position=len(ids) - 1)
            ids = ids + answers[0]
        if not ids:
            raise DemonstrationError(
                f"the first turn of a demonstration takes {length} tokens, but model.warmup.max_positions is "
                f"{max_positions}; raise it"
            )
        examples.append(Example(token_ids=ids, targets=targets))
    return examples


def _targets(answers: list[list[int]], *, first_position: int) -> list[Target]:
    """Targets along the first of `answers`: at token j, the tokens of all answers that share its first j tokens."""
    played = answers[0]
    targets = []
    for j in range(len(played)):
        following = Counter(answer[j] for answer in answers if answer[:j] == played[:j])
        total = following.total()
        targets += [Target(first_position + j, token, count / total) for token, count in following.items()]
    return targets


def make_batches(examples: Sequence[Example], *, batch_tokens: int, pad_id: int) -> list[ExampleBatch]:
    """Batches of examples of similar length, at most `batch_tokens` tokens with padding; a longer one stands alone."""
    rows: list[list[Example]] = []
    for example in sorted(examples, key=lambda e: len(e.token_ids)):
        if not rows or (len(rows[-1]) + 1) * len(example.token_ids) > batch_tokens:
            rows.append([])
        rows[-1].append(example)
    return [_stack(row, pad_id) for row in rows]


def _stack(examples: list[Example], pad_id: int) -> ExampleBatch:
    length = max(len(example.token_ids) for example in examples)
    padded = [example.token_ids + [pad_id] * (length - len(example.token_ids)) for example in examples]
    flat = [(row * length + t.position, t) for row, example in enumerate(examples) for t in example.targets]
    return ExampleBatch(
        token_ids=torch.tensor(padded),
        positions=torch.tensor([position for position, _ in flat]),
        tokens=torch.tensor([target.token for _, target in flat]),
        weights=torch.tensor([target.weight for _, target in flat]),
    )


def new_llama(config: LlamaConfig, *, seed: int) -> LlamaForCausalLM:
    """A randomly initialised fp32 model; the caller's random state is left as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).to(torch.float32)


def imitation_loss(model: LlamaForCausalLM, batch: ExampleBatch) -> Tensor:
    """Mean cross-entropy in nats per answer token, a scalar.

    Padding stands to the right of all targets and attention is causal, so no mask is needed.
    """
    hidden = model.model(input_ids=batch.token_ids, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden.flatten(0, 1)[batch.positions])
    logprobs = functional.log_softmax(logits.float(), dim=-1)
    chosen = logprobs.gather(1, batch.tokens[:, None]).squeeze(1)
    return -(chosen * batch.weights).sum() / batch.weights.sum()


def imitate(
    model: LlamaForCausalLM,
    batches: Sequence[ExampleBatch],
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
    progress: Callable[[str], None],
) -> None:
    """Train `model` in place with AdamW; `progress` gets the mean loss of the last 100 steps, nats per answer token."""
    schedule = _schedule(len(batches), epochs, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    share = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _lr_share(step, len(schedule)))
    model.train()
    losses: deque[float] = deque(maxlen=_MEAN_OF_LAST)
    clock = Countdown("warm-up", len(schedule), progress)
    for step, index in enumerate(schedule, start=1):
        loss = imitation_loss(model, batches[index])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), _MAX_GRAD_NORM)
        optimizer.step()
        share.step()
        losses.append(loss.item())
        clock.done(step, "steps", f", loss {sum(losses) / len(losses):.3f}")
    model.eval()


def _schedule(num_batches: int, epochs: int, seed: int) -> list[int]:
    """Indices of batches, shuffled anew in every epoch."""
    rng = random.Random(seed)
    return [index for _ in range(epochs) for index in rng.sample(range(num_batches), num_batches)]


def _lr_share(step: int, num_steps: int) -> float:
    """Share of the learning rate at `step`: a linear rise, then a linear fall."""
    return min((step + 1) / (_WARM_UP_SHARE * num_steps + 1), max(_LAST_LR_SHARE, 1 - step / num_steps))
