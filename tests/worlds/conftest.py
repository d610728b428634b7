"""One engine for all worlds: a tiny random policy that knows tools, with room for their long prompts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from milepost.actors.engine import EngineConfig, SamplingConfig
from milepost.envs.dialogue import Dialogue
from tests.actors.running_engine import RunningEngine, running_engine
from tests.families.chat_templates import QWEN_25

ROOT = Path(__file__).parent.parent.parent
CONTEXT = 20_480
VOCABULARY = 2048


def _tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE that has read our documents, so that prompts of 30 000 characters leave room."""
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bare.train_from_iterator([path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("docs/*.md"))], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bare, chat_template=QWEN_25, eos_token="<|im_end|>", clean_up_tokenization_spaces=False
    )


@pytest.fixture(scope="session")
def world_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world_policy")
    tokenizer = _tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def world_dialogue(world_policy: Path) -> Dialogue:
    return Dialogue(AutoTokenizer.from_pretrained(world_policy))


@pytest.fixture(scope="session")
def world_engine(world_policy: Path, world_dialogue: Dialogue) -> Iterator[RunningEngine]:
    config = EngineConfig(max_model_len=CONTEXT, max_num_seqs=20, start_timeout_s=900, request_timeout_s=300)
    sampling = SamplingConfig(max_tokens=24)
    with running_engine(world_policy, world_dialogue, config, sampling) as running:
        yield running
