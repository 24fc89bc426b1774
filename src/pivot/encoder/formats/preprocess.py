"""What is done to a picture before a model sees it, in the words of each library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import transformers

from pivot.encoder import towers
from pivot.encoder.geometry import Geometry, output_size
from pivot.encoder.hub import quiet
from pivot.records import BadInput

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedConfig

FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}  # Pillow's numbers


@dataclass(frozen=True)
class Preprocess:
    """Resize to a size or a shortest edge, crop around the centre to the output, scale to 0..1, normalise. (height, width)."""

    out: tuple[int, int]
    resized: tuple[int, int] | int
    filter: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, processor: BaseImageProcessor) -> Preprocess:
        """Read it off one of transformers' image processors."""
        facts = processor.to_dict()
        kind = type(processor).__name__
        if (
            not facts.get("do_resize")
            or not facts.get("do_rescale", True)
            or not math.isclose(facts.get("rescale_factor", 1 / 255), 1 / 255)
        ):
            raise BadInput(f"{kind} does not resize, or not scale to 0..1; other libraries always do both: give it do_resize and 1/255")
        seen = Geometry.of(processor, (1, 1))
        assert seen.resized is not None
        normal = facts.get("do_normalize", True)
        return cls(
            out=output_size(processor),
            resized=seen.resized,
            filter=next(name for name, number in FILTERS.items() if number == int(facts["resample"])),
            mean=tuple(facts["image_mean"]) if normal else (0.0, 0.0, 0.0),
            std=tuple(facts["image_std"]) if normal else (1.0, 1.0, 1.0),
        )

    def processor(self, config: PreTrainedConfig) -> BaseImageProcessor:
        """A family's image processor that does it."""
        whole = isinstance(self.resized, tuple)
        size = {"height": self.resized[0], "width": self.resized[1]} if isinstance(self.resized, tuple) else {"shortest_edge": self.resized}
        cropping = not whole or self.resized != self.out
        crop: dict[str, Any] = {"crop_size": {"height": self.out[0], "width": self.out[1]}} if cropping else {}
        with quiet():
            return processor_class(config)(
                size=size,
                resample=FILTERS[self.filter],
                do_resize=True,
                do_center_crop=cropping,
                do_normalize=True,
                image_mean=list(self.mean),
                image_std=list(self.std),
                **crop,
            )

    @classmethod
    def of_timm(cls, facts: Mapping[str, Any]) -> Preprocess:
        """From timm's pretrained_cfg."""
        out = (int(facts["input_size"][1]), int(facts["input_size"][2]))
        share, mode = facts.get("crop_pct") or 0.875, facts.get("crop_mode") or "center"
        scaled = (math.floor(out[0] / share), math.floor(out[1] / share))
        if mode == "border" or (mode == "center" and scaled[0] != scaled[1]):
            raise BadInput(
                f"crop mode '{mode}' at {out[0]} by {out[1]} pixels: no image processor of transformers does that; save with 'squash'"
            )
        return cls(out, scaled if mode == "squash" else scaled[0], facts["interpolation"], tuple(facts["mean"]), tuple(facts["std"]))

    def to_timm(self) -> dict[str, Any]:
        """As timm's pretrained_cfg."""
        whole = isinstance(self.resized, tuple)
        scaled = self.resized if isinstance(self.resized, tuple) else (self.resized, self.resized)
        if not whole and self.out[0] != self.out[1]:
            raise BadInput(f"a shortest edge of {self.resized} cropped to {self.out}: timm does that to squares alone; use --to hf")
        # timm stores the share of the crop and divides again, rounding down: half a pixel more keeps the quotient.
        shares = [self.out[0] / (scaled[0] + more) for more in (0, 0.5)]
        fitting = [share for share in shares if all(math.floor(o / share) == s for o, s in zip(self.out, scaled, strict=True))]
        if not fitting:
            raise BadInput(f"resized to {scaled} and cropped to {self.out}: timm has one share for both sides; use --to hf")
        return {
            "input_size": [3, *self.out],
            "fixed_input_size": True,
            "interpolation": self.filter,
            "crop_pct": fitting[0],
            "crop_mode": "squash" if whole else "center",
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def of_open_clip(cls, facts: Mapping[str, Any]) -> Preprocess:
        """From open_clip's preprocess_cfg."""
        size, mode = facts["size"], facts["resize_mode"]
        out = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        if mode == "longest" or (mode == "shortest" and out[0] != out[1]):
            raise BadInput(
                f"resize mode '{mode}' at {out[0]} by {out[1]} pixels: no image processor of transformers does that; use 'squash'"
            )
        return cls(out, out if mode == "squash" else out[0], facts["interpolation"], _three(facts["mean"]), _three(facts["std"]))

    def to_open_clip(self) -> tuple[dict[str, Any], list[str]]:
        """As open_clip's preprocess_cfg, and what it cannot say: it crops nothing but what a resize to the output leaves over."""
        whole = isinstance(self.resized, tuple)
        lost = []
        if self.resized != (self.out if whole else self.out[0]):
            kept = "squashed" if whole else "shortest edge"
            lost.append(
                f"preprocessing: resized to {self.resized} and cropped to {self.out} here; open_clip cannot, so there {kept} to {self.out}"
            )
        if self.filter not in ("bicubic", "bilinear"):
            lost.append(f"preprocessing: {self.filter} here; open_clip has bicubic and bilinear, so there bicubic")
        return {
            "size": list(self.out),
            "mode": "RGB",
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": "bilinear" if self.filter == "bilinear" else "bicubic",
            "resize_mode": "squash" if whole else "shortest",
        }, lost


def processor_class(config: PreTrainedConfig) -> type[BaseImageProcessor]:
    """The image processor of a family, the one over Pillow."""
    return getattr(transformers, f"{towers.family(config).processor}Pil")


def _three(value: float | Sequence[float]) -> tuple[float, ...]:
    return (value,) * 3 if isinstance(value, int | float) else tuple(value)
