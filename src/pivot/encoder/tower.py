"""`pivot_tower`: what stock LLaVA cannot hold by itself, as one vision model that it can.

Its members are stock vision models, each read at its own tap. Their maps are brought to one grid and joined on channels, so that a
convolutional network, a tower of Qwen-VL or an ensemble looks like a transformer's patch tokens. It is registered with
transformers' Auto classes by importing this package, and a folder that holds one needs this package to open: the only such case.

Shapes: B images, P patches, D width of all members together, h x w the grid (P = h * w).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from pivot.encoder import reading, towers
from pivot.encoder.geometry import output_size
from pivot.records import BadInput, Tap

if TYPE_CHECKING:
    from transformers import BaseImageProcessor

# Of a member's config: what says where it came from and not what it computes.
PASSING = {"transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype", "_attn_implementation_autoset"}
NEEDS = "pip install pivot-vision, then import pivot.encoder"  # for whoever finds config.json and wonders about its model type


@dataclass(frozen=True)
class Member:
    """One vision model of a tower: where it is read, and which pixels it was made for."""

    model: PreTrainedModel
    tap: Tap
    pixels: tuple[int, int]  # height and width
    mean: tuple[float, ...]  # of each channel, of pixels from 0 to 1
    std: tuple[float, ...]

    @classmethod
    def of(cls, model: PreTrainedModel, processor: BaseImageProcessor, tap: Tap) -> Member:
        """Size and normalisation are read off its image processor; another scale than 0 to 1 becomes part of mean and std."""
        facts = processor.to_dict()
        scaled = facts.get("do_normalize", True)
        mean, std = (tuple(facts[name]) if scaled else (unit,) * 3 for name, unit in (("image_mean", 0.0), ("image_std", 1.0)))
        white = 255 * facts.get("rescale_factor", 1 / 255) if facts.get("do_rescale", True) else 255.0  # before mean and std
        if not math.isclose(white, 1):
            mean, std = tuple(value / white for value in mean), tuple(value / white for value in std)
        return cls(model, tap, output_size(processor), mean, std)

    def describe(self) -> dict[str, Any]:
        """What config.json says of it. Its width and grid are measured, since a network's strides are nowhere written down."""
        if towers.family(self.model.config).traced:
            self.model.config.num_hidden_layers = len(self._try(lambda pixels: reading.stages(self.model, pixels)))
        towers.depth(self.model.config, self.tap)
        _, width, *grid = self._try(lambda pixels: reading.maps(self.model, pixels, self.tap)).shape
        config = json.loads(self.model.config.to_json_string(use_diff=False))
        read = {"tap": asdict(self.tap), "pixels": list(self.pixels), "mean": list(self.mean), "std": list(self.std)}
        return {"config": {name: config[name] for name in config if name not in PASSING}, **read, "width": width, "grid": grid}

    @torch.no_grad()
    def _try(self, read: Any) -> Any:
        some = next(self.model.parameters())
        try:
            return read(torch.zeros(1, 3, *self.pixels, dtype=some.dtype, device=some.device))
        except BadInput:
            raise
        except (RuntimeError, ValueError, TypeError, AssertionError, AttributeError, IndexError) as failed:
            what = f"{self.model.config.model_type} with images of {self.pixels[0]} x {self.pixels[1]} pixels"
            raise BadInput(
                f"{what} gives no maps of features: {' '.join(str(failed).split())[:200]}; choose its own size, or another"
            ) from None


class PivotTowerConfig(PreTrainedConfig):
    """Members and the grid on which they meet. The other values are there for those who read a vision config, LLaVA above all."""

    model_type = "pivot_tower"

    def __init__(self, members: Sequence[Mapping[str, Any]] = (), grid: Sequence[int] = (1, 1), **kwargs: Any) -> None:
        self.members = [dict(member) for member in members]
        self.grid = list(grid)
        self.image_size = list(self.members[0]["pixels"]) if members else [1, 1]
        self.hidden_size = sum(member["width"] for member in self.members)
        self.num_hidden_layers = len(self.members)
        self.num_channels = 3
        self.opened_by = NEEDS
        self.patch_size = patch_size((self.image_size[0], self.image_size[1]), (self.grid[0], self.grid[1]))
        for derived in ("image_size", "hidden_size", "num_hidden_layers", "num_channels", "patch_size", "opened_by"):
            kwargs.pop(derived, None)
        super().__init__(**kwargs)

    def configs(self) -> Iterator[PreTrainedConfig]:
        """Of each member, as an object."""
        for member in self.members:
            yield AutoConfig.for_model(**member["config"])


def patch_size(pixels: tuple[int, int], grid: tuple[int, int]) -> int:
    """The side of a square patch that gives this grid, since LLaVA's processor counts an image's tokens by it."""
    fitting = [side for side in range(1, min(pixels) + 1) if (pixels[0] // side, pixels[1] // side) == grid]
    if not fitting:
        raise BadInput(
            f"a grid of {grid[0]} x {grid[1]} on images of {pixels[0]} x {pixels[1]} pixels fits no square patch; choose another"
        )
    return fitting[-1]


class PivotTower(PreTrainedModel):
    """Members' maps, interpolated to one grid and joined on channels."""

    config_class = PivotTowerConfig
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: PivotTowerConfig) -> None:
        super().__init__(config)
        asked = config._attn_implementation
        models = []
        for member in config.configs():
            attends = towers.family(member).layout != "map" and asked != "sdpa"  # sdpa is what those that have it choose themselves
            models.append(towers.model_class(member)._from_config(member, **({"attn_implementation": asked} if attends else {})))
        self.members = nn.ModuleList(models)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Members begin as their own classes make them."""

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutput:
        """(B, 3, H, W) as the first member's processor gives them -> one hidden state (B, P, D), which LLaVA reads as layer -1."""
        grid = (self.config.grid[0], self.config.grid[1])
        tokens = []
        for member in self.parts():
            found = reading.maps(member.model, self._pixels(pixel_values, member), member.tap, stop=False)  # (B, d, h', w')
            if found.shape[-2:] != grid:
                found = F.interpolate(found, size=grid, mode="bilinear", align_corners=False)
            tokens.append(found.flatten(2).transpose(1, 2))
        joined = torch.cat(tokens, dim=-1)
        return BaseModelOutput(last_hidden_state=joined, hidden_states=(joined,))

    def _pixels(self, pixel_values: torch.Tensor, member: Member) -> torch.Tensor:
        """The first member's pixels as another one's: its normalisation and its size. Nothing is touched where they are equal."""
        first = self.config.members[0]
        dtype = pixel_values.dtype
        pixel_values = pixel_values.to(torch.promote_types(dtype, torch.float32))  # the filter is missing in half precision
        if (member.mean, member.std) != (tuple(first["mean"]), tuple(first["std"])):
            mean, std, own_mean, own_std = (
                pixel_values.new_tensor(values)[:, None, None] for values in (first["mean"], first["std"], member.mean, member.std)
            )
            pixel_values = (pixel_values * std + mean - own_mean) / own_std
        if pixel_values.shape[-2:] != member.pixels:
            pixel_values = F.interpolate(pixel_values, size=member.pixels, mode="bicubic", antialias=True, align_corners=False)
        return pixel_values.to(dtype)

    def parts(self) -> list[Member]:
        """The members with their taps, models shared."""
        return [
            Member(model, Tap(**told["tap"]), (told["pixels"][0], told["pixels"][1]), tuple(told["mean"]), tuple(told["std"]))
            for model, told in zip(cast("Any", self.members), self.config.members, strict=True)
        ]

    def alone(self) -> Member | None:
        """The one member of a tower that changes nothing about it, and so goes out in its own format; None of any other."""
        first, *others = self.parts()
        own = not others and self.config.grid == self.config.members[0]["grid"]
        return first if own and first.model.config.model_type != "pivot_outside" else None

    def above(self) -> dict[str, nn.Module]:
        """What `towers.above` says of the members, by name in this model."""
        known = [(i, part) for i, part in enumerate(self.parts()) if not towers.family(part.model.config).traced]
        return {f"members.{i}.{name}": module for i, part in known for name, module in towers.above(part.model, part.tap).items()}

    def idle_parameters(self) -> dict[str, nn.Parameter]:
        """What `towers.idle_parameters` says of the members; those without a known inside are traced."""
        found: dict[str, nn.Parameter] = {}
        for i, part in enumerate(self.parts()):
            traced = towers.family(part.model.config).traced
            idle = reading.untouched(part.model, part.pixels, part.tap) if traced else towers.idle_parameters(part.model, part.tap)
            found |= {f"members.{i}.{name}": parameter for name, parameter in idle.items()}
        return found


def join(members: Sequence[Member], grid: tuple[int, int] | None = None) -> PivotTower:
    """Members as one tower on the first one's grid, or another. Their models are taken over, not copied."""
    told = [member.describe() for member in members]
    left_out = [part for member in members for part in getattr(member.model.config, "pivot_left_out", ())]
    notes: dict[str, Any] = {"pivot_left_out": list(dict.fromkeys(left_out))} if left_out else {}
    if len(members) == 1 and (source := getattr(members[0].model.config, "pivot_source", None)):
        notes["pivot_source"] = source
    config = PivotTowerConfig(told, grid or told[0]["grid"], **notes)
    with torch.device("meta"):  # a shell: all that it holds exists already
        tower = PivotTower(config)
    tower.members = nn.ModuleList([member.model for member in members])
    return tower.to(members[0].model.dtype).eval()  # type: ignore[arg-type]


AutoConfig.register("pivot_tower", PivotTowerConfig, exist_ok=True)
AutoModel.register(PivotTowerConfig, PivotTower, exist_ok=True)
