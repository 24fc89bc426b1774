"""An LLM by string: its weights, its tokenizer with the image token, and the template of its turns."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from pivot.encoder.source import quiet
from pivot.records import BadInput

BASE = Path(str(files("pivot"))) / "base"
IMAGE = "<image>"
SYSTEM = "You are a helpful assistant."  # what LLaVA-NeXT's ChatML template says where the data has no system turn
# Puts pictures into the text of a template that knows only text.
WITH_PICTURES = """{%- set ns = namespace(turns=[]) -%}
{%- for turn in messages -%}
{%- if turn['content'] is string -%}{%- set ns.turns = ns.turns + [turn] -%}{%- else -%}
{%- set text -%}
{%- for part in turn['content'] -%}{{ '<image>\\n' if part['type'] == 'image' else part['text'] }}{%- endfor -%}
{%- endset -%}
{%- set ns.turns = ns.turns + [{'role': turn['role'], 'content': text}] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = ns.turns -%}
"""


def load(source: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Weights and tokenizer of a Hub model or a folder."""
    where = source.removeprefix("hf:")
    try:
        with quiet():
            return AutoModelForCausalLM.from_pretrained(where, dtype=getattr(torch, dtype)), AutoTokenizer.from_pretrained(where)
    except (OSError, ValueError) as failed:
        raise BadInput(f"cannot open LLM {source}: {first_line(failed)}") from failed


def with_image_token(tokenizer: PreTrainedTokenizerBase, llm: PreTrainedModel) -> PreTrainedTokenizerBase:
    """Give tokenizer and embeddings the image token, and ChatML's tokens where the tokenizer brings no template of its own."""
    wanted = [IMAGE] if tokenizer.chat_template else [IMAGE, "<|im_start|>", "<|im_end|>"]
    tokenizer.add_tokens([token for token in wanted if token not in tokenizer.get_vocab()], special_tokens=True)
    if len(tokenizer) > llm.config.vocab_size:
        llm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return tokenizer


def template(tokenizer: PreTrainedTokenizerBase) -> str:
    """ChatML where the tokenizer knows it, else its own template with pictures put in."""
    if "<|im_start|>" not in tokenizer.get_vocab():
        return WITH_PICTURES + tokenizer.chat_template
    chatml = (BASE / "chat_template.jinja").read_text(encoding="utf-8")
    return f"{{% if messages[0]['role'] != 'system' %}}<|im_start|>system\n{SYSTEM}<|im_end|>\n{{% endif %}}{chatml}"


def first_line(error: Exception) -> str:
    """What an error says first."""
    return str(error).strip().partition("\n")[0]
