"""Examples to rows, pictures and all, and rows to a batch.

Nothing here knows how the model will lay trunk and branches out: that is `model/branches.py`.
Letters: N tokens of a batch, I images, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch

from pivot.data.speech import Bare, LabelMask, Span, Style, spoken
from pivot.data.turns import formatting
from pivot.data.vision import Sight, sights
from pivot.pictures import picture
from pivot.records import BadInput, Example, Role

if TYPE_CHECKING:
    from transformers import ProcessorMixin

# refuse: a row over the limit is a `BadInput`.
# cut: each response loses what lies beyond it, as in the papers' trainers; its end token is the first to go. Pictures and prompt stay.
TooLong = Literal["refuse", "cut"]


@dataclass(frozen=True)
class Trunk:
    """Image and prompt tokens, image placeholders expanded, and the responses (by number) that grow from them."""

    span: Span
    images: tuple[Sight, ...]
    places: tuple[int, ...]  # where the tokens of each image begin
    responses: tuple[int, ...]

    @property
    def image_tokens(self) -> int:
        return sum(image.tokens for image in self.images)


@dataclass(frozen=True)
class Row:
    """One tokenised example. More than one trunk only where a response has images of its own."""

    id: str
    trunks: tuple[Trunk, ...]
    branches: tuple[Span, ...]
    roles: tuple[Role, ...] = ()  # of its branches, if an example's responses made them
    cut: bool = False  # whether a response lost its end to the limit
    asks: str = ""  # a hash of the example's prompt and pictures, for who keeps account of what was read

    @property
    def length(self) -> int:
        """Tokens of the longest sequence that one response makes: trunk and branch."""
        return max(len(t.span) + max((len(self.branches[r]) for r in t.responses), default=0) for t in self.trunks)

    @property
    def image_tokens(self) -> int:
        return sum(t.image_tokens for t in self.trunks)

    @property
    def text_tokens(self) -> int:
        return sum(len(t.span) - t.image_tokens for t in self.trunks) + sum(map(len, self.branches))


@dataclass(frozen=True)
class Piece:
    """Tokens start .. stop of a batch's flat tokens; `supervised` holds positions counted from `start`."""

    start: int
    stop: int
    supervised: np.ndarray

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Stem:
    """One trunk of a batch: its tokens, its images (numbers in the batch), and its branches by response number."""

    example: int
    trunk: Piece
    images: tuple[int, ...]
    places: tuple[int, ...]  # where in the trunk the tokens of each image begin
    branches: tuple[tuple[int, Piece], ...]


@dataclass(frozen=True)
class Shown:
    """One image of a batch: its share of `pixel_values`, its tokens in the LLM, and what else the model is told of it."""

    entries: int
    tokens: int
    told: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Layout:
    """Where things lie in a batch. Opaque to whatever moves batches between devices, so that reading it never waits for one."""

    stems: tuple[Stem, ...]
    responses: tuple[int, ...]  # per example: how many
    images: tuple[Shown, ...]


def _trunk(example: Example, bare: Bare, processor: ProcessorMixin) -> Trunk:
    """The trunk that `bare` becomes when each placeholder makes room for its picture."""
    try:
        seen = sights(processor, [picture(p) for p in bare.images])
    except ValueError as broken:  # some image processors have limits of their own
        raise BadInput(f"row {example.id}: {broken}") from None
    placeholder = formatting(processor).image
    span, places, waiting = Span(), list[int](), iter(seen)
    for token, supervised in zip(bare.span.ids, bare.span.supervised, strict=True):
        if token == placeholder:
            places.append(len(span))
            span.add([token] * next(waiting).tokens, False)
        else:
            span.add([token], supervised)
    span.supervised[0] = False  # nothing predicts the first token
    return Trunk(span, seen, tuple(places), bare.responses)


def encode(
    example: Example,
    processor: ProcessorMixin,
    label_mask: LabelMask = "clean",
    limit: int | None = None,
    context: int | None = None,
    template: Style = "chat",
    too_long: TooLong = "refuse",
) -> Row:
    """Tokenise one example and its responses, however many (none: a prompt to be answered).

    `limit`, one's own, and `context`, what the LLM was made for, bound each trunk with each of its branches; `too_long` says what
    becomes of a row that is longer. With template `plain` the prompt is left out, and both label masks are the same.
    """
    if too_long not in get_args(TooLong):
        raise BadInput(f"no too_long '{too_long}'; known: {', '.join(get_args(TooLong))}")
    if template not in get_args(Style):
        raise BadInput(f"no template '{template}'; known: {', '.join(get_args(Style))}")
    if label_mask not in get_args(LabelMask):
        raise BadInput(f"no label mask '{label_mask}'; known: {', '.join(get_args(LabelMask))}")
    if template == "chat" and label_mask == "llava_next" and formatting(processor).anywhere is None:
        raise BadInput("label_mask llava_next is defined for ChatML templates; use clean")
    bare, branches = spoken(example, processor, label_mask, template)
    row = Row(
        example.id, tuple(_trunk(example, one, processor) for one in bare), branches, tuple(response.role for response in example.responses)
    )
    for bound, what in ((limit, "the limit is"), (context, "the LLM's context holds")):
        if bound is not None and too_long == "cut":
            row = shortened(row, bound, what)
        if bound is not None and row.length > bound:
            parts = f"{row.image_tokens} image and {max(map(len, row.branches), default=0)} response"
            raise BadInput(f"row {row.id}: {row.length} tokens, of which {parts}; {what} {bound}; shorten the row or leave it out")
    return row


def shortened(row: Row, bound: int, what: str = "the limit is") -> Row:
    """A row whose responses end, each by itself, where trunk and branch reach so many tokens. A trunk that leaves a response none that
    are supervised is a `BadInput`.
    """
    if row.length <= bound:
        return row
    branches = list(row.branches)
    for trunk in row.trunks:
        room = max(bound - len(trunk.span), 0)
        for number in trunk.responses:
            branch = branches[number] = Span(row.branches[number].ids[:room], row.branches[number].supervised[:room])
            if not any(branch.supervised):
                parts = f"{len(trunk.span)} tokens without its response, of which {trunk.image_tokens} image"
                doctor = f"pivot data doctor DATA --model MLLM --limit {bound} --too-long cut --fix OUT"
                advice = f"pictures and prompt are never cut: shorten the prompt or leave the row out; `{doctor}` leaves out all such rows"
                raise BadInput(f"row {row.id}, response {number}: {parts}; {what} {bound}, which leaves nothing to learn from; {advice}")
    return replace(row, branches=tuple(branches), cut=True)


def collate(rows: Iterable[Row]) -> dict[str, Any]:
    """A batch: `id` list, `tokens` (N,), `images`, the model's inputs for all of them, and `layout`, which stays on the host."""
    rows = list(rows)
    flat: list[int] = []
    images: list[Sight] = []
    stems: list[Stem] = []

    def lay(span: Span) -> Piece:
        flat.extend(span.ids)
        return Piece(len(flat) - len(span), len(flat), np.flatnonzero(span.supervised))

    for number, row in enumerate(rows):
        for trunk in row.trunks:
            pictures = tuple(range(len(images), len(images) + len(trunk.images)))
            images += trunk.images
            stems.append(Stem(number, lay(trunk.span), pictures, trunk.places, tuple((r, lay(row.branches[r])) for r in trunk.responses)))
    return {
        "id": [row.id for row in rows],
        "tokens": torch.tensor(flat, dtype=torch.long),
        "images": join(images),
        "layout": Layout(tuple(stems), tuple(len(row.branches) for row in rows), tuple(map(_shown, images))),
    }


def join(images: Sequence[Sight]) -> dict[str, torch.Tensor]:
    """The model's inputs for some images together; none for none."""
    return {name: torch.cat([image.inputs[name] for image in images]) for name in (images[0].inputs if images else ())}


def _shown(image: Sight) -> Shown:
    told = {name: tuple(value.flatten().tolist()) for name, value in image.inputs.items() if name != "pixel_values"}
    return Shown(len(image.inputs["pixel_values"]), image.tokens, told)
