"""What a processor makes of pictures: the inputs that the model takes, picture by picture, and how many tokens each becomes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image

from pivot.data.turns import TOKENIZING

if TYPE_CHECKING:
    from transformers import ProcessorMixin


ANY = (64, 64)  # a size that stands for all where they become one


@dataclass(frozen=True)
class Sight:
    """One picture as the model takes it. Sights of many pictures are joined along the first axis of each input."""

    inputs: Mapping[str, torch.Tensor]  # `pixel_values`: of one picture, of its tiles, or its patches; and what the model must know of them
    tokens: int  # that it becomes in the LLM


_counted: WeakKeyDictionary[Any, dict[tuple[bool, tuple[int, int]], int]] = WeakKeyDictionary()


def sights(processor: ProcessorMixin, pictures: Sequence[Image.Image]) -> tuple[Sight, ...]:
    """The pictures of one row: a model may see a picture among others more coarsely than one alone.

    The processor counts the tokens where it has not yet seen pictures of these sizes; elsewhere its image processor is enough.
    """
    if not pictures:
        return ()
    known, alone = _counted.setdefault(processor, {}), len(pictures) == 1
    sizes = [(alone, picture.size) for picture in pictures]
    found = made(processor.image_processor, pictures)
    if not all(size in known for size in sizes):
        known.update(zip(sizes, _counts(processor, pictures, found), strict=True))
    return tuple(Sight(one, known[size]) for one, size in zip(_apart(found, len(pictures)), sizes, strict=True))


def counts(processor: ProcessorMixin, sizes: Sequence[tuple[int, int]]) -> list[int]:
    """How many tokens the pictures of one row become, from their (width, height) alone: as many as `sights` finds.

    A size that was not seen before costs the processing of a blank picture, unless the processor brings all pictures to one size.
    """
    known, alone = _counted.setdefault(processor, {}), len(sizes) == 1
    if _one_size(processor):
        sizes = [ANY] * len(sizes)
    if not all((alone, size) in known for size in sizes):
        sights(processor, [Image.new("RGB", size) for size in sizes])
    return [known[alone, size] for size in sizes]


def _one_size(processor: ProcessorMixin) -> bool:
    """Whether all pictures become as many tokens, because they are all cut or resized to one height and width, and not to tiles."""
    maker = processor.image_processor
    cut = maker.crop_size if getattr(maker, "do_center_crop", False) else maker.size if getattr(maker, "do_resize", False) else None
    tiles = hasattr(maker, "image_grid_pinpoints") or getattr(maker, "do_pad", False)
    return cut is not None and not tiles and getattr(cut, "height", None) is not None and getattr(cut, "width", None) is not None


def inputs_of(processor: ProcessorMixin, pictures: Sequence[Image.Image]) -> list[dict[str, torch.Tensor]]:
    """The model's inputs for each of a row's pictures."""
    if not pictures:
        return []
    return _apart(made(processor.image_processor, pictures), len(pictures))


def made(maker: Any, pictures: Sequence[Image.Image]) -> Mapping[str, torch.Tensor]:
    """What an image processor makes of a row's pictures, to the last bit.

    Most end by scaling and shifting each value of 8 bits in several passes of numpy. That is looked up instead: of 384 px, 10 ms a
    picture in place of 12.5, of which resizing takes 5.
    """
    if not _value_by_value(maker):
        return maker(images=[list(pictures)], return_tensors="pt")
    found = maker(images=[list(pictures)], return_tensors="pt", do_rescale=False, do_normalize=False)
    values = found["pixel_values"].numpy()  # (I, C, height, width)
    if values.dtype != np.uint8:
        return maker(images=[list(pictures)], return_tensors="pt")
    every = np.broadcast_to(np.arange(256, dtype=np.uint8), (values.shape[1], 1, 256))
    table = maker.normalize(maker.rescale(every, maker.rescale_factor), maker.image_mean, maker.image_std)[:, 0]  # (C, 256)
    pixels = np.empty(values.shape, table.dtype)
    for channel, looked_up in enumerate(np.ascontiguousarray(table)):
        np.take(looked_up, values[:, channel], mode="clip", out=pixels[:, channel])
    return {**found, "pixel_values": torch.from_numpy(pixels)}


def _value_by_value(maker: Any) -> bool:
    """Whether an image processor is a stock one whose last steps are to scale and to shift each value by itself."""
    stock = next((kind for kind in type(maker).__mro__ if kind.__name__ == "PilBackend"), None)
    steps = ("_preprocess", "rescale", "normalize")
    own = stock is None or any(getattr(type(maker), step) is not getattr(stock, step) for step in steps)
    return not own and bool(maker.do_rescale and maker.do_normalize) and not getattr(maker, "do_pad", False)


class _Made:
    """Stands for an image processor whose work is done: threads make pictures side by side, and count one at a time."""

    def __init__(self, maker: Any, found: Mapping[str, torch.Tensor]) -> None:
        self._maker, self._found = maker, found

    def __call__(self, *_: Any, **__: Any) -> Mapping[str, torch.Tensor]:
        return self._found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._maker, name)


def _counts(processor: ProcessorMixin, pictures: Sequence[Image.Image], found: Mapping[str, torch.Tensor]) -> list[int]:
    """How many placeholders the whole processor puts in for each picture."""
    between = "a"  # keeps the runs of placeholders apart; white space may belong to a placeholder
    text = between.join([processor.image_token] * len(pictures))  # type: ignore[attr-defined]
    counter = copy.copy(processor)
    counter.image_processor = _Made(processor.image_processor, found)
    with TOKENIZING:
        ids = counter(text=text, images=[list(pictures)], return_tensors="pt")["input_ids"][0].tolist()
    placeholder = processor.image_token_id  # type: ignore[attr-defined]
    return [len(list(run)) for placeholders, run in groupby(ids, lambda token: token == placeholder) if placeholders]


def _apart(found: Mapping[str, torch.Tensor], pictures: int) -> list[dict[str, torch.Tensor]]:
    """Inputs of a row to inputs of each picture. Pixels are patches of all pictures in one row, or tiles, or whole pictures."""
    pixels = found["pixel_values"]
    if pixels.ndim == 2:  # (patches, width)
        cut = pixels.split(found["image_grid_thw"].prod(-1).tolist())
    elif pixels.ndim == 5:  # (I, tiles, C, height, width); pictures of one row have equally many tiles
        cut = pixels.unbind()
    else:  # (I, C, height, width)
        cut = pixels.split(1)
    # What is said once a row holds for each of its pictures.
    rest = {name: value.expand(pictures, *value.shape[1:]) for name, value in found.items() if name != "pixel_values"}
    return [{"pixel_values": cut[n], **{name: value[n : n + 1] for name, value in rest.items()}} for n in range(pictures)]
