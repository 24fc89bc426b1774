"""Chat turns to text, by a processor's own template, and text to tokens.

What a template puts around text is found by rendering with and without it, so that any template works.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from jinja2 import TemplateError

from pivot.records import BadInput, Example, Turn

if TYPE_CHECKING:
    from transformers import ProcessorMixin

IMAGE = "<image>"  # where data puts a picture into text, whatever the model's own placeholder is
TOKENIZING = Lock()  # one thread at a time: a tokenizer keeps what a call asks for, and a fast one refuses settings while it works

MARK = "b"  # stands for an assistant's text where a template is tried out


@dataclass(frozen=True)
class Format:
    """What a chat template puts around text, in tokens."""

    gap: str  # what stands between the header of an assistant's turn and its text: nothing, or a blank
    lead: str  # what of it that text is tokenised with: nothing where the tokenizer puts a blank there by itself
    trail: str  # what stands between that text and its end token: nothing, or a blank (Llama 2)
    behind: tuple[str, str]  # what an assistant's text and a later turn are tokenised behind, if that changes their tokens
    bare: tuple[str, str]  # `lead` and the first of `behind` where an assistant's turn has no header and follows another's end
    closing: str  # what ends a conversation that nobody answers, and is gone where turns follow: nothing, or an end token (Phi)
    tail: tuple[int, ...]  # from the end of an assistant's text to the end of its turn; the first ends generation
    opens: tuple[int, ...]  # what the tokenizer puts in front of any text by itself
    image: int  # the placeholder
    control: tuple[str, ...]  # tokens that must not come from data
    anywhere: frozenset[int] | None  # ids that the label mask llava_next supervises wherever they stand; None: not ChatML


_formats: WeakKeyDictionary[Any, dict[str, Format]] = WeakKeyDictionary()


def formatting(processor: ProcessorMixin) -> Format:
    """The format of a processor's present template, worked out once."""
    known, template = _formats.setdefault(processor, {}), str(processor.chat_template)
    if template not in known:
        known[template] = _formatting(processor)
    return known[template]


def _formatting(processor: ProcessorMixin) -> Format:
    if not processor.chat_template:
        raise BadInput("the processor has no chat template; give it one (chat_template.jinja beside its files)")
    prompt: list[Turn] = [{"role": "user", "content": "a"}]
    tokenizer, ready = processor.tokenizer, render(processor, prompt, generation=True)
    asked, answered = render(processor, prompt), render(processor, [*prompt, {"role": "assistant", "content": MARK}])
    ends = not ready.startswith(asked) and ready.startswith(asked.removesuffix(tokenizer.eos_token or ""))
    closing = tokenizer.eos_token if ends else ""
    asked = asked.removesuffix(closing)
    turn = answered.removesuffix(closing).removeprefix(asked)
    header, (before, found, after) = ready.removeprefix(asked), turn.partition(MARK)
    if not (found and ready.startswith(asked) and before.split() == header.split()):
        raise BadInput("chat template: an assistant turn must be the generation prompt and then its text; use another template")
    gap = before.removeprefix(header) if before.startswith(header) else ""
    lead, behind = _lead(processor, ready, gap)
    trail = after[: len(after) - len(after.lstrip())] if after.strip() else ""
    tail = _tail(processor, after.removeprefix(trail))
    end = after.removeprefix(trail) if after.strip() else tokenizer.eos_token
    chatml = {tokenizer.convert_tokens_to_ids(name) for name in ("<|im_start|>", "<|im_end|>")} - {None, tokenizer.unk_token_id}
    return Format(
        gap=gap,
        lead=lead,
        trail=trail,
        behind=(behind, "" if tokens(processor, MARK, after=end) == tokens(processor, MARK) else end),
        bare=_lead(processor, end, gap),
        closing=closing,
        tail=tail,
        opens=_opens(tokenizer),
        image=processor.image_token_id,  # type: ignore[attr-defined]
        control=tuple(sorted(_control(tokenizer) - {IMAGE})),
        anywhere=frozenset(chatml | set(tokens(processor, "\n")[-1:])) if len(chatml) == 2 else None,
    )


def _control(tokenizer: Any) -> set[str]:
    """Names of all tokens that are more than text, of which a tokenizer lists only some."""
    added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    return {*added, *tokenizer.all_special_tokens}


def _lead(processor: ProcessorMixin, ready: str, gap: str) -> tuple[str, str]:
    """What to put in front of a turn's text, and what to tokenise it behind, so that its tokens are those of the whole conversation.

    Sentencepiece's kind puts a blank in front of any text that follows nothing: often that is `gap`, and must not come twice.
    """
    whole, start = tokens(processor, ready + gap + MARK), tokens(processor, ready)
    for lead, behind in (("", ""), (gap, ""), (gap, "\n")):
        if start + tokens(processor, lead + MARK, plain=True, after=behind) == whole:
            return lead, behind
    return gap, ""


def _tail(processor: ProcessorMixin, after: str) -> tuple[int, ...]:
    """Tokens behind an assistant's text. Some templates (LLaVA-1.5's) leave its end to the tokenizer's end token."""
    if after.strip():
        return tuple(tokens(processor, after))
    if processor.tokenizer.eos_token_id is None:
        raise BadInput("chat template: nothing ends an assistant turn; use a template with an end token")
    return (processor.tokenizer.eos_token_id,)


def opening(processor: ProcessorMixin, text: str) -> list[int]:
    """The tokens that open a conversation: what its tokenizer puts in front of any text, unless the template already did."""
    opens = formatting(processor).opens
    return [] if not opens or text.startswith(processor.tokenizer.bos_token) else list(opens)


def _opens(tokenizer: Any) -> tuple[int, ...]:
    first = tokenizer.bos_token_id
    with TOKENIZING:
        opened = tokenizer("").input_ids[:1]
    return (first,) if first is not None and opened == [first] else ()


def tokens(processor: ProcessorMixin, text: str, plain: bool = False, after: str = "") -> list[int]:
    """Token ids. `plain`: control tokens in the text are spelt out as the text they are. `after`: what the text follows."""
    with TOKENIZING:
        ids = processor.tokenizer(after + text, add_special_tokens=False, split_special_tokens=plain).input_ids
    if not after:
        return ids
    before = tokens(processor, after, plain)
    return ids[len(before) :] if ids[: len(before)] == before else tokens(processor, text, plain)


def render(processor: ProcessorMixin, turns: Sequence[Mapping[str, Any]], generation: bool = False) -> str:
    """The template's text of some turns; `generation` ends it where the assistant begins to speak."""
    if not turns:
        return ""
    parts = [[{"type": "text", "text": t["content"]}] if isinstance(t["content"], str) else t["content"] for t in turns]
    messages = [{"role": turn["role"], "content": content} for turn, content in zip(turns, parts, strict=True)]
    try:
        return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
    except TemplateError as refused:  # many templates raise for turns that their LLM does not know
        reason = " ".join(str(refused).split())
        raise BadInput(f"the chat template refuses these turns ({reason}); change them, or build the MLLM with another template=") from None


def heard(
    processor: ProcessorMixin, before: Sequence[Mapping[str, Any]], turns: Sequence[Mapping[str, Any]], where: str
) -> tuple[str, str]:
    """What turns add to a conversation that the assistant answers next: their own text, and the header of its turn."""
    try:
        so_far, now = render(processor, before), render(processor, [*before, *turns])
        ready = render(processor, [*before, *turns], generation=True)
    except BadInput as refused:
        raise BadInput(f"{where}: {refused}") from None
    closing = formatting(processor).closing
    so_far, now = so_far.removesuffix(closing), now.removesuffix(closing)
    if not (now.startswith(so_far) and ready.startswith(now)):
        raise BadInput(f"{where}: the chat template rewrites earlier turns; use single-turn responses or another template")
    return now[len(so_far) :], ready[len(now) :]


def again(processor: ProcessorMixin, before: Sequence[Mapping[str, Any]], where: str) -> str:
    """The header of an assistant's turn that follows one of its own. What generation begins with may lack what parts the two."""
    form = formatting(processor)
    try:
        so_far, now = render(processor, before), render(processor, [*before, {"role": "assistant", "content": MARK}])
    except BadInput as refused:
        raise BadInput(f"{where}: {refused}") from None
    so_far = so_far.removesuffix(form.closing)
    header, found, _ = now.removeprefix(so_far).partition(MARK)
    if not (found and now.startswith(so_far) and header.endswith(form.gap)):
        raise BadInput(f"{where}: the chat template joins two assistant turns in a row; make them one, or use another template")
    return header.removesuffix(form.gap)


def listed(example: Example, images: int, processor: ProcessorMixin) -> list[Mapping[str, Any]]:
    """The prompt as turns whose content is a list of parts, pictures where they belong.

    A single placeholder in a turn moves to its front, as LLaVA has it; several stay in place. Without any, all pictures
    lead the first user turn.
    """
    turns: list[Turn] = [{"role": "user", "content": example.prompt}] if isinstance(example.prompt, str) else list(example.prompt)
    if not turns or turns[-1]["role"] != "user":
        raise BadInput(f"row {example.id}: the prompt must end with a user turn; move what follows into the response")
    placed = sum(t["content"].count(IMAGE) for t in turns)
    if placed not in (0, images):
        raise BadInput(f"row {example.id}: {placed} {IMAGE} in the prompt but {images} images; make them agree or leave {IMAGE} out")
    pictures_first = placed == 0
    out: list[Mapping[str, Any]] = []
    for turn in turns:
        refuse_control(turn["content"], processor, f"row {example.id}, prompt")
        pieces = [{"type": "text", "text": piece} for piece in turn["content"].split(IMAGE)]
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


def refuse_control(text: str, processor: ProcessorMixin, where: str) -> None:
    """Text from data must not forge a turn."""
    for control in formatting(processor).control:
        if control in text:
            raise BadInput(f"{where}: the text contains the control token {control}; remove it or drop the row")
