"""`pivot_tower`: members of every layout against the stock models that they are, and what joining does to them."""

from __future__ import annotations

import copy
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import training
from PIL import Image
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, Qwen2Config, Qwen2VLImageProcessorPil

from pivot.encoder import Encoder, names, reading, towers
from pivot.encoder.card import Provenance
from pivot.encoder.export import export, known
from pivot.encoder.features import cached
from pivot.encoder.tower import PivotTower, patch_size
from pivot.model import MLLM
from pivot.model.flops import weights
from pivot.records import BadInput, Example, Tap
from pivot.train import Settings
from pivot.train.reference import identity

STAGED = ["convnext", "convnextv2", "dinov3_convnext", "resnet"]
PACKED = ["qwen2_vl_vision", "qwen2_5_vl_vision"]
TIMM = pytest.param("timm_wrapper", marks=pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed"))
KINDS = ["siglip", "dinov2_with_registers", *STAGED, *PACKED, TIMM]


def picture(seed: int, height: int = 48, width: int = 48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


IMAGES = [picture(i, 48, 60) for i in range(3)]


def joined(name: str, layer: int | None = None, **options: int) -> Encoder:
    """A `pivot_tower` of one member."""
    return Encoder.join([Encoder.tiny(name, layer=layer, **options)])


def member(encoder: Encoder, number: int = 0) -> torch.nn.Module:
    return encoder.model.members[number]


@pytest.mark.parametrize("name", STAGED)
@pytest.mark.parametrize("layer", [-1, -2, 1, 2])
def test_a_stages_tokens_are_its_map_in_raster_order(name: str, layer: int) -> None:
    encoder = Encoder.tiny(name, layer=layer)
    pixels = encoder.pixels(IMAGES)
    with torch.no_grad():
        outside = member(encoder)(pixels, output_hidden_states=True).hidden_states[layer]
    assert encoder.grid == tuple(outside.shape[2:])
    assert torch.equal(encoder.features(IMAGES).tokens, outside.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("name", ["convnext", "convnextv2", "dinov3_convnext"])
def test_the_final_norm_of_a_convolutional_network_is_taken_over_its_channels(name: str) -> None:
    whole = Encoder.tiny(name)
    (part,) = whole.members()
    pixels = whole.pixels(IMAGES)
    normed = reading.hidden(part.model, pixels, Tap(-1, norm=True))
    with torch.no_grad():
        plain = whole.hidden(pixels)
        expected = F.layer_norm(plain, plain.shape[-1:], eps=part.model.config.layer_norm_eps)
    assert torch.allclose(normed, expected, atol=1e-6), "a fresh norm has weight 1 and bias 0"
    with pytest.raises(BadInput, match="no final norm"):
        reading.hidden(Encoder.tiny("resnet").members()[0].model, pixels, Tap(-1, norm=True))


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("size", [(48, 48), (64, 112), (50, 40)])
def test_packed_patches_are_those_that_the_stock_processor_makes(name: str, size: tuple[int, int]) -> None:
    model = towers.tiny(name, seed=1)
    images = [picture(i, *size) for i in range(2)]
    side = model.config.patch_size * 2
    seen = [image.crop((0, 0, size[1] // side * side, size[0] // side * side)) for image in images]  # the remainder is not seen
    processor = Qwen2VLImageProcessorPil(patch_size=8, do_resize=False)
    stock = processor(images=seen, return_tensors="pt")
    values = [np.asarray(image, np.float32).transpose(2, 0, 1) / 255 for image in images]
    pixels = (torch.from_numpy(np.stack(values)) - torch.tensor(processor.image_mean)[:, None, None]) / torch.tensor(processor.image_std)[
        :, None, None
    ]
    with torch.no_grad():
        found = reading.maps(model, pixels, Tap(-1))  # (B, D, h, w)
        cells = found.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).permute(0, 2, 4, 3, 5, 1)  # (B, h/2, w/2, 2, 2, D)
        merged = model.merger(cells.reshape(-1, found.shape[1]))
        outside = model(stock["pixel_values"], stock["image_grid_thw"]).pooler_output
    assert found.shape[2:] == (size[0] // side * 2, size[1] // side * 2)
    assert torch.allclose(merged, outside, atol=1e-5)
    shuffled = model.merger(cells.transpose(1, 2).reshape(-1, found.shape[1]))
    assert not torch.allclose(shuffled, outside, atol=1e-3), "an order of patches that is not theirs shows"


def test_a_timm_models_stages_are_its_own() -> None:
    pytest.importorskip("timm")
    for layer in (-1, -2, 1, 3):
        encoder = Encoder.tiny("timm_wrapper", layer=layer)
        with torch.no_grad():
            stages = member(encoder).timm_model.forward_intermediates(encoder.pixels(IMAGES), intermediates_only=True)
        expected = stages[layer if layer < 0 else layer - 1].flatten(2).transpose(1, 2)
        assert torch.equal(encoder.features(IMAGES).tokens, expected)
    for layer in (0, 5, -5):
        with pytest.raises(BadInput, match="from -4 to 4, without 0"):
            Encoder.tiny("timm_wrapper", layer=layer)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("layer", [-1, -2, 1])
def test_idle_parameters_are_exactly_those_without_a_gradient(name: str, layer: int) -> None:
    encoder = joined(name, layer)
    encoder.read(torch.randn(2, 3, 48, 48))[0].square().sum().backward()
    silent = {n for n, p in encoder.model.named_parameters() if p.grad is None}
    assert silent == set(towers.idle_parameters(encoder.model, encoder.tap))
    for path in towers.above(encoder.model, encoder.tap):
        assert {f"{path}.{n}" for n, _ in encoder.model.get_submodule(path).named_parameters()} <= silent


def test_looking_for_idle_parameters_leaves_no_trace() -> None:
    pytest.importorskip("timm")
    encoder = Encoder.tiny("timm_wrapper", layer=2)
    frozen = next(encoder.model.parameters()).requires_grad_(False)
    before = copy.deepcopy(encoder.model.state_dict())
    towers.idle_parameters(encoder.model, encoder.tap)
    assert not frozen.requires_grad and all(p.grad is None for p in encoder.model.parameters())
    assert all(torch.equal(before[k], v) for k, v in encoder.model.state_dict().items())


@pytest.mark.parametrize("name", KINDS)
def test_a_member_alone_sees_what_it_sees_outside(name: str) -> None:
    alone = Encoder.tiny(name)
    within = Encoder.join([alone])
    assert torch.equal(within.features(IMAGES).tokens, alone.features(IMAGES).tokens)
    assert within.grid == alone.grid and within.tap == Tap(-1)


def ensemble() -> tuple[Encoder, Encoder, Encoder]:
    """Two encoders with other sizes, grids and normalisations, and both together."""
    first, second = Encoder.tiny("siglip", pixels=48), Encoder.tiny("clip", pixels=64, layer=-1)
    assert first.processor.image_mean != second.processor.image_mean
    return first, second, Encoder.join([first, second])


def test_an_ensemble_joins_its_members_on_channels() -> None:
    first, second, both = ensemble()
    pixels = both.pixels(IMAGES)
    assert torch.equal(pixels, first.pixels(IMAGES))
    tokens = both.hidden(pixels)
    assert torch.equal(tokens[..., :32], first.hidden(pixels)), "the first one's pixels and grid are touched by nothing"
    mean, std, own_mean, own_std = (
        torch.tensor(v)[:, None, None] for e in (first, second) for v in (e.processor.image_mean, e.processor.image_std)
    )
    theirs = F.interpolate(pixels * std + mean, size=(64, 64), mode="bicubic", antialias=True)
    grid = second.read((theirs - own_mean) / own_std)[0].transpose(1, 2).unflatten(2, (8, 8))
    expected = F.interpolate(grid, size=(6, 6), mode="bilinear").flatten(2).transpose(1, 2)
    assert torch.allclose(tokens[..., 32:], expected, atol=1e-4)
    assert both.model.config.hidden_size == 64


def test_a_member_sees_its_own_normalisation() -> None:
    first, second = Encoder.tiny("siglip"), Encoder.tiny("clip")
    both = Encoder.join([first, second])
    found = both.features(IMAGES).tokens[..., 32:]
    assert torch.allclose(found, second.features(IMAGES).tokens, atol=1e-4), "same size, other mean and std"
    both.model.config.members[1]["mean"] = both.model.config.members[0]["mean"]
    assert not torch.allclose(both.features(IMAGES).tokens[..., 32:], second.features(IMAGES).tokens, atol=1e-2), "a wrong mean shows"


@pytest.mark.parametrize(
    "changes", [{"rescale_factor": 1 / 127.5}, {"rescale_factor": 1 / 127.5, "do_normalize": False}, {"do_rescale": False}]
)
def test_a_member_sees_its_own_scale(changes: dict[str, object]) -> None:
    first, second = Encoder.tiny("siglip"), Encoder.tiny("clip")
    for name, value in changes.items():
        setattr(second.processor, name, value)
    found = Encoder.join([first, second])
    assert torch.allclose(found.model._pixels(first.pixels(IMAGES), found.members()[1]), second.pixels(IMAGES), rtol=1e-5, atol=1e-4)
    assert torch.allclose(found.features(IMAGES).tokens[..., 32:], second.features(IMAGES).tokens, atol=1e-3)
    turned = Encoder.join([second, first])
    assert torch.allclose(turned.features(IMAGES).tokens[..., 32:], first.features(IMAGES).tokens, atol=1e-3)


def test_gradients_reach_every_member_and_only_what_is_read() -> None:
    *_, both = ensemble()
    both.hidden(both.pixels(IMAGES)).square().sum().backward()
    silent = {n for n, p in both.model.named_parameters() if p.grad is None}
    assert silent == set(towers.idle_parameters(both.model, both.tap))
    assert {name.split(".")[1] for name, p in both.model.named_parameters() if p.grad is not None} == {"0", "1"}


def test_a_grid_may_be_said() -> None:
    first, second, _ = ensemble()
    both = Encoder.join([first, second], (8, 8))
    assert both.grid == (8, 8) and both.features(IMAGES).tokens.shape == (3, 64, 64)
    assert both.model.config.patch_size == 6
    with pytest.raises(BadInput, match="fits no square patch"):
        Encoder.join([first, second], (7, 5))


def test_a_grid_that_was_said_stays_at_another_size(tmp_path: Path) -> None:
    for number, name in enumerate(("siglip", "dinov2")):
        Encoder.tiny(name).save(tmp_path / str(number))
    a, b = tmp_path / "0", tmp_path / "1"
    for grid, expected in (("-> 3x3", (3, 3)), ("", (12, 12))):
        named = Encoder.load(f"{a} + {b} {grid}", pixels=96)
        Encoder.load(f"{a} + {b} {grid}").save(tmp_path / "both")
        folder = Encoder.load(tmp_path / "both", pixels=96)
        assert named.grid == folder.grid == expected
        assert torch.equal(folder.features(IMAGES).tokens, named.features(IMAGES).tokens)


def test_a_tower_of_members_is_not_said_to_be_truncated(tmp_path: Path) -> None:
    *_, both = ensemble()
    for encoder in (both, joined("resnet", 1)):
        with pytest.raises(BadInput, match="goes out with all of its blocks") as error:
            export(encoder, tmp_path / "out", IMAGES, truncate=True)
        assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_an_ensemble_of_an_ensemble_is_one() -> None:
    *_, both = ensemble()
    three = Encoder.join([both, Encoder.tiny("convnext")])
    assert len(three.model.members) == 3 and not any(isinstance(m, PivotTower) for m in three.model.members)
    assert torch.equal(three.features(IMAGES).tokens[..., :64], both.features(IMAGES).tokens)


@pytest.mark.parametrize("name", [*KINDS, "pivot_tower"])
def test_save_and_load_change_nothing(name: str, tmp_path: Path) -> None:
    encoder = Encoder.tiny("pivot_tower") if name == "pivot_tower" else joined(name)
    encoder.save(tmp_path / "out")
    again = Encoder.load(tmp_path / "out")
    assert torch.equal(again.features(IMAGES).tokens, encoder.features(IMAGES).tokens)
    if towers.family(name).layout == "tokens":  # stock LLaVA holds it without a tower around it
        Encoder.tiny(name).save(tmp_path / "alone")
        assert again.fingerprint() == Encoder.load(tmp_path / "alone").fingerprint()
    else:
        assert again.fingerprint() == encoder.fingerprint() and again.tap == encoder.tap


def test_an_ensemble_opens_with_auto_model(tmp_path: Path) -> None:
    *_, both = ensemble()
    both.save(tmp_path / "out")
    with torch.no_grad():
        outside = AutoModel.from_pretrained(tmp_path / "out").eval()(both.pixels(IMAGES), output_hidden_states=True).hidden_states[-1]
    assert torch.equal(outside, both.features(IMAGES).tokens)


def test_only_a_tower_that_adds_nothing_goes_out_as_its_member(lab: str, tmp_path: Path) -> None:
    first, _, both = ensemble()
    for number, (encoder, kind) in enumerate(
        [
            (Encoder.tiny("resnet"), "resnet"),
            (Encoder.join([Encoder.tiny("resnet")], (6, 6)), "resnet"),
            (Encoder.join([Encoder.tiny("resnet")], (8, 8)), "pivot_tower"),
            (Encoder.join([first], (8, 8)), "pivot_tower"),
            (both, "pivot_tower"),
            (Encoder.load(f"{lab}:x"), "pivot_tower"),
        ]
    ):
        folder = tmp_path / str(number)
        assert export(encoder, folder, IMAGES).exact
        told = json.loads((folder / "config.json").read_text()), json.loads((folder / "tap.json").read_text())
        assert (told[0]["model_type"], towers.family(told[1]["family"]).model_type) == (kind, kind)
        again = Encoder.load(folder)
        assert again.grid == encoder.grid and torch.equal(again.features(IMAGES).tokens, encoder.features(IMAGES).tokens)


def test_a_tower_of_one_knows_where_its_member_came_from() -> None:
    one, other = Encoder.tiny("resnet"), Encoder.tiny("convnext")
    one.members()[0].model.config.pivot_source = {"library": "hf", "name": "a/b"}
    assert known(one.join([one]), Provenance()).parents == {"encoder": "hf:a/b"}
    assert known(one.join([one], (8, 8)), Provenance()).parents == {"encoder": "hf:a/b"}
    assert known(one.join([one, other]), Provenance()).parents == {}


def test_the_first_member_is_normalised_as_the_processor_does() -> None:
    mllm = MLLM.tiny("convnext")
    assert mllm.detach().members()[0].mean == tuple(mllm.processor.image_processor.image_mean)


@pytest.mark.parametrize("name", ["pivot_tower", "resnet", "qwen2_5_vl_vision", TIMM])
def test_stock_llava_reads_it(name: str, tmp_path: Path) -> None:
    mllm = MLLM.tiny(name)
    mllm.save(tmp_path)
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    encoder = MLLM.load(tmp_path).detach()
    seen: list[torch.Tensor] = []
    stock.model.multi_modal_projector.register_forward_hook(lambda _m, given, _o: seen.append(given[0]))
    with torch.no_grad():
        stock.model.get_image_features(encoder.pixels(IMAGES))
    assert torch.equal(seen[0], encoder.features(IMAGES).tokens)
    text = mllm.processor(text="<image>", images=[IMAGES[0]])
    assert np.sum(np.asarray(text["input_ids"]) == mllm.model.config.image_token_id) == seen[0].shape[1]


@pytest.mark.parametrize("name", ["pivot_tower", "resnet", "qwen2_vl_vision", TIMM])
def test_what_is_read_trains_and_nothing_else(name: str, pairs: list[Example], tmp_path: Path) -> None:
    mllm = MLLM.tiny(name)
    tower = mllm.parts()["tower"]
    before = {key: value.clone() for key, value in tower.state_dict().items()}
    training.run(mllm, training.DPO(), pairs, tmp_path, checkpointing=name == "pivot_tower")  # proves by itself that each part trained
    moved = {key for key, value in tower.state_dict().items() if not torch.equal(value, before[key])}
    parameters = {key for key, _ in tower.named_parameters()}
    idle = towers.idle_parameters(mllm.detach().model, mllm.tap).keys()
    assert moved <= parameters - idle, "no statistics of a batch norm move, either"
    assert {key for key in parameters - idle - moved if not key.endswith("k_proj.bias")} == set()  # whose gradient is zero by theory


def test_it_goes_back_into_another_mllm(tmp_path: Path) -> None:
    mllm, other = MLLM.tiny("pivot_tower"), MLLM.tiny("pivot_tower", seed=5)
    mllm.detach().save(tmp_path / "out")
    other.attach(Encoder.load(tmp_path / "out"))
    assert other.hashes()["tower"] == mllm.hashes()["tower"] != MLLM.tiny("pivot_tower", seed=5).hashes()["tower"]
    with pytest.raises(BadInput, match="an ensemble of 1 does not fit a tower of 2"):
        other.attach(Encoder.tiny("siglip"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_stay_what_they_are(dtype: torch.dtype) -> None:
    *_, both = ensemble()
    pixels = both.pixels(IMAGES)
    single = both.hidden(pixels)
    found = both.to("cpu").model.to(dtype)(pixels.to(dtype)).hidden_states[-1]
    assert found.dtype == dtype
    assert torch.allclose(found.float(), single, atol=0.2 if dtype == torch.bfloat16 else 1e-4)


@pytest.mark.parametrize("name", ["pivot_tower", "qwen2_5_vl_vision", TIMM])
def test_its_operations_are_counted(name: str) -> None:
    mllm = MLLM.tiny(name)
    tower = mllm.parts()["tower"]
    counted = weights(mllm.model.config).joined
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        features = tower(torch.zeros(1, 3, 48, 48)).hidden_states[-1]
        forward = counter.get_total_flops()
        features.sum().backward()
    # Members that are read below their top run whole inside an MLLM; a timm model stops at its tap in both.
    assert counted == (forward, counter.get_total_flops() - forward)


def test_checkpointing_changes_no_gradient() -> None:
    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        encoder = Encoder.join([Encoder.tiny("siglip"), Encoder.tiny("dinov2")])
        if checkpointing:
            encoder.model.gradient_checkpointing_enable()
            encoder.model.train()
        encoder.hidden(torch.ones(1, 3, 48, 48)).square().sum().backward()
        return {name: p.grad for name, p in encoder.model.named_parameters() if p.grad is not None}

    plain, again = gradients(False), gradients(True)
    assert plain.keys() == again.keys() and all(torch.allclose(plain[k], again[k], atol=1e-5) for k in plain)


def test_what_a_tower_does_not_have_is_refused() -> None:
    encoder = Encoder.tiny("pivot_tower")
    for ask, said in (
        (lambda: encoder.tapped(layer=-2), "member by member"),
        (lambda: encoder.tapped(norm=True), "no final norm"),
        (lambda: encoder.tapped(pooling="class"), "no class token"),
        (lambda: Encoder(encoder.model, Encoder.tiny("siglip", pixels=64).processor, encoder.tap), r"\(64, 64\)"),
        (lambda: MLLM.build(encoder, SimpleNamespace(), tokenizer=SimpleNamespace(), layer=-2), "member by member"),
        (lambda: Encoder.tiny("convnext", layer=3), "has 2 blocks"),
    ):
        with pytest.raises(BadInput, match=said) as error:
            ask()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("pixels", [(48, 48), (224, 224), (384, 384), (60, 100)])
@pytest.mark.parametrize("side", [6, 14, 16, 32])
def test_the_patch_size_gives_the_grid(pixels: tuple[int, int], side: int) -> None:
    grid = (pixels[0] // side, pixels[1] // side)
    if 0 in grid:
        return
    found = patch_size(pixels, grid)
    assert (pixels[0] // found, pixels[1] // found) == grid


# ---- by name


def test_ensembles_by_name(tmp_path: Path) -> None:
    Encoder.tiny("siglip").save(tmp_path / "a")
    Encoder.tiny("dinov2", pixels=64).save(tmp_path / "b")
    towers.tiny("convnext").save_pretrained(tmp_path / "c")
    Encoder.tiny("convnext").processor.save_pretrained(tmp_path / "c")
    a, b, c = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    both = Encoder.load(f"{a}@-1 + {b}@1 + {c}")
    assert [part.tap.layer for part in both.members()] == [-1, 1, -1] and both.grid == (6, 6)
    assert torch.equal(both.features(IMAGES).tokens[..., :32], Encoder.load(a).tapped(layer=-1).features(IMAGES).tokens)
    assert Encoder.load(f"{a} + {b} -> 8x8").grid == (8, 8)
    assert Encoder.load(f"{b}@1").tap.layer == 1 and Encoder.load(f"{b}@1").family.name == "dinov2"
    assert Encoder.load(f"{c}@1").family.name == "pivot_tower"
    assert torch.equal(Encoder.load(c).features(IMAGES).tokens, Encoder.tiny("convnext").features(IMAGES).tokens)


@pytest.mark.parametrize(("name", "said"), [("a + ", "missing"), ("a + b -> 24", "no grid"), ("a + b -> 0x2", "no grid")])
def test_names_that_cannot_be_read(name: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        names.parse(name)


def test_names_are_read_as_written(tmp_path: Path) -> None:
    assert names.parse("hf:a/b@-2 + c@3 -> 2x10") == names.Name((names.Part("hf:a/b", -2), names.Part("c", 3)), (2, 10))
    odd = tmp_path / "x + y@-1"
    odd.mkdir()
    assert names.parse(str(odd)) == names.Name((names.Part(str(odd)),)), "a folder of that name is meant"
    assert names.parse("hf:a/b@main") == names.Name((names.Part("hf:a/b@main"),)), "no number, no layer"


# ---- a tower of one's own

LAB = """
import torch
from torch import nn
from transformers import ViTImageProcessorPil

class Tower(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, width, 8, 8), nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, width, 1)
        self.register_buffer("scale", torch.ones(1))

    def forward(self, pixels):
        maps = [self.first(pixels) * self.scale]
        for layer in (self.second, self.third):
            maps.append(layer(maps[-1]).relu())
        return maps

    @classmethod
    def open(cls, name):
        torch.manual_seed(len(name))
        return {"width": 12}, cls(12).state_dict(), ViTImageProcessorPil(size={"height": 48, "width": 48})
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "__init__.py").write_text("")
    (tmp_path / "my_lab" / "tower.py").write_text(LAB)
    (tmp_path / "my_lab" / "empty.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_lab.tower"
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_lab"]:
        del sys.modules[name]


def test_one_file_outside_the_package_adds_a_tower(lab: str, tmp_path: Path) -> None:
    encoder = Encoder.load(f"{lab}:best@2")
    own = member(encoder).tower
    with torch.no_grad():
        expected = own(encoder.pixels(IMAGES))[1].flatten(2).transpose(1, 2)
    assert torch.equal(encoder.features(IMAGES).tokens, expected)
    assert set(towers.idle_parameters(encoder.model, encoder.tap)) == {"members.0.tower.third.weight", "members.0.tower.third.bias"}
    encoder.save(tmp_path / "out")
    del sys.modules[lab]
    again = Encoder.load(tmp_path / "out")
    assert again.fingerprint() == encoder.fingerprint() and lab in sys.modules
    assert torch.equal(again.features(IMAGES).tokens, expected)
    both = Encoder.load(f"{tmp_path / 'out'} + {lab}:other")
    assert both.features(IMAGES).tokens.shape == (3, 36, 24)


@pytest.mark.parametrize("file", ["tower.py", "layers.py"])
def test_features_are_those_of_the_code_that_was_run(lab: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "cache"))
    own = tmp_path / "my_lab"
    (own / "layers.py").write_text(
        "from torch import nn\n\nclass Rectified(nn.Module):\n    def forward(self, x):\n        return x.relu()\n"
    )
    text = LAB.replace("from torch import nn", "from torch import nn\nfrom my_lab.layers import Rectified")
    text = text.replace("super().__init__()", "super().__init__()\n        self.rectified = Rectified()")
    (own / "tower.py").write_text(text.replace("layer(maps[-1]).relu()", "1 * self.rectified(layer(maps[-1]))"))
    first = Encoder.load(f"{lab}:x")
    seen, mark = np.array(cached(first, IMAGES)), first.fingerprint()
    (own / file).write_text((own / file).read_text().replace("1 * self", "2.5 * self").replace("x.relu()", "x.relu() * 2.5"))
    assert first.fingerprint() == mark and Encoder.load(f"{lab}:x").fingerprint() == mark, "what was imported runs on"
    for name in [name for name in sys.modules if name.startswith("my_lab.")]:
        del sys.modules[name]
    second = Encoder.load(f"{lab}:x")
    found = np.array(cached(second, IMAGES))
    assert second.fingerprint() != mark and np.abs(found - seen).max() > 0.1
    assert np.array_equal(found, second.features(IMAGES).pooled.numpy())


def test_kept_reference_values_are_those_of_the_code_that_was_run(lab: str, tmp_path: Path) -> None:
    def told() -> dict[str, object]:
        tokenizer = MLLM.tiny().processor.tokenizer
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
        llm = AutoModelForCausalLM.from_config(Qwen2Config(**sizes, vocab_size=len(tokenizer)))
        return identity(MLLM.build(Encoder.load(f"{lab}:x"), llm, tokenizer=tokenizer), Settings(), torch.device("cpu"))

    before = told()
    assert told() == before
    (tmp_path / "my_lab" / "tower.py").write_text(LAB + "# another\n")
    del sys.modules[lab]
    after = told()
    assert after != before and {**after, "code": None} == {**before, "code": None}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my_lab.towr:x", "no encoder named 'my_lab.towr'"),
        ("my_lab.empty:x", "has no 'Tower'"),
        ("my_lab.tower:x@9", "has 3 blocks"),
        ("my_lab.tower:x@0", "without 0"),
    ],
)
def test_wrong_names_of_towers_outside(lab: str, name: str, said: str) -> None:
    with pytest.raises(BadInput, match=said) as error:
        Encoder.load(name)
    assert "\n" not in str(error.value)
