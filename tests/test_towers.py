"""The table of vision families: what each row claims, held against the stock model that it describes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import picture_of
from transformers import CLIPConfig, Qwen2ForCausalLM, SiglipConfig

from pivot.encoder import Encoder, towers
from pivot.model import MLLM
from pivot.records import BadInput, Tap

FAMILIES = [row.name for row in towers.FAMILIES]
TAPS = [(-2, False), (-1, False), (-1, True), (1, False), (0, False)]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("layer", "norm"), TAPS)
def test_idle_parameters_are_exactly_those_without_a_gradient(name: str, layer: int, norm: bool) -> None:
    encoder = Encoder.tiny(name, layer=layer).tapped(norm=norm)
    encoder.read(torch.randn(2, 3, 48, 48))[0].square().sum().backward()
    silent = {n for n, p in encoder.model.named_parameters() if p.grad is None}
    assert silent == set(towers.idle_parameters(encoder.model, encoder.tap))


@pytest.mark.parametrize("name", FAMILIES)
def test_llavas_selection_keeps_the_patches_and_nothing_else(name: str) -> None:
    row, model = towers.family(name), towers.tiny(name)
    with torch.no_grad():
        tokens = model(torch.zeros(1, 3, 48, 48), output_hidden_states=True).hidden_states[-2]
    kept = tokens[:, 1:] if row.strategy == "default" else tokens
    registers = towers.prefix(model.config) - row.prefix
    assert kept.shape[1] - registers == tokens.shape[1] - towers.prefix(model.config) == 36
    assert towers.grid(model.config) == (6, 6)


@pytest.mark.parametrize("name", [*FAMILIES, "convnext", "qwen2_vl_vision"])
def test_tiny_depends_on_its_seed_alone(name: str) -> None:
    before = torch.random.get_rng_state()
    first, again, other = (towers.tiny(name, seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_a_row_is_found_by_name_model_type_or_config() -> None:
    for row in towers.FAMILIES:
        assert towers.family(row.name) is towers.family(row.model_type) is towers.family(towers.tiny(row.name).config) is row


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("siglp", "nearest: siglip"),
        ("dino2", "dinov2"),
        ("zzz", "known: siglip"),
        ("llava", "pivot detach"),
        ("qwen2_vl", "pivot detach"),
        ("convnet", "convnext"),
        ("vit_mae", "shuffles"),
    ],
)
def test_names_that_cannot_be_used(name: str, said: str) -> None:
    with pytest.raises(BadInput, match=said) as error:
        towers.family(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("combined", [SiglipConfig(), CLIPConfig()])
def test_a_combined_config_gives_its_vision_part(combined: SiglipConfig | CLIPConfig) -> None:
    config = towers.vision_config(combined)
    assert config.model_type == combined.vision_config.model_type
    assert "text tower" in config.pivot_left_out
    assert not getattr(config, "vision_use_head", False)


def test_a_config_that_leaves_nothing_behind_says_nothing() -> None:
    assert not hasattr(towers.vision_config(towers.tiny("siglip").config), "pivot_left_out")


def test_grid_follows_the_image_where_the_family_can() -> None:
    config = towers.tiny("siglip", pixels=384, patch=14, layers=1).config
    assert towers.grid(config) == (27, 27), "384 / 14 leaves 6 pixels that no patch sees"
    with pytest.raises(BadInput, match="set its image processor"):
        towers.grid(config, (224, 224))
    assert towers.grid(towers.tiny("dinov2").config, (96, 64)) == (12, 8)


def test_layers_that_do_not_exist_are_refused() -> None:
    config = towers.tiny("vit").config
    assert [towers.depth(config, Tap(layer=i)) for i in (-4, -2, -1, 0, 3)] == [0, 2, 3, 0, 3]
    for layer in (-5, 4):
        with pytest.raises(BadInput, match="from -4 to 3"):
            towers.default_tap(config, layer)


@pytest.mark.parametrize("name", FAMILIES)
def test_stock_llava_reads_what_the_tap_says(name: str) -> None:
    """At every layer, the last included: transformers 5 captures hidden states in front of the final norm."""
    mllm, seen = MLLM.tiny(name), []
    encoder, row = mllm.detach(), towers.family(name)
    mllm.parts()["projector"].register_forward_hook(lambda _m, given, _o: seen.append(given[0]))
    pixels = torch.randn(2, 3, 48, 48)
    for layer in (-4, -3, -2, -1, 1, 2, 3):
        mllm.model.config.vision_feature_layer = layer
        with torch.no_grad():
            mllm.model.model.get_image_features(pixels)
            hidden = encoder.tapped(layer=layer).hidden(pixels)
        assert torch.equal(seen[-1], hidden[:, 1:] if row.strategy == "default" else hidden)


def test_the_embeddings_can_be_read_through_stock_llava(tmp_path: Path) -> None:
    """Which takes layer 0 for "no hidden states", so that it is written from the other end."""
    tokenizer, tiny = MLLM.tiny().processor.tokenizer, MLLM.tiny()
    llm = Qwen2ForCausalLM(tiny.model.config.text_config)
    mllm = MLLM.build(Encoder.tiny("siglip", layer=0), llm, tokenizer=tokenizer)
    assert mllm.model.config.vision_feature_layer == -4 and mllm.tap.layer == 0
    mllm.save(tmp_path)
    assert torch.equal(*(m.detach().features([picture_of(1)]).tokens for m in (mllm, MLLM.load(tmp_path))))
    encoder = mllm.detach()
    assert torch.equal(encoder.inside([picture_of(1)])[0], encoder.features([picture_of(1)]).tokens)
