"""What the whole suite shares: one small policy as a model folder, and one real engine that serves it."""

import os
from collections.abc import Iterator
from pathlib import Path

# Before anything that reads them at import: nothing is downloaded, and one test run leaves other cores alone.
os.environ.update({"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "WARNING"})

import hypothesis
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from milepost.actors.engine import EngineConfig, SamplingConfig
from milepost.cluster.base.surroundings import make_usable
from milepost.envs.answer import write_answer
from milepost.envs.dialogue import Dialogue
from milepost.envs.frozen_lake import MOVES, FrozenLakeText
from tests.actors.running_engine import RunningEngine, running_engine

list(make_usable())  # as a run does: engines of the tests make sockets too

# On a busy machine an example may take any time: hypothesis is to look for wrong values, not for slow ones.
hypothesis.settings.register_profile("milepost", deadline=None)
hypothesis.settings.load_profile("milepost")

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with a few merges from FrozenLake, so that text has more than one encoding, as in real ones."""
    corpus = [FrozenLakeText().reset(seed=seed)[0] for seed in range(20)] + [write_answer(move) for move in MOVES]
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bare.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=384, special_tokens=special, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bare, eos_token="<|im_end|>", extra_special_tokens=["<|im_start|>"], chat_template=CHATML
    )


def write_tiny_policy(folder: Path) -> Path:
    """A random Llama of 0.4 M parameters with a tied output head, and its tokenizer, as a Hugging Face folder."""
    tokenizer = _tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.1,  # far from uniform, so that log-probs tell one set of weights from another
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with services first: they are the long ones, and short ones then fill both processes to the end."""
    items.sort(key=lambda item: item.get_closest_marker("services") is None)


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one small policy for the whole session."""
    return write_tiny_policy(tmp_path_factory.mktemp("tiny_policy"))


@pytest.fixture(scope="session")
def dialogue(tiny_policy: Path) -> Dialogue:
    """The token layout of conversations with `tiny_policy`."""
    return Dialogue(AutoTokenizer.from_pretrained(tiny_policy))


@pytest.fixture(scope="session")
def engine(tiny_policy: Path, dialogue: Dialogue) -> Iterator[RunningEngine]:
    """One real vLLM engine for the session, at version 0 of `tiny_policy`; a test that updates it puts it back."""
    config, sampling = EngineConfig(max_model_len=512, max_num_seqs=32), SamplingConfig(temperature=0.8, max_tokens=96)
    with running_engine(tiny_policy, dialogue, config, sampling) as running:
        yield running
