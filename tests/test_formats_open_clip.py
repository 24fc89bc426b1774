"""open_clip's layout in and out: models that open_clip made and saved, against open_clip itself. MAE checkpoints stand here too."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel

from pivot.encoder import Encoder
from pivot.encoder.export import export, home
from pivot.model import MLLM
from pivot.records import BadInput

open_clip = pytest.importorskip("open_clip")
timm = pytest.importorskip("timm")

IMAGES = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)) for i in range(3)]
SMALL = {"image_size": 48, "patch_size": 8, "width": 32, "layers": 3, "head_width": 16}
TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
# A tower of open_clip's, its family in transformers.
TOWERS = {
    "gelu": ("clip", {}, {}),
    "quick gelu": ("clip", {}, {"quick_gelu": True}),
    "tanh": ("clip", {"act_kwargs": {"approximate": "tanh"}}, {}),
    "norm after pooling": ("clip", {"final_ln_after_pool": True, "pool_type": "avg"}, {}),
    "no first norm": ("vit", {"no_ln_pre": True}, {}),
    "layer scale": ("dinov2", {"no_ln_pre": True, "ls_init_value": 0.1}, {}),
}


def shake(model: torch.nn.Module) -> None:
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=dice))


def made_by_open_clip(folder: Path, vision: dict, **model: object) -> torch.nn.Module:
    """A whole model with its text tower, saved as open_clip pushes one to the Hub."""
    folder.mkdir()
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT, **model}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    made = open_clip.create_model(f"local-dir:{folder}", load_weights=False).eval()
    shake(made)
    save_file({key: tensor.contiguous() for key, tensor in made.state_dict().items()}, folder / "open_clip_model.safetensors")
    return made


def through_open_clip(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    pixels = torch.stack([transform(image) for image in IMAGES])
    with torch.no_grad():
        found = model.eval().visual.forward_intermediates(pixels, indices=[1], output_fmt="NLC", intermediates_only=True)
    return pixels, found["image_intermediates"][0]


@pytest.mark.parametrize("name", TOWERS)
def test_a_model_that_open_clip_saved_comes_in_and_goes_out_as_it_is(name: str, tmp_path: Path) -> None:
    family, vision, options = TOWERS[name]
    made_by_open_clip(tmp_path / "theirs", {**SMALL, **vision}, **options)
    pixels, tokens = through_open_clip(tmp_path / "theirs")
    encoder = Encoder.load(tmp_path / "theirs")
    assert encoder.family.name == family and encoder.left_out == ("text tower", "projection") and home(encoder) == "open_clip"
    assert (encoder.pixels(IMAGES) - pixels).abs().max() <= 1 / 255 / 0.25
    assert (encoder.features(IMAGES).tokens - tokens).abs().max() < 1e-5 * max(1, tokens.abs().max())

    parity = export(encoder, tmp_path / "out", IMAGES)
    assert parity.holds and parity.layout == "open_clip" and parity.through == f"open_clip {open_clip.__version__}"
    assert any(what.startswith("text tower: a stub") for what in parity.stale)
    _, seen = through_open_clip(tmp_path / "out")
    assert (seen - tokens).abs().max() <= parity.tolerance
    theirs, ours = (
        load_file(tmp_path / "theirs" / "open_clip_model.safetensors"),
        load_file(tmp_path / "out" / "open_clip_model.safetensors"),
    )
    tower = [key for key in ours if key.startswith("visual.") and key != "visual.proj"]
    assert all(torch.equal(theirs[key], ours[key]) for key in tower)

    again = Encoder.load(tmp_path / "out")
    assert torch.equal(again.features(IMAGES).tokens, encoder.features(IMAGES).tokens) and again.tap == encoder.tap


def test_the_stub_of_the_text_tower_cannot_be_used_by_mistake(tmp_path: Path) -> None:
    export(Encoder.tiny("clip"), tmp_path / "out", to="open_clip")
    model = open_clip.create_model(f"local-dir:{tmp_path / 'out'}")
    with pytest.raises((IndexError, RuntimeError)):
        model.encode_text(open_clip.tokenize(["a dog"]))
    images = model.encode_image(torch.zeros(1, 3, 48, 48))
    assert images.shape == (1, 32), "the image tower's own class token behind the final norm"


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("family", ["clip", "vit", "dinov2"])
def test_transformers_to_open_clip_and_back(family: str, truncate: bool, tmp_path: Path) -> None:
    encoder = Encoder.tiny(family)
    shake(encoder.model)
    parity = export(encoder, tmp_path / "out", IMAGES, to="open_clip", truncate=truncate)
    assert parity.holds and parity.truncated == truncate and parity.pixel_difference == 0
    back = Encoder.load(tmp_path / "out").features(IMAGES).tokens
    assert (back - encoder.features(IMAGES).tokens).abs().max() <= parity.tolerance


@pytest.mark.parametrize(("layer", "norm"), [(0, False), (-1, True), (1, False)])
def test_any_tap_is_read_through_open_clip(layer: int, norm: bool, tmp_path: Path) -> None:
    encoder = Encoder.tiny("dinov2", layer=layer).tapped(norm=norm)
    shake(encoder.model)
    assert export(encoder, tmp_path / "out", IMAGES, to="open_clip").holds


# Small ones among timm's architectures: open_clip builds towers of timm's by name alone.
REGISTERED = {
    "siglip": "vit_test_patch8_siglip_gap_48",
    "dinov2_with_registers": "vit_test_patch8_reg4_dinov2",
    "dinov3_vit": "vit_test_patch8_dinov3",
}
TINY = {"img_size": 48, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "mlp_ratio": 2}
default_cfgs = timm.models.generate_default_cfgs({f"{name}.untrained": {"input_size": (3, 48, 48)} for name in REGISTERED.values()})


@timm.models.register_model
def vit_test_patch8_siglip_gap_48(pretrained: bool = False, **options: object) -> torch.nn.Module:
    made = {"class_token": False, "global_pool": "avg", "fc_norm": False, "act_layer": "gelu_tanh", **options}
    return timm.models.build_model_with_cfg(timm.models.VisionTransformer, REGISTERED["siglip"], pretrained, **{**TINY, **made})


@timm.models.register_model
def vit_test_patch8_reg4_dinov2(pretrained: bool = False, **options: object) -> torch.nn.Module:
    made = {"init_values": 1e-5, "reg_tokens": 3, "no_embed_class": True, **options}
    return timm.models.build_model_with_cfg(timm.models.VisionTransformer, "vit_test_patch8_reg4_dinov2", pretrained, **{**TINY, **made})


@timm.models.register_model
def vit_test_patch8_dinov3(pretrained: bool = False, **options: object) -> torch.nn.Module:
    rotary = {"use_rot_pos_emb": True, "use_abs_pos_emb": False, "rope_type": "dinov3", "rope_temperature": 100, "rope_rotate_half": True}
    norm = partial(timm.layers.LayerNorm, eps=1e-5)
    made = {**rotary, "num_reg_tokens": 3, "init_values": 1e-5, "use_fc_norm": False, "norm_layer": norm, **options}
    return timm.models.build_model_with_cfg(timm.models.eva.Eva, "vit_test_patch8_dinov3", pretrained, **{**TINY, "mlp_ratio": 2, **made})


@pytest.mark.parametrize("family", REGISTERED)
def test_what_open_clip_cannot_be_itself_goes_through_an_architecture_of_timms(family: str, tmp_path: Path) -> None:
    encoder = Encoder.tiny(family)
    shake(encoder.model)
    parity = export(encoder, tmp_path / "out", IMAGES, to="open_clip")
    assert parity.holds and "trunk" in parity.read
    config = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())
    assert config["model_cfg"]["vision_cfg"]["timm_model_name"] == REGISTERED[family]
    back = Encoder.load(tmp_path / "out").features(IMAGES).tokens
    assert (back - encoder.features(IMAGES).tokens).abs().max() <= parity.tolerance


def test_an_architecture_of_another_shape_is_never_taken(tmp_path: Path) -> None:
    for sizes in ({"width": 48}, {"layers": 2}, {"heads": 4}, {"pixels": 64}):
        with pytest.raises(BadInput, match="no architecture of just that shape"):
            export(Encoder.tiny("siglip", **sizes), tmp_path / "never", to="open_clip")
    other = Encoder.tiny("siglip")
    other.model.config.hidden_act = "gelu"
    with pytest.raises(BadInput, match="no architecture of just that shape"):
        export(other, tmp_path / "never", to="open_clip")


def test_a_tower_of_timms_inside_open_clip_comes_in(tmp_path: Path) -> None:
    vision = {"image_size": 48, "timm_model_name": REGISTERED["siglip"], "timm_pool": "avg", "timm_proj": "linear"}
    made_by_open_clip(tmp_path / "theirs", vision)
    _, tokens = through_open_clip(tmp_path / "theirs")
    encoder = Encoder.load(tmp_path / "theirs")
    assert encoder.family.name == "siglip" and "text tower" in encoder.left_out and home(encoder) == "open_clip"
    assert (encoder.features(IMAGES).tokens - tokens).abs().max() < 1e-5 * max(1, tokens.abs().max())


def test_a_torn_file_is_one_line(tmp_path: Path) -> None:
    made_by_open_clip(tmp_path / "in", SMALL)
    file = tmp_path / "in" / "open_clip_model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(BadInput, match="cannot be opened: SafetensorError") as error:
        Encoder.load(tmp_path / "in")
    assert "\n" not in str(error.value)


def test_towers_that_are_no_vision_transformers_are_refused_by_name(tmp_path: Path) -> None:
    resnet = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
    made_by_open_clip(tmp_path / "resnet", resnet)
    with pytest.raises(BadInput, match="ModifiedResNet"):
        Encoder.load(tmp_path / "resnet")
    made_by_open_clip(tmp_path / "coca", {**SMALL, "attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 4})
    with pytest.raises(BadInput, match="pools by attention"):
        Encoder.load(tmp_path / "coca")
    made_by_open_clip(tmp_path / "custom", {**SMALL, "scale_fc": True})
    with pytest.raises(BadInput, match="blocks of its own kind"):
        Encoder.load(tmp_path / "custom")


@pytest.mark.parametrize("library", ["timm", "open_clip"])
def test_the_layout_survives_an_mllm_and_the_projector_comes_along(library: str, tmp_path: Path) -> None:
    export(Encoder.tiny("clip"), tmp_path / "first", to=library)
    if library == "open_clip":
        made_by_open_clip(tmp_path / "theirs", SMALL)
    else:
        made = timm.create_model("vit_base_patch16_clip_224", img_size=48, patch_size=8, embed_dim=32, depth=3, num_heads=2)
        from timm.models._hub import save_for_hf

        options = {"img_size": 48, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
        save_for_hf(made, tmp_path / "theirs", model_args=options, safe_serialization=True)
    source = Encoder.load(tmp_path / "theirs")
    mllm = MLLM.tiny("clip")
    tower = mllm.parts()["tower"]
    tower.config.pivot_source = source.model.config.pivot_source
    mllm.save(tmp_path / "mllm")
    encoder = MLLM.load(str(tmp_path / "mllm")).detach()
    parity = export(encoder, tmp_path / "out", IMAGES)
    assert parity.layout == library and parity.holds and parity.projector_difference is not None and parity.against == "mllm"
    assert (tmp_path / "out" / "projector.safetensors").is_file()
    weights = tmp_path / "out" / ("model.safetensors" if library == "timm" else "open_clip_model.safetensors")
    changed = load_file(weights)
    next(iter(changed.values())).view(-1)[0] += 1
    save_file(changed, weights)
    with pytest.raises(BadInput, match="weights changed"):
        Encoder.load(tmp_path / "out")


def test_a_cached_tag_opens_with_the_activation_and_the_pixels_that_it_was_trained_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants
    from open_clip import factory, pretrained

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--eyes"
    (repository / "snapshots").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    made = made_by_open_clip(repository / "snapshots" / "abc", SMALL, quick_gelu=True)
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-tiny", {"embed_dim": 24, "vision_cfg": SMALL, "text_cfg": TEXT})
    tag = {"hf_hub": "someone/eyes/", "quick_gelu": True, "mean": (0.1, 0.2, 0.3), "interpolation": "bilinear", "resize_mode": "squash"}
    monkeypatch.setitem(pretrained._PRETRAINED, "ViT-tiny", {"ours": tag})
    encoder = Encoder.load("open_clip:ViT-tiny/ours")
    assert encoder.model.config.hidden_act == "quick_gelu" and list(encoder.processor.image_mean) == [0.1, 0.2, 0.3]
    pixels = encoder.pixels(IMAGES)
    with torch.no_grad():
        found = made.visual.forward_intermediates(pixels, indices=[1], output_fmt="NLC", intermediates_only=True)["image_intermediates"][0]
    assert (encoder.read(pixels)[0] - found).abs().max() < 1e-5 * max(1, found.abs().max())
    export(encoder, tmp_path / "out")
    assert "open_clip:ViT-tiny/ours" in (tmp_path / "out" / "README.md").read_text()


def test_what_open_clip_cannot_say_of_pixels_is_said(tmp_path: Path) -> None:
    encoder = Encoder.tiny("clip")
    encoder.processor = type(encoder.processor)(size={"shortest_edge": 56}, crop_size={"height": 48, "width": 48})
    parity = export(encoder, tmp_path / "out", IMAGES, to="open_clip")
    assert parity.holds and parity.pixel_difference > 0.1, "features are those of the same pixels"
    assert any(what.startswith("preprocessing: resized to 56") for what in parity.stale)
    assert torch.equal(Encoder.load(tmp_path / "out").features(IMAGES).tokens, encoder.features(IMAGES).tokens)


# ---- masked autoencoders

MAE = {
    "image_size": 48,
    "patch_size": 8,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}


def test_a_masked_autoencoder_as_it_lies_on_the_hub_opens_as_well(tmp_path: Path) -> None:
    """Old checkpoints have other names inside their blocks."""
    model = ViTMAEForPreTraining(ViTMAEConfig(**MAE, decoder_num_hidden_layers=1, mask_ratio=0.0)).eval()
    shake(model)
    model.save_pretrained(tmp_path)
    Encoder.tiny("vit").processor.save_pretrained(tmp_path)
    before = Encoder.load(tmp_path).features(IMAGES).tokens
    old = (
        ("attention.q_proj", "attention.attention.query"),
        ("attention.k_proj", "attention.attention.key"),
        ("attention.v_proj", "attention.attention.value"),
        ("attention.o_proj", "attention.output.dense"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
        ("vit.layers.", "vit.encoder.layer."),
    )
    weights = {}
    for key, tensor in model.state_dict().items():
        for new, name in old:
            key = key.replace(new, name)
        weights[key] = tensor.contiguous()
    assert "vit.encoder.layer.0.attention.attention.query.weight" in weights
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(Encoder.load(tmp_path).features(IMAGES).tokens, before)


@pytest.mark.parametrize("head", [ViTMAEForPreTraining, ViTMAEModel])
def test_a_masked_autoencoder_opens_as_a_plain_vit(head: type, tmp_path: Path) -> None:
    decoder = {"decoder_hidden_size": 16, "decoder_intermediate_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    model = head(ViTMAEConfig(**MAE, **decoder, mask_ratio=0.0)).eval()
    shake(model)
    model.save_pretrained(tmp_path)
    Encoder.tiny("vit").processor.save_pretrained(tmp_path)
    encoder = Encoder.load(tmp_path)
    assert encoder.family.name == "vit" and encoder.left_out == ("decoder",)
    pixels = encoder.pixels(IMAGES)
    with torch.no_grad():
        whole = getattr(model, "vit", model)(pixels, noise=torch.arange(36.0).expand(3, -1), output_hidden_states=True)
        tokens = encoder.read(pixels)[0]
    assert torch.equal(tokens, whole.hidden_states[-2][:, 1:])
    assert torch.equal(tokens, encoder.read(pixels)[0]), "nothing is shuffled"
