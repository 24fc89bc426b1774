"""What a stock vision model computes at a tap, whatever the layout of its hidden states.

Shapes: B images, T tokens, P patches (T without the prefix), D width, h x w the grid (P = h * w), N patches of all images.
"""

from __future__ import annotations

import contextlib
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from pivot.encoder import towers
from pivot.records import Tap


class _Reached(Exception):
    """Ends a forward pass that has come to the tap."""


def hidden(model: PreTrainedModel, pixel_values: torch.Tensor, tap: Tap, stop: bool = True) -> torch.Tensor:
    """The hidden state at the tap, prefix included: (B, T, D). Gradients flow if enabled. With `stop` nothing above the tap is run."""
    match towers.family(model.config).layout:
        case "map":
            return maps(model, pixel_values, tap, stop).flatten(2).transpose(1, 2)
        case "packed":
            return _normed(model, _unpacked(model, pixel_values, tap, stop), tap)
        case "joined":
            towers.depth(model.config, tap)
            return model(pixel_values).hidden_states[-1]
    return _normed(model, _passing(model, tap, stop, pixel_values), tap)


def maps(model: PreTrainedModel, pixel_values: torch.Tensor, tap: Tap, stop: bool = True) -> torch.Tensor:
    """The same without the prefix and on its grid: (B, D, h, w)."""
    row = towers.family(model.config)
    if row.layout != "map":
        grid = towers.grid(model.config, (pixel_values.shape[-2], pixel_values.shape[-1]))
        return hidden(model, pixel_values, tap, stop)[:, tap.prefix :].transpose(1, 2).unflatten(2, grid)
    if row.traced:
        return stages(model, pixel_values, towers.depth(model.config, tap))[-1]
    return _normed(model, _passing(model, tap, stop, pixel_values).movedim(1, -1), tap).movedim(-1, 1)


def stages(model: PreTrainedModel, pixel_values: torch.Tensor, number: int | None = None) -> list[torch.Tensor]:
    """Maps (B, D, h, w) of a tower that nothing else is known of, bottom first: all of them, or no more than are needed for the last."""
    if model.config.model_type == "timm_wrapper":
        wrapped, last = cast("Any", model.timm_model), None if number is None else [number - 1]
        return wrapped.forward_intermediates(pixel_values, indices=last, stop_early=True, output_fmt="NCHW", intermediates_only=True)
    return list(model(pixel_values).hidden_states[:number])


def untouched(model: PreTrainedModel, pixels: tuple[int, int], tap: Tap) -> dict[str, nn.Parameter]:
    """Parameters that features at the tap do not depend on, by name: those that one image's graph of gradients does not reach."""
    parameters = dict(model.named_parameters())
    before = {name: parameter.requires_grad for name, parameter in parameters.items()}
    some = next(iter(parameters.values()))
    try:
        model.requires_grad_(True)
        with torch.enable_grad():
            found = maps(model, torch.zeros(1, 3, *pixels, dtype=some.dtype, device=some.device), tap)
        reached, waiting = set(), [found.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is not None and node not in reached:
                reached.add(node)
                waiting += [parent for parent, _ in node.next_functions]
        touched = {id(node.variable) for node in reached if hasattr(node, "variable")}  # the leaves
    finally:
        for name, parameter in parameters.items():
            parameter.requires_grad_(before[name])
    return {name: parameter for name, parameter in parameters.items() if id(parameter) not in touched}


def _passing(model: PreTrainedModel, tap: Tap, stop: bool, *inputs: torch.Tensor) -> torch.Tensor:
    """A model's hidden state at the tap, caught by a hook. To stop there the hook raises, which fits every family alike.

    Inside an MLLM that trains nothing may be raised: the block may be within a checkpoint, which must end in order.
    """
    below, blocks = towers.depth(model.config, tap), towers.blocks(model)
    caught: list[torch.Tensor] = []

    def catch(_module: nn.Module, given: tuple[Any, ...], output: Any = None) -> None:
        reached = given[0] if below == 0 else output
        caught.append(reached[0] if isinstance(reached, tuple) else reached)
        if stop:
            raise _Reached

    handle = blocks[0].register_forward_pre_hook(catch) if below == 0 else blocks[below - 1].register_forward_hook(catch)
    with contextlib.suppress(_Reached):
        try:
            model(*inputs)
        finally:
            handle.remove()
    return caught[0]


def _normed(model: PreTrainedModel, found: torch.Tensor, tap: Tap) -> torch.Tensor:
    return towers.final_norm(model)(found) if tap.norm else found


def _unpacked(model: PreTrainedModel, pixel_values: torch.Tensor, tap: Tap, stop: bool) -> torch.Tensor:
    """(B, P, D) in raster order of a tower that takes the patches of all images in one row, cell by cell, and keeps a row."""
    config, images = model.config, len(pixel_values)
    h, w = towers.grid(config, (pixel_values.shape[-2], pixel_values.shape[-1]))
    cell, side, frames = config.spatial_merge_size, config.patch_size, config.temporal_patch_size
    seen = pixel_values[..., : h * side, : w * side].unflatten(-1, (w // cell, cell, side)).unflatten(-4, (h // cell, cell, side))
    # (B, C, H, cell, side, W, cell, side) -> cells in raster order, the patches of a cell together; a picture is a still of `frames`
    patches = seen.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(0, 4)[:, :, None].expand(-1, -1, frames, -1, -1).flatten(1)
    sizes = torch.tensor([[1, h, w]] * images, device=pixel_values.device)
    return in_raster_order(config, _passing(model, tap, stop, patches, sizes), images, (h, w))


def in_raster_order(config: PreTrainedConfig, row: torch.Tensor, images: int, grid: tuple[int, int]) -> torch.Tensor:
    """(N, D) as such a tower keeps the patches of images of one size -> (B, P, D)."""
    (h, w), cell = grid, config.spatial_merge_size
    cells = row.unflatten(0, (images, -1, cell * cell))
    cells = cells[:, _window_order(config, h // cell, w // cell).to(row.device).argsort()]
    return cells.unflatten(1, (h // cell, w // cell)).unflatten(3, (cell, cell)).transpose(2, 3).flatten(1, 4)


def _window_order(config: PreTrainedConfig, rows: int, columns: int) -> torch.Tensor:
    """(cells,) number in raster order of the cell at each place of a row that a tower with windowed attention keeps window by window."""
    numbers = torch.arange(rows * columns)
    side = getattr(config, "window_size", 0) // config.spatial_merge_size // config.patch_size
    if not side:
        return numbers
    window = numbers // columns // side * columns + numbers % columns // side  # unique, and in raster order of the windows
    return window.argsort(stable=True)
