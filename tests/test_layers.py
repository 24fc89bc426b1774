"""Hidden states up to the tap: the last is what features are made of, and nothing above the tap has a part in any."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

from pivot.encoder import Encoder, towers
from pivot.encoder.layers import Layer, layers, names, pooled, reduced, weights
from pivot.records import BadInput

TIMM = pytest.param("timm_wrapper", marks=pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed"))
KNOWN = [row.name for row in towers.ROWS if not row.traced]
IMAGES = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (48, 60, 3), dtype=np.uint8)) for i in range(3)]


def found(encoder: Encoder, **how: object) -> dict[str, Layer]:
    """Layers of all images by name."""
    parts = list(layers(encoder, IMAGES, **how))
    stacked = [Layer(*(None if None in of else torch.cat(of) for of in zip(*layer, strict=True))) for layer in zip(*parts, strict=True)]
    return dict(zip(names(encoder, how.get("at", "encoder")), stacked, strict=True))


@pytest.mark.parametrize("name", [*KNOWN, TIMM])
def test_the_last_layer_is_what_features_are_made_of(name: str) -> None:
    encoder = Encoder.tiny(name)
    features, last = encoder.features(IMAGES), list(found(encoder, batch=2).values())[-1]
    assert torch.allclose(last.tokens, features.tokens, atol=1e-5), "batches of two and one"
    assert torch.equal(next(layers(encoder, IMAGES))[-1].tokens, features.tokens)


@pytest.mark.parametrize("name", [row.name for row in towers.FAMILIES])
@pytest.mark.parametrize("norm", [False, True])
def test_each_layer_is_the_encoder_read_there(name: str, norm: bool) -> None:
    encoder = Encoder.tiny(name, layer=-1).tapped(norm=norm)
    for number, (layer, state) in enumerate(found(encoder).items()):
        there = encoder.tapped(layer=number, norm=norm and number == 3)
        assert layer == ("embeddings" if number == 0 else f"block-{number - 1:02d}")
        assert torch.equal(state.tokens, there.features(IMAGES).tokens)
        if encoder.family.prefix:
            assert torch.equal(state.first, there.tapped(pooling="class").features(IMAGES).pooled)
        else:
            assert state.first is None


@pytest.mark.parametrize("name", ["convnext", "qwen2_5_vl_vision"])
def test_each_layer_of_a_lone_member_is_that_member_read_there(name: str) -> None:
    every = found(Encoder.tiny(name, layer=-1))
    for number, state in enumerate(every.values()):
        assert torch.equal(state.tokens, Encoder.tiny(name, layer=number).features(IMAGES).tokens)


def test_an_ensemble_shows_its_members_layers_and_then_its_own() -> None:
    members = [Encoder.tiny("clip", layer=1), Encoder.tiny("dinov2", layer=2)]
    alone = [{f"member-{i}/{name}": layer.tokens for name, layer in found(member).items()} for i, member in enumerate(members)]
    together = {name: layer.tokens for name, layer in found(Encoder.join(members)).items()}
    assert list(together) == [*alone[0], *alone[1], "joined"]
    for name, tokens in alone[0].items():
        assert torch.equal(together[name], tokens)
    for name, tokens in alone[1].items():  # its pixels are those of the first in another normalisation
        assert torch.allclose(together[name], tokens, atol=1e-4)


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("layer", [0, 1])
def test_what_lies_above_the_tap_has_no_part_in_it(name: str, layer: int) -> None:
    if name == "pivot_tower":
        encoder = Encoder.join([Encoder.tiny("siglip", layer=layer), Encoder.tiny("convnext", layer=layer)])
    else:
        encoder = Encoder.tiny(name, layer=layer)
    clean, own = found(encoder), {id(parameter) for parts in weights(encoder).values() for parameter in parts.values()}
    for module in towers.above(encoder.model, encoder.tap).values():
        for parameter in module.parameters():
            assert id(parameter) not in own
            parameter.data.fill_(float("nan"))
    for layer_name, state in found(encoder).items():
        assert torch.equal(state.tokens, clean[layer_name].tokens)
    assert len(clean) == (2 * (layer + 1) + 1 if name == "pivot_tower" else layer + 1)


@pytest.mark.parametrize("name", [*KNOWN, TIMM])
def test_every_weight_that_features_depend_on_is_in_one_layer(name: str) -> None:
    encoder = Encoder.tiny(name)
    found = [parameter for parts in weights(encoder).values() for parameter in parts.values()]
    idle = towers.idle_parameters(encoder.model, encoder.tap)
    assert set(weights(encoder)) <= set(names(encoder))
    assert sorted(map(id, found)) == sorted(id(parameter) for at, parameter in encoder.model.named_parameters() if at not in idle)


def test_a_layers_weights_change_that_layer_and_none_below() -> None:
    encoder = Encoder.tiny("clip", layer=-1).tapped(norm=True)
    clean = found(encoder)
    for number, (name, parameters) in enumerate(weights(encoder).items()):
        before = {inside: parameter.clone() for inside, parameter in parameters.items()}
        for parameter in parameters.values():
            parameter.data += torch.randn_like(parameter)
        changed = [not torch.equal(state.tokens, clean[layer].tokens) for layer, state in found(encoder).items()]
        assert changed == [False] * number + [True] * (len(clean) - number), name
        for inside, parameter in parameters.items():
            parameter.data.copy_(before[inside])


def test_pooled_layers_are_kept(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path))
    encoder = Encoder.tiny("convnext")
    encoder.projector = torch.nn.Linear(32, 5)
    every = found(encoder, at="projector")
    kept = pooled(encoder, IMAGES, at="projector", batch=2)
    assert list(kept) == ["embeddings", "block-00", "block-01", "projector"]
    for name, state in every.items():
        assert np.allclose(kept[name], state.tokens.mean(1), atol=1e-5)
    clip = Encoder.tiny("clip")
    by_token = pooled(clip, IMAGES, "class")
    assert np.allclose(by_token["block-01"], found(clip)["block-01"].first, atol=1e-5)
    assert not np.allclose(by_token["block-01"], pooled(clip, IMAGES)["block-01"])

    def one_alone(asked: Encoder, images: list[Image.Image], *how: object) -> Iterator[list[np.ndarray]]:  # one tells how wide layers are
        return reduced(asked, images, *how) if len(images) == 1 else pytest.fail("it is in the cache")

    monkeypatch.setattr("pivot.encoder.layers.reduced", one_alone)
    again = pooled(encoder, IMAGES, at="projector", batch=2)
    assert all(np.array_equal(again[name], kept[name]) for name in kept)


def test_a_class_token_that_is_not_there_is_one_line(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path))
    with pytest.raises(BadInput, match="siglip has no class token; use pooling 'mean'"):
        pooled(Encoder.tiny("siglip"), IMAGES, "class")
    encoder = Encoder.tiny("clip")
    with pytest.raises(BadInput, match="no projector"):
        pooled(encoder, IMAGES, at="projector")
    encoder.projector = torch.nn.Linear(32, 5)
    with pytest.raises(BadInput, match="never passes through"):
        pooled(encoder, IMAGES, "class", at="projector")
    assert list(pooled(encoder.tapped(pooling="class"), IMAGES, "mean", at="projector"))[-1] == "projector"
