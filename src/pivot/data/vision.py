"""What a processor makes of pictures: the inputs that the model takes, picture by picture, and how many tokens each becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import ProcessorMixin


@dataclass(frozen=True)
class Sight:
    """One picture as the model takes it. Sights of many pictures are joined along the first axis of each input."""

    inputs: Mapping[str, torch.Tensor]  # `pixel_values`: of one picture, of its tiles, or its patches; and what the model must know of them
    tokens: int  # that it becomes in the LLM


_counted: WeakKeyDictionary[Any, dict[tuple[bool, tuple[int, int]], int]] = WeakKeyDictionary()


def sights(processor: ProcessorMixin, pictures: Sequence[Image]) -> tuple[Sight, ...]:
    """The pictures of one row: a model may see a picture among others more coarsely than one alone.

    The processor counts the tokens where it has not yet seen pictures of these sizes; after that its image processor is enough.
    """
    known, alone = _counted.setdefault(processor, {}), len(pictures) == 1
    sizes = [(alone, picture.size) for picture in pictures]
    if pictures and not all(size in known for size in sizes):
        inputs, counts = _counting(processor, pictures)
        known.update(zip(sizes, counts, strict=True))
    else:
        inputs = inputs_of(processor, pictures)
    return tuple(Sight(one, known[size]) for one, size in zip(inputs, sizes, strict=True))


def inputs_of(processor: ProcessorMixin, pictures: Sequence[Image]) -> list[dict[str, torch.Tensor]]:
    """The model's inputs for each of a row's pictures."""
    if not pictures:
        return []
    return _apart(processor.image_processor(images=[list(pictures)], return_tensors="pt"), len(pictures))


def _counting(processor: ProcessorMixin, pictures: Sequence[Image]) -> tuple[list[dict[str, torch.Tensor]], list[int]]:
    """The same by the whole processor, which also puts in as many placeholders as each picture needs."""
    between = "a"  # keeps the runs of placeholders apart; white space may belong to a placeholder
    text = between.join([processor.image_token] * len(pictures))  # type: ignore[attr-defined]
    found = processor(text=text, images=[list(pictures)], return_tensors="pt")
    placeholder = processor.image_token_id  # type: ignore[attr-defined]
    runs = groupby(found["input_ids"][0].tolist(), lambda token: token == placeholder)
    counts = [len(list(run)) for placeholders, run in runs if placeholders]
    return _apart({name: found[name] for name in processor.image_processor.model_input_names if name in found}, len(pictures)), counts


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
