"""timm's layout in and out: models that timm made and saved, against timm itself."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pivot.encoder import Encoder, formats, towers
from pivot.encoder.export import export, home
from pivot.encoder.formats import vit as vits
from pivot.records import BadInput

timm = pytest.importorskip("timm")
from timm.models._hub import save_for_hf  # noqa: E402

IMAGES = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)) for i in range(3)]
SMALL = {"img_size": 48, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
# A style of timm's, the family that it is in transformers, and what stays behind.
STYLES = {
    "vit_base_patch16_224": ("vit", {}, ["classification head"]),
    "vit_base_patch16_224 averaged": ("vit", {"global_pool": "avg"}, ["classification head"]),
    "vit_base_patch16_224 without biases": ("vit", {"qkv_bias": False}, ["classification head"]),
    "vit_base_patch16_224 tanh": ("vit", {"act_layer": "gelu_tanh", "num_classes": 0}, []),
    "vit_base_patch16_gap_224": ("ijepa", {}, ["classification head"]),
    "deit3_small_patch16_224": ("dinov2", {}, ["classification head"]),
    "vit_base_patch16_siglip_224": ("siglip", {"num_classes": 0}, ["pooling head"]),
    "vit_base_patch16_siglip_gap_224": ("siglip", {"num_classes": 0}, []),
    "vit_base_patch16_clip_224": ("clip", {}, ["classification head"]),
    "vit_base_patch16_clip_quickgelu_224": ("clip", {"num_classes": 0}, []),
    "vit_base_patch14_dinov2": ("dinov2", {"num_classes": 0}, []),
    "vit_base_patch14_reg4_dinov2": ("dinov2_with_registers", {"num_classes": 0}, []),
    "vit_giant_patch14_dinov2": ("dinov2", {"num_classes": 0}, []),
    "vit_giant_patch14_reg4_dinov2": ("dinov2_with_registers", {"num_classes": 0}, []),
    "vit_base_patch16_dinov3": ("dinov3_vit", {"num_classes": 0}, []),
    "vit_base_patch16_dinov3_qkvb": ("dinov3_vit", {"num_classes": 0}, []),
    "vit_huge_plus_patch16_dinov3": ("dinov3_vit", {"num_classes": 0}, []),
}
GIANT = {"mlp_ratio": 5.5}  # timm counts both halves of a gated MLP: 88 of them for a width of 32


def shake(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights far from where they begin: a norm of ones or a layer scale of 1e-5 would hide a fault."""
    dice = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=dice))


def made_by_timm(style: str, folder: Path) -> torch.nn.Module:
    architecture = style.split()[0]
    options = {**SMALL, **(GIANT if "giant" in style else {}), **STYLES[style][1]}
    model = timm.create_model(architecture, **options).eval()
    shake(model)
    config = {"input_size": (3, 48, 48), "crop_pct": 0.9}
    save_for_hf(model, folder, model_args=options, safe_serialization=True, model_config={"pretrained_cfg": config})
    return model


def through_timm(model: torch.nn.Module, index: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels as timm makes them, and tokens behind a block."""
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    pixels = torch.stack([transform(image) for image in IMAGES])
    with torch.no_grad():
        return pixels, model.forward_intermediates(pixels, indices=[index], output_fmt="NLC", intermediates_only=True)[0]


@pytest.mark.parametrize("style", STYLES)
def test_a_model_that_timm_saved_comes_in_and_goes_out_as_it_is(style: str, tmp_path: Path) -> None:
    family, _, left_out = STYLES[style]
    model = made_by_timm(style, tmp_path / "timm")
    opened = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    pixels, tokens = through_timm(opened)

    encoder = Encoder.load(tmp_path / "timm")
    assert encoder.family.name == family and list(encoder.left_out) == left_out
    assert (encoder.pixels(IMAGES) - pixels).abs().max() <= 1 / 255 / 0.2
    with torch.no_grad():
        assert (encoder.read(pixels)[0] - tokens).abs().max() < 1e-5 * max(1, tokens.abs().max())
    assert home(encoder) == "timm"

    parity = export(encoder, tmp_path / "out", IMAGES)
    assert parity.holds and parity.layout == "timm" and parity.through == f"timm {timm.__version__}"
    back = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    again, seen = through_timm(back)
    assert torch.equal(again, encoder.pixels(IMAGES))
    assert (seen - encoder.features(IMAGES).tokens).abs().max() <= parity.tolerance
    same = {key: tensor for key, tensor in model.state_dict().items() if key in back.state_dict()}
    assert len(same) == len(back.state_dict())
    if "reg4" not in style and "deit3" not in style:  # whose class token has its position added in, or apart
        assert all(torch.equal(tensor, back.state_dict()[key]) for key, tensor in same.items())

    reopened = Encoder.load(tmp_path / "out")
    assert torch.equal(reopened.features(IMAGES).tokens, encoder.features(IMAGES).tokens)
    assert reopened.tap == encoder.tap and reopened.left_out == encoder.left_out and home(reopened) == "timm"


CONVERTED = [row.name for row in towers.FAMILIES if row.name in vits.FAMILIES]


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("family", CONVERTED)
def test_transformers_to_timm_and_back_is_the_same_bits(family: str, truncate: bool, tmp_path: Path) -> None:
    encoder = Encoder.tiny(family)
    shake(encoder.model)
    parity = export(encoder, tmp_path / "timm", IMAGES, to="timm", truncate=truncate)
    assert parity.holds and parity.pixel_difference == 0 and parity.truncated == truncate
    back = Encoder.load(tmp_path / "timm")
    export(back, tmp_path / "hf", IMAGES, to="hf")
    again = Encoder.load(tmp_path / "hf")
    assert torch.equal(again.features(IMAGES).tokens, encoder.features(IMAGES).tokens)
    before, after = encoder.model.state_dict(), again.model.state_dict()
    read = [key for key in after if vits.named(key)]
    assert all(torch.equal(before[key], after[key]) for key in read)
    named = " ".join(parity.stale)
    assert all(part in named for part in ("pooler", "mask_token") if any(part in key for key in before))
    config = {key: value for key, value in encoder.model.config.to_dict().items() if key not in ("dtype", "architectures", "_name_or_path")}
    kept = again.model.config.to_dict()
    assert truncate or {key: kept[key] for key in config} == config


@pytest.mark.parametrize(("layer", "norm"), [(0, False), (-1, False), (-1, True), (1, True)])
@pytest.mark.parametrize("family", ["siglip", "vit", "dinov3_vit"])
def test_any_tap_is_read_through_timm(family: str, layer: int, norm: bool, tmp_path: Path) -> None:
    encoder = Encoder.tiny(family, layer=layer).tapped(norm=norm)
    shake(encoder.model)
    parity = export(encoder, tmp_path / "out", IMAGES, to="timm")
    assert parity.holds and ("norm" in parity.read) == norm


@pytest.mark.parametrize("library", ["timm", "open_clip"])
def test_half_precision_stays_what_it_is(library: str, tmp_path: Path) -> None:
    encoder = Encoder.tiny("clip")
    shake(encoder.model)
    encoder.model.to(torch.bfloat16)
    parity = export(encoder, tmp_path / "out", IMAGES, to=library)
    assert parity.holds and parity.dtype == "bfloat16"
    again = Encoder.load(tmp_path / "out", dtype="bfloat16")
    assert torch.equal(again.features(IMAGES).tokens, encoder.features(IMAGES).tokens)


# ---- the parity can fail


def wrong_activation(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["model_args"]["act_layer"] = "quick_gelu"
    (folder / "config.json").write_text(json.dumps(config))


def wrong_eps(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["architecture"] = "vit_base_patch16_clip_224"
    (folder / "config.json").write_text(json.dumps(config))


def swapped(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    for key in [key for key in weights if "qkv" in key]:
        q, k, v = weights[key].chunk(3)
        weights[key] = torch.cat([k, q, v])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("plant", [wrong_activation, wrong_eps, swapped])
def test_a_planted_fault_makes_the_parity_large(plant: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder.tiny("siglip")
    shake(encoder.model)
    if plant is wrong_eps:  # it shows where tokens hardly differ
        for parameter in encoder.model.get_submodule("embeddings").parameters():
            parameter.data.mul_(1e-3)
    clean = export(encoder, tmp_path / "clean", IMAGES, to="timm")
    write = formats.timm.write

    def with_fault(*arguments: object) -> list[str]:
        lost = write(*arguments)
        plant(arguments[-1])
        return lost

    monkeypatch.setattr(formats.timm, "write", with_fault)
    faulty = export(encoder, tmp_path / "faulty", IMAGES, to="timm")
    assert clean.holds and not faulty.holds and faulty.difference > 10 * faulty.tolerance


# ---- pixels


def test_preprocessing_of_any_kind_goes_to_timm_and_comes_back(tmp_path: Path) -> None:
    encoder = Encoder.tiny("clip")
    kind = type(encoder.processor)
    square, crop = {"height": 48, "width": 48}, {"height": 48, "width": 48}
    for size, more in (
        (square, {"do_center_crop": False, "resample": 3}),
        ({"shortest_edge": 48}, {"crop_size": crop, "resample": 2}),
        ({"shortest_edge": 53}, {"crop_size": crop, "resample": 1, "image_mean": [0.1, 0.2, 0.3]}),
        ({"height": 60, "width": 60}, {"crop_size": crop, "do_center_crop": True, "do_normalize": False}),
    ):
        encoder.processor = kind(size=size, **more)
        wide = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (61, 96, 3), dtype=np.uint8)) for i in range(2)]
        folder = tmp_path / str(size)
        parity = export(encoder, folder, IMAGES, to="timm")
        assert parity.pixel_difference <= 2e-6 and parity.holds
        assert torch.equal(Encoder.load(folder).pixels(wide), encoder.pixels(wide))


def test_a_crop_that_libraries_round_otherwise_is_said_apart_from_the_features(tmp_path: Path) -> None:
    encoder = Encoder.tiny("clip")
    # Three pixels too many: torchvision cuts off two on the left, transformers one.
    encoder.processor = type(encoder.processor)(size={"shortest_edge": 51}, crop_size={"height": 48, "width": 48})
    parity = export(encoder, tmp_path / "out", IMAGES, to="timm")
    assert parity.holds and not parity.exact and parity.pixel_difference > 0.1
    assert any(what.startswith("preprocessing: timm's own transform") for what in parity.stale)


@pytest.mark.parametrize("library", ["timm", "open_clip"])
def test_positions_are_resampled_once_where_the_family_would_at_every_call(library: str, tmp_path: Path) -> None:
    encoder = Encoder.tiny("dinov2")
    shake(encoder.model)
    encoder.processor = type(encoder.processor)(size={"height": 64, "width": 64}, do_center_crop=False)
    parity = export(encoder, tmp_path / "out", IMAGES, to=library)
    assert (
        parity.holds and parity.shape == (3, 64, 32) and any(what.startswith("position embeddings: made for 48") for what in parity.stale)
    )
    back = Encoder.load(tmp_path / "out")
    assert (back.features(IMAGES).tokens - encoder.features(IMAGES).tokens).abs().max() <= parity.tolerance


def test_a_model_without_position_embeddings_comes_at_its_usual_size(tmp_path: Path) -> None:
    options = {key: value for key, value in SMALL.items() if key != "img_size"}
    model = timm.create_model("vit_base_patch16_dinov3", num_classes=0, **options)
    save_for_hf(model, tmp_path / "timm", model_args=options, safe_serialization=True)
    assert Encoder.load(tmp_path / "timm").pixels(IMAGES).shape[-2:] == model.pretrained_cfg["input_size"][1:] == (256, 256)


def test_where_a_model_came_from_is_no_part_of_its_fingerprint(tmp_path: Path) -> None:
    made_by_timm("vit_base_patch16_224", tmp_path / "timm")
    encoder = Encoder.load(tmp_path / "timm")
    before = encoder.fingerprint()
    encoder.model.config.pivot_source = {"library": "timm", "name": "another"}
    assert encoder.fingerprint() == before


# ---- names and files

CACHED = "vit_test_patch8_48"
default_cfgs = timm.models.generate_default_cfgs(
    {
        f"{CACHED}.ours": {
            "hf_hub_id": "someone/eyes",
            "input_size": (3, 48, 48),
            "license": "cc-by-4.0",
            "classifier": "head",
            "num_classes": 0,
        }
    }
)


@timm.models.register_model
def vit_test_patch8_48(pretrained: bool = False, **options: object) -> torch.nn.Module:
    """A small model among timm's own."""
    return timm.models.build_model_with_cfg(timm.models.VisionTransformer, CACHED, pretrained, **{**SMALL, **options})


@pytest.mark.parametrize("name", [f"timm:{CACHED}.ours", f"timm:{CACHED}", "timm:someone/eyes"])
def test_a_cached_model_of_timms_opens_without_a_network(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--eyes"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    model = timm.create_model(CACHED, num_classes=0).eval()
    save_for_hf(model, repository / "snapshots" / "abc", safe_serialization=True)
    encoder = Encoder.load(name)
    pixels = encoder.pixels(IMAGES)
    with torch.no_grad():
        found = model.forward_intermediates(pixels, indices=[1], output_fmt="NLC", intermediates_only=True)[0]
    assert (encoder.read(pixels)[0] - found).abs().max() < 1e-5
    assert encoder.model.config.pivot_source["name"] == name.removeprefix("timm:")
    export(encoder, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert name in card and "cc-by-4.0" in card


def test_a_pickle_with_code_in_it_does_not_run(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "ran",)

    made_by_timm("vit_base_patch16_224", tmp_path / "timm")
    Encoder.tiny("vit").save(tmp_path / "hf")
    (tmp_path / "hf" / "tap.json").unlink()
    for folder in (tmp_path / "timm", tmp_path / "hf"):
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Code()}))
        with pytest.raises(BadInput) as error:
            Encoder.load(folder)
        said = str(error.value)
        assert "\n" not in said and "weights_only" not in said and "holds more than tensors, and what else is in it is never run" in said
    assert not (tmp_path / "ran").exists()


def test_torch_files_with_nothing_but_tensors_open(tmp_path: Path) -> None:
    encoder = Encoder.tiny("dinov2")
    encoder.save(tmp_path / "hf")
    (tmp_path / "hf" / "tap.json").unlink()
    (tmp_path / "hf" / "model.safetensors").unlink()
    torch.save(encoder.model.state_dict(), tmp_path / "hf" / "pytorch_model.bin")
    assert torch.equal(Encoder.load(tmp_path / "hf").features(IMAGES).tokens, encoder.features(IMAGES).tokens)
    model = made_by_timm("vit_base_patch16_224", tmp_path / "timm")
    safe = Encoder.load(tmp_path / "timm").features(IMAGES).tokens
    (tmp_path / "timm" / "model.safetensors").unlink()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "timm" / "pytorch_model.bin")
    assert torch.equal(Encoder.load(tmp_path / "timm").features(IMAGES).tokens, safe)


def test_a_torch_file_or_a_config_of_another_kind_is_one_line(tmp_path: Path) -> None:
    made_by_timm("vit_base_patch16_224", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for odd in ({**config, "architecture": 5}, {**config, "model_args": [1]}, {**config, "pretrained_cfg": 3}):
        (tmp_path / "config.json").write_text(json.dumps(odd))
        with pytest.raises(BadInput, match="cannot be opened") as error:
            Encoder.load(tmp_path)
        assert "\n" not in str(error.value)
    (tmp_path / "model.safetensors").unlink()
    torch.save([torch.ones(2)], tmp_path / "pytorch_model.bin")
    with pytest.raises(BadInput, match="holds a list, not tensors by their names"):
        Encoder.load(tmp_path)


def test_a_layout_that_there_is_not_gets_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no such layout; nearest: timm$"):
        export(Encoder.tiny("vit"), tmp_path / "out", to="tim")


@pytest.mark.parametrize("architecture", ["vit_base_patch16_siglip_gap_224", "vit_base_patch16_dinov3"])
def test_a_tensor_that_is_not_in_the_file_is_named(architecture: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    made_by_timm(architecture, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["blocks.1.mlp.fc2.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(BadInput, match=r"blocks\.1\.mlp\.fc2\.weight"):
        Encoder.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tim:vit_base_patch16_224", "nearest: timm:NAME"),
        ("timm:vit_bas_patch16_224", "nearest: vit_base_patch16_224"),
        ("timm:vit_base_patch16_224.augreg_in22k", "vit_base_patch16_224.augreg_in21k"),
        ("open_clip:ViT-B-33/openai", "nearest: ViT-B-32"),
        ("open_clip:ViT-B-32/opnai", "nearest: openai"),
        ("open_clip:ViT-B-32", "MODEL/TAG"),
        ("openclip:ViT-B-32/openai", "nearest: open_clip:MODEL/TAG"),
    ],
)
def test_wrong_names_get_the_nearest(name: str, said: str) -> None:
    with pytest.raises(BadInput, match=said) as error:
        Encoder.load(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["timm:vit_base_patch16_224.augreg_in21k", "open_clip:ViT-B-32/openai", "open_clip:ViT-B-32/laion2b_e16"])
def test_offline_with_nothing_cached_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput) as error:
        Encoder.load(name)
    said = str(error.value)
    assert "\n" not in said and ".safetensors not found" in said and str(tmp_path) in said and "hf download" in said


def test_a_missing_library_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for library, name in (("timm", "timm:vit_base_patch16_224"), ("open_clip", "open_clip:ViT-B-32/openai")):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(BadInput, match=r"pip install 'pivot-vision\[encoders\]'"):
            Encoder.load(name)
        with pytest.raises(BadInput, match=r"pip install 'pivot-vision\[encoders\]'"):
            export(Encoder.tiny("clip"), tmp_path / "out", to=library)
    assert not list(tmp_path.iterdir())


def test_the_table_says_for_every_cell_whether_it_can_be() -> None:
    cells = formats.table()
    assert {library for _, library in cells} == {"hf", "timm", "open_clip"} and {family for family, _ in cells} >= set(CONVERTED)
    assert all(cell is True or (isinstance(cell, str) and cell) for cell in cells.values())
    assert all(cells[family, "hf"] is True and cells[family, "timm"] is True for family in CONVERTED)
    assert cells["timm_wrapper", "timm"] is True and cells["convnext", "hf"] is True and "by name" in str(cells["convnext", "timm"])
    assert cells["pivot_tower", "hf"] is True and "no plain vision transformer" in str(cells["pivot_tower", "timm"])
    for library in ("timm", "open_clip"):
        with pytest.raises(BadInput, match=r"no plain vision transformer.*use --to hf"):
            export(Encoder.tiny("pivot_tower"), "never", to=library)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("test_convnext", {}),
        ("test_resnet", {}),
        ("eva02_tiny_patch14_224", {**SMALL, "num_classes": 0}),
        ("vit_medium_patch16_reg4_gap_256", SMALL),
        ("vit_base_patch16_224", {**SMALL, "qk_norm": True}),
    ],
)
def test_what_no_family_computes_comes_in_as_a_pivot_tower(architecture: str, options: dict, tmp_path: Path) -> None:
    model = timm.create_model(architecture, **options).eval()
    size = 48 if options else 64
    config = {"pretrained_cfg": {"input_size": (3, size, size)}}
    save_for_hf(model, tmp_path / "timm", model_args=options, safe_serialization=True, model_config=config)
    encoder = Encoder.load(tmp_path / "timm")
    assert encoder.family.name == "pivot_tower" and home(encoder) == "timm"
    pixels = encoder.pixels(IMAGES)
    with torch.no_grad():
        maps = model.forward_intermediates(pixels, output_fmt="NCHW", intermediates_only=True)[-1]
        assert (encoder.read(pixels)[0] - maps.flatten(2).transpose(1, 2)).abs().max() < 1e-5
    shake(encoder.model)
    inside = encoder.features(IMAGES).tokens
    for library in ("timm", "hf"):
        parity = export(encoder, tmp_path / library / "out", IMAGES, to=None if library == "timm" else library)
        again = Encoder.load(tmp_path / library / "out")
        assert parity.holds and parity.layout == library and home(again) == "timm"
        assert torch.equal(again.features(IMAGES).tokens, inside) and again.fingerprint() == encoder.fingerprint()
        own = [line for line in parity.stale if "the tap does not depend on them" not in line]
        assert len(own) >= len(parity.stale) - 1 and all(line.startswith(("classification head", "preprocessing")) for line in own)
    alone = timm.create_model(f"local-dir:{tmp_path / 'timm' / 'out'}", pretrained=True).eval()
    with torch.no_grad():
        found = eval(export(again, tmp_path / "last", IMAGES).read, {"model": alone, "pixels": pixels})
    assert (found - inside).abs().max() < 1e-5 * max(1, inside.abs().max())


def test_what_open_clip_has_of_timm_goes_out_as_timms(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    encoder = Encoder.tiny("timm_wrapper")
    encoder.members()[0].model.config.pivot_source = {"library": "open_clip", "name": "convnext_base/laion400m_s13b_b51k"}
    encoder = Encoder.join([encoder])
    assert home(encoder) == "timm" and export(encoder, tmp_path / "out", IMAGES).layout == "timm"
    assert "open_clip:convnext_base/laion400m_s13b_b51k" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(BadInput, match="a timm_wrapper cannot go to open_clip"):
        export(encoder, tmp_path / "other", to="open_clip")
    assert home(Encoder.tiny("timm_wrapper")) == home(Encoder.join([encoder, encoder])) == "hf"


def test_a_training_scripts_file_opens_under_an_architecture_of_timms(tmp_path: Path) -> None:
    """As MoCo v3 publishes: two networks in one file, wrapped twice, heads of their own, and the optimiser's state beside them."""
    name = "vit_tiny_patch16_224.augreg_in21k"
    model = timm.create_model(name, pretrained=False, num_classes=0).eval()
    own, other = model.state_dict(), {key: tensor + 1 for key, tensor in model.state_dict().items()}
    kept = {f"module.base_encoder.{key}": tensor for key, tensor in own.items()} | {"module.base_encoder.head.0.weight": torch.ones(4, 192)}
    kept |= {f"module.momentum_encoder.{key}": tensor for key, tensor in other.items()}
    file = tmp_path / "script.pth.tar"
    torch.save({"epoch": 3, "arch": "vit", "state_dict": kept, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}, file)
    encoder = Encoder.load(f"timm:{name}={file}")
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        found = model.forward_intermediates(pixels, indices=[10], output_fmt="NLC", intermediates_only=True)[0]
        assert (encoder.read(pixels)[0] - found).abs().max() < 1e-5
    assert encoder.family.name == "vit" and home(encoder) == "timm" and "licence" not in encoder.model.config.pivot_source
    with pytest.raises(BadInput, match="a tag must say"):
        Encoder.load(f"timm:vit_tiny_patch16_224={file}")
    with pytest.raises(BadInput, match="no tensor named"):
        torch.save({"weight": torch.ones(2)}, tmp_path / "else.pth")
        Encoder.load(f"timm:{name}={tmp_path / 'else.pth'}")
    del kept["module.base_encoder.blocks.3.attn.qkv.weight"]
    torch.save({"state_dict": kept}, file)
    with pytest.raises(BadInput, match="not in its weights"):
        Encoder.load(f"timm:{name}={file}")
