"""Chat templates of the shapes of known ones, and a tokenizer of one token a character."""

from __future__ import annotations

import re

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN = (  # 2.5: a chat without a system turn gets one
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are Qwen.<|im_end|>\n"
    "{% endif %}" + CHATML
)
QWEN3 = (  # an empty thought before the last answer, which the chat's beginning does not have
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
LLAMA3 = (  # 3.2: with today's date
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set said = messages[0]['content'] %}"
    "{% set rest = messages[1:] %}{% else %}{% set said = '' %}{% set rest = messages %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ strftime_now('%d %b %Y') }}\n\n"
    "{{ said }}<|eot_id|>{% for m in rest %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}"
    "<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI3 = (  # EOS ends the text, and no turn
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
INST = (  # as Mistral's: BOS is in the text, and a blank stands before an answer
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} "
    "[/INST]{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)

_SPECIAL = re.compile(
    r"<\|\w+\|>|<(?:start|end)_of_turn>|</?s>|<(?:bos|eos|unk)>|\[/?INST\]|[\s\S]"
)
_NAMED = (
    *("<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>"),
    *("<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>"),
    *("<s>", "</s>", "[INST]", "[/INST]", "<|user|>", "<|assistant|>", "<|end|>"),
)


def letters(
    template: str | None, *, bos: str = "<s>", eos: str = "</s>"
) -> PreTrainedTokenizerFast:
    """One token a character; the marks of the templates above are one token each."""
    characters = [chr(code) for code in (10, *range(32, 127))]
    vocabulary = {name: index for index, name in enumerate(("<unk>", *_NAMED, *characters))}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    raw.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="<unk>",
        bos_token=bos,
        eos_token=eos,
        pad_token="<unk>",
        additional_special_tokens=[*_NAMED],
    )
    made.chat_template = template
    return made


def with_marks(tokenizer: PreTrainedTokenizerFast, tokens, learned) -> str:
    """The text of tokens, with ``[[`` and ``]]`` around each part that is learned."""
    inside = {i for first, end in learned for i in range(first, end)}
    out = ""
    for i, token in enumerate(tokens):
        out += "[[" * (i in inside and i - 1 not in inside)
        out += tokenizer.convert_ids_to_tokens(token)
        out += "]]" * (i in inside and i + 1 not in inside)
    return out


def split(text: str) -> list[str]:
    """The tokens of a text, by the rules of ``letters``."""
    return _SPECIAL.findall(text)
