"""Encoders at other image sizes: what is resampled, what is left alone, and that an MLLM counts its tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, BitImageProcessorPil, ConvNextImageProcessorPil, Qwen2Config, SiglipImageProcessorPil

from pivot.encoder import Encoder, resize, towers
from pivot.encoder.geometry import Geometry, output_size
from pivot.model import MLLM
from pivot.records import BadInput

FAMILIES = [row.name for row in towers.FAMILIES]
FIXED = [row.name for row in towers.FAMILIES if not row.any_size]
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}


def picture(seed: int, height: int = 48, width: int = 60) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


IMAGES = [picture(0), picture(1, 90, 50)]


def field(rows: int, columns: int) -> torch.Tensor:
    """A smooth function of the place in the picture, sampled at the middles of a grid's cells: (P, 3)."""
    y, x = (torch.arange(n).add(0.5).div(n) for n in (rows, columns))
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([torch.sin(2 * x + y), torch.cos(3 * y), x * y], dim=-1).flatten(0, 1)


@pytest.mark.parametrize("after", [(24, 24), (12, 12), (12, 30), (6, 8)])
def test_a_smooth_field_comes_out_as_it_is_on_the_new_grid(after: tuple[int, int]) -> None:
    first = torch.tensor([[7.0, 8.0, 9.0]])
    found = resize.resampled(torch.cat([first, field(16, 16)])[None], (16, 16), after)[0]
    assert torch.equal(found[:1], first), "what is in front of the patches is kept"
    inner = torch.zeros(after, dtype=torch.bool)
    inner[1:-1, 1:-1] = True  # a filter that would look over the rim sees less there
    error = (found[1:] - field(*after)).abs()[inner.flatten()].max()
    assert error < 0.02
    flipped = found[1:].unflatten(0, after).flip(1).flatten(0, 1)
    assert (flipped - field(*after)).abs()[inner.flatten()].max() > 0.2, "a field laid out wrongly shows"


def test_a_smaller_grid_sees_all_of_the_larger_one() -> None:
    """Every position counts for the new ones: without antialiasing, those between the samples would count for none."""
    table = torch.eye(16 * 16)
    shares = resize.resampled(table, (16, 16), (4, 4))  # of each old position, in each new one
    assert torch.allclose(shares.sum(1), torch.ones(16), atol=1e-6)
    counted = shares.sum(0).reshape(16, 16)[6:10, 6:10]  # away from the rim, where filters are cut
    assert torch.allclose(counted, torch.full_like(counted, 1 / 16), atol=4e-3)


def test_the_same_grid_is_the_same_bits() -> None:
    table = torch.randn(37, 8)
    assert resize.resampled(table, (6, 6), (6, 6)) is table
    assert torch.equal(resize.resampled(table, (4, 9), (9, 4))[:1], table[:1])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_same_size_changes_nothing(name: str) -> None:
    encoder = Encoder.tiny(name)
    assert encoder.resized(48).fingerprint() == encoder.fingerprint()
    assert encoder.resized((48, 48)).model is encoder.model


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("pixels", [96, 52])
def test_another_size_resamples_positions_and_nothing_else(name: str, pixels: int, tmp_path: Path) -> None:
    encoder = Encoder.tiny(name)
    encoder.save(tmp_path / "native")
    other = Encoder.load(tmp_path / "native", pixels=pixels)
    assert other.grid == (pixels // 8, pixels // 8), "what fills no patch is not seen"
    assert other.features(IMAGES).tokens.shape == (2, (pixels // 8) ** 2, 32)
    before, after = encoder.model.state_dict(), other.model.state_dict()
    changed = {key for key in before if before[key].shape != after[key].shape or not torch.equal(before[key], after[key])}
    assert all("position_embedding" in key for key in changed)
    assert len(changed) == (name in FIXED and other.grid != encoder.grid)
    other.save(tmp_path / "other")
    again = Encoder.load(tmp_path / "other")
    assert again.fingerprint() == other.fingerprint() and again.grid == other.grid


def test_prefix_positions_are_kept() -> None:
    encoder = Encoder.tiny("clip")
    old, new = (next(p for n, p in e.model.named_parameters() if "position_embedding" in n) for e in (encoder, encoder.resized(96)))
    assert torch.equal(old[0], new[0]) and new.shape == (145, 32)


def test_a_longer_side_where_the_family_can() -> None:
    for name in ("vit", "dinov2", "dinov3_vit"):
        assert Encoder.tiny(name).resized((48, 96)).features(IMAGES).tokens.shape == (2, 72, 32)
    for name in ("siglip", "clip"):
        with pytest.raises(BadInput, match="choose a square"):
            Encoder.tiny(name).resized((48, 96))


@pytest.mark.parametrize("pixels", [0, -3, (48,), (48, 0), (1, 2, 3), 4])
def test_sizes_that_make_no_sense(pixels: int | tuple[int, ...]) -> None:
    with pytest.raises(BadInput) as error:
        Encoder.tiny("dinov2").resized(pixels)
    assert "\n" not in str(error.value)


REST = [name for name in (*FAMILIES, "convnext", "qwen2_5_vl_vision") if name not in ("clip", "dinov3_vit")]


@pytest.mark.parametrize("name", ["clip", "dinov3_vit", "pivot_tower", *(pytest.param(name, marks=pytest.mark.slow) for name in REST)])
def test_an_mllm_counts_the_tokens_of_its_encoder(name: str, tmp_path: Path) -> None:
    pixels = 92
    tokenizer = MLLM.tiny().processor.tokenizer
    llm = AutoModelForCausalLM.from_config(Qwen2Config(**SMALL, vocab_size=len(tokenizer)))
    mllm = MLLM.build(Encoder.tiny(name), llm, tokenizer=tokenizer, pixels=pixels)
    mllm.save(tmp_path)
    mllm = MLLM.load(tmp_path)
    inputs = mllm.processor(text="<image>", images=[IMAGES[0]], return_tensors="pt")
    with torch.no_grad():
        given = mllm.model.model.get_image_features(inputs["pixel_values"]).pooler_output[0]
    assert int((inputs["input_ids"] == mllm.model.config.image_token_id).sum()) == len(given) == mllm.model.config.image_seq_length
    assert inputs["pixel_values"].shape[-2:] == (pixels, pixels)


def test_all_members_of_one_size_follow() -> None:
    both = Encoder.join([Encoder.tiny("siglip"), Encoder.tiny("clip"), Encoder.tiny("dinov2", pixels=64)]).resized(96)
    assert [part.pixels for part in both.members()] == [(96, 96), (96, 96), (64, 64)]
    assert both.grid == (12, 12) and both.features(IMAGES).tokens.shape == (2, 144, 96)


# ---- image processors


def test_the_way_to_the_new_size_stays() -> None:
    straight = resize.processor_at(SiglipImageProcessorPil(size={"height": 224, "width": 224}), (384, 384))
    assert output_size(straight) == (384, 384) and not straight.to_dict().get("do_center_crop")
    cropping = BitImageProcessorPil(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, image_mean=[0.1, 0.2, 0.3])
    larger = resize.processor_at(cropping, (448, 448))
    assert larger.to_dict()["size"] == {"shortest_edge": 512} and output_size(larger) == (448, 448)
    assert list(larger.image_mean) == [0.1, 0.2, 0.3] and type(larger) is type(cropping)
    assert larger(images=IMAGES, return_tensors="np")["pixel_values"].shape == (2, 3, 448, 448)
    assert resize.processor_at(cropping, (224, 224)) is cropping


def test_a_resize_to_two_sides_grows_with_its_crop() -> None:
    crop = {"height": 48, "width": 64}
    cropping = BitImageProcessorPil(size={"height": 60, "width": 72}, crop_size=crop, do_center_crop=True)
    larger = resize.processor_at(cropping, (96, 192))
    assert larger.to_dict()["size"] == {"height": 120, "width": 216} and output_size(larger) == (96, 192)
    mask = np.zeros((60, 90), bool)
    mask[:, :8] = True
    seen = Geometry.of(cropping, (2, 4)).coverage(mask), Geometry.of(larger, (2, 4)).coverage(mask)
    assert np.allclose(*seen), "the same part of the picture is seen"


@pytest.mark.parametrize("edge", [224, 384])
def test_convnexts_processor_is_understood(edge: int) -> None:
    processor = ConvNextImageProcessorPil(size={"shortest_edge": edge}, crop_pct=0.875)
    assert output_size(processor) == (edge, edge) == tuple(processor(images=IMAGES, return_tensors="np")["pixel_values"].shape[2:])
    mask = np.zeros((60, 90), bool)
    mask[10:40, 20:70] = True
    image = Image.fromarray(np.repeat(mask[..., None], 3, 2).astype(np.uint8) * 255)
    seen = processor(images=[image], do_normalize=False, return_tensors="np")["pixel_values"][0, 0]
    cells = seen.reshape(8, edge // 8, 8, edge // 8).mean((1, 3))
    assert np.abs(Geometry.of(processor, (8, 8)).coverage(mask) - cells).max() < 0.06
    larger = resize.processor_at(processor, (128, 128))
    assert output_size(larger) == (128, 128) and larger.crop_pct == 0.875
    with pytest.raises(BadInput, match="squares only"):
        resize.processor_at(processor, (128, 64))
