"""Chat turns to text, by a processor's own template, and text to tokens.

What a template puts around text is found by rendering with and without it, so that any template works.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from pivot.records import BadInput, Example, Turn

if TYPE_CHECKING:
    from transformers import LlavaProcessor


@dataclass(frozen=True)
class Format:
    """What a chat template puts around text, in tokens."""

    tail: tuple[int, ...]  # from the end of an assistant's text to the end of its turn; the first ends generation
    image: int  # the placeholder
    control: tuple[str, ...]  # tokens that must not come from data
    anywhere: frozenset[int] | None  # ids that the label mask llava_next supervises wherever they stand; None: not ChatML


_formats: WeakKeyDictionary[Any, dict[str, Format]] = WeakKeyDictionary()


def formatting(processor: LlavaProcessor) -> Format:
    """The format of a processor's present template, worked out once."""
    known, template = _formats.setdefault(processor, {}), str(processor.chat_template)
    if template not in known:
        known[template] = _formatting(processor)
    return known[template]


def _formatting(processor: LlavaProcessor) -> Format:
    if not processor.chat_template:
        raise BadInput("the processor has no chat template; give it one (chat_template.jinja beside its files)")
    prompt: list[Turn] = [{"role": "user", "content": "a"}]
    before = render(processor, prompt, generation=True)
    after = render(processor, [*prompt, {"role": "assistant", "content": "b"}])
    if not after.startswith(before + "b"):
        raise BadInput("chat template: an assistant turn must be the generation prompt and then its text; use another template")
    tail = tokens(processor, after[len(before) + 1 :])
    if not tail:
        raise BadInput("chat template: nothing ends an assistant turn; use a template with an end token")
    tokenizer = processor.tokenizer
    chatml = {tokenizer.convert_tokens_to_ids(name) for name in ("<|im_start|>", "<|im_end|>")} - {None, tokenizer.unk_token_id}
    return Format(
        tail=tuple(tail),
        image=processor.image_token_id,
        control=tuple(t for t in tokenizer.all_special_tokens if t != processor.image_token),
        anywhere=frozenset(chatml | set(tokens(processor, "\n")[-1:])) if len(chatml) == 2 else None,
    )


def tokens(processor: LlavaProcessor, text: str, plain: bool = False) -> list[int]:
    """Token ids. `plain`: control tokens in the text are spelt out as the text they are."""
    return processor.tokenizer(text, add_special_tokens=False, split_special_tokens=plain).input_ids


def render(processor: LlavaProcessor, turns: Sequence[Mapping[str, Any]], generation: bool = False) -> str:
    """The template's text of some turns; `generation` ends it where the assistant begins to speak."""
    if not turns:
        return ""
    parts = [[{"type": "text", "text": t["content"]}] if isinstance(t["content"], str) else t["content"] for t in turns]
    messages = [{"role": turn["role"], "content": content} for turn, content in zip(turns, parts, strict=True)]
    return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)


def heard(
    processor: LlavaProcessor, before: Sequence[Mapping[str, Any]], turns: Sequence[Mapping[str, Any]], where: str
) -> tuple[str, str]:
    """What turns add to a conversation that the assistant answers next: their own text, and the header of its turn."""
    so_far, now = render(processor, before), render(processor, [*before, *turns])
    ready = render(processor, [*before, *turns], generation=True)
    if not (now.startswith(so_far) and ready.startswith(now)):
        raise BadInput(f"{where}: the chat template rewrites earlier turns; use single-turn responses or another template")
    return now[len(so_far) :], ready[len(now) :]


def listed(example: Example, images: int, processor: LlavaProcessor) -> list[Mapping[str, Any]]:
    """The prompt as turns whose content is a list of parts, pictures where they belong.

    A single placeholder in a turn moves to its front, as LLaVA has it; several stay in place. Without any, all pictures
    lead the first user turn.
    """
    turns: list[Turn] = [{"role": "user", "content": example.prompt}] if isinstance(example.prompt, str) else list(example.prompt)
    if not turns or turns[-1]["role"] != "user":
        raise BadInput(f"row {example.id}: the prompt must end with a user turn; move what follows into the response")
    token = processor.image_token
    placed = sum(t["content"].count(token) for t in turns)
    if placed not in (0, images):
        raise BadInput(f"row {example.id}: {placed} {token} in the prompt but {images} images; make them agree or leave {token} out")
    pictures_first = placed == 0
    out: list[Mapping[str, Any]] = []
    for turn in turns:
        refuse_control(turn["content"], processor, f"row {example.id}, prompt")
        pieces = [{"type": "text", "text": piece} for piece in turn["content"].split(token)]
        parts: list[Mapping[str, str]] = [pieces[0]]
        if pictures_first and turn["role"] == "user":
            parts, pictures_first = [*[{"type": "image"}] * images, pieces[0]], False
        elif len(pieces) == 2:
            parts = [{"type": "image"}, {"type": "text", "text": "".join(p["text"] for p in pieces).strip()}]
        else:
            for piece in pieces[1:]:
                parts += [{"type": "image"}, piece]
        out.append({"role": turn["role"], "content": parts})
    return out


def refuse_control(text: str, processor: LlavaProcessor, where: str) -> None:
    """Text from data must not forge a turn."""
    for control in formatting(processor).control:
        if control in text:
            raise BadInput(f"{where}: the text contains the control token {control}; remove it or drop the row")
