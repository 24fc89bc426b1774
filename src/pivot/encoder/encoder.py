"""An encoder and the tap through which its features are read.

Shapes: B images, T tokens, P patches (T without the prefix), D width, h x w the patch grid (P = h * w).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pivot.encoder import formats, names, outside, reading, resize, source, towers
from pivot.encoder import projector as projectors
from pivot.encoder.geometry import Geometry, output_size
from pivot.encoder.tower import Member, PivotTower, join
from pivot.files import hash_json, hash_tensors, read_json, whole_folder, write_json
from pivot.pictures import picture
from pivot.records import BadInput, Tap

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedModel

    from pivot.records import Picture

At = Literal["encoder", "projector"]
TAP_FILE = "tap.json"
PROJECTOR_FILE = "projector.safetensors"


@dataclass(frozen=True)
class Features:
    """What an encoder sees in some images, float32 on the CPU: `tokens` (B, P, D), `pooled` (B, D), and the patch grid."""

    tokens: torch.Tensor
    pooled: torch.Tensor
    grid: tuple[int, int]


@dataclass(eq=False)
class Encoder:
    """A stock transformers vision model, its image processor, and its tap.

    `projector` is the one that an MLLM put behind it, if it came out of one. `inside` then computes from images, through that
    MLLM and its own processor, what goes into the projector and what comes out: `export` holds the folder against it.
    """

    model: PreTrainedModel = field(repr=False)
    processor: BaseImageProcessor
    tap: Tap
    projector: nn.Module | None = None
    inside: Callable[[Sequence[Picture]], tuple[torch.Tensor, torch.Tensor]] | None = None
    family: towers.Family = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.family = towers.family(self.model.config)
        towers.depth(self.model.config, self.tap)
        towers.grid(self.model.config, output_size(self.processor))
        if self.tap.pooling == "class" and self.family.prefix == 0:
            raise BadInput(f"pooling 'class': {self.family.name} has no class token; use pooling 'mean'")

    @classmethod
    def load(cls, name: str | Path, *, tap: Tap | None = None, dtype: str = "float32", pixels: int | tuple[int, int] | None = None) -> Self:
        """Open `hf:ID`, a transformers folder, a detached encoder's folder, or a tower of one's own as `package.module:NAME`.

        `NAME@LAYER` chooses where it is read. `A + B` is an ensemble: its features are interpolated to A's grid, or to the one in
        `A + B -> 24x24`, and joined on channels. A combined image-text model gives its vision part alone; what stock LLaVA cannot
        hold comes as a `pivot_tower`. `pixels` (one number, or height and width) sets another image size than the source's own.
        A detached encoder's tap and weight hash are read too. Bad names, missing or changed weights are a `BadInput`.
        """
        encoder = cls._named(str(name), dtype, pixels)
        return encoder if tap is None else replace(encoder, tap=tap)

    @classmethod
    def described(cls, name: str | Path, *, pixels: int | tuple[int, int] | None = None) -> Self:
        """The encoder of a name to be looked at: without its weights where its config says all that there is to say."""
        return cls._named(str(name), None, pixels)

    @classmethod
    def _named(cls, name: str, dtype: str | None, pixels: int | tuple[int, int] | None) -> Self:
        named = names.parse(name)
        opened = [cls._load(part.name, part.layer, dtype, pixels) for part in named.parts]
        return opened[0] if len(opened) == 1 and not named.grid else cls.join(opened, named.grid)

    @classmethod
    def _load(cls, name: str, layer: int | None, dtype: str | None, pixels: int | tuple[int, int] | None) -> Self:
        if outside.is_dotted(name):
            config, model, processor = outside.load(name, dtype or "float32")
        else:
            config, model, processor = source.load(name, dtype) if dtype else source.described(name)
        tap, projector = None, None
        folder = Path(name)
        if (folder / TAP_FILE).is_file():
            try:
                stored = read_json(folder / TAP_FILE)
                if dtype:
                    _check_hash(folder / formats.FORMATS[stored.get("layout", "hf")].WEIGHTS_FILE, stored["weights"])
                    projector = _load_projector(folder, stored["projector"], model.dtype)
                tap = Tap(**stored["tap"])
                if not isinstance(tap.layer, int):
                    raise TypeError(f"layer {tap.layer!r}")
            except (KeyError, TypeError, AttributeError) as error:
                raise BadInput(f"{folder / TAP_FILE} is not what this version writes ({error}); detach the encoder again") from None
        row = towers.family(config)
        if row.traced and tap is None:
            tap = Tap(layer=row.layer if layer is None else layer)  # checked as soon as its stages have been counted
        elif tap is None or layer is not None:
            tap = towers.default_tap(config, layer)
        if pixels is not None:
            model, processor = resize.resized(model, processor, resize.sides(pixels))
        if row.layout == "map":
            return replace(cls._joined([Member.of(model, processor, tap)], processor), projector=projector)
        return cls(model, processor, tap, projector).fitting()

    @classmethod
    def join(cls, encoders: Sequence[Self], grid: tuple[int, int] | None = None) -> Self:
        """An ensemble: each encoder read at its own tap, on the first one's grid or another, joined on channels.

        Pictures go through the first one's image processor. Models are taken over, not copied; projectors are left behind.
        """
        return cls._joined([part for encoder in encoders for part in encoder.members()], encoders[0].processor, grid)

    @classmethod
    def _joined(cls, members: Sequence[Member], processor: BaseImageProcessor, grid: tuple[int, int] | None = None) -> Self:
        tower = join(members, grid)
        return cls(tower, processor, towers.default_tap(tower.config))

    def fitting(self) -> Self:
        """This encoder as stock LLaVA can hold it: itself, or a `pivot_tower` of it alone."""
        return self if self.family.layout in ("tokens", "joined") else replace(self.join([self]), projector=self.projector)

    def resized(self, pixels: int | tuple[int, int]) -> Self:
        """The same encoder for images of another size, one number or height and width; itself at its own size."""
        model, processor = resize.resized(self.model, self.processor, resize.sides(pixels))
        return replace(self, model=model, processor=processor, inside=None)

    def members(self) -> list[Member]:
        """What an ensemble takes of this encoder: itself with its tap, or its own members. The first sees what the processor gives."""
        if not isinstance(self.model, PivotTower):
            return [Member.of(self.model, self.processor, self.tap)]
        first, *others = self.model.parts()
        return [Member.of(first.model, self.processor, first.tap), *others]

    def outgoing(self) -> tuple[PreTrainedModel, Tap]:
        """The model that a folder holds, and its tap: this one, or the one member of a `pivot_tower` that adds nothing to it."""
        alone = self.model.alone() if isinstance(self.model, PivotTower) else None
        return (self.model, self.tap) if alone is None else (alone.model, alone.tap)

    @classmethod
    def tiny(cls, name: str, *, pixels: int = 48, layer: int | None = None, seed: int = 0, **sizes: int) -> Self:
        """A small encoder of any family of the tables, with random weights. A `pivot_tower` is one of SigLIP and ConvNeXt."""
        if name == "pivot_tower":
            return cls.join([cls.tiny("siglip", pixels=pixels, seed=seed, **sizes), cls.tiny("convnext", pixels=pixels, seed=seed)])
        model = towers.tiny(name, pixels=pixels, seed=seed, **sizes)
        processor, row = source.square_processor(model.config, pixels), towers.family(name)
        if row.layout == "tokens":
            return cls(model, processor, towers.default_tap(model.config, layer))
        return cls._joined([Member.of(model, processor, Tap(layer=row.layer if layer is None else layer))], processor)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches of an image as the processor gives it."""
        return towers.grid(self.model.config, output_size(self.processor))

    @property
    def geometry(self) -> Geometry:
        """Where a picture's pixels land on that grid."""
        patch = None if self.family.layout == "joined" else self.model.config.patch_size
        return Geometry.of(self.processor, self.grid, patch)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Parts of the source that this encoder left behind: a text tower, a pooling head."""
        return tuple(getattr(self.model.config, "pivot_left_out", ()))

    def to(self, device: str | torch.device) -> Self:
        """Move model and projector; returns itself."""
        self.model.to(device)  # type: ignore[arg-type]
        if self.projector is not None:
            self.projector.to(device)
        return self

    def cast(self, dtype: str) -> Self:
        """The encoder with numbers of another kind, such as bfloat16: a copy, or itself where they are of that kind."""
        kind = getattr(torch, dtype)
        if self.model.dtype == kind:
            return self
        model, projector = copy.deepcopy((self.model, self.projector))
        return replace(self, model=model.to(kind), projector=projector and projector.to(kind), inside=None)

    def pixels(self, images: Sequence[Picture]) -> torch.Tensor:
        """Images as this encoder's processor gives them: (B, 3, H, W)."""
        values = self.processor(images=[picture(image) for image in images], return_tensors="pt")["pixel_values"]
        return values.to(self.model.device, self.model.dtype)

    def hidden(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The hidden state at the tap, prefix included: (B, T, D). Nothing above the tap is run. Gradients flow if enabled."""
        return reading.hidden(self.model, pixel_values, self.tap)

    def read(self, pixel_values: torch.Tensor, at: At = "encoder") -> tuple[torch.Tensor, torch.Tensor]:
        """Patch tokens (B, P, D) and pooled features (B, D) of processed images."""
        hidden = self.hidden(pixel_values)
        tokens = hidden[:, self.tap.prefix :]
        if at == "projector":
            tokens = self.project(tokens)
        elif at != "encoder":
            raise BadInput(f"features at '{at}': choose encoder or projector")
        return tokens, hidden[:, 0] if self.tap.pooling == "class" else tokens.mean(dim=1)

    def project(self, tokens: torch.Tensor) -> torch.Tensor:
        """Patch tokens (B, P, D) as they come out of the projector. Without one that they pass through it is a `BadInput`."""
        if self.projector is None:
            raise BadInput("features at 'projector': this encoder has no projector; use one that was detached from an MLLM, or 'encoder'")
        if self.tap.pooling == "class":
            raise BadInput("features at 'projector': the class token never passes through it; use pooling 'mean'")
        return self.projector(tokens)

    def stream(self, images: Iterable[Picture], at: At = "encoder", batch: int = 32) -> Iterator[Features]:
        """Features of images, a batch at a time, in order. Images are decoded as they are needed."""
        waiting = iter(images)
        while chunk := list(itertools.islice(waiting, batch)):
            pixel_values = self.pixels(chunk)
            with torch.no_grad(), resting(self.model, self.projector):
                tokens, pooled = self.read(pixel_values, at)
            yield Features(tokens.float().cpu(), pooled.float().cpu(), self.grid)

    def features(self, images: Iterable[Picture], at: At = "encoder", batch: int = 32) -> Features:
        """Features of images at the tap (or behind the projector): eval mode, no gradient, deterministic."""
        parts = list(self.stream(images, at, batch))
        if not parts:
            raise BadInput("features of no images; give at least one")
        return Features(torch.cat([p.tokens for p in parts]), torch.cat([p.pooled for p in parts]), self.grid)

    def fingerprint(self) -> str:
        """sha256 over everything that features depend on: weights, config, processor, tap, projector, the code of a tower of one's own."""
        config = self.model.config.to_dict()
        processor = self.processor.to_dict()
        passing = {"transformers_version", "_name_or_path", "architectures", "pivot_left_out", "pivot_source", "processor_class"}
        parts = {
            "config": {k: str(v) if k in ("dtype", "torch_dtype") else v for k, v in config.items() if k not in passing},
            "processor": {k: v for k, v in processor.items() if k not in passing},
            "tap": asdict(self.tap),
            "weights": hash_tensors(self.model.state_dict()),
            "projector": None if self.projector is None else hash_tensors(self.projector.state_dict()),
        }
        code = outside.code(self.model)
        return hash_json({**parts, "code": code} if code else parts)

    def save(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors, preprocessor_config.json, tap.json and what belongs to the projector, whole."""
        with whole_folder(folder) as unfinished:
            self.write(unfinished)

    def write(self, folder: Path, to: str = "hf") -> list[str]:
        """Write the files of `save` into an existing folder, in a library's layout; returns what that layout cannot say."""
        form = formats.FORMATS[to]
        model, tap = self.outgoing()
        lost = form.write(model, self.processor, folder)
        kept = None
        if self.projector is not None:
            state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.projector.state_dict().items()}
            save_file(state, folder / PROJECTOR_FILE, metadata={"format": "pt"})
            kept = {**projectors.describe(self.projector), "weights": hash_tensors(state)}
        facts = {
            "family": towers.family(model.config).name,
            "layout": to,
            "tap": asdict(tap),
            "weights": hash_tensors(load_file(folder / form.WEIGHTS_FILE)),
            "projector": kept,
            "left_out": self.left_out,
        }
        write_json(folder / TAP_FILE, facts)
        return lost

    def tapped(self, **changes: Any) -> Self:
        """The same encoder read elsewhere, for example `tapped(layer=-1, norm=True)`. Weights are shared."""
        return replace(self, tap=replace(self.tap, **changes))


@contextmanager
def resting(*modules: nn.Module | None) -> Iterator[None]:
    """Eval mode inside the block. A tower that is still part of a model in training goes back to it."""
    training = [module for module in modules if module is not None and module.training]
    for module in training:
        module.eval()
    try:
        yield
    finally:
        for module in training:
            module.train()


def _load_projector(folder: Path, stored: Mapping[str, Any] | None, dtype: torch.dtype) -> nn.Module | None:
    if stored is None:
        return None
    weights = _check_hash(folder / PROJECTOR_FILE, stored["weights"])
    module = projectors.build(stored)
    module.load_state_dict(weights)
    return module.to(dtype).eval()


def _check_hash(file: Path, expected: str) -> dict[str, torch.Tensor]:
    """Tensors of a file, if they are the ones that were saved."""
    if not file.is_file():
        raise BadInput(f"file not found: {file}; detach the encoder again")
    weights = load_file(file)
    if hash_tensors(weights) != expected:
        raise BadInput(f"weights changed: {file} does not match the hash in {TAP_FILE}; detach the encoder again")
    return weights
