"""What can be said of an encoder before it is trained: its size, its tokens, where it is read, what would train, what would be stale.

Weights are not looked at: a model without storage is enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pivot.encoder import towers
from pivot.encoder.encoder import Encoder
from pivot.encoder.geometry import Geometry, output_size
from pivot.encoder.stale import stale
from pivot.encoder.tower import Member


def inspect(encoder: Encoder) -> dict[str, Any]:
    """Facts of an encoder, in the order in which a reader wants them."""
    model, tap, config = encoder.model, encoder.tap, encoder.model.config
    idle = towers.idle_parameters(model, tap)
    whole = {name: parameter.numel() for name, parameter in model.named_parameters()}
    trained = sum(size for name, size in whole.items() if name not in idle)
    rows, columns = encoder.grid
    below, blocks = towers.depth(config, tap), towers.num_blocks(config)
    joined = encoder.family.layout == "joined"
    return {
        "family": encoder.family.name,
        "model_type": config.model_type,
        "members": [_member(part) for part in encoder.members()] if joined else [],
        "blocks": None if joined else blocks,
        "width": config.hidden_size,
        "parameters": sum(whole.values()),
        "pixels": list(output_size(encoder.processor)),
        "patch": config.patch_size,
        "grid": [rows, columns],
        "patches": rows * columns,
        "prefix": towers.prefix(config),
        "tokens": rows * columns + towers.prefix(config) - (encoder.family.strategy == "default"),  # as stock LLaVA selects them
        "resize": _resize(encoder.geometry),
        "mean": list(getattr(encoder.processor, "image_mean", None) or ()),
        "std": list(getattr(encoder.processor, "image_std", None) or ()),
        "layer": tap.layer,
        "read": "each member at its own" if joined else f"behind block {below} of {blocks}{' and the final norm' if tap.norm else ''}",
        "trained": trained,
        "idle": sum(whole.values()) - trained,
        "stale": stale(encoder),
        "left_out": list(encoder.left_out),
    }


def _member(part: Member) -> dict[str, Any]:
    """One model of a `pivot_tower`."""
    config, layers = part.model.config, towers.num_blocks(part.model.config)
    known = {"family": towers.family(config).name, "architecture": getattr(config, "architecture", None)}  # of timm's wrapper
    return {**known, "layer": part.tap.layer, "of": layers, "pixels": list(part.pixels)}


def _resize(geometry: Geometry) -> str:
    """How a picture comes to the encoder's size."""
    how = "not at all"
    if isinstance(geometry.resized, int):
        how = f"shortest side to {geometry.resized}"
    elif geometry.resized:
        how = "straight to {} x {}, whatever its shape".format(*geometry.resized)
    return how + (", then {} x {} around the centre".format(*geometry.cropped) if geometry.cropped else "")


def lines(name: str, facts: Mapping[str, Any]) -> list[str]:
    """The same for people, a line a fact."""
    share = facts["trained"] / facts["parameters"]
    prefix = f" + {facts['prefix']} that are no patches" if facts["prefix"] else ""
    depth = f"{facts['blocks']} blocks" if facts["blocks"] else f"{len(facts['members'])} member{'s' * (len(facts['members']) > 1)}"
    size = f"{depth}, width {facts['width']}, {_count(facts['parameters'])} parameters"
    return [
        f"encoder   {name}",
        f"family    {facts['family']} ({facts['model_type']})",
        f"size      {size}",
        *(
            f"member    {part['architecture'] or part['family']}, {part['pixels'][0]} x {part['pixels'][1]} pixels, "
            f"read at layer {part['layer']} of {part['of']}"
            for part in facts["members"]
        ),
        f"pictures  {facts['pixels'][0]} x {facts['pixels'][1]} pixels, patch {facts['patch']}; resized: {facts['resize']}",
        f"tokens    {facts['grid'][0]} x {facts['grid'][1]} = {facts['patches']} patches{prefix}; {facts['tokens']} go to the LLM",
        f"tap       layer {facts['layer']}: {facts['read']}",
        f"trains    {_count(facts['trained'])} parameters ({share:.1%}); no gradient reaches the other {_count(facts['idle'])}",
        *(f"stale     {what}" for what in facts["stale"]),
    ]


def _count(number: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)
