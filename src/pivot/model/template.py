"""Chat templates of LLMs: which one is taken, and how pictures get into one that knows only text."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

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
# Some templates tell the LLM what day it is (Llama 3.1's and later). Then the same row would have other tokens tomorrow, and a cached
# reference would be that of another prompt: it is always the day on which Llama's own falls back.
SAME_DAY = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}\n"
PICTURE: list[Any] = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what"}]}]


def template(tokenizer: PreTrainedTokenizerBase, given: str | Path | None = None) -> str:
    """The template of an MLLM's turns: the given one (Jinja text, or the path of a .jinja file), else the tokenizer's own, else
    ChatML. One that knows only text gets pictures put in.

    One's own that speaks ChatML becomes plain ChatML: such templates often rewrite turns, thinking is cut out of all but the last.
    To know ChatML's tokens is not enough: OLMo 2 and Phi-4 have them and speak otherwise.
    """
    if given is not None:
        return _with_pictures(tokenizer, _read(given))
    own = tokenizer.chat_template
    if own is not None and not _speaks_chatml(tokenizer):
        return _with_pictures(tokenizer, own["default"] if isinstance(own, dict) else own)
    chatml = (BASE / "chat_template.jinja").read_text(encoding="utf-8")
    return f"{{% if messages[0]['role'] != 'system' %}}<|im_start|>system\n{SYSTEM}<|im_end|>\n{{% endif %}}{chatml}"


def _speaks_chatml(tokenizer: PreTrainedTokenizerBase) -> bool:
    try:
        said = tokenizer.apply_chat_template([{"role": "user", "content": "what"}], tokenize=False, add_generation_prompt=True)
    except Exception:  # whatever a template raises; why it cannot be used is said where it is tried with pictures
        return False
    return "<|im_start|>user\nwhat<|im_end|>\n<|im_start|>assistant\n" in str(said)


def _read(given: str | Path) -> str:
    text = str(given)
    if isinstance(given, str) and ("{" in text or not text.endswith(".jinja")):
        if "{{" not in text and "{%" not in text:
            raise BadInput(f"chat template '{text[:60]}' is neither Jinja text nor the path of a .jinja file")
        return text
    try:
        return Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as failed:
        raise BadInput(f"chat template {text} cannot be read ({failed}); give a .jinja file or the Jinja text itself") from None


def _with_pictures(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The template, made to place pictures if it does not by itself, and to say the same every day."""
    if "strftime_now" in text:
        text = SAME_DAY + text
    reason = ""
    for candidate in (text, WITH_PICTURES + text):
        try:
            said = str(tokenizer.apply_chat_template(PICTURE, chat_template=candidate, tokenize=False, add_generation_prompt=True))
        except Exception as failed:  # Jinja's own errors, and whatever a template runs into that expects text
            reason = " ".join(str(failed).split())[:160]
            continue
        if said.count(IMAGE) == 1 and "what" in said and "'type'" not in said:
            return candidate
        reason = "it loses the picture or the text of a turn"
    raise BadInput(f"the chat template cannot be used: {reason}; give another as template=")
