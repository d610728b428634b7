"""Chat templates of five families, written after their documented formats, and a tokenizer for each.

Tokenizers are byte-level and without merges, so the ids of a text are the ids of its parts: what is compared is the
layout, not where a tokenizer cuts.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

_TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function "
    "signatures within <tools></tools> XML tags:\n<tools>{% for tool in tools %}{{ '\n' + tool | tojson }}{% endfor %}"
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
)
_RESULT = (
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}"
    "{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}"
)
_CALL = """{{ '<tool_call>\n{"name": "' + c.function.name + '", "arguments": ' + c.function.arguments | tojson }}{{ """
_CALL += """'}\n</tool_call>' }}"""
QWEN_25 = (
    "{% if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}{{ messages[0].content }}{% else %}"
    "You are a helpful assistant.{% endif %}{{ '\n\n' }}" + _TOOLS + "{% elif messages[0].role == 'system' %}"
    "{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{% else %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' or (m.role == 'system' and not loop.first) or "
    "(m.role == 'assistant' and not m.tool_calls) %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}<|im_start|>assistant{% if m.content %}{{ '\n' + m.content }}{% endif %}"
    "{% for c in m.tool_calls %}{{ '\n' }}" + _CALL + "{% endfor %}{{ '<|im_end|>\n' }}"
    "{% elif m.role == 'tool' %}" + _RESULT + "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN_3 = (
    "{% if tools %}<|im_start|>system\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}"
    + _TOOLS + "{% elif messages[0].role == 'system' %}"
    "{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{% endif %}"
    "{% set ns = namespace(looking=true, last_query=messages | length - 1) %}"
    "{% for m in messages[::-1] %}{% if ns.looking and m.role == 'user' %}"
    "{% set ns.looking = false %}{% set ns.last_query = messages | length - 1 - loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}{% set content = m.content %}{% set thought = '' %}"
    "{% if m.reasoning_content is string %}{% set thought = m.reasoning_content %}{% elif '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.index0 > ns.last_query and (loop.last or thought) %}"
    "{{ '<|im_start|>assistant\n<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}"
    "{% else %}{{ '<|im_start|>assistant\n' + content }}{% endif %}"
    "{% for c in m.tool_calls or [] %}{% if not loop.first or content %}{{ '\n' }}{% endif %}" + _CALL + "{% endfor %}"
    "{{ '<|im_end|>\n' }}{% elif m.role == 'tool' %}" + _RESULT + "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)  # fmt: skip
SMOLLM_2 = (
    "{% for m in messages %}{% if loop.first and messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% set header = '<|start_header_id|>%s<|end_header_id|>\n\n' %}"
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}{% set said = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set said = messages %}{% endif %}"
    "{{ header % 'system' }}{% if tools %}{{ 'Environment: ipython\n' }}{% endif %}"
    "{{ 'Cutting Knowledge Date: December 2023\nToday Date: ' + strftime_now('%d %b %Y') + '\n\n' + system }}<|eot_id|>"
    "{% for m in said %}{% if m.role == 'tool' %}{{ header % 'ipython' + m.content | tojson }}<|eot_id|>"
    "{% elif m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}"
    "{% set c = m.tool_calls[0].function %}{{ header % 'assistant' }}"
    """{{ '{"name": "' + c.name + '", "parameters": ' + c.arguments | tojson + '}' }}<|eot_id|>"""
    "{% else %}{{ header % m.role }}{% if tools and loop.first %}"
    "{{ 'Given the following functions, please respond with a JSON for a function call.\n\n' }}"
    "{% for tool in tools %}{{ tool | tojson(indent=4) + '\n\n' }}{% endfor %}{% endif %}"
    "{{ m.content | trim }}<|eot_id|>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ header % 'assistant' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set prefix = messages[0].content + '\n\n' %}"
    "{% set said = messages[1:] %}{% else %}{% set prefix = '' %}{% set said = messages %}{% endif %}"
    "{% for m in said %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + (prefix if loop.first else '') }}"
    "{{ m.content | trim }}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_HERMES = ("<tool_call>", "</tool_call>")


def tokenizer_of(
    template: str, special: Sequence[str], *, text: Sequence[str] = (), **names: str
) -> PreTrainedTokenizerFast:
    """`special`: tokens that are flagged so; `text`: added tokens that are not."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bare = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    bare.add_special_tokens(list(special))
    bare.add_tokens([AddedToken(word, special=False) for word in text])
    return PreTrainedTokenizerFast(
        tokenizer_object=bare, chat_template=template, clean_up_tokenization_spaces=False, **names
    )


def family_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Of `qwen2.5`, `qwen3`, `smollm2`, `llama3` or `gemma`."""
    if family == "llama3":
        headers = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>")
        special = ("<|begin_of_text|>", "<|end_of_text|>", *headers)
        return tokenizer_of(LLAMA_3, special, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")
    if family == "gemma":
        special = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
        return tokenizer_of(GEMMA, special, bos_token="<bos>", eos_token="<eos>")
    templates = {
        "qwen2.5": (QWEN_25, _HERMES),
        "qwen3": (QWEN_3, (*_HERMES, "<tool_response>", "</tool_response>", "<think>", "</think>")),
        "smollm2": (SMOLLM_2, ()),
    }
    template, text = templates[family]
    return tokenizer_of(template, _CHATML, text=text, eos_token="<|im_end|>")
