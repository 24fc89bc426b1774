"""What an encoder computes on the way to its tap: every hidden state from the embeddings up, and the weights that made each.

Layers are named alike everywhere: `embeddings`, then `block-00`, `block-01`, ... up to the tap. The last is what features are made
of, after the final norm if the tap has it, and may be followed by `projector`. An ensemble shows its members' layers one member after
the other (`member-0/embeddings`, ...) and then `joined`. Of a member that nothing else is known of there is one layer, `features`.

Shapes: B images, T tokens, P patches of a layer, D its width. P and D differ between the stages of a convolutional network.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

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
    waiting = iter(images)
    while chunk := list(itertools.islice(waiting, batch)):
        pixel_values = encoder.pixels(chunk)
        with torch.no_grad(), resting(encoder.model, encoder.projector):
            found = _pass(encoder, pixel_values)
            if at == "projector":
                found.append(Layer(encoder.project(found[-1].tokens)))
        yield [Layer(one.tokens.float(), None if one.first is None else one.first.float()) for one in found]


def pooled(
    encoder: Encoder, images: Sequence[Picture], pooling: Pooling = "tap", *, at: At = "encoder", batch: int = 32
) -> dict[str, np.ndarray]:
    """Every layer's pooled features (B, D) by name, memory-mapped float32, from the cache where they are in it.

    `mean` is over patches, `class` the class token, `tap` what the tap says. What comes out of the projector has no class token.
    """
    how = encoder.tap.pooling if pooling == "tap" else pooling
    if how == "class" and not encoder.family.prefix:
        raise BadInput(f"pooling 'class': {encoder.family.name} has no class token; use pooling 'mean'")
    if how == "class" and at == "projector":
        raise BadInput("pooling 'class' at 'projector': the class token never passes through it; use pooling 'mean'")
    if not images:
        raise BadInput("features of no images; give at least one")

    def pool(found: Sequence[Layer]) -> list[np.ndarray]:
        return [(one.first if how == "class" and one.first is not None else one.tokens.mean(dim=1)).cpu().numpy() for one in found]

    def rows() -> Iterator[np.ndarray]:
        done = 0
        for found in layers(encoder, images, batch, at):
            yield np.concatenate(pool(found), axis=1)
            done += len(found[0].tokens)
            tell("layers of images", done, len(images))

    widths = [part.shape[1] for part in pool(next(layers(encoder, images[:1], 1, at)))]
    facts = ["layers", encoder.fingerprint(), fingerprint(images), how, at, encoder.model.device.type]
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


def _pass(encoder: Encoder, pixel_values: Tensor) -> list[Layer]:
    """Every layer of one batch. What is on the way is caught by hooks; the last is what the encoder gives."""
    ways = paths(encoder)
    caught: list[list[Tensor]] = [[] for _ in ways]
    with ExitStack() as hooks:
        for way, into in zip(ways, caught, strict=True):
            if not way.traced:
                _catch(way, into, hooks)
        last = encoder.hidden(pixel_values)
    found = []
    for way, states in zip(ways, caught, strict=True):
        states = [_tokens(way, state, len(pixel_values)) for state in states]
        if way.tap.norm and states:
            states[-1] = towers.final_norm(way.model)(states[-1])
        prefix = towers.family(way.model.config).prefix
        found += [Layer(state[:, way.tap.prefix :], state[:, 0] if prefix else None) for state in states]
    whole = Layer(last[:, encoder.tap.prefix :], last[:, 0] if encoder.family.prefix else None)
    return [*(found if len(ways) > 1 else found[:-1]), whole]


def _catch(way: Path, into: list[Tensor], hooks: ExitStack) -> None:
    blocks = towers.blocks(way.model)

    def keep(state: Any) -> None:
        into.append(state[0] if isinstance(state, tuple) else state)

    # In place of a hook's answer, None: what passes is not changed. These come before the one that ends the pass, which is put in later.
    hooks.callback(blocks[0].register_forward_pre_hook(lambda _, given: keep(given)).remove)
    for block in blocks[: way.blocks]:
        hooks.callback(block.register_forward_hook(lambda _, __, given: keep(given)).remove)


def _tokens(way: Path, state: Tensor, images: int) -> Tensor:
    """A hidden state of any layout as (B, T, D)."""
    config = way.model.config
    match towers.family(config).layout:
        case "map":
            return state.flatten(2).transpose(1, 2)
        case "packed":
            return reading.in_raster_order(config, state, images, towers.grid(config, way.pixels))
    return state
