"""The model of local mode: a small Llama and its tokenizer, made from the environments' own demonstrations, by share.

It speaks the environment's answer format and has seen many states, but it has imitated a noisy expert, so it plays
badly until reinforcement learning sharpens it. Made once per configuration, environment and code, then taken from the
cache. No model hub, no download. Not promised: equal weights on another machine or with another number of threads.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from milepost.envs import chance, chat_template
from milepost.envs import dialogue as dialogue_module
from milepost.envs.contract import load_env_class
from milepost.envs.dialogue import Dialogue
from milepost.envs.messages import text_of
from milepost.envs.scenarios import ScenarioConfig, ScenarioSet
from milepost.envs.types import Task
from milepost.learner.first_policy import byte_tokenizer, demonstrations, imitation
from milepost.learner.first_policy import layouts as layouts_module
from milepost.learner.first_policy.config import ResponseLimits, WarmupConfig
from milepost.learner.first_policy.layouts import Layouts
from milepost.learner.first_policy.measure import Measured, ToolUse, measure
from milepost.learner.first_policy.model_cache import build_once

_FACTS = "warmup.json"


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen while the model was made; kept beside it."""

    longest_answer: str
    """Of a demonstration, in tokens of the model's own tokenizer."""
    longest_answer_tokens: int
    """With the end of the turn."""
    demonstrations_solved: float
    """Share of them."""
    measured: Measured


def warm_up(
    config: WarmupConfig,
    scenarios: ScenarioConfig | Sequence[ScenarioConfig],
    cache_dir: Path,
    limits: ResponseLimits,
    progress: Callable[[str], None] = lambda _: None,
    tool_use: ToolUse | None = None,
) -> Path:
    """A Hugging Face folder (safetensors, tokenizer, chat template) under `cache_dir`, made if it is not there yet.

    `progress` gets a line of text now and then, and at the end what the policy is worth; `tool_use` may be None where
    no environment has tools. Raises `DemonstrationError` for an environment without demonstrations, and for one that
    takes more tokens than `limits.max_tokens`, `EnvPathError` and `ContractError` for a broken one, `ModelCacheError`
    if the cache cannot be used.
    """
    tasks = ScenarioSet(scenarios).by_share(config.episodes)
    folder = cache_dir / f"warmup-{_fingerprint(config, tasks)}"
    build_once(folder, lambda partial: _make(config, tasks, limits, partial, progress, tool_use))
    facts = msgspec.json.decode((folder / _FACTS).read_bytes(), type=Facts)
    _require_room(facts.longest_answer, facts.longest_answer_tokens, limits)
    for line in _worth(facts):
        progress(line)
    return folder


def _make(
    config: WarmupConfig,
    tasks: list[Task],
    limits: ResponseLimits,
    folder: Path,
    progress: Callable[[str], None],
    tool_use: ToolUse | None,
) -> None:
    transcripts = demonstrations.demonstrate(
        tasks,
        episodes=config.episodes,
        noise=config.noise,
        draws=config.draws,
        seed=config.seed,
        progress=progress,
    )
    tokenizer = _tokenizer(config, transcripts)
    tokens, longest = _longest_answer(transcripts, Layouts(Dialogue(tokenizer)))
    _require_room(longest, tokens, limits)
    model = _imitated(config, transcripts, tokenizer, progress)
    model.save_pretrained(folder)
    tokenizer.model_max_length = config.max_positions
    tokenizer.save_pretrained(folder)
    progress("warm-up: playing a few episodes with the policy")
    with _threads(config.num_threads):
        measured = measure(model, tokenizer, tasks, limits, tool_use)
    facts = Facts(
        longest_answer=longest,
        longest_answer_tokens=tokens,
        demonstrations_solved=sum(any(turn.solved for turn in one) for one in transcripts) / len(transcripts),
        measured=measured,
    )
    (folder / _FACTS).write_bytes(msgspec.json.encode(facts))


def _imitated(
    config: WarmupConfig,
    transcripts: list[list[demonstrations.DemonstratedTurn]],
    tokenizer: PreTrainedTokenizerFast,
    progress: Callable[[str], None],
) -> LlamaForCausalLM:
    examples = imitation.encode_transcripts(transcripts, Dialogue(tokenizer), max_positions=config.max_positions)
    batches = imitation.make_batches(examples, batch_tokens=config.batch_tokens, pad_id=tokenizer.pad_token_id)
    special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    shape = llama_config(config, len(tokenizer), **special)
    model = imitation.new_llama(shape, seed=config.seed)
    progress(f"warm-up: {model.num_parameters() / 1e6:.1f} M parameters, {len(batches)} batches x {config.epochs}")
    with _threads(config.num_threads):
        imitation.imitate(
            model,
            batches,
            epochs=config.epochs,
            learning_rate=config.learning_rate,
            seed=config.seed,
            progress=progress,
        )
    return model


def _tokenizer(
    config: WarmupConfig, transcripts: Sequence[Sequence[demonstrations.DemonstratedTurn]]
) -> PreTrainedTokenizerFast:
    """Trained on what was said; where there are tools, on that as the chat template writes it, tools and calls too."""
    turns = [turn for transcript in transcripts for turn in transcript]
    if not any(turn.tools for turn in turns):
        texts = (text for turn in turns for text in (text_of(turn.observation), *turn.answers))
        return byte_tokenizer.train_tokenizer(texts, vocab_size=config.vocab_size)
    bytewise = byte_tokenizer.train_tokenizer([], vocab_size=config.vocab_size, has_tools=True)
    layouts = Layouts(Dialogue(bytewise))
    written = (bytewise.decode(ids, skip_special_tokens=True) for ids in _laid_out(transcripts, layouts))
    return byte_tokenizer.train_tokenizer(written, vocab_size=config.vocab_size, has_tools=True)


def _laid_out(
    transcripts: Sequence[Sequence[demonstrations.DemonstratedTurn]], layouts: Layouts
) -> Iterator[list[int]]:
    """What was said in `transcripts`, one after the other."""
    for transcript in transcripts:
        for number, turn in enumerate(transcript):
            layout = layouts.of(turn.tools)
            yield layout.following(turn.observation) if number else layout.opening(turn.observation)
            yield from map(layout.response, turn.answers)


def _longest_answer(
    transcripts: Sequence[Sequence[demonstrations.DemonstratedTurn]], layouts: Layouts
) -> tuple[int, str]:
    """Tokens and text of the demonstrated answer that takes most."""
    answers = (
        (layouts.of(turn.tools), answer) for transcript in transcripts for turn in transcript for answer in turn.answers
    )
    layout, longest = max(answers, key=lambda answer: len(answer[0].response(answer[1])))
    text = longest if isinstance(longest, str) else layout.dialogue.spoken(longest)
    return len(layout.response(longest)), text


def _require_room(answer: str, tokens: int, limits: ResponseLimits) -> None:
    if tokens > limits.max_tokens:
        raise demonstrations.DemonstrationError(
            f"the demonstration {answer[:60]!r} takes {tokens} tokens, but sampling.max_tokens is {limits.max_tokens}: "
            "the policy could never say it; raise sampling.max_tokens, or let demonstration(rng, noise) say less"
        )


def _worth(facts: Facts) -> Iterator[str]:
    """What a run can expect of the policy, for people."""
    found = facts.measured
    if not found.episodes:
        yield "warm-up: no episode of the policy came to its end, so it could not be measured; the log says why"
        return
    yield (
        f"warm-up: the policy succeeds in {found.successes} of {found.episodes} episodes, the demonstrations that it "
        f"imitates in {facts.demonstrations_solved:.0%}"
    )
    if not found.teaches_nothing:
        return
    alike = f"warm-up: {found.alike} of {found.episodes} episodes come to the same, so groups have nothing to compare"
    if 2 * found.successes > found.episodes:
        yield f"{alike}: little is left to learn; take harder tasks, or raise model.warmup.noise"
    else:
        yield (
            f"{alike} and hardly anything can be learnt: lower model.warmup.noise if demonstrations seldom succeed, "
            "raise model.warmup.episodes or epochs if they do, or take easier tasks"
        )


def llama_config(config: WarmupConfig, vocab_size: int, **token_ids: int | None) -> LlamaConfig:
    """The shape of the small model; `token_ids` are transformers' names of special tokens."""
    num_heads = config.hidden_size // config.head_dim
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_positions,
        tie_word_embeddings=True,
        # The usual 0.02 suits wide models; at this width attention then stays uniform for the whole warm-up.
        initializer_range=config.hidden_size**-0.5,
        **token_ids,
    )


def _fingerprint(config: WarmupConfig, tasks: list[Task]) -> str:
    """Changes with everything the model is made from: configuration, tasks, code, environment, transformers."""
    digest = hashlib.sha256(f"{transformers.__version__} {torch.__version__}".encode())
    asked = [config.model_dump(mode="json"), [[task.env, task.seed, task.options] for task in tasks]]
    digest.update(json.dumps(asked, sort_keys=True).encode())
    sources = [
        sys.modules[__name__],
        sys.modules[Measured.__module__],
        chance,
        byte_tokenizer,
        demonstrations,
        imitation,
        layouts_module,
        dialogue_module,
        chat_template,
    ]
    files = [inspect.getfile(source) for source in sources]
    files += [inspect.getfile(load_env_class(path)) for path in sorted({task.env for task in tasks})]
    for file in files:
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def _threads(num_threads: int) -> Iterator[None]:
    """Give torch `num_threads` CPU threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
