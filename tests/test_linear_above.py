"""What the linear probe reads above the tap when it is asked to: the original's head and texts, and nothing of the encoder's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pivot.encoder import Encoder, towers
from pivot.encoder.source import square_processor
from pivot.model import MLLM
from pivot.probe._above import Through, embedded, opened
from pivot.probe.linear import Probe
from pivot.records import BadInput, Example, Measurement

COLOURS = {"red": (220, 30, 30), "green, the second": (30, 220, 30), "blue": (30, 30, 220)}
PICTURES = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (48, 48, 3), dtype=np.uint8)) for i in range(6)]


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIVOT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory, shared_mllm: MLLM) -> dict[str, Path]:
    """A folder of a small CLIP and one of a small SigLIP, random, with text towers and a tokenizer."""
    import transformers

    tokenizer = shared_mllm.processor.tokenizer
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": tokenizer.eos_token_id}
    vision = {**sizes, "image_size": 48, "patch_size": 8}
    found = {}
    for family, name in (("clip", "CLIP"), ("siglip", "Siglip")):
        config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=vision, projection_dim=24)
        torch.manual_seed(0)
        model = getattr(transformers, f"{name}Model")(config).eval()
        for parameter in model.parameters():  # begun as they are, different pictures hardly differ
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        found[family] = tmp_path_factory.mktemp("original") / family
        model.save_pretrained(found[family])
        tokenizer.save_pretrained(found[family])
        square_processor(model.vision_model.config, 48).save_pretrained(found[family])
    return found


def coloured() -> list[Example]:
    return [
        Example(f"{i}", (Image.fromarray(np.full((48, 48, 3), COLOURS[name], np.uint8)),), "", answer=name, meta={"class": i % 3})
        for i, name in enumerate(list(COLOURS) * 10)
    ]


def probe(encoder: Encoder, **knobs: object) -> Measurement:
    return next(Probe(**{"targets": ("class",), **knobs}).run({"only": encoder}, coloured()))


@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize("tap", [{"layer": 0}, {"layer": -2}, {"layer": -1}, {"layer": -1, "norm": True}], ids=str)
def test_an_unchanged_encoder_speaks_to_its_texts_as_the_stock_model_does(family: str, tap: dict, originals: dict[str, Path]) -> None:
    name = str(originals[family])
    stock, encoder = opened(name, "texts"), Encoder.load(name).tapped(**tap)
    texts = ["a photo of a red.", "a photo of a house", "nothing"]
    theirs = _stock_logits(stock, name, encoder.pixels(PICTURES), texts)
    seen = Through.of(encoder, stock, projected=True).features(PICTURES).pooled
    said = torch.nn.functional.normalize(seen, dim=1) @ embedded(stock, name, texts).T
    scale, shift = stock.logit_scale.exp(), getattr(stock, "logit_bias", torch.zeros(()))
    assert torch.allclose(said * scale + shift, theirs, atol=1e-4)
    assert theirs.std(0).min() > 1e-3, "pictures must differ"


def _stock_logits(stock: torch.nn.Module, name: str, pixels: torch.Tensor, texts: list[str]) -> torch.Tensor:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name)
    padded = {"padding": "max_length", "max_length": 16} if stock.config.model_type == "siglip" else {"padding": True}
    tokens = tokenizer(texts, return_tensors="pt", **padded)
    mask = {} if stock.config.model_type == "siglip" else {"attention_mask": tokens["attention_mask"]}
    with torch.no_grad():
        return stock(input_ids=tokens["input_ids"], pixel_values=pixels, **mask).logits_per_image


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_zero_shot_is_measured_and_says_how_far_above_the_tap_it_reads(family: str, originals: dict[str, Path]) -> None:
    name = str(originals[family])
    encoder, stock = Encoder.load(name), opened(name, "texts")
    found = probe(encoder, texts=name)
    classes = sorted(COLOURS)
    prompts = [f"a photo of a {one.partition(',')[0]}." for one in classes]
    data = {example.id: example for example in coloured()}
    tested = list(found.items["zero_shot/class"])
    pixels = encoder.pixels([data[one].images[0] for one in tested])
    guesses = [classes[n] for n in _stock_logits(stock, name, pixels, prompts).argmax(1)]
    assert list(found.items["zero_shot/class"].values()) == [float(data[i].answer == g) for i, g in zip(tested, guesses, strict=True)]
    assert found.metrics["above_tap/class"] == 1 and found.parts["zero_shot/mean"] == ["zero_shot/class"]
    plain = probe(encoder)
    assert plain.items["class"] == found.items["class"] and not {"above_tap/class", "zero_shot/class"} & plain.metrics.keys()


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_above_the_tap_only_the_original_is_read_and_below_it_only_the_encoder(family: str, originals: dict[str, Path]) -> None:
    name = str(originals[family])
    encoder, stock = Encoder.load(name), opened(name, "texts")
    clean = Through.of(encoder, stock, projected=True).features(PICTURES).pooled
    for module in towers.above(encoder.model, encoder.tap).values():
        for parameter in module.parameters():
            parameter.data.fill_(float("nan"))
    for block in stock.vision_model.encoder.layers[:2]:
        for parameter in block.parameters():
            parameter.data.fill_(float("nan"))
    assert torch.equal(Through.of(encoder, stock, projected=True).features(PICTURES).pooled, clean)
    next(towers.blocks(encoder.model)[0].parameters()).data.mul_(2)
    assert not torch.allclose(Through.of(encoder, stock, projected=True).features(PICTURES).pooled, clean, atol=1e-3)


def test_attention_pooling_is_the_heads_own(originals: dict[str, Path], tmp_path: Path) -> None:
    name = str(originals["siglip"])
    encoder, stock = Encoder.load(name), opened(name, "pooling")
    with torch.no_grad():
        theirs = stock.vision_model(encoder.pixels(PICTURES)).pooler_output
    assert torch.allclose(Probe(pooling="attention").prepared(encoder).features(PICTURES).pooled, theirs, atol=1e-5)
    found = probe(encoder, pooling="attention")
    assert found.name == "linear-attention" and found.metrics["above_tap/class"] == 1 and found.metrics["class"] == 1
    encoder.save(tmp_path / "detached")
    detached = Encoder.load(tmp_path / "detached")
    with pytest.raises(BadInput, match=r"has no pooling head \(a detached tower has none\); set texts= to the SigLIP it came from"):
        probe(detached, pooling="attention")
    assert probe(detached, pooling="attention", texts=name).items["class"] == found.items["class"]
    with pytest.raises(BadInput, match="it is a clip; give the SigLIP model"):
        probe(Encoder.load(originals["clip"]), pooling="attention")
    with pytest.raises(BadInput, match="never pass through the original's head"):
        probe(encoder, pooling="attention", at="projector")


def test_pooling_is_what_it_is_called() -> None:
    encoder = Encoder.tiny("clip")
    hidden = encoder.hidden(encoder.pixels(PICTURES))
    for pooling, expected in (("class", hidden[:, 0]), ("mean", hidden[:, 1:].mean(1)), ("tap", hidden[:, 1:].mean(1))):
        assert torch.allclose(Probe(pooling=pooling).prepared(encoder).features(PICTURES).pooled, expected, atol=1e-6)
    assert probe(encoder, pooling="class").name == "linear-class" and probe(encoder).name == "linear"
    with pytest.raises(BadInput, match="siglip has no class token"):
        probe(Encoder.tiny("siglip"), pooling="class")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("none", "no such folder"),
        ("siglip", "the encoder is a clip_vision_model of width 32, the original a siglip_vision_model of width 32"),
        ("narrow", "the encoder is a clip_vision_model of width 16"),
        ("detached", "it is a clip_vision_model; give the CLIP or SigLIP model, with its texts,"),
    ],
)
def test_an_original_that_does_not_fit_is_one_line(name: str, says: str, originals: dict[str, Path], tmp_path: Path) -> None:
    encoder = Encoder.tiny("clip", width=16 if name == "narrow" else 32)
    encoder.save(tmp_path / "detached")
    texts = {"none": "none", "detached": str(tmp_path / "detached"), "narrow": str(originals["clip"])}.get(name) or str(originals[name])
    with pytest.raises(BadInput, match=says) as error:
        probe(encoder, texts=texts)
    assert "\n" not in str(error.value)
