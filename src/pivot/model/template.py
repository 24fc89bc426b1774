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
PICTURE: list[Any] = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what"}]}]


def template(tokenizer: PreTrainedTokenizerBase, given: str | Path | None = None) -> str:
    """The template of an MLLM's turns: the given one (Jinja text, or the path of a .jinja file), else ChatML where the tokenizer
    knows it, else the tokenizer's own. One that knows only text gets pictures put in.

    ChatML goes before a tokenizer's own because that often rewrites turns: thinking is cut out of all but the last.
    """
    if given is not None:
        return with_pictures(tokenizer, _read(given))
    if "<|im_start|>" not in tokenizer.get_vocab():
        return with_pictures(tokenizer, tokenizer.chat_template)
    chatml = (BASE / "chat_template.jinja").read_text(encoding="utf-8")
    return f"{{% if messages[0]['role'] != 'system' %}}<|im_start|>system\n{SYSTEM}<|im_end|>\n{{% endif %}}{chatml}"


def _read(given: str | Path) -> str:
    text = str(given)
    if isinstance(given, Path) or ("{" not in text and text.endswith(".jinja")):
        try:
            return Path(text).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as failed:
            raise BadInput(f"chat template {text} cannot be read ({failed}); give a .jinja file or the Jinja text itself") from None
    if "{" not in text:
        raise BadInput(f"chat template '{text[:60]}' is neither Jinja text nor the path of a .jinja file")
    return text


def with_pictures(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The template, made to place pictures if it does not by itself."""
    for candidate in (text, WITH_PICTURES + text):
        try:
            said = str(tokenizer.apply_chat_template(PICTURE, chat_template=candidate, tokenize=False, add_generation_prompt=True))
        except Exception as failed:  # Jinja's own errors, and whatever a template raises by itself
            reason = " ".join(str(failed).split())[:160]
            continue
        if said.count(IMAGE) == 1 and "what" in said and "'type'" not in said:
            return candidate
        reason = "it loses the picture or the text of a turn"
    raise BadInput(f"the chat template cannot be used: {reason}; give another as template=")
