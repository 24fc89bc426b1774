"""What lies above a tap in the model that an encoder came from: its upper blocks, final norm, pooling head and projection.

An encoder gives its hidden state at the tap and nothing else; all that is above comes from the original model. So an encoder that was
post-trained below the tap is read through the head that was made for the original one, whatever its own folder holds up there.

Shapes: B images, T tokens, D width, E width of the embeddings that images and texts share.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from pivot.encoder import towers
from pivot.encoder.encoder import Encoder
from pivot.encoder.hub import quiet, reach, reason
from pivot.files import hash_json, hash_tensors
from pivot.records import BadInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pivot.encoder.encoder import At

NEEDED = (("config.json",), ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"))
TEXTS = 256  # at a time
Use = Literal["pooling", "texts"]


class Above(nn.Module):
    """From hidden states at a tap (B, T, D) to what the original makes of them: (B, D) pooled, or (B, E) projected."""

    def __init__(self, original: nn.Module, encoder: Encoder, projected: bool) -> None:
        super().__init__()
        vision: Any = copy.deepcopy(original.vision_model if hasattr(original, "vision_model") else original)
        _fits(vision, encoder)
        below = towers.depth(encoder.model.config, encoder.tap)
        self.blocks = vision.encoder
        self.blocks.layers = vision.encoder.layers[below:]
        self.norm = nn.Identity() if encoder.tap.norm else vision.post_layernorm
        self.head = vision.head if encoder.family.name == "siglip" else None
        projection = getattr(original, "visual_projection", None) if projected else None
        self.projection = nn.Identity() if projection is None else copy.deepcopy(projection)

    def forward(self, hidden: Tensor) -> Tensor:
        last = self.norm(self.blocks(inputs_embeds=hidden).last_hidden_state)
        return self.projection(last[:, 0] if self.head is None else self.head(last))


def _fits(vision: Any, encoder: Encoder) -> None:
    """A `BadInput` unless the encoder's hidden states are what the original's upper blocks take."""
    config, own, tap = vision.config, encoder.model.config, encoder.tap
    if (config.model_type, config.hidden_size) != (own.model_type, getattr(own, "hidden_size", None)):
        wide = f"{own.model_type} of width {getattr(own, 'hidden_size', 'unknown')}"
        raise BadInput(
            f"the encoder is a {wide}, the original a {config.model_type} of width {config.hidden_size}; name the one it came from"
        )
    below, blocks = towers.depth(own, tap), towers.num_blocks(config)
    if below > blocks:
        raise BadInput(f"the encoder's tap is above block {below}, and the original has {blocks}; name the one it came from")
    if tap.norm and below < blocks:
        raise BadInput(
            f"a tap with norm at layer {tap.layer}: the original has blocks above it that take what is not normed; read without norm"
        )


@dataclass(eq=False)
class Through(Encoder):
    """An encoder whose pooled feature is what `above` makes of its hidden state at the tap. It is pooled there and nowhere else."""

    above: Above = field(kw_only=True, repr=False)

    @classmethod
    def of(cls, encoder: Encoder, original: nn.Module, *, projected: bool) -> Through:
        """An encoder with what its original has above the tap, on the same device and in the same kind of numbers."""
        above = Above(original, encoder, projected).to(encoder.model.device, encoder.model.dtype).eval()
        return cls(encoder.model, encoder.processor, encoder.tap, encoder.projector, above=above)

    @property
    def blocks_above(self) -> int:
        """Blocks that are run above the tap."""
        return len(self.above.blocks.layers)

    def read(self, pixel_values: Tensor, at: At = "encoder") -> tuple[Tensor, Tensor]:
        if at != "encoder":
            raise BadInput(f"features at '{at}' never pass through the original's head; read at 'encoder'")
        hidden = self.hidden(pixel_values)
        return hidden[:, self.tap.prefix :], self.above(hidden)

    def fingerprint(self) -> str:
        return hash_json([super().fingerprint(), hash_tensors(self.above.state_dict())])


def own_source(encoder: Encoder) -> str:
    """The name of what an encoder was opened from, as `opened` takes it."""
    name = str(getattr(encoder.model.config, "_name_or_path", "") or "")
    if not name:
        raise BadInput("pooling 'attention': nothing says what this encoder came from; set texts= to the SigLIP that it was")
    return name if Path(name).is_dir() else f"hf:{name}"


def opened(name: str, use: Use) -> nn.Module:
    """The model of a transformers folder or `hf:ID`: CLIP or SigLIP with its texts; for pooling SigLIP, or its vision model with a head."""
    from transformers import AutoConfig, AutoModel

    where, local = _place(name)
    known = ("clip", "siglip") if use == "texts" else ("siglip", "siglip_vision_model")
    try:
        with quiet():
            config = AutoConfig.from_pretrained(where, local_files_only=local)
            if config.model_type not in known:
                raise BadInput(f"{use} {name}: it is a {config.model_type}; give the {_called(use)} that the encoder came from")
            model, report = AutoModel.from_pretrained(where, dtype="float32", local_files_only=local, output_loading_info=True)
    except BadInput:
        raise
    except Exception as error:  # whatever a foreign folder raises is one line
        raise BadInput(f"{use} {name} cannot be opened: {reason(error)}") from None
    vision = model.vision_model if hasattr(model, "vision_model") else model
    if use == "pooling" and not getattr(vision, "use_head", hasattr(vision, "head")):
        raise BadInput(
            f"pooling 'attention': {name} has no pooling head (a detached tower has none); set texts= to the SigLIP it came from"
        )
    if missing := sorted(report["missing_keys"]):
        raise BadInput(f"{use} {name}: {len(missing)} tensors are not in its weights, the first is {missing[0]}; get the full checkpoint")
    return model.eval()


def _called(use: Use) -> str:
    return "CLIP or SigLIP model, with its texts," if use == "texts" else "SigLIP model"


def _place(name: str) -> tuple[str, bool]:
    """Where transformers finds a model, and whether it need not ask the Hub."""
    if Path(name).is_dir():
        return name, True
    if not name.startswith("hf:"):
        raise BadInput(f"'{name}': no such folder; check the path, or write hf:{name} for a model of the Hub")
    where = name.removeprefix("hf:")
    return where, reach(where, NEEDED)


def embedded(model: nn.Module, name: str, texts: Sequence[str]) -> Tensor:
    """(len(texts), E) unit embeddings of texts by the original's text tower, padded as it was trained. `name`: where its tokenizer is."""
    from transformers import AutoTokenizer

    stock: Any = model
    where, local = _place(name)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(where, local_files_only=local)
    except Exception as error:
        raise BadInput(f"texts {name}: its tokenizer cannot be opened: {reason(error)}") from None
    length = stock.config.text_config.max_position_embeddings
    padding = "max_length" if stock.config.model_type == "siglip" else "longest"  # SigLIP reads its last token, padding or not
    found = []
    for start in range(0, len(texts), TEXTS):
        tokens = tokenizer(list(texts[start : start + TEXTS]), padding=padding, truncation=True, max_length=length, return_tensors="pt")
        given = {key: tokens[key] for key in ("input_ids", "attention_mask") if key in tokens}
        if stock.config.model_type == "siglip":
            given.pop("attention_mask", None)  # it saw no mask in training
        with torch.no_grad():
            said = stock.get_text_features(**given)
        found.append(normalize((said if isinstance(said, Tensor) else said.pooler_output).float(), dim=1))
    return torch.cat(found)
