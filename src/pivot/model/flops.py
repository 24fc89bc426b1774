"""How many floating-point operations one example costs, by formula: two per weight and token, and attention.

Counted as torch's FlopCounterMode counts: attention over the whole square (no discount for causality), matrix products only.
Padding between examples is not in it; the padding that `repeat` needs between an example's own rows is.
A view is what the tower takes at once: a picture, a tile of it, or the patches of one; as rows and columns of patches.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, cast
from weakref import ref

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText, PreTrainedConfig

from pivot.data.collate import Row
from pivot.data.vision import Sight
from pivot.encoder import reading, towers
from pivot.encoder.tower import PivotTower
from pivot.model import languages
from pivot.model.branches import Backend
from pivot.model.families import family
from pivot.model.lora import Adapters

PARTS = ("tower", "projector", "llm")
View = tuple[int, int]


@dataclass(frozen=True)
class Weights:
    """Multiplied weights of each part: what a token meets on its way."""

    patch: int  # of the patch embedding
    block: int  # of one block of the tower
    block_last: int  # of its last linear map: checkpointing stops its recomputation before it
    joined: tuple[float, float] | None  # instead of these three: forward and backward operations of a `pivot_tower` for one picture
    projector: int
    layer: int  # of one layer of the LLM
    layer_last: int
    head: int


_known: dict[int, tuple[ref[PreTrainedConfig], Weights]] = {}  # by identity: configs cannot be hashed, and to_json takes a millisecond


def weights(config: PreTrainedConfig) -> Weights:
    """Read off a model without storage, so that gated MLPs and grouped heads need no cases here."""
    seen, known = _known.get(id(config), (None, None))
    if known is None or seen is None or seen() is not config:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
        row = family(config)
        tower, projector, llm, head = (model.get_submodule(name) for name in (row.tower, row.projector, row.llm, row.head))
        joined = towers.family(config.vision_config).layout == "joined"
        block, layer = [0] if joined else _sizes(towers.blocks(tower)[0]), _sizes(towers.blocks(llm)[0])
        known = Weights(
            patch=0 if joined else _sizes(tower, nn.Conv2d, nn.Conv3d)[0],
            block=sum(block),
            block_last=block[-1],
            joined=_measured(cast(PivotTower, tower)) if joined else None,
            projector=sum(_sizes(projector)),
            layer=sum(layer),
            layer_last=layer[-1],
            head=sum(_sizes(head)),
        )
        _known[id(config)] = ref(config), known
    return known


def _sizes(module: nn.Module, *kinds: type[nn.Module]) -> list[int]:
    return [layer.get_parameter("weight").numel() for layer in module.modules() if isinstance(layer, kinds or nn.Linear)]


def _measured(tower: PivotTower) -> tuple[float, float]:
    """Operations of a tower of any making, for one picture: convolutions fit no formula. Counted on shapes alone, except where the
    course of a pass hangs on values in a tensor, as it does with packed patches.
    """
    forward = both = 0.0
    for part in tower.parts():
        device = "cpu" if towers.family(part.model.config).layout == "packed" else "meta"
        model = part.model.to_empty(device=device)
        with torch.enable_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            features = reading.maps(model, torch.zeros(1, 3, *part.pixels, device=device), part.tap, stop=False)
            forward += counter.get_total_flops()
            features.sum().backward()
        both += counter.get_total_flops()
    return forward, both - forward


def flops(
    config: PreTrainedConfig,
    views: Sequence[View],
    trunk: int,
    response_lengths: Sequence[int],
    backend: Backend = "shared",
    backward: bool = True,
    trained: Collection[str] = PARTS,
    checkpointing: bool = False,
    adapters: Adapters | None = None,
) -> float:
    """Of scoring the responses to a trunk of so many tokens, its images among them, and with `backward` of the gradients too.

    `views`: of all its images. `trained`: the parts that have a learning rate; the others need no gradients for their own weights,
    and a tower that is not trained none at all. `checkpointing`: activations are computed once more on the way back.
    `adapters`: what trains of the LLM in place of its own weights. Gradients for what enters the first layer are counted always, though
    without another trained part nothing needs them.
    """
    if not response_lengths:
        return 0.0  # nothing is scored, so nothing is run
    text, size = config.get_text_config(), weights(config)
    lengths = [trunk + sum(response_lengths)] if backend == "shared" else [trunk + max(response_lengths)] * len(response_lengths)

    # Forward: linear maps and attention apart, since gradients of frozen weights are not computed but those through them are.
    tower = _tower(config, views, 1 if backend == "shared" else len(response_lengths))
    projector = 2 * tower.tokens * size.projector
    llm_linear = 2 * sum(lengths) * text.num_hidden_layers * size.layer
    llm_attention = 4 * sum(length**2 for length in lengths) * _width(text) * text.num_hidden_layers
    low = 2 * sum(lengths) * adapters.weights if adapters else 0
    head = 2 * sum(response_lengths) * size.head
    forward = tower.patch + tower.below + tower.above + projector + llm_linear + low + llm_attention + head
    if not backward or not trained:
        return float(forward)

    # Backward: one product for the input's gradient, one for the weight's; attention two for each of its two.
    learns = {part: part in trained for part in PARTS}
    back = (llm_linear + head) * (1 + (learns["llm"] and not adapters)) + 2 * low + 2 * llm_attention
    if learns["tower"] or learns["projector"]:
        back += projector * (learns["tower"] + learns["projector"])
    if learns["tower"]:
        back += tower.patch + 2 * tower.below  # pixels need no gradient
    if checkpointing:
        last = adapters.last if adapters and adapters.last else text.num_hidden_layers * size.layer_last
        back += llm_linear + low + llm_attention - 2 * sum(lengths) * last
        back += tower.again * learns["tower"]
    return float(forward + back)


def tower_flops(config: PreTrainedConfig, images: int) -> float:
    """Of training the tower up to the tap, forward and backward: stage 0, without what learns beside it."""
    tower = _tower(config, [towers.grid(config.vision_config)], images)
    return float(2 * tower.patch + 3 * tower.below)


def _width(llm: PreTrainedConfig) -> int:
    """Of all attention heads together; 0 where there is no attention."""
    heads = getattr(llm, "num_attention_heads", 0)
    return heads * (getattr(llm, "head_dim", None) or llm.hidden_size // heads) if heads else 0


@dataclass(frozen=True)
class _Tower:
    """Forward operations of a tower: patch embedding, blocks that the tap's features pass through, and the stock towers' rest."""

    patch: float
    below: float
    above: float
    again: float  # what checkpointing computes once more
    tokens: float  # that go into the projector


def _tower(config: PreTrainedConfig, views: Sequence[View], passes: int) -> _Tower:
    vision, size, row = config.vision_config, weights(config), family(config)
    merged = vision.spatial_merge_size**2 if row.merges else 1
    patches = [rows * columns for rows, columns in views]
    if size.joined:
        forward, back = (each * len(views) * passes for each in size.joined)
        return _Tower(0, back / 2, forward - back / 2, back / 2, sum(patches) * passes)
    tokens = [count + towers.prefix(vision) for count in patches]
    width = getattr(vision, "embed_dim", None) or vision.hidden_size  # Qwen2-VL's hidden_size is the LLM's
    linear, last = (2 * sum(tokens) * weight * passes for weight in (size.block, size.block_last))
    everywhere = 4 * sum(count**2 for count in tokens) * width * passes
    windowed = 4 * sum(_in_windows(vision, view) for view in views) * width * passes
    whole = getattr(vision, "fullatt_block_indexes", None)
    cost = [linear + (everywhere if whole is None or block in whole else windowed) for block in range(towers.num_blocks(vision))]
    below = towers.depth(vision, row.tap(config))
    dropped = len(views) if getattr(config, "vision_feature_select_strategy", "full") == "default" else 0
    return _Tower(
        patch=2 * sum(patches) * size.patch * passes,
        below=sum(cost[:below]),
        above=sum(cost[below:]),
        again=sum(cost[:below]) - below * last,
        tokens=(sum(tokens) - dropped) * passes / merged,
    )


def _in_windows(vision: PreTrainedConfig, view: View) -> int:
    """Pairs of patches that see one another where attention is cut into square windows; at the edges smaller ones remain."""
    side = getattr(vision, "window_size", 0) // vision.patch_size if getattr(vision, "window_size", 0) else max(view)
    rows, columns = ([min(side, length - start) for start in range(0, length, side)] for length in view)
    return sum((high * wide) ** 2 for high in rows for wide in columns)


def views(config: PreTrainedConfig, images: Sequence[Sight]) -> list[View]:
    """What the tower takes of some images."""
    if family(config).view == "patches":
        grids = (image.inputs["image_grid_thw"][0].tolist() for image in images)
        return [(rows, columns) for _, rows, columns in grids]
    return [towers.grid(config.vision_config)] * sum(len(image.inputs["pixel_values"]) for image in images)


def row_flops(config: PreTrainedConfig, row: Row, backend: Backend = "shared", **options: Any) -> float:
    """`flops` of a tokenised example: the sum over its trunks. An LLM that allows no branches is scored through `repeat`."""
    used, _ = languages.backend(config.get_text_config(), backend)
    return sum(
        flops(config, views(config, t.images), len(t.span), [len(row.branches[n]) for n in t.responses], used, **options)
        for t in row.trunks
    )
