"""Detached encoders: plain transformers reads in the folder, bit for bit, what the MLLM fed to its projector."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel

from pivot.encoder import Encoder, towers
from pivot.encoder.export import PARITY_FILE, export
from pivot.encoder.stale import stale
from pivot.model import MLLM
from pivot.model.families import family
from pivot.records import BadInput, Tap

FAMILIES = [row.name for row in towers.FAMILIES]
IMAGES = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (40 + 9 * i, 60, 3), dtype=np.uint8)) for i in range(3)]

SQUARE = Image.fromarray(np.random.default_rng(9).integers(0, 256, (160, 160, 3), dtype=np.uint8))


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request: pytest.FixtureRequest) -> MLLM:
    """A tiny MLLM whose tower is no longer the one that it was built from."""
    mllm = MLLM.tiny(encoder=request.param)
    with torch.no_grad():
        for parameter in mllm.parts()["tower"].parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return mllm


def fed_to_the_projector(mllm: MLLM) -> torch.Tensor:
    """Read off the stock model's own call, without anything of ours in between."""
    seen = []
    handle = mllm.model.model.multi_modal_projector.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        mllm.model.get_image_features(mllm.processor.image_processor(images=IMAGES, return_tensors="pt")["pixel_values"])
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("truncate", [False, True])
def test_plain_transformers_reads_what_the_mllm_saw(trained: MLLM, truncate: bool, tmp_path: Path) -> None:
    encoder = trained.detach()
    parity = export(encoder, tmp_path / "out", IMAGES, truncate=truncate)
    assert parity.exact and parity.against == "mllm" and parity.truncated == truncate

    told = json.loads((tmp_path / "out" / "tap.json").read_text())["tap"]
    model = AutoModel.from_pretrained(tmp_path / "out")
    pixels = AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")(images=IMAGES, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        found = model(pixels, output_hidden_states=True).hidden_states[told["layer"]][:, told["prefix"] :]
    fed = fed_to_the_projector(trained)[:, -found.shape[1] :]  # registers go to the LLM as well, and are no patches
    assert torch.equal(found, fed)
    assert model.config.num_hidden_layers == (2 if truncate else 3) and told["layer"] == (-1 if truncate else -2)

    again = Encoder.load(tmp_path / "out")
    with torch.no_grad():
        projected = torch.stack(list(trained.model.get_image_features(pixels).pooler_output))[:, -found.shape[1] :]
    assert torch.equal(again.features(IMAGES).tokens, found)
    assert torch.equal(again.features(IMAGES, at="projector").tokens, projected)
    written = json.loads((tmp_path / "out" / PARITY_FILE).read_text())
    assert written["exact"] and written["difference"] == 0 and written["projector_difference"] == 0
    assert written["stale"] == list(parity.stale) == stale(again)


@pytest.mark.parametrize(("layer", "norm"), [(-1, False), (1, True)])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_tap_survives_truncation(name: str, layer: int, norm: bool, tmp_path: Path) -> None:
    encoder = Encoder.tiny(name, layer=layer).tapped(norm=norm)
    parity = export(encoder, tmp_path / "out", truncate=True)
    assert parity.exact and parity.against == "encoder"
    again = Encoder.load(tmp_path / "out")
    assert again.tap == Tap(-1, norm, encoder.tap.prefix) and again.model.config.num_hidden_layers == layer % 4
    assert torch.equal(again.features(IMAGES).tokens, encoder.features(IMAGES).tokens)


def test_a_half_precision_encoder_comes_out_as_it_is(tmp_path: Path) -> None:
    mllm = MLLM.tiny().to(dtype=torch.bfloat16)
    parity = export(mllm.detach(), tmp_path / "out", IMAGES)
    assert parity.exact and parity.dtype == "bfloat16"
    assert AutoModel.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


STAGED = ["convnext", "convnextv2", "dinov3_convnext", "resnet"]
TIMM = pytest.param("timm_wrapper", marks=pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed"))
PACKED = ["qwen2_vl_vision", "qwen2_5_vl_vision"]


def shaken(name: str) -> MLLM:
    """A tiny MLLM with features unlike those of the tower that it was built from. Weights of norms become plain numbers."""
    mllm = MLLM.tiny(name)
    with torch.no_grad():
        for parameter in mllm.parts()["tower"].parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return mllm


@pytest.mark.parametrize("name", [*STAGED, TIMM])
def test_a_map_is_read_as_parity_says_through_plain_transformers(name: str, tmp_path: Path) -> None:
    mllm = shaken(name)
    fed, encoder = fed_to_the_projector(mllm), mllm.detach()
    parity = export(encoder, tmp_path / "out", IMAGES)
    assert parity.exact and parity.against == "mllm" and parity.layout == "hf"
    model = AutoModel.from_pretrained(tmp_path / "out").eval()
    pixels = AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")(images=IMAGES, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        known = {"hidden_states": model(pixels, output_hidden_states=True).hidden_states}
    assert model.config.model_type == name and parity.read == "hidden_states[-1].flatten(2).transpose(1, 2)"
    assert torch.equal(eval(parity.read, known), fed)


@pytest.mark.parametrize("name", [*STAGED, TIMM, *PACKED])
def test_a_tower_of_one_member_comes_back_with_its_projector(name: str, tmp_path: Path) -> None:
    mllm = shaken(name)
    encoder = mllm.detach()
    parity = export(encoder, tmp_path / "out", IMAGES)
    assert parity.exact and parity.projector_difference == 0
    again = Encoder.load(tmp_path / "out")
    assert again.family.name == "pivot_tower" and json.loads((tmp_path / "out" / "tap.json").read_text())["family"] == name
    for at in ("encoder", "projector"):
        assert torch.equal(again.features(IMAGES, at).tokens, encoder.features(IMAGES, at).tokens)
    assert list(parity.stale) == stale(again) and "member" not in " ".join(parity.stale)
    other = MLLM.tiny(name, seed=5)
    other.attach(again)
    assert other.hashes()["tower"] == mllm.hashes()["tower"] != MLLM.tiny(name, seed=5).hashes()["tower"]


@pytest.mark.parametrize(
    ("name", "tap", "read"),
    [
        ("convnext", Tap(1), "hidden_states[1].flatten(2).transpose(1, 2)"),
        ("convnext", Tap(-1, norm=True), "model.layernorm(hidden_states[-1].flatten(2).transpose(1, 2))"),
        ("resnet", Tap(-2), "hidden_states[-2].flatten(2).transpose(1, 2)"),
        pytest.param("timm_wrapper", Tap(2), "hidden_states[1].flatten(2).transpose(1, 2)", marks=TIMM.marks),
        pytest.param("timm_wrapper", Tap(-2), "hidden_states[-2].flatten(2).transpose(1, 2)", marks=TIMM.marks),
    ],
)
def test_maps_of_other_layers_are_read_where_the_tap_says(name: str, tap: Tap, read: str, tmp_path: Path) -> None:
    Encoder.tiny(name).save(tmp_path / "in")
    told = json.loads((tmp_path / "in" / "tap.json").read_text())
    (tmp_path / "in" / "tap.json").write_text(json.dumps({**told, "tap": vars(tap)}))
    encoder = Encoder.load(tmp_path / "in")
    parity = export(encoder, tmp_path / "out", IMAGES)
    assert parity.exact and parity.read == read
    model, pixels = AutoModel.from_pretrained(tmp_path / "out").eval(), encoder.pixels(IMAGES)
    with torch.no_grad():
        known = {"model": model, "hidden_states": model(pixels, output_hidden_states=True).hidden_states}
        assert torch.equal(eval(read, known), encoder.features(IMAGES).tokens)
    assert Encoder.load(tmp_path / "out").members()[0].tap == tap


@pytest.mark.parametrize("name", PACKED)
def test_qwens_own_class_opens_its_tower_without_an_auto_class(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some releases of transformers lead from neither config to a model."""
    monkeypatch.setattr(AutoModel, "from_pretrained", None)
    monkeypatch.setattr(AutoModel, "from_config", None)
    encoder = Encoder.tiny(name)
    assert export(encoder, tmp_path / "out", IMAGES).exact
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == name
    assert torch.equal(Encoder.load(tmp_path / "out").features(IMAGES).tokens, encoder.features(IMAGES).tokens)
    assert [line for line in stale(encoder) if "merger: the projector of the MLLM" in line] and "pooling head" not in "".join(
        stale(encoder)
    )


@pytest.mark.parametrize("shift", [1e-6, float("nan")])
def test_a_folder_that_differs_is_not_called_exact(shift: float, tmp_path: Path) -> None:
    encoder = MLLM.tiny().detach()
    inside = encoder.inside
    encoder.inside = lambda images: tuple(tensor + shift for tensor in inside(images))
    parity = export(encoder, tmp_path / "out", IMAGES)
    assert not parity.exact and parity.difference > 0 and parity.projector_difference > 0
    assert json.loads((tmp_path / "out" / PARITY_FILE).read_text())["exact"] is False


OTHERWISE = {"resample": 2, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.2, 0.4, 0.6], "rescale_factor": 1 / 200}


@pytest.mark.parametrize("name", ["llava", "llava_onevision", "qwen2_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("changed", OTHERWISE)
def test_the_detached_processor_gives_the_pixels_of_the_mllms_own(name: str, changed: str) -> None:
    mllm = MLLM.tiny(family=name)
    own = mllm.processor.image_processor
    before = mllm.detach().pixels([SQUARE])
    setattr(own, changed, OTHERWISE[changed])
    encoder = mllm.detach()
    assert getattr(encoder.processor, changed) == OTHERWISE[changed]
    found, theirs = encoder.pixels([SQUARE]), own(images=[SQUARE], return_tensors="pt")["pixel_values"]
    if family(mllm.model.config).view == "patches":  # laid out by patch, each twice since a picture is a film of two: held in order of size
        found, theirs = found.flatten().sort().values, theirs.flatten().sort().values[::2]
    else:
        theirs = theirs.reshape(-1, *theirs.shape[-3:])[:1]  # of several tiles the first, which shows the whole picture
    assert torch.allclose(found, theirs, atol=1e-5)
    assert not torch.allclose(encoder.pixels([SQUARE]), before, atol=1e-2), "a change that is lost shows"


@pytest.mark.parametrize("file", ["model.safetensors", "projector.safetensors"])
def test_weights_that_were_swapped_afterwards_are_refused(file: str, tmp_path: Path) -> None:
    export(MLLM.tiny().detach(), tmp_path / "out", IMAGES)
    weights = load_file(tmp_path / "out" / file)
    name = sorted(weights)[0]
    weights[name].view(-1)[0] += 1e-3
    save_file(weights, tmp_path / "out" / file, metadata={"format": "pt"})
    with pytest.raises(BadInput, match=f"weights changed: .*{file}") as error:
        Encoder.load(tmp_path / "out")
    assert "\n" not in str(error.value)


def test_what_is_stale_is_named() -> None:
    said = "\n".join
    assert not [line for line in stale(Encoder.tiny("clip", layer=-1).tapped(norm=True)) if "block" in line or "norm" in line]
    assert "block 3 of 3" in said(stale(Encoder.tiny("siglip", layer=-2)))
    assert "blocks 2 to 3 of 3" in said(stale(Encoder.tiny("siglip", layer=1)))
    assert "post_layernorm" in said(stale(Encoder.tiny("siglip", layer=-1))) and "block 3" not in said(
        stale(Encoder.tiny("siglip", layer=-1))
    )
    assert "pooling head" in said(stale(Encoder.tiny("vit"))) and "pooling head" not in said(stale(Encoder.tiny("clip")))
    orphan = Encoder.tiny("siglip")
    orphan.model.config.pivot_left_out = ["text tower", "pooling head"]
    assert "zero-shot" in said(stale(orphan)) and "no pooler_output" in said(stale(orphan))


def test_what_was_left_out_travels_through_an_mllm_folder(tmp_path: Path) -> None:
    mllm = MLLM.tiny()
    mllm.parts()["tower"].config.pivot_left_out = ["text tower"]
    mllm.save(tmp_path / "mllm")
    assert MLLM.load(str(tmp_path / "mllm")).detach().left_out == ("text tower",)


def test_what_cannot_be_taken_out_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="leaves no block"):
        export(Encoder.tiny("vit", layer=0), tmp_path / "out", truncate=True)
    encoder = Encoder.tiny("vit")
    encoder.projector = torch.nn.Sequential(torch.nn.Linear(32, 8))
    with pytest.raises(BadInput, match="projector Sequential cannot be kept"):
        export(encoder, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_mllm_folder_is_not_an_encoder(tmp_path: Path) -> None:
    MLLM.tiny().save(tmp_path / "mllm")
    with pytest.raises(BadInput, match="pivot detach"):
        Encoder.load(tmp_path / "mllm")
