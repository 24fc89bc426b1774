"""The promise, for all that may be brought: a model in its own library's saved format comes in, its tower is trained by preference
pairs, and comes out in the same format with the features that it has inside; and what came out goes into a fresh MLLM again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training import DPO, run
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    IJepaConfig,
    IJepaModel,
    ResNetConfig,
    ResNetModel,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from pivot.data.world import read
from pivot.encoder import Encoder, towers
from pivot.encoder.export import export
from pivot.model import MLLM, score
from pivot.model.languages import LANGUAGES, ROW_BY_ROW
from pivot.model.template import BASE
from pivot.pictures import picture
from pivot.records import CheckFailed

SIDE = 48
SIZES: dict[str, Any] = {"image_size": SIDE, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
MLP: dict[str, Any] = {**SIZES, "intermediate_size": 64}
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
DECODER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
STAGES: dict[str, Any] = {"hidden_sizes": [16, 32], "depths": [1, 1]}
TIMM = {"img_size": SIDE, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
PAIRS = read(size=10)
PICTURES = [picture(item.images[0]) for item in read(split="test", size=3)]


# ---- models as their own libraries save them


def by_transformers(kind: Any, config: Any, family: str) -> Callable[[Path], str]:
    """A saver of a model and its image processor."""

    def save(folder: Path) -> str:
        kind(config).save_pretrained(folder)
        Encoder.tiny(family, pixels=SIDE).processor.save_pretrained(folder)
        return str(folder)

    return save


def by_timm(architecture: str, **options: Any) -> Callable[[Path], str]:
    def save(folder: Path) -> str:
        import timm
        from timm.models._hub import save_for_hf

        chosen = {**TIMM, **options}
        facts = {"input_size": (3, SIDE, SIDE), "crop_pct": 1.0}
        model = timm.create_model(architecture, **chosen)
        save_for_hf(model, folder, model_args=chosen, safe_serialization=True, model_config={"pretrained_cfg": facts})
        return str(folder)

    return save


def by_open_clip(folder: Path) -> str:
    import json

    import open_clip
    from safetensors.torch import save_file

    model_cfg = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": SIDE, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
    }
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {"size": SIDE}}))
    model = open_clip.model.CLIP(**model_cfg)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return str(folder)


def ensemble(folder: Path) -> str:
    first = by_transformers(SiglipModel, SiglipConfig(vision_config=MLP, text_config=TEXT), "siglip")(folder / "a")
    second = by_transformers(Dinov2Model, Dinov2Config(**SIZES, mlp_ratio=2), "dinov2")(folder / "b")
    return f"{first}@-2 + {second}@-1"


PAIRED = {"vision_config": MLP, "text_config": TEXT, "projection_dim": 32}
# What is brought -> the family that it is here, and the layout in which it goes home.
SOURCES: dict[str, tuple[Callable[[Path], str], str, str]] = {
    "siglip": (by_transformers(SiglipModel, SiglipConfig(vision_config=MLP, text_config=TEXT), "siglip"), "siglip", "hf"),
    "clip": (by_transformers(CLIPModel, CLIPConfig(**PAIRED), "clip"), "clip", "hf"),
    "vit": (by_transformers(ViTForImageClassification, ViTConfig(**MLP), "vit"), "vit", "hf"),
    "mae": (
        by_transformers(
            ViTMAEForPreTraining,
            ViTMAEConfig(
                **MLP, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=16
            ),
            "vit",
        ),
        "vit",
        "hf",
    ),
    "ijepa": (by_transformers(IJepaModel, IJepaConfig(**MLP), "ijepa"), "ijepa", "hf"),
    "dinov2": (by_transformers(Dinov2Model, Dinov2Config(**SIZES, mlp_ratio=2), "dinov2"), "dinov2", "hf"),
    "dinov2 with registers": (
        by_transformers(
            Dinov2WithRegistersModel, Dinov2WithRegistersConfig(**SIZES, mlp_ratio=2, num_register_tokens=3), "dinov2_with_registers"
        ),
        "dinov2_with_registers",
        "hf",
    ),
    "dinov3": (by_transformers(DINOv3ViTModel, DINOv3ViTConfig(**MLP, num_register_tokens=3), "dinov3_vit"), "dinov3_vit", "hf"),
    "convnext": (by_transformers(ConvNextModel, ConvNextConfig(**STAGES, num_stages=2), "convnext"), "pivot_tower", "hf"),
    "resnet": (by_transformers(ResNetModel, ResNetConfig(**STAGES, embedding_size=16, layer_type="basic"), "resnet"), "pivot_tower", "hf"),
    "siglip + dinov2": (ensemble, "pivot_tower", "hf"),
    "timm vit": (by_timm("vit_base_patch16_224"), "vit", "timm"),
    "timm siglip": (by_timm("vit_base_patch16_siglip_224", num_classes=0), "siglip", "timm"),
    "timm clip": (by_timm("vit_base_patch16_clip_quickgelu_224", num_classes=0), "clip", "timm"),
    "timm dinov2": (by_timm("vit_base_patch14_dinov2", num_classes=0), "dinov2", "timm"),
    "timm dinov3": (by_timm("vit_base_patch16_dinov3", num_classes=0), "dinov3_vit", "timm"),
    "timm eva02": (by_timm("eva02_base_patch14_224", num_classes=0), "pivot_tower", "timm"),
    "open_clip": (by_open_clip, "clip", "open_clip"),
}


# ---- the same libraries, alone


def alone(layout: str, folder: Path, encoder: Encoder) -> torch.Tensor:
    """(B, P, D) at the tap, by the library alone. An ensemble needs this package's class, and nothing else of it."""
    tap = encoder.tap
    with torch.no_grad():
        if layout == "hf":
            pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")(images=PICTURES, return_tensors="pt")["pixel_values"]
            found = AutoModel.from_pretrained(folder).eval()(pixels, output_hidden_states=True).hidden_states[tap.layer]
            return found.flatten(2).transpose(1, 2) if found.ndim == 4 else found[:, tap.prefix :]  # a network's map, or tokens
        if layout == "timm":
            import timm

            model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
            transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
            pixels = torch.stack([transform(image) for image in PICTURES])
            return model.forward_intermediates(pixels, indices=[tap.layer + 3], output_fmt="NLC", intermediates_only=True)[0]
        import open_clip

        model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        pixels = torch.stack([preprocess(image) for image in PICTURES])
        found = model.visual.eval().forward_intermediates(pixels, indices=[tap.layer + 3], output_fmt="NLC", intermediates_only=True)
        return found["image_intermediates"][0]


def taught(mllm: MLLM, folder: Path) -> None:
    """Five updates by DPO, after which the tower moved where the tap's gradient reaches, and nowhere else."""
    tower = dict(mllm.parts()["tower"].named_parameters())  # without Qwen's merger, which is the projector
    before = {name: value.detach().clone() for name, value in tower.items()}
    run(mllm, DPO(), PAIRS, folder, batch=2, micro=2)
    beside = {id(value) for value in towers.idle_parameters(mllm.detach().model, mllm.tap).values()}
    idle = {name for name, value in tower.items() if id(value) in beside}
    moved = {name for name, value in tower.items() if not torch.equal(value, before[name])}
    biases = {name for name in before if "k" in name and name.endswith("bias")}  # attention keys' have no gradient by theory
    assert not moved & idle, "what the tap does not read stays as it was"
    assert moved >= set(before) - idle - biases and moved, "all that it reads has moved"


def spoken(folder: Path, llm: str) -> str:
    """An LLM of a family as a folder with its tokenizer."""
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(MLLM.tiny(llm=llm).model.config.text_config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(BASE).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    return spoken(tmp_path_factory.mktemp("llm") / "words", "qwen2")


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-5 * max(1.0, float(b.abs().max())))


# What timm brings of a family that is there already is like it but for the names of its tensors (tests/test_formats.py).
AGAIN = ("timm siglip", "timm clip", "timm dinov2")


@pytest.mark.parametrize("brought", [pytest.param(name, marks=pytest.mark.slow) if name in AGAIN else name for name in SOURCES])
def test_an_encoder_goes_in_is_taught_and_comes_out_in_its_own_format(brought: str, words: str, tmp_path: Path) -> None:
    save, family, layout = SOURCES[brought]
    torch.manual_seed(0)
    mllm = MLLM.build(save(tmp_path / "brought"), words)
    assert towers.family(mllm.model.config.vision_config).name == family
    taught(mllm, tmp_path / "run")

    out = tmp_path / "out"
    encoder = mllm.detach()
    parity = export(encoder, out)
    inside = encoder.features(PICTURES).tokens
    assert parity.holds and parity.layout == layout and parity.against == "mllm"
    assert close(alone(layout, out, encoder), inside)

    again = Encoder.load(out)
    assert close(again.features(PICTURES).tokens, inside) and again.tap == encoder.tap
    fresh = MLLM.build(again, words, seed=7)
    fresh.save(tmp_path / "fresh")
    assert close(MLLM.load(tmp_path / "fresh").detach().features(PICTURES).tokens, inside), "put back, saved, its hash checked"
    if layout == "hf":
        assert fresh.hashes()["tower"] == mllm.hashes()["tower"]


def test_every_family_of_the_table_is_brought_by_someone() -> None:
    assert {family for _, family, _ in SOURCES.values()} >= {row.name for row in towers.FAMILIES if row.layout == "tokens"}


@pytest.mark.parametrize("family", ["llava", "llava_onevision", "qwen2_vl", "qwen2_5_vl"])
def test_an_mllm_goes_in_is_taught_and_gives_its_tower_out(family: str, tmp_path: Path) -> None:
    MLLM.tiny(encoder="clip", family=family).save(tmp_path / "brought")
    (tmp_path / "brought" / "pivot.json").unlink()  # as it is published
    mllm = MLLM.load(tmp_path / "brought")
    taught(mllm, tmp_path / "run")

    encoder = mllm.detach()
    parity = export(encoder, tmp_path / "out")
    assert parity.holds and parity.against == "mllm"
    assert AutoConfig.from_pretrained(tmp_path / "out").model_type == mllm.model.config.vision_config.model_type
    again = Encoder.load(tmp_path / "out")
    fresh = MLLM.tiny(encoder="clip", family=family, seed=9).attach(again)
    assert fresh.hashes()["tower"] == mllm.hashes()["tower"] and fresh.hashes()["llm"] != mllm.hashes()["llm"]
    fresh.save(tmp_path / "fresh")
    assert close(MLLM.load(tmp_path / "fresh").detach().features(PICTURES).tokens, encoder.features(PICTURES).tokens)


# One source a family: what timm and open_clip bring has become one of these.
CROSSED = [name for name in SOURCES if not name.startswith(("timm", "open_clip", "mae"))]


# Two layers that see eight tokens back: no picture is within reach of an answer.
BLIND = ("mistral-windowed", "phi3-windowed")


@pytest.mark.slow
@pytest.mark.parametrize("llm", BLIND)
def test_a_tower_out_of_the_llms_reach_is_said_not_to_learn(llm: str, tmp_path: Path) -> None:
    mllm = MLLM.build(SOURCES["siglip"][0](tmp_path / "brought"), spoken(tmp_path / "llm", llm))
    with pytest.raises(CheckFailed, match="the tower has a learning rate but no gradient"):
        taught(mllm, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("llm", [row.name for row in (*LANGUAGES, *ROW_BY_ROW) if row.name not in BLIND])
@pytest.mark.parametrize("brought", CROSSED)
def test_any_encoder_under_any_llm(brought: str, llm: str, tmp_path: Path) -> None:
    save, _, layout = SOURCES[brought]
    mllm = MLLM.build(save(tmp_path / "brought"), spoken(tmp_path / "llm", llm))
    taught(mllm, tmp_path / "run")
    encoder = mllm.detach()
    assert export(encoder, tmp_path / "out").holds
    mllm.save(tmp_path / "whole")
    assert all(
        close(a, b)
        for pair in zip(score(mllm, PAIRS[:2]), score(MLLM.load(tmp_path / "whole"), PAIRS[:2]), strict=True)
        for a, b in zip(*pair, strict=True)
    )
    assert close(alone(layout, tmp_path / "out", encoder), encoder.features(PICTURES).tokens)
