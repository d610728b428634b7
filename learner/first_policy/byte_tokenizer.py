"""A small tokenizer trained on an environment's own texts, with a minimal chat template.

Byte-level BPE (Sennrich et al., arXiv 1508.07909, over bytes as in GPT-2): any text can be encoded and comes back
unchanged, and what is frequent comes out short. A tag such as `</answer>`, a word and a single other symbol are the
largest pieces that can become one token, so the cell of a grid is always a token of its own.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, END = "<|pad|>", "<|end|>"
_ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]
_PIECES = r"</?[A-Za-z]+>| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s+(?!\S)|\s+"

# ChatML with one token per role instead of three, so that a turn costs three tokens besides its texts.
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' ~ message.role) }}"
    "{% endif %}"
    "<|{{ message.role }}|>{{ message.content }}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


# The same with tools, whose calls are those of Hermes: a tool costs its name, its parameters and its description, and a
# call besides its name and values the tags and two tokens.
_TOOL_TEMPLATE = (
    "{% if tools %}<|system|>{% if messages[0].role == 'system' %}{{ messages[0].content + '\\n' }}{% endif %}Tools:"
    "{% for tool in tools %}{% set f = tool.function %}{{ '\\n' + f.name + ' ' + f.parameters.properties | tojson }}"
    "{% if f.parameters['$defs'] %}{{ ' ' + f.parameters['$defs'] | tojson }}{% endif %}"
    "{% if f.description %}{{ ' ' + f.description }}{% endif %}{% endfor %}<|end|>{% endif %}"
    "{% for message in messages %}"
    "{% if message.role not in ['system', 'user', 'assistant', 'tool'] %}"
    "{{ raise_exception('unknown role ' ~ message.role) }}"
    "{% endif %}"
    "{% if not (tools and loop.first and message.role == 'system') %}<|{{ message.role }}|>{{ message.content }}"
    "{% for call in message.tool_calls or [] %}"
    """{{ '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}"""
    "{{ call.function.arguments if call.function.arguments is string else call.function.arguments | tojson }}"
    """{{ '}\\n</tool_call>' }}"""
    "{% endfor %}<|end|>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_CALL_TAGS = ["<tool_call>", "</tool_call>"]
_TOOL_PIECES = (
    r"""</?tool_call>|\n\{"name": "|", "arguments": \{"?|"""
    r"""</?[A-Za-z]+>| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+\n?|\s+(?!\S)|\s+"""
)


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, has_tools: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `vocab_size` tokens, 256 for bytes and 5 for control among them; `<|end|>` ends a turn.

    With tools 8 are for control, and its chat template tells of them.
    """
    roles = [*_ROLES, "<|tool|>"] if has_tools else _ROLES
    tags = _CALL_TAGS if has_tools else []
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_TOOL_PIECES if has_tools else _PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(tags),
        special_tokens=[PAD, END, *roles],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=roles,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _TOOL_TEMPLATE if has_tools else _CHAT_TEMPLATE
    return tokenizer
