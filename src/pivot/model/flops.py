"""How many floating-point operations one example costs, by formula: two per weight and token, and attention.

Counted as torch's FlopCounterMode counts: attention over the whole square (no discount for causality), matrix products only.
Padding between examples is not in it; the padding that `repeat` needs between an example's own rows is.
Letters: N tokens of an image in the tower, T tokens of an LLM row, S positions that go through the LM head, D width.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedConfig

from pivot.data.collate import Row
from pivot.encoder import towers
from pivot.model.branches import Backend
from pivot.model.families import family
from pivot.records import Tap

PARTS = ("tower", "projector", "llm")


@dataclass(frozen=True)
class Weights:
    """Multiplied weights of each part: what a token meets on its way."""

    patch: int  # of the patch embedding
    block: int  # of one block of the tower
    block_last: int  # of its last linear map: checkpointing stops its recomputation before it
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
        block, layer = towers.blocks(tower)[0], towers.blocks(llm)[0]
        known = Weights(
            patch=_sizes(tower, nn.Conv2d)[0],
            block=sum(_sizes(block)),
            block_last=_sizes(block)[-1],
            projector=sum(_sizes(projector)),
            layer=sum(_sizes(layer)),
            layer_last=_sizes(layer)[-1],
            head=sum(_sizes(head)),
        )
        _known[id(config)] = ref(config), known
    return known


def _sizes(module: nn.Module, kind: type[nn.Module] = nn.Linear) -> list[int]:
    return [layer.get_parameter("weight").numel() for layer in module.modules() if isinstance(layer, kind)]


def flops(
    config: PreTrainedConfig,
    image_tokens: int,
    prompt_tokens: int,
    response_lengths: Sequence[int],
    backend: Backend = "shared",
    backward: bool = True,
    trained: Collection[str] = PARTS,
    checkpointing: bool = False,
) -> float:
    """Of scoring the responses to one trunk of `image_tokens` + `prompt_tokens` tokens, and with `backward` of the gradients too.

    `trained`: the parts that have a learning rate; the others need no gradients for their own weights, and a tower that is not
    trained none at all. `checkpointing`: activations are computed once more on the way back.
    """
    if not response_lengths:
        return 0.0  # nothing is scored, so nothing is run
    vision, text = config.vision_config, config.text_config
    rows, columns = towers.grid(vision)
    prefix = towers.prefix(vision)
    per_image = rows * columns + prefix - (config.vision_feature_select_strategy == "default")
    passes = 1 if backend == "shared" else len(response_lengths)
    images = image_tokens / per_image * passes
    trunk = image_tokens + prompt_tokens
    lengths = [trunk + sum(response_lengths)] if backend == "shared" else [trunk + max(response_lengths)] * len(response_lengths)
    size = weights(config)

    # Forward: linear maps and attention apart, since gradients of frozen weights are not computed but those through them are.
    tokens = rows * columns + prefix
    patch, block_linear, block_attention = _tower(config, images)
    projector = 2 * images * per_image * size.projector
    llm_linear = 2 * sum(lengths) * text.num_hidden_layers * size.layer
    width = text.num_attention_heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    llm_attention = 4 * sum(length**2 for length in lengths) * width * text.num_hidden_layers
    head = 2 * sum(response_lengths) * size.head
    tower = patch + vision.num_hidden_layers * (block_linear + block_attention)  # stock towers run the blocks above the tap, too
    forward = tower + projector + llm_linear + llm_attention + head
    if not backward or not trained:
        return float(forward)

    # Backward: one product for the input's gradient, one for the weight's; attention two for each of its two.
    learns = {part: part in trained for part in PARTS}
    below = towers.depth(vision, Tap(layer=config.vision_feature_layer))
    back = (llm_linear + head) * (1 + learns["llm"]) + 2 * llm_attention
    if learns["tower"] or learns["projector"]:
        back += projector * (learns["tower"] + learns["projector"])
    if learns["tower"]:
        back += patch + below * 2 * (block_linear + block_attention)  # pixels need no gradient
    if checkpointing:
        back += llm_linear + llm_attention - 2 * sum(lengths) * text.num_hidden_layers * size.layer_last
        back += below * (block_linear + block_attention - 2 * images * tokens * size.block_last) * learns["tower"]
    return float(forward + back)


def tower_flops(config: PreTrainedConfig, images: int) -> float:
    """Of training the tower up to the tap, forward and backward: stage 0, without what learns beside it."""
    patch, linear, attention = _tower(config, images)
    below = towers.depth(config.vision_config, Tap(layer=config.vision_feature_layer))
    return float(2 * patch + 3 * below * (linear + attention))


def _tower(config: PreTrainedConfig, images: float) -> tuple[float, float, float]:
    """Forward: the patch embedding, and one block's linear maps and attention."""
    vision, size = config.vision_config, weights(config)
    rows, columns = towers.grid(vision)
    patches = rows * columns
    tokens = patches + towers.prefix(vision)
    return 2 * images * patches * size.patch, 2 * images * tokens * size.block, 4 * images * tokens**2 * vision.hidden_size


def row_flops(config: PreTrainedConfig, row: Row, backend: Backend = "shared", **options: Any) -> float:
    """`flops` of a tokenised example: the sum over its trunks."""
    return sum(
        flops(config, t.image_tokens, len(t.span) - t.image_tokens, [len(row.branches[n]) for n in t.responses], backend, **options)
        for t in row.trunks
    )
