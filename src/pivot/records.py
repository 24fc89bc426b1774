"""The records that cross stages. Plain frozen data, no torch: every folder may import this file, and it imports none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    Picture: TypeAlias = "Image | Path | str | bytes | Held"

Turn = Mapping[str, str]  # {"role": "user" | "assistant" | "system", "content": text}
Role = Literal["chosen", "rejected", "sampled"]
AnswerKind = Literal["choice", "number", "text", "box", "maths", "open"]


class BadInput(ValueError):
    """Something the user gave is wrong. One line: what is wrong, where, and what to do. The CLI prints it and exits 2."""


class Uncached(BadInput):
    """The cache cannot be written, and there is no going on without it: no fault of what is read."""


class CheckFailed(RuntimeError):
    """A check of pivot's own work failed: a part did not train, features differ, a loss is not finite. One line; the CLI exits 1."""


class Held(Protocol):
    """A picture that lies inside a larger file. Its text says where, for messages."""

    def read(self) -> bytes:
        """The bytes of the picture's own file."""


@dataclass(frozen=True)
class Response:
    """One response to an example's prompt. `text` is turns when the conversation goes on; then the loss is on assistant turns only."""

    text: str | Sequence[Turn]
    role: Role = "chosen"
    rating: float | None = None
    error: str | None = None  # what is wrong with a rejected one
    images: tuple[Picture, ...] | None = None  # replace the example's images for this branch


@dataclass(frozen=True)
class Thing:
    """One object of a picture: what it is, its attributes, and a boolean (H, W) mask of the pixels where it is visible."""

    kind: str
    attributes: Mapping[str, str]
    mask: np.ndarray


@dataclass(frozen=True)
class Truth:
    """Exact truth about a picture: class id per pixel (0 is background), the objects, and the region that the question is about."""

    classes: np.ndarray  # (H, W) uint8
    objects: tuple[Thing, ...]
    region: np.ndarray  # (H, W) bool
    caption: str = ""


@dataclass(frozen=True)
class Example:
    """One image, one prompt, k responses, and what is needed to judge them."""

    id: str
    images: tuple[Picture, ...]
    prompt: str | Sequence[Turn]
    responses: tuple[Response, ...] = ()
    answer: str | None = None
    answer_kind: AnswerKind | None = None
    task: str | None = None
    domain: str | None = None
    truth: Truth | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tap:
    """Where an encoder's features are read.

    `layer` indexes the hidden states as transformers counts them (0 embeddings, -1 last block, -2 penultimate);
    `norm` says whether the final norm is applied; `prefix` is how many leading tokens (class token, registers) are dropped.
    """

    layer: int = -2
    norm: bool = False
    prefix: int = 0
    pooling: Literal["mean", "class"] = "mean"


@dataclass(frozen=True)
class Shown:
    """One item as a picture: what a probe found on the patches of an image, to be drawn beside what it found for other arms.

    `picture` is the part of the image that the encoder sees, as a data URI; `found` and `truth` are rows of patches: class numbers
    where `names` says what they are called, else shares from 0 to 1.
    """

    id: str
    picture: str
    found: Sequence[Sequence[float]]
    truth: Sequence[Sequence[float]]
    says: str = ""
    names: Mapping[str, str] = field(default_factory=dict)  # class number -> name


@dataclass(frozen=True)
class Measurement:
    """What a probe or a bench found for one arm and seed.

    `items` holds per-item values of leaf metrics (metric -> item id -> value), from which intervals and paired differences
    are computed; `parts` says which metrics are unweighted means of which others (a domain of its tasks); `shown` are a few items as
    pictures. `of` is a hash of what was measured besides the arm, items and settings: two that have it and differ in it are not
    compared.
    """

    kind: Literal["probe", "bench"]
    name: str
    metrics: Mapping[str, float]
    n: int
    unit: str = "item"
    arm: str = ""
    seed: int = 0
    fingerprint: str = ""
    items: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    parts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    shown: Sequence[Shown] = ()
    of: str = ""
