"""Looking at an encoder before training: the facts are those of the model that would be trained, and no weights are read for them."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import pytest
import torch

from pivot import cli
from pivot.encoder import Encoder, towers
from pivot.encoder.inspect import inspect, lines
from pivot.model import MLLM

# Name, family, parameters in millions, grid, tokens of stock LLaVA, without a network and without a weight.
PUBLISHED = {
    "timm:vit_huge_patch14_224.mae": ("vit", 632, [16, 16], 256),
    "timm:vit_large_patch14_reg4_dinov2.lvd142m": ("dinov2_with_registers", 304, [37, 37], 1373),
    "timm:eva02_tiny_patch14_336.mim_in22k_ft_in1k": ("pivot_tower", 5.6, [24, 24], 576),
    "open_clip:ViT-L-14-336/openai": ("clip", 304, [24, 24], 576),
    "open_clip:ViT-B-16-SigLIP-384/webli": ("siglip", 86, [24, 24], 576),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_names_are_described_without_network_and_weights(name: str) -> None:
    pytest.importorskip("open_clip")
    family, millions, grid, tokens = PUBLISHED[name]
    encoder = Encoder.described(name)
    facts = inspect(encoder)
    assert encoder.model.device.type == "meta" and facts["family"] == family
    assert abs(facts["parameters"] / 1e6 - millions) < 0.02 * millions
    assert (facts["grid"], facts["tokens"]) == (grid, tokens)
    assert len(lines(name, facts)) >= 6


@pytest.mark.parametrize("family", [row.name for row in towers.FAMILIES])
def test_a_folder_is_described_as_it_would_load_and_built_as_described(family: str, tmp_path: Path) -> None:
    encoder = Encoder.tiny(family)
    encoder.save(tmp_path / "out")
    (tmp_path / "out" / "tap.json").unlink()
    with (
        mock.patch.object(torch, "load", side_effect=AssertionError),
        mock.patch("safetensors.torch.load_file", side_effect=AssertionError),
    ):
        facts = inspect(Encoder.described(tmp_path / "out"))
    assert facts == inspect(encoder)
    mllm = MLLM.tiny(family)
    assert facts["tokens"] == mllm.model.config.image_seq_length


def test_what_trains_and_what_is_stale_follow_the_layer() -> None:
    last, before = inspect(Encoder.tiny("siglip", layer=-1)), inspect(Encoder.tiny("siglip", layer=-2))
    assert last["trained"] > before["trained"] and last["trained"] + last["idle"] == before["trained"] + before["idle"]
    assert len(last["stale"]) == 1 and len(before["stale"]) == 2


def test_members_of_a_tower_are_listed_and_what_is_stale_in_them() -> None:
    facts = inspect(Encoder.tiny("pivot_tower"))
    assert [member["family"] for member in facts["members"]] == ["siglip", "convnext"] and facts["blocks"] is None
    assert any(said.startswith("member 1, block 3 of 3") for said in facts["stale"])


def test_a_tower_without_a_known_inside_says_how_much_of_it_is_stale() -> None:
    pytest.importorskip("timm")
    for layer in (-1, -2):
        encoder = Encoder.tiny("timm_wrapper", layer=layer)
        facts = inspect(encoder)
        idle = sum(parameter.numel() for parameter in towers.idle_parameters(encoder.model, encoder.tap).values())
        assert facts["idle"] == idle and bool(idle) == bool(facts["stale"])
        assert not idle or facts["stale"][0].startswith(f"{idle} of {facts['parameters']} parameters")
    assert idle, "a stage above the tap"


@pytest.mark.parametrize("family", ["siglip", "clip", "vit", "convnext"])
def test_what_is_stale_is_said_in_words_of_every_layout(family: str) -> None:
    names = ("hidden_state", "pooler_output", "post_layernorm:", "layernorm:", "head:", "pooler:")
    said = inspect(Encoder.tiny(family, layer=1))["stale"]
    assert said and not [line for line in said if any(name in line for name in names)]


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Encoder.tiny("clip").save(tmp_path / "eyes")
    assert cli.call(["encoder", "inspect", str(tmp_path / "eyes"), "--layer", "-1", "--pixels", "96", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["grid"] == [12, 12] and facts["layer"] == -1 and facts["prefix"] == 1
    assert cli.call(["encoder", "inspect", "base"]) == 0
    assert "behind block 5 of 6" in capsys.readouterr().out
    assert cli.call(["encoder", "inspect", "base", "--pixels", "96"]) == 2
    assert "joined already" in capsys.readouterr().err
    assert cli.call(["encoder", "inspect", "timm:vit_bse_patch16_224.mae"]) == 2
    assert "vit_base_patch16_224.mae" in capsys.readouterr().err
