"""What an encoder computes on the way to its tap: every hidden state from the embeddings up, and the weights that made each.

Layers are named alike everywhere: `embeddings`, then `block-00`, `block-01`, ... up to the tap. The last is what features are made
of, after the final norm if the tap has it, and may be followed by `projector`. An ensemble shows its members' layers one member after
the other (`member-0/embeddings`, ...) and then `joined`. Of a member that nothing else is known of there is one layer, `features`.

Shapes: B images, T tokens, P patches of a layer, D its width. P and D differ between the stages of a convolutional network.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pivot.encoder import reading, towers
from pivot.encoder.encoder import At, Encoder, resting
from pivot.encoder.features import kept
from pivot.encoder.geometry import output_size
from pivot.encoder.tower import PivotTower
from pivot.pictures import fingerprint
from pivot.progress import tell
from pivot.records import BadInput, Tap

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pivot.records import Picture

T = TypeVar("T")
Pooling = Literal["tap", "mean", "class"]
EMBEDDINGS, JOINED, PROJECTOR, FEATURES = "embeddings", "joined", "projector", "features"


class Layer(NamedTuple):
    """One hidden state of some images: patch tokens (B, P, D), and its class token (B, D) where the family has one."""

    tokens: Tensor
    first: Tensor | None = None


@dataclass(frozen=True)
class Path:
    """One stock model on the way to a tap: an encoder's own, or a member of its `pivot_tower`, which sees pixels of its own size."""

    model: PreTrainedModel
    tap: Tap
    pixels: tuple[int, int]
    name: str  # before the names of its layers
    place: str  # before the names of its parameters

    @property
    def traced(self) -> bool:
        return towers.family(self.model.config).traced

    @property
    def blocks(self) -> int:
        """How many lie below the tap."""
        return 0 if self.traced else towers.depth(self.model.config, self.tap)

    @property
    def layers(self) -> list[str]:
        """The names of its layers."""
        return [f"{self.name}{FEATURES if self.traced else EMBEDDINGS}", *(f"{self.name}block-{i:02d}" for i in range(self.blocks))]


def paths(encoder: Encoder) -> list[Path]:
    """The models that an encoder's features come from."""
    if not isinstance(encoder.model, PivotTower):
        return [Path(encoder.model, encoder.tap, output_size(encoder.processor), "", "")]
    parts = encoder.model.parts()
    named = [f"member-{i}/" if len(parts) > 1 else "" for i in range(len(parts))]
    return [Path(part.model, part.tap, part.pixels, named[i], f"members.{i}.") for i, part in enumerate(parts)]


def names(encoder: Encoder, at: At = "encoder") -> list[str]:
    """The layers that `layers` gives, by name."""
    ways = paths(encoder)
    found = [name for way in ways for name in way.layers]
    return [*found, *([JOINED] if len(ways) > 1 else []), *([PROJECTOR] if at == "projector" else [])]


def layers(encoder: Encoder, images: Iterable[Picture], batch: int = 32, at: At = "encoder") -> Iterator[list[Layer]]:
    """All layers of images, a batch at a time, in the order of `names`: float32, where the encoder is. No block above the tap is read,
    and, a `pivot_tower` aside, none is run.
    """
    return reduced(encoder, images, lambda layer: layer, batch, at)


def reduced(
    encoder: Encoder, images: Iterable[Picture], to: Callable[[Layer], T], batch: int = 32, at: At = "encoder"
) -> Iterator[list[T]]:
    """What `to` makes of each layer of `layers`, at once: all layers of 64 images of a big encoder are 6 GB."""
    waiting = iter(images)
    while chunk := list(itertools.islice(waiting, batch)):
        pixel_values = encoder.pixels(chunk)
        with torch.no_grad(), resting(encoder.model, encoder.projector):
            found, last = _pass(encoder, pixel_values, to)
            found.append(to(last))
            if at == "projector":
                found.append(to(Layer(encoder.project(last.tokens.to(encoder.model.dtype)).float())))
        yield found


def pooled(
    encoder: Encoder, images: Sequence[Picture], pooling: Pooling = "tap", *, at: At = "encoder", batch: int = 32
) -> dict[str, np.ndarray]:
    """Every layer's pooled features (B, D) by name, memory-mapped float32, from the cache where they are in it.

    `mean` is over patches, `class` the class token, `tap` what the tap says. Only patches pass through the projector.
    """
    if pooling != "tap":
        encoder = encoder.tapped(pooling=pooling)
    if not images:
        raise BadInput("features of no images; give at least one")

    def pool(layer: Layer) -> np.ndarray:
        return (layer.first if encoder.tap.pooling == "class" else layer.tokens.mean(dim=1)).cpu().numpy()  # type: ignore[union-attr]

    def rows() -> Iterator[np.ndarray]:
        done = 0
        for found in reduced(encoder, images, pool, batch, at):
            yield np.concatenate(found, axis=1)
            done += len(found[0])
            tell("layers of images", done, len(images))

    widths = [part.shape[1] for part in next(reduced(encoder, images[:1], pool, 1, at))]
    facts = ["layers", encoder.fingerprint(), fingerprint(images), at, encoder.model.device.type]
    side_by_side, ends = kept(facts, len(images), rows), np.cumsum(widths)
    return {name: side_by_side[:, end - width : end] for name, width, end in zip(names(encoder, at), widths, ends, strict=True)}


def weights(encoder: Encoder, at: At = "encoder") -> dict[str, dict[str, nn.Parameter]]:
    """The parameters that each layer adds to what lies below it, by the layers' names and by their own. None above the tap."""
    idle = towers.idle_parameters(encoder.model, encoder.tap)
    read = {name: parameter for name, parameter in encoder.model.named_parameters() if name not in idle}
    found: dict[str, dict[str, nn.Parameter]] = {}
    for way in paths(encoder):
        inside = {name.removeprefix(way.place): parameter for name, parameter in read.items() if name.startswith(way.place)}
        blocks = "" if way.traced else f"{towers.blocks_name(way.model)}."
        for name, parameter in inside.items():
            number, _, rest = name.removeprefix(blocks).partition(".") if blocks and name.startswith(blocks) else ("", "", name)
            found.setdefault(way.layers[int(number) + 1 if number else 0], {})[rest] = parameter
        last = towers.norm_name(way.model) if way.tap.norm and not way.traced else None
        if last is not None:  # what the tap's norm adds, it adds to the last layer
            first = found[way.layers[0]]
            found.setdefault(way.layers[-1], {}).update({name: first.pop(name) for name in list(first) if name.startswith(f"{last}.")})
    if at == "projector" and encoder.projector is not None:
        found[PROJECTOR] = dict(encoder.projector.named_parameters())
    return found


# ---- one pass


def _pass(encoder: Encoder, pixel_values: Tensor, to: Callable[[Layer], T]) -> tuple[list[T], Layer]:
    """What `to` makes of every layer of one batch but the last, caught by hooks on the way; and the last, which the encoder gives."""
    ways, images = paths(encoder), len(pixel_values)
    caught: list[T] = []
    with ExitStack() as hooks:
        for way in ways:
            if not way.traced:
                alone = len(ways) == 1
                _catch(way, images, way.blocks if alone else way.blocks + 1, lambda layer: caught.append(to(layer)), hooks)
        last = encoder.hidden(pixel_values)
    return caught, _layer(last, encoder.tap.prefix, bool(encoder.family.prefix))


def _catch(way: Path, images: int, number: int, tell: Callable[[Layer], None], hooks: ExitStack) -> None:
    """Put in hooks that tell of the lowest `number` layers. They come before the hook that ends a pass, which is put in later."""
    blocks, first = towers.blocks(way.model), bool(towers.family(way.model.config).prefix)

    def keep(layer: int, state: Any) -> None:  # gives None: what passes is not changed
        tokens = _tokens(way, state[0] if isinstance(state, tuple) else state, images)
        if way.tap.norm and layer == way.blocks:
            tokens = towers.final_norm(way.model)(tokens)
        tell(_layer(tokens, way.tap.prefix, first))

    if number:
        hooks.callback(blocks[0].register_forward_pre_hook(lambda _, given: keep(0, given)).remove)
    for i in range(number - 1):
        hooks.callback(blocks[i].register_forward_hook(lambda _, __, given, i=i: keep(i + 1, given)).remove)  # type: ignore[misc]


def _layer(state: Tensor, prefix: int, first: bool) -> Layer:
    """A hidden state (B, T, D) without its prefix, whose first token is the class token if it has one."""
    return Layer(state[:, prefix:].float(), state[:, 0].float() if first else None)


def _tokens(way: Path, state: Tensor, images: int) -> Tensor:
    """A hidden state of any layout as (B, T, D)."""
    config = way.model.config
    match towers.family(config).layout:
        case "map":
            return state.flatten(2).transpose(1, 2)
        case "packed":
            return reading.in_raster_order(config, state, images, towers.grid(config, way.pixels))
    return state
