"""The model card of a detached encoder: what it is made of, how to open it, what in it is stale, what its user must check.

The Hub shows it as the folder's README.md. It states what is known and names what is not: a licence is never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from pivot.encoder import towers

if TYPE_CHECKING:
    from pivot.encoder.parity import Parity
    from pivot.records import Tap

CARD_FILE = "README.md"
OPENED = {
    "hf": """from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained(FOLDER).eval()
pixels = AutoImageProcessor.from_pretrained(FOLDER, backend="pil")(images=image, return_tensors="pt")["pixel_values"]
hidden_states = model(pixels, output_hidden_states=True).hidden_states""",
    "timm": """import timm

model = timm.create_model(f"local-dir:{FOLDER}", pretrained=True).eval()
pixels = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)(image)[None]""",
    "open_clip": """import open_clip

model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{FOLDER}")
pixels = preprocess(image)[None]""",
}
# Towers that take something else than pictures, or that transformers does not know.
THROUGH_PIVOT = """from pivot.encoder import Encoder  # pip install pivot-vision

features = Encoder.load(FOLDER).features([image]).tokens"""


@dataclass(frozen=True)
class Provenance:
    """Where an encoder comes from, as far as it is known. Names are those that were given; all of it is plain text."""

    title: str | None = None  # of the card; else the folder's name
    encoder: str | None = None  # what was built on
    llm: str | None = None
    mllm: str | None = None  # what was trained, where that was one already
    dequantised: str | None = None  # the kind of GGUF file that the LLM was unpacked from
    licences: Mapping[str, str] = field(default_factory=dict)  # of parents, where a card or config of theirs says it
    data: Mapping[str, str] = field(default_factory=dict)  # by name: how it was read
    training: Sequence[str] = ()  # a sentence a stage
    recipe: str | None = None  # the whole file

    @property
    def parents(self) -> dict[str, str]:
        """What was put together, by role."""
        named = {"encoder": self.encoder, "LLM": self.llm, "MLLM": self.mllm}
        return {role: name for role, name in named.items() if name}


def card(name: str, family: str, to: str, tap: Tap, parity: Parity, provenance: Provenance) -> str:
    """The card's text. `to`: the library whose layout the folder has."""
    parts = [
        _head(to, family, provenance),
        f"# {provenance.title or name}",
        f"A vision encoder of family `{family}`, taken out of a multimodal language model with pivot. It is no drop-in for its "
        "parent's last hidden state: read it through its tap.",
        "## How to read it\n\n```python\n" + _opening(family, to, parity) + f"\n```\n\nIts features are `{parity.read}`: {_tap(tap)}. "
        "The same is in `tap.json`; `pivot.encoder.Encoder.load(FOLDER)` reads it from there.",
        "## Difference from the model it was trained in\n\n"
        f"Largest absolute difference of a token: {parity.difference:g} (shape {list(parity.shape)}, {parity.dtype}, {parity.device}; "
        f"through {parity.through}; against: {parity.against}). `parity.json` has the rest.",
        "## What is stale\n\n" + (_list(parity.stale) if parity.stale else "Nothing: all of it was on the path of the gradient."),
        "## Where it comes from\n\n" + _origin(provenance),
        "## Licence\n\n" + _licence(provenance),
    ]
    if provenance.recipe:
        parts.append("## Recipe\n\n```yaml\n" + provenance.recipe.strip() + "\n```")
    return "\n\n".join(parts) + "\n"


def _head(to: str, family: str, provenance: Provenance) -> str:
    """The card's metadata, as the Hub reads it."""
    library = {"hf": "transformers", "timm": "timm", "open_clip": "open_clip"}[to]
    facts: dict[str, Any] = {
        "library_name": library,
        "pipeline_tag": "image-feature-extraction",
        "tags": ["pivot", family],
        "license": "other",
    }
    on_hub = [name.removeprefix("hf:") for name in provenance.parents.values() if name.startswith("hf:")]
    if on_hub:
        facts["base_model"] = on_hub
    return "---\n" + yaml.safe_dump(facts, sort_keys=False, allow_unicode=True) + "---"


def _opening(family: str, to: str, parity: Parity) -> str:
    if towers.family(family).layout in ("packed", "joined"):
        return THROUGH_PIVOT
    return f"{OPENED[to]}\nfeatures = {parity.read}"


def _tap(tap: Tap) -> str:
    where = f"layer {tap.layer}" + (", behind the final norm" if tap.norm else ", in front of the final norm")
    dropped = f", without the first {tap.prefix} tokens, which are no patches" if tap.prefix else ", all tokens"
    return f"{where}{dropped}; pooled by {'their mean' if tap.pooling == 'mean' else 'the class token'}"


def _origin(provenance: Provenance) -> str:
    lines = [f"{role}: `{name}`" for role, name in provenance.parents.items()]
    if provenance.dequantised:
        lines.append(f"the LLM was dequantised from {provenance.dequantised}: it is not the model that was published in full precision")
    lines += [f"data `{name}`: {said}" for name, said in provenance.data.items()]
    lines += list(provenance.training)
    return _list(lines) if lines else "Not recorded."


def _licence(provenance: Provenance) -> str:
    """What is inherited. `other` in the metadata stays until a person has read the parents' terms."""
    known = [f"`{name}`: {provenance.licences.get(name) or 'not known here; look it up'}" for name in provenance.parents.values()]
    known += [f"data `{name}`: not known here; look it up" for name in provenance.data]
    said = "To be checked before it is passed on. These weights derive from"
    return f"{said}:\n\n{_list(known)}" if known else f"{said} parents that were not recorded."


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
