"""Encoders: features at the tap, loading by string, fingerprints, and the feature cache."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, CLIPConfig, CLIPModel, SiglipConfig, SiglipModel, ViTForImageClassification
from typer.testing import CliRunner

from pivot.cli import app
from pivot.encoder import Encoder, towers
from pivot.encoder.features import cached, fingerprint
from pivot.encoder.geometry import Geometry
from pivot.model.mllm import holds_mllm
from pivot.records import BadInput, Tap

FAMILIES = [row.name for row in towers.FAMILIES]
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def picture(seed: int, height: int = 48, width: int = 48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


IMAGES = [picture(i) for i in range(5)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("layer", [-1, -2, 0, 1])
def test_features_are_the_hidden_states_of_the_stock_model(name: str, layer: int) -> None:
    encoder = Encoder.tiny(name, layer=layer)
    found = encoder.features(IMAGES)
    with torch.no_grad():
        pixels = encoder.processor(images=IMAGES, return_tensors="pt")["pixel_values"]
        outside = encoder.model(pixels, output_hidden_states=True).hidden_states[layer]
    assert torch.equal(found.tokens, outside[:, encoder.tap.prefix :])
    assert torch.allclose(found.pooled, found.tokens.mean(1), atol=1e-6)
    assert found.grid == (6, 6) and found.tokens.shape == (5, 36, 32) and not found.tokens.requires_grad


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "clip"])  # whose last_hidden_state has no norm
def test_with_the_final_norm_it_is_the_stock_models_last_hidden_state(name: str) -> None:
    encoder = Encoder.tiny(name, layer=-1).tapped(norm=True)
    with torch.no_grad():
        outside = encoder.model(encoder.pixels(IMAGES)).last_hidden_state
    assert torch.equal(encoder.features(IMAGES).tokens, outside[:, encoder.tap.prefix :])


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_above_the_tap_is_read_or_run(name: str) -> None:
    encoder = Encoder.tiny(name, layer=-2)
    clean = encoder.features(IMAGES).tokens
    ran = []
    for path, module in towers.above(encoder.model, encoder.tap).items():
        module.register_forward_hook(lambda *_, path=path: ran.append(path))
        for parameter in module.parameters():
            parameter.data.fill_(float("nan"))
    assert torch.equal(encoder.features(IMAGES).tokens, clean) and not ran
    assert encoder.tapped(layer=-1).features(IMAGES).tokens.isnan().all(), "the poison works"


def test_the_class_token_is_pooled_where_there_is_one() -> None:
    encoder = Encoder.tiny("clip").tapped(pooling="class")
    hidden = encoder.hidden(encoder.pixels(IMAGES))
    assert torch.equal(encoder.features(IMAGES).pooled, hidden[:, 0].detach())
    with pytest.raises(BadInput, match="no class token"):
        Encoder.tiny("siglip").tapped(pooling="class")


def test_batches_change_nothing_and_training_mode_is_left_as_it_was() -> None:
    encoder = Encoder.tiny("vit")
    encoder.model.config.hidden_dropout_prob = 0.5
    for module in encoder.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    encoder.model.train()
    whole, pieces = encoder.features(IMAGES), encoder.features(IMAGES, batch=2)
    assert torch.allclose(whole.tokens, pieces.tokens, atol=1e-6), "dropout must rest, and order must stay"
    assert encoder.model.training


def test_pictures_of_any_shape_and_kind_come_out_on_one_grid(tmp_path: Path) -> None:
    wide = picture(7, 30, 90)
    wide.save(tmp_path / "wide.png")
    found = Encoder.tiny("siglip").features([wide, tmp_path / "wide.png", (tmp_path / "wide.png").read_bytes()])
    assert torch.equal(found.tokens[0], found.tokens[1]) and torch.equal(found.tokens[0], found.tokens[2])


# ---- loading


def combined(kind: type, config: type, folder: Path) -> SiglipModel | CLIPModel:
    text = {**SMALL, "vocab_size": 64, "projection_size": 32, "bos_token_id": 0, "eos_token_id": 1}
    model = kind(config(text_config=text, vision_config={**SMALL, "image_size": 48, "patch_size": 8})).eval()
    model.save_pretrained(folder)
    Encoder.tiny("siglip" if kind is SiglipModel else "clip").processor.save_pretrained(folder)
    return model


@pytest.mark.parametrize(("kind", "config"), [(SiglipModel, SiglipConfig), (CLIPModel, CLIPConfig)])
def test_a_combined_model_gives_its_vision_part_and_remembers_the_rest(kind: type, config: type, tmp_path: Path) -> None:
    whole = combined(kind, config, tmp_path / "whole")
    encoder = Encoder.load(tmp_path / "whole")
    with torch.no_grad():
        outside = whole.vision_model(encoder.pixels(IMAGES), output_hidden_states=True).hidden_states[-2]
    assert torch.equal(encoder.features(IMAGES).tokens, outside[:, encoder.tap.prefix :])
    assert sum(p.numel() for p in encoder.model.parameters()) < sum(p.numel() for p in whole.vision_model.parameters()) + 1
    assert "text tower" in encoder.left_out
    encoder.save(tmp_path / "out")
    assert Encoder.load(tmp_path / "out").left_out == encoder.left_out


def test_a_classifiers_folder_loads_and_its_missing_pooler_is_the_same_every_time(tmp_path: Path) -> None:
    ViTForImageClassification(towers.tiny("vit").config).save_pretrained(tmp_path)
    Encoder.tiny("vit").processor.save_pretrained(tmp_path)
    torch.manual_seed(1)
    first = Encoder.load(tmp_path).fingerprint()
    torch.manual_seed(2)
    assert Encoder.load(tmp_path).fingerprint() == first


@pytest.mark.parametrize("name", FAMILIES)
def test_save_and_load_change_nothing(name: str, tmp_path: Path) -> None:
    encoder = Encoder.tiny(name, layer=1)
    encoder.save(tmp_path / "out")
    again = Encoder.load(tmp_path / "out")
    assert again.tap == encoder.tap and again.fingerprint() == encoder.fingerprint()
    assert Encoder.load(tmp_path / "out", tap=Tap(-1, prefix=encoder.tap.prefix)).tap.layer == -1
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors", "preprocessor_config.json", "tap.json"}
    AutoModel.from_pretrained(tmp_path / "out"), AutoImageProcessor.from_pretrained(tmp_path / "out")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the Hub's cache has the files of hf:someone/eyes, with no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--someone--eyes"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    return repository / "snapshots" / "abc"


def test_a_cached_model_of_the_hub_loads_without_a_network(hub: Path) -> None:
    encoder = Encoder.tiny("dinov2")
    encoder.save(hub)
    found = Encoder.load("hf:someone/eyes")
    assert torch.equal(found.features(IMAGES).tokens, encoder.features(IMAGES).tokens)


def test_a_cached_model_with_torch_files_alone_opens_as_what_it_is(hub: Path) -> None:
    encoder = Encoder.tiny("dinov2")
    encoder.save(hub)
    (hub / "model.safetensors").unlink()
    (hub / "tap.json").unlink()
    torch.save(encoder.model.state_dict(), hub / "pytorch_model.bin")
    assert not holds_mllm("hf:someone/eyes")
    assert torch.equal(Encoder.load("hf:someone/eyes").features(IMAGES).tokens, encoder.features(IMAGES).tokens)


def test_a_model_of_the_hub_is_described_by_its_settings_alone(hub: Path) -> None:
    Encoder.tiny("dinov2").save(hub)
    (hub / "model.safetensors").unlink()
    done = CliRunner().invoke(app, ["encoder", "inspect", "hf:someone/eyes"])
    assert done.exit_code == 0 and "dinov2" in done.output


@pytest.mark.parametrize(
    ("file", "safe"), [("model.safetensors", True), ("model.safetensors.index.json", True), ("pytorch_model.bin", False)]
)
def test_what_the_hub_has_decides_what_is_fetched(file: str, safe: bool, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ["config.json", "preprocessor_config.json", "pytorch_model.bin", file]
    asked: list[bool] = []

    def spy(name: str, dtype: str, safe: bool, **options: object) -> None:
        asked.append(safe)
        raise BadInput("seen")

    monkeypatch.setattr(
        "pivot.encoder.hub.model_info", lambda *_, **__: SimpleNamespace(siblings=[SimpleNamespace(rfilename=f) for f in files])
    )
    monkeypatch.setattr("pivot.encoder.formats.hf._open", spy)
    with pytest.raises(BadInput, match="seen"):
        Encoder.load("hf:someone/eyes")
    assert asked == [safe]


def test_a_model_of_the_hub_that_is_not_cached_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput) as error:
        Encoder.load("hf:someone/eyes")
    said = str(error.value)
    assert "\n" not in said
    assert all(word in said for word in ("config.json", "model.safetensors", "preprocessor_config.json", str(tmp_path), "hf download"))


@pytest.mark.parametrize("name", [*FAMILIES, "convnext", "qwen2_5_vl_vision"])
def test_a_name_is_described_without_its_weights(name: str, tmp_path: Path) -> None:
    model = towers.tiny(name)
    model.save_pretrained(tmp_path)
    Encoder.tiny(name).processor.save_pretrained(tmp_path)
    whole = Encoder.load(tmp_path, pixels=64)
    if name != "qwen2_5_vl_vision":  # whose passes hang on values
        (tmp_path / "model.safetensors").unlink()
    seen = Encoder.described(tmp_path, pixels=64)
    assert (seen.grid, seen.tap, seen.family, seen.left_out) == (whole.grid, whole.tap, whole.family, whole.left_out)
    assert towers.idle_parameters(seen.model, seen.tap).keys() == towers.idle_parameters(whole.model, whole.tap).keys()
    assert [p.shape for p in seen.model.parameters()] == [p.shape for p in whole.model.parameters()]


def test_dinov3s_image_processor_goes_through_pillow(tmp_path: Path) -> None:
    facts = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 2, "size": {"height": 48, "width": 48}}
    towers.tiny("dinov3_vit").save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "DINOv3ViTImageProcessorFast", **facts}))
    wide = [picture(1, 70, 90)]
    encoder = Encoder.load(tmp_path)
    assert type(encoder.processor).__name__.endswith("Pil")
    encoder.save(tmp_path / "out")
    assert torch.equal(Encoder.load(tmp_path / "out").pixels(wide), encoder.pixels(wide))
    if find_spec("torchvision"):
        stock = AutoImageProcessor.from_pretrained(tmp_path)(images=wide, return_tensors="pt")["pixel_values"]
        assert (stock - encoder.pixels(wide)).abs().max() < 1.5 / 255 / 0.224, "within a grey level, and rounding"


def drop_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["embeddings.position_embedding.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "tap.json").unlink()


FAULTS = {
    "not found": lambda folder: (folder / "model.safetensors").unlink(),
    "preprocessor_config.json": lambda folder: (folder / "preprocessor_config.json").unlink(),
    "cannot be opened": lambda folder: (folder / "model.safetensors").write_bytes(b"torn"),
    "position_embedding": drop_tensor,
    "weights changed": lambda folder: Encoder.tiny("siglip", seed=9).model.save_pretrained(folder),
    "not what this version writes": lambda folder: (folder / "tap.json").write_text("{}"),
    "tap.json is not what this": lambda folder: (folder / "tap.json").write_text("[1]"),
    "layer 'x'": lambda folder: (folder / "tap.json").write_text((folder / "tap.json").read_text().replace('"layer": -2', '"layer": "x"')),
    "not a JSON file": lambda folder: (folder / "tap.json").write_text("{"),
}


@pytest.mark.parametrize("said", FAULTS)
def test_a_broken_folder_is_one_line(said: str, tmp_path: Path) -> None:
    Encoder.tiny("siglip").save(tmp_path / "out")
    FAULTS[said](tmp_path / "out")
    with pytest.raises(BadInput, match=said) as error:
        Encoder.load(tmp_path / "out")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "config", [{"model_type": "siglip", "vision_config": 7}, {"model_type": "siglip_vision_model", "hidden_size": "x"}]
)
def test_a_config_that_is_none_is_one_line(config: dict, tmp_path: Path) -> None:
    Encoder.tiny("siglip").save(tmp_path)
    (tmp_path / "tap.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    for opens in (Encoder.load, Encoder.described):
        with pytest.raises(BadInput, match=r"cannot be opened: .*Error") as error:
            opens(tmp_path)
        assert "\n" not in str(error.value)
    assert holds_mllm(str(tmp_path)) is False


@pytest.mark.parametrize(
    ("name", "said"),
    [("hg:x/y", "hf:ID"), ("nowhere", "no such folder"), ("hf:a b", "OWNER/MODEL"), ("mytower:x", r"package\.module:NAME")],
)
def test_bad_names(name: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        Encoder.load(name)


TOWER = """
from torch import nn

class Tower(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 8, 8)
"""


@pytest.mark.parametrize(
    ("opening", "said"),
    [
        ("", r"its Tower has no classmethod open\(name\)"),
        ("raise FileNotFoundError('my weights\\nare away')", r"Tower\.open\('x'\) failed \(FileNotFoundError: my weights are away\)"),
        ("return {'width': 4}, {}", r"Tower\.open\('x'\) must return \(options, weights, image_processor\)"),
        ("return 7, {}, None", r"Tower\.open\('x'\) must return \(options, weights, image_processor\)"),
        ("return {'wide': 4}, {}, None", r"cannot be built with options \{'wide': 4\} \(TypeError"),
        ("return {'width': 4}, {}, None", r"its weights do not fit its Tower \(RuntimeError"),
        ("return {'width': 4}, None, None", r"its weights do not fit its Tower \(TypeError"),
    ],
)
def test_what_is_wrong_with_a_tower_of_ones_own_is_one_line(
    opening: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = f"\n    @classmethod\n    def open(cls, name):\n        {opening}\n" if opening else ""
    (tmp_path / "odd_lab").mkdir()
    (tmp_path / "odd_lab" / "tower.py").write_text(TOWER + method)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        with pytest.raises(BadInput, match=said) as error:
            Encoder.load("odd_lab.tower:x")
    finally:
        for name in ("odd_lab", "odd_lab.tower"):
            sys.modules.pop(name, None)
    assert "\n" not in str(error.value)


def test_asking_for_what_an_encoder_does_not_have() -> None:
    encoder = Encoder.tiny("siglip")
    for ask, said in (
        (lambda: encoder.features(IMAGES, at="projector"), "no projector"),
        (lambda: encoder.features(IMAGES, at="roof"), "encoder or projector"),
        (lambda: encoder.features([]), "no images"),
        (lambda: encoder.tapped(layer=9), "layer 9"),
        (lambda: Encoder(encoder.model, Encoder.tiny("siglip", pixels=64).processor, encoder.tap), r"\(64, 64\)"),
    ):
        with pytest.raises(BadInput, match=said):
            ask()


def test_the_fingerprint_follows_everything_that_features_depend_on() -> None:
    encoder, size = Encoder.tiny("dinov2"), {"height": 96, "width": 96}
    prints = [
        encoder.fingerprint(),
        encoder.tapped(layer=-1).fingerprint(),
        Encoder.tiny("dinov2", seed=1).fingerprint(),
        Encoder(encoder.model, type(encoder.processor)(size=size, do_center_crop=False), encoder.tap).fingerprint(),
        Encoder(encoder.model, encoder.processor, encoder.tap, torch.nn.Linear(32, 8)).fingerprint(),
    ]
    assert len(set(prints)) == len(prints)
    assert Encoder.tiny("dinov2").fingerprint() == prints[0]


# ---- the cache


class Counting(Encoder):
    """Counts the batches that were computed, and can be made to fail."""

    computed = 0
    breaks = False

    def stream(self, *args: object, **kwargs: object) -> Iterator:
        for features in super().stream(*args, **kwargs):
            self.computed += 1
            yield features
            if self.breaks:
                raise KeyboardInterrupt


def test_features_are_computed_once_and_mapped(cache: Path) -> None:
    encoder = Counting.tiny("siglip")
    first = cached(encoder, IMAGES, "tokens", batch=2)
    again = cached(encoder, IMAGES, "tokens", batch=2)
    assert encoder.computed == 3 and isinstance(again, np.memmap)
    assert np.array_equal(first, again) and np.array_equal(first, encoder.features(IMAGES, batch=2).tokens.numpy())
    assert np.array_equal(cached(encoder, IMAGES, batch=2), encoder.features(IMAGES, batch=2).pooled.numpy())


def test_a_changed_weight_picture_or_tap_is_a_miss(cache: Path) -> None:
    encoder = Counting.tiny("siglip")
    cached(encoder, IMAGES)
    cached(encoder.tapped(layer=-1), IMAGES)
    cached(encoder, IMAGES[::-1])
    next(encoder.model.parameters()).data[0] += 1
    changed = cached(encoder, IMAGES)
    assert len(list(cache.iterdir())) == 4
    assert np.array_equal(changed, encoder.features(IMAGES).pooled.numpy())


def test_regions_are_weighted_sums_of_tokens() -> None:
    encoder = Encoder.tiny("clip")
    dice = np.random.default_rng(0)
    regions = [dice.random((n, 36)).astype(np.float32) for n in (2, 0, 1, 3, 0)]
    tokens = encoder.features(IMAGES).tokens.numpy()
    expected = np.concatenate([weights @ rows for weights, rows in zip(regions, tokens, strict=True)])
    assert np.allclose(cached(encoder, IMAGES, "regions", regions=regions, batch=2), expected, atol=1e-5)


def test_two_writers_of_one_entry_agree_and_a_killed_one_leaves_nothing(cache: Path) -> None:
    broken = Counting.tiny("siglip")
    broken.breaks = True
    with pytest.raises(KeyboardInterrupt):
        cached(broken, IMAGES)
    assert not list(cache.iterdir())

    class Slower(Encoder):
        """While it computes, another one finishes the same entry."""

        def stream(self, *args: object, **kwargs: object) -> Iterator:
            yield from super().stream(*args, **kwargs)
            cached(Encoder.tiny("siglip"), IMAGES)

    found = cached(Slower.tiny("siglip"), IMAGES)
    assert np.array_equal(found, Encoder.tiny("siglip").features(IMAGES).pooled.numpy())
    assert len(list(cache.iterdir())) == 1


def test_pictures_are_known_by_content(tmp_path: Path) -> None:
    IMAGES[0].save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    assert fingerprint([tmp_path / "a.png"]) == fingerprint([tmp_path / "b.png"]) != fingerprint([IMAGES[0]])
    IMAGES[1].save(tmp_path / "b.png")
    assert fingerprint([tmp_path / "a.png"]) != fingerprint([tmp_path / "b.png"])
    with pytest.raises(BadInput, match="not found"):
        fingerprint([tmp_path / "c.png"])


# ---- geometry


def seen_by(processor: object, mask: np.ndarray, patch: int) -> np.ndarray:
    """The slow way to a mask's coverage: the mask as a picture, through the processor, averaged over each patch."""
    picture = Image.fromarray(np.repeat(mask[..., None], 3, 2).astype(np.uint8) * 255)
    pixels = processor(images=[picture], do_normalize=False, return_tensors="np")["pixel_values"][0, 0]
    height, width = (side // patch * patch for side in pixels.shape)
    return pixels[:height, :width].reshape(height // patch, patch, width // patch, patch).mean((1, 3))


@pytest.mark.parametrize("shape", [(48, 48), (60, 90), (100, 50)])
def test_coverage_follows_resize_and_crop(shape: tuple[int, int]) -> None:
    mask = np.zeros(shape, bool)
    mask[shape[0] // 5 : shape[0] // 2, shape[1] // 3 : shape[1] // 3 * 2] = True
    straight = Encoder.tiny("dinov2", pixels=96).processor
    cropping = type(straight)(size={"shortest_edge": 120}, crop_size={"height": 96, "width": 96})
    for processor in (straight, cropping):
        geometry = Geometry.of(processor, (12, 12))
        assert np.abs(geometry.coverage(mask) - seen_by(processor, mask, 8)).max() < 0.06
        assert geometry.coverage(np.ones(shape, bool)) == pytest.approx(1)
    odd = Encoder.tiny("dinov2", pixels=92)
    assert odd.geometry.grid == (11, 11) and odd.geometry.share == (88 / 92, 88 / 92)
    assert np.abs(odd.geometry.coverage(mask) - seen_by(odd.processor, mask, 8)).max() < 0.06
    whole = Geometry.of(straight, (12, 12)).coverage(mask)
    assert whole.mean() == pytest.approx(mask.mean()), "areas are kept exactly"


def test_pictures_that_differ_in_their_palette_alone_are_different() -> None:
    one, other = Image.new("P", (4, 4)), Image.new("P", (4, 4))
    one.putpalette([255, 0, 0])
    other.putpalette([0, 0, 255])
    assert fingerprint([one]) != fingerprint([other]) == fingerprint([other.convert("RGB")])
