"""What an example says, in tokens: its prompt and its responses, and which of them are supervised. No picture is opened here.

Prompt and responses are tokenised apart, so that the trunk is the same for all branches (joint tokenisation may merge
across the border).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pivot.data.doctor.checks import halved, texts
from pivot.data.turns import IMAGE, again, formatting, heard, listed, opening, refuse_control, tokens
from pivot.records import BadInput, Example, Turn

if TYPE_CHECKING:
    from transformers import ProcessorMixin

    from pivot.records import Picture

# clean: each assistant turn's answer and its end token.
# llava_next: what LLaVA-NeXT's code supervises in fact: whole assistant turns with header and trailing newline, and every
# newline, <|im_start|> and <|im_end|> of the prompt. Those of the trunk count in the log-probability of each of its branches.
LabelMask = Literal["clean", "llava_next"]
# chat: turns, in the processor's own template.
# plain: pictures, then the response as it stands and a newline, all of which is supervised; nothing that a human says. LLaVA aligns so.
Style = Literal["chat", "plain"]


@dataclass
class Span:
    """A run of tokens, and for each whether it is supervised."""

    ids: list[int] = field(default_factory=list)
    supervised: list[bool] = field(default_factory=list)

    def add(self, ids: Sequence[int], supervised: bool) -> None:
        self.ids.extend(ids)
        self.supervised.extend([supervised] * len(ids))

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Bare:
    """A trunk before its pictures are looked at: each still is one placeholder."""

    span: Span
    images: tuple[Picture, ...]
    responses: tuple[int, ...]


# ---- in chat


def _listen(span: Span, turns: str, header: str, processor: ProcessorMixin, label_mask: LabelMask, after: str = "") -> None:
    """Add turns that are not the assistant's, and the header of its turn: tokenised together, as the stock processor has it."""
    ids = tokens(processor, turns + header, after=after)
    span.ids += ids
    if label_mask == "llava_next":  # only ChatML, whose headers begin with a control token, so that tokens stay apart
        anywhere, listens = formatting(processor).anywhere or frozenset(), len(ids) - len(tokens(processor, header))
        span.supervised += [at >= listens or token in anywhere for at, token in enumerate(ids)]
    else:
        span.supervised += [False] * len(ids)


def _branch(example: Example, number: int, prompt: Sequence[Mapping[str, Any]], processor: ProcessorMixin, label_mask: LabelMask) -> Span:
    """One response's tokens. A conversation may go on with turns of its own: only the assistant's are supervised."""
    where, form, text = f"row {example.id}, response {number}", formatting(processor), example.responses[number].text
    said: list[Turn] = [{"role": "assistant", "content": text}] if isinstance(text, str) else list(text)
    if not said or said[0]["role"] != "assistant" or said[-1]["role"] != "assistant":
        raise BadInput(f"{where}: turns must begin and end with the assistant's")
    span, whole, last = Span(), label_mask == "llava_next", len(said) - 1
    unheard: list[Turn] = []  # turns that are not the assistant's, in a row: only behind the last of them comes the header of its turn
    for at, turn in enumerate(said):
        if turn["role"] != "assistant":
            refuse_control(turn["content"], processor, where)
            if IMAGE in turn["content"]:
                raise BadInput(f"{where}: {IMAGE} can only stand in the prompt")
            unheard.append(turn)
            continue
        if at:
            before = [*prompt, *said[: at - len(unheard)]]
            turns, header = heard(processor, before, unheard, where) if unheard else ("", again(processor, before, where))
            _listen(span, turns, header, processor, label_mask, form.behind[1])
            unheard = []
        lead, behind = form.bare if at and not turns + header else (form.lead, form.behind[0])
        ids = tokens(processor, lead + turn["content"] + form.trail, plain=True, after=behind)
        if not ids or not turn["content"].strip():
            raise BadInput(f"{where}: it has no tokens; give it a text or drop the row")
        span.add([*ids, form.tail[0]], True)
        if whole or at < last:  # the clean mask needs nothing after the last end token
            span.add(form.tail[1:], whole)
    return span


def _asked(example: Example, prompt: Sequence[Mapping[str, Any]], processor: ProcessorMixin, label_mask: LabelMask) -> Span:
    """The prompt in the processor's template, one placeholder a picture."""
    turns, header = heard(processor, [], prompt, f"row {example.id}")
    span = Span()
    span.add(opening(processor, turns), False)
    _listen(span, turns, header, processor, label_mask)
    return span


# ---- in style plain


def _pictures(example: Example, images: Sequence[Picture], processor: ProcessorMixin) -> Span:
    """What opens any text, and one placeholder a picture."""
    if not images:
        raise BadInput(f"row {example.id}: template plain shows a picture and its caption, and this row has no picture; drop it")
    span = Span()
    span.add([*opening(processor, ""), *[formatting(processor).image] * len(images)], False)
    return span


def _caption(example: Example, number: int, processor: ProcessorMixin) -> Span:
    """One response and the newline that ends it, tokenised in one piece as LLaVA does: Qwen has a single token for ".\\n"."""
    where, text = f"row {example.id}, response {number}", example.responses[number].text
    if not isinstance(text, str):
        if len(text) != 1 or text[0]["role"] != "assistant":
            raise BadInput(f"{where}: template plain takes one caption and no turns; drop the row, or use template chat")
        text = text[0]["content"]
    if not text.strip():
        raise BadInput(f"{where}: it has no tokens; give it a text or drop the row")
    span = Span()
    span.add(tokens(processor, f"{text}\n", plain=True), True)
    return span


# ---- both


def spoken(
    example: Example, processor: ProcessorMixin, label_mask: LabelMask = "clean", template: Style = "chat"
) -> tuple[tuple[Bare, ...], tuple[Span, ...]]:
    """The text of an example in tokens: its trunks and its branches. No picture is opened."""
    for where, text in texts(example):
        if halved(text) is not None:
            raise BadInput(f"row {example.id}, {where}: the text is no Unicode (half of a surrogate pair); correct it or drop the row")
    own = [(response.images, (n,)) for n, response in enumerate(example.responses) if response.images is not None]
    rest = tuple(n for n, response in enumerate(example.responses) if response.images is None)
    trunks, branches = [], {}
    for images, responses in [(example.images, rest), *own] if rest or not own else own:
        if template == "plain":
            span = _pictures(example, images, processor)
            branches.update({n: _caption(example, n, processor) for n in responses})
        else:
            prompt = listed(example, len(images), processor)
            span = _asked(example, prompt, processor, label_mask)
            branches.update({n: _branch(example, n, prompt, processor, label_mask) for n in responses})
        if span.ids.count(formatting(processor).image) != len(images):
            raise BadInput(f"row {example.id}: the chat template does not place its {len(images)} images; give the processor another one")
        trunks.append(Bare(span, images, responses))
    return tuple(trunks), tuple(branches[n] for n in sorted(branches))
