"""What a recipe begins with: its MLLM, the encoder in it, and how many threads that deserves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pivot.sections import Build, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pivot.encoder import Encoder
    from pivot.model import MLLM

BASE = Path(__file__).parent / "base"  # the shipped MLLM
FRESH = ("tiny", "blank")  # words for `init` that name a way to make an MLLM, not a place to load one from
SMALL = 20_000_000  # parameters


def steady(model: PreTrainedModel) -> None:
    """One thread for a small model on a CPU, unless OMP_NUM_THREADS says otherwise.

    A second thread gains it little, and on a busy machine costs much: 5 s an update of the demo in place of 0.7.
    """
    import torch

    if model.device.type == "cpu" and model.num_parameters() < SMALL and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def initial(recipe: Recipe) -> MLLM:
    """The MLLM that a recipe begins with."""
    from pivot.model import MLLM

    if recipe.init in FRESH:
        return getattr(MLLM, recipe.init)()
    if recipe.init:
        return MLLM.load(recipe.init)
    assert recipe.llm  # a valid recipe has init, or both encoder and llm
    template = recipe.build.template if recipe.build else None
    return MLLM.build(given(recipe), recipe.llm, template=template, seed=recipe.seeds[0])


def given(recipe: Recipe, weights: bool = True) -> Encoder:
    """The encoder that a recipe builds on, read where and at the size that it says; to be looked at alone, without its weights."""
    from pivot.encoder import Encoder

    assert recipe.encoder
    build = recipe.build or Build()
    encoder = (Encoder.load if weights else Encoder.described)(recipe.encoder, pixels=build.pixels)
    return encoder if build.layer is None else encoder.tapped(layer=build.layer)
