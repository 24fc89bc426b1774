"""What is done to a picture, said in timm's words and read from them: against timm's own transform where it is installed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from pivot.encoder import Encoder
from pivot.encoder.formats.preprocess import Preprocess

FACTS = {"input_size": [3, 48, 48], "interpolation": "bicubic", "crop_pct": 0.75, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
WIDE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 96, 3), dtype=np.uint8))


@pytest.mark.parametrize(("mode", "resized"), [("squash", (64, 64)), ("center", 64), (None, 64)])
def test_a_wide_picture_is_squashed_where_timm_squashes_it(mode: str | None, resized: tuple[int, int] | int) -> None:
    facts = {**FACTS, "crop_mode": mode}
    found = Preprocess.of_timm(facts)
    assert found == Preprocess((48, 48), resized, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert Preprocess.of_timm(found.to_timm()) == found
    timm = pytest.importorskip("timm.data")
    data = timm.resolve_data_config({}, pretrained_cfg={key: value for key, value in facts.items() if value is not None})
    theirs = timm.create_transform(**data, is_training=False)(WIDE)
    ours = found.processor(Encoder.tiny("clip").model.config)(images=[WIDE], return_tensors="pt")["pixel_values"][0]
    assert torch.allclose(theirs, ours, atol=1e-5)


@pytest.mark.parametrize("whole", [False, True])
def test_the_resize_survives_timms_division(whole: bool) -> None:
    """timm keeps out / resized and gets the size back by dividing again and rounding down, which loses a pixel at 354."""
    assert math.floor(224 / (224 / 354)) == 353
    for side in range(224, 449):
        asked = Preprocess((224, 224), (side, side) if whole else side, "bicubic", (0.5,) * 3, (0.5,) * 3)
        told = asked.to_timm()
        assert math.floor(224 / told["crop_pct"]) == side
        assert Preprocess.of_timm(told) == asked
