"""MLLM architectures: each row of the table against its own stock model, from pictures of any shape to a trained tower put back."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import picture_of
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from training import ALL, DPO, distance, run, weights
from transformers import AutoModelForImageTextToText, LlavaNextConfig, PreTrainedConfig

from pivot.data.collate import collate, encode, join
from pivot.data.vision import inputs_of, sights
from pivot.encoder import Encoder, towers
from pivot.encoder.export import export
from pivot.model import MLLM, Scorer, score
from pivot.model.branches import along
from pivot.model.families import FAMILIES, family
from pivot.model.flops import row_flops
from pivot.model.sample import reply
from pivot.records import BadInput, Example, Response
from pivot.train import Rates
from pivot.train.parts import freeze

scoring = importlib.import_module("pivot.model.score")
NAMES = [row.model_type for row in FAMILIES]
OWN_SHAPE = ["llava_onevision", "qwen2_vl", "qwen2_5_vl"]  # what a picture becomes follows its shape
QWEN = ["qwen2_vl", "qwen2_5_vl"]


def shaped(seed: int, height: int, width: int) -> Image.Image:
    return picture_of(seed, max(height, width)).crop((0, 0, width, height))


CHOSEN, REJECTED = Response("yes, it is red"), Response("no", role="rejected")
TALK = (
    {"role": "assistant", "content": "Red."},
    {"role": "user", "content": "And how many?"},
    {"role": "assistant", "content": "Two of them."},
)
EXAMPLES = [
    Example("square", (shaped(1, 48, 48),), "Is it red?", (CHOSEN, REJECTED)),
    Example("tall", (shaped(2, 130, 60),), "Is it red?", (CHOSEN, REJECTED)),
    Example("large", (shaped(3, 140, 130),), "Is it red?", (CHOSEN, REJECTED)),
    Example("two", (shaped(4, 70, 90), shaped(5, 40, 120)), "Are they the same?", (CHOSEN, REJECTED)),
    Example("text only", (), "What is 2 + 3?", (Response("5"), REJECTED)),
    Example("turns", (shaped(6, 60, 100),), "Which colour?", (Response(TALK), REJECTED)),
    Example("own image", (shaped(7, 50, 70),), "Is it red?", (CHOSEN, replace(REJECTED, images=(shaped(8, 90, 40),)))),
    Example(
        "chat",
        (shaped(9, 64, 96),),
        ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is it?\n<image>"}),
        (CHOSEN, REJECTED),
    ),
]
PAIRS = [replace(example, id=f"{example.id} {n}") for n in (0, 1) for example in EXAMPLES if example.id in ("square", "tall", "two")]


def lively(name: str, dtype: str = "float64", scale: float = 3.0) -> MLLM:
    """A small one whose weights are large enough that every token it attends to matters for what it says."""
    mllm = MLLM.tiny(family=name).to(dtype=dtype)
    with torch.no_grad():
        for parameter in mllm.model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    return mllm


@pytest.fixture(scope="module", params=NAMES)
def each(request: pytest.FixtureRequest) -> MLLM:
    """One of each architecture: read it, never change it."""
    return lively(request.param)


def asked(example: Example, number: int) -> tuple[list[dict[str, Any]], list[Image.Image]]:
    """A prompt as users of transformers write it, and its pictures."""
    images = list(example.responses[number].images or example.images)
    turns = [{"role": "user", "content": example.prompt}] if isinstance(example.prompt, str) else example.prompt
    said: list[dict[str, Any]] = [
        {"role": t["role"], "content": [{"type": "text", "text": t["content"].replace("\n<image>", "")}]} for t in turns
    ]
    said[-1]["content"][:0] = [{"type": "image"}] * len(images)
    return said, images


def stock(mllm: MLLM, example: Example, number: int) -> tuple[Tensor, Tensor]:
    """One response's log-probabilities and its loss by the stock processor and one stock call; ours are only the response's tokens."""
    conversation, images = asked(example, number)
    text = mllm.processor.apply_chat_template(conversation, add_generation_prompt=True)
    inputs = dict(mllm.processor(text=text, images=[images] if images else None, return_tensors="pt"))
    branch = encode(replace(example, responses=(replace(example.responses[number], images=None),)), mllm.processor).branches[0]
    trunk = inputs.pop("input_ids")
    ids = torch.cat([trunk, torch.tensor([branch.ids])], dim=1)
    labels = torch.cat([torch.full_like(trunk, -100), torch.tensor([branch.ids])], dim=1)
    labels[0, trunk.shape[1] :][~torch.tensor(branch.supervised)] = -100
    del inputs["attention_mask"]
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = (ids == mllm.processor.image_token_id).int()
    found = mllm.model(input_ids=ids, labels=labels, **inputs)
    logps = found.logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return logps[labels[0, 1:] != -100], found.loss


@pytest.mark.parametrize("backend", ["shared", "repeat"])
def test_scores_are_those_of_the_stock_model(each: MLLM, backend: Any) -> None:
    assert Scorer(each, backend).backend == backend
    for example, found in zip(EXAMPLES, score(each, EXAMPLES, backend), strict=True):
        for number, logps in enumerate(found):
            with torch.no_grad():
                expected, loss = stock(each, example, number)
            torch.testing.assert_close(logps, expected, rtol=0, atol=1e-7, msg=lambda m, name=example.id: f"{name}: {m}")
            torch.testing.assert_close(-logps.mean(), loss.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_and_in_single_precision(name: str) -> None:
    mllm = lively(name, "float32")
    for example, found in zip(EXAMPLES, score(mllm, EXAMPLES), strict=True):
        for number, logps in enumerate(found):
            with torch.no_grad():
                torch.testing.assert_close(logps, stock(mllm, example, number)[0], rtol=0, atol=1e-4)


def gradients(mllm: MLLM, logps: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
    """Of a loss in which every response weighs differently."""
    mllm.model.zero_grad()
    flat = [response.sum() for example in logps for response in example]
    sum((n + 1) * value / len(flat) for n, value in enumerate(flat)).backward()
    return {name: p.grad.clone() for name, p in mllm.model.named_parameters() if p.grad is not None}


def furthest(mllm: MLLM, a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest difference relative to the largest gradient of its part."""
    assert a.keys() == b.keys()
    number = {id(p): name for name, p in mllm.model.named_parameters()}
    found = []
    for part in mllm.parts().values():
        names = [number[id(p)] for p in part.parameters() if number[id(p)] in a]
        largest = max(b[name].abs().max() for name in names)
        assert largest > 0
        found.append(max(((a[name] - b[name]).abs().max() / largest).item() for name in names))
    return max(found)


def test_gradients_of_both_backends_are_those_of_the_stock_model(each: MLLM) -> None:
    by_stock = gradients(each, [[stock(each, e, n)[0] for n in range(len(e.responses))] for e in EXAMPLES])
    for backend in ("shared", "repeat"):
        assert furthest(each, gradients(each, score(each, EXAMPLES, backend, grad=True)), by_stock) <= 1e-6


@pytest.mark.parametrize("name", QWEN)
def test_positions_are_the_stock_models_and_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mllm = lively(name)
    for example in EXAMPLES:
        batch = collate([mllm.encode(replace(example, responses=example.responses[:1]))])
        placement = scoring.place(batch["layout"], "repeat", scoring.counted(mllm.model.config, batch["layout"]))
        ids = batch["tokens"][placement.take]
        grids = batch["images"].get("image_grid_thw")
        if grids is None:
            assert (placement.positions == torch.arange(ids.shape[1])).all()
            continue
        marks = (ids == mllm.model.config.image_token_id).int()
        expected, _ = mllm.model.model.get_rope_index(ids, mm_token_type_ids=marks, image_grid_thw=grids)
        assert torch.equal(placement.positions, expected)
    right = score(mllm, EXAMPLES[1:2])
    monkeypatch.setattr(scoring, "counted", lambda config, layout: along)
    assert (score(mllm, EXAMPLES[1:2])[0][0] - right[0][0]).abs().max() > 1e-3


@pytest.mark.parametrize("name", OWN_SHAPE)
def test_a_batch_holds_pictures_of_unequal_size(name: str) -> None:
    mllm = lively(name)
    rows = [mllm.encode(example) for example in EXAMPLES]
    tokens = [image.tokens for row in rows for trunk in row.trunks for image in trunk.images]
    assert len(set(tokens)) > 3
    together = Scorer(mllm)(collate(rows)).logps
    for row, found in zip(rows, together, strict=True):
        torch.testing.assert_close(found, Scorer(mllm)(collate([row])).logps[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_counted_alike_the_first_time_and_later(name: str) -> None:
    """The whole processor counts for the first picture of a size; its image processor alone sees the later ones."""
    processor = MLLM.tiny(family=name).processor
    for pictures in ([shaped(0, 50, 90)], [shaped(1, 50, 90), shaped(2, 90, 50)], [shaped(3, 50, 90)]):
        first, later = sights(processor, pictures), sights(processor, pictures)
        for a, b, alone in zip(first, later, inputs_of(processor, pictures), strict=True):
            assert a.tokens == b.tokens and a.inputs.keys() == b.inputs.keys() == alone.keys()
            assert all(torch.equal(a.inputs[key], b.inputs[key]) for key in alone)
    if name == "llava_onevision":
        assert sights(processor, [shaped(0, 50, 90)])[0].tokens > sights(processor, [shaped(0, 50, 90)] * 2)[0].tokens == 37


def test_a_batch_without_pictures_gives_tower_and_projector_zero_gradients(each: MLLM) -> None:
    found = gradients(each, score(each, [EXAMPLES[4]], grad=True))
    number = {id(p): name for name, p in each.model.named_parameters()}
    idle = {id(p) for p in towers.idle_parameters(each.parts()["tower"], each.tap).values()}  # type: ignore[arg-type]
    for part in ("tower", "projector"):
        assert all(not found[number[id(p)]].any() for p in each.parts()[part].parameters() if id(p) not in idle)


def test_every_parameter_is_in_one_part(each: MLLM) -> None:
    parts = each.parts()
    assert sorted(id(p) for part in parts.values() for p in part.parameters()) == sorted(id(p) for p in each.model.parameters())
    names = {name: {number for number, _ in part.named_parameters()} for name, part in parts.items()}
    assert all(names.values())
    assert not any("merger" in name for name in names["tower"])
    assert ("image_newline" in names["projector"]) == (each.family.model_type == "llava_onevision")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_frozen_as_idle_is_exactly_what_gets_no_gradient(name: str) -> None:
    mllm = lively(name)
    found = gradients(mllm, score(mllm, EXAMPLES, grad=True))
    freeze(mllm, Rates(1, 1, 1))
    assert {name for name, p in mllm.model.named_parameters() if p.requires_grad} == {key for key in found if found[key].any()}


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_opened_by_string_and_by_plain_transformers(name: str, tmp_path: Path) -> None:
    mllm = MLLM.tiny(family=name)
    mllm.save(tmp_path)
    again = MLLM.load(tmp_path)
    assert again.hashes() == mllm.hashes() and again.tap == mllm.tap
    assert type(again.processor.image_processor).__name__.endswith("Pil")
    torch.testing.assert_close(score(again, EXAMPLES), score(mllm, EXAMPLES), rtol=0, atol=0)
    assert type(AutoModelForImageTextToText.from_pretrained(tmp_path)) is type(mllm.model)


@pytest.mark.parametrize(
    ("name", "weight", "part"),
    [
        ("llava_onevision", "image_newline", "projector"),
        ("qwen2_vl", "merger.mlp.0.weight", "projector"),
        ("qwen2_5_vl", "blocks.0.attn.qkv.weight", "tower"),
    ],
)
def test_a_changed_part_is_refused_by_name(name: str, weight: str, part: str, tmp_path: Path) -> None:
    MLLM.tiny(family=name).save(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    key = next(key for key in stored if key.endswith(weight))
    stored[key][0] += 1e-3
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=f"weights of its {part} are not those that were saved"):
        MLLM.load(tmp_path)


# ---- out and back


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)  # test_matrix.py has the like in every run of the tests
def test_trained_taken_out_and_put_back(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five updates move the tower; its folder opens with the features inside; a fresh MLLM takes it and says what the trained one did."""
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "cache"))
    mllm = MLLM.tiny(family=name)
    before = weights(mllm)
    events = run(mllm, DPO(), PAIRS, tmp_path / "run", epochs=3, batch=4, rates=ALL, model=True)
    assert sum(event["kind"] == "train" for event in events) >= 4 and events[-1]["kind"] == "done"
    assert distance(weights(mllm), before, mllm.family.tower) > 1e-3
    trained = MLLM.load(tmp_path / "run" / "model")
    assert trained.hashes() == mllm.hashes()
    images = [shaped(1, 48, 48), shaped(2, 100, 60)]
    parity = export(trained.detach(), tmp_path / "encoder", images)
    assert parity.exact and parity.against == "mllm"
    encoder = Encoder.load(tmp_path / "encoder")
    fresh = MLLM.tiny(family=name)
    kept = fresh.hashes()
    assert fresh.attach(encoder) is fresh
    assert fresh.hashes()["tower"] == trained.hashes()["tower"] != kept["tower"]
    assert all(fresh.hashes()[part] == kept[part] for part in ("projector", "llm"))
    fresh.save(tmp_path / "fresh")
    assert MLLM.load(tmp_path / "fresh").hashes() == fresh.hashes()


@pytest.mark.parametrize("name", NAMES)
def test_a_tower_that_is_frozen_does_not_move(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "cache"))
    mllm = MLLM.tiny(family=name)
    before = mllm.hashes()
    run(mllm, DPO(), PAIRS[:4], tmp_path / "run", rates=Rates(0, 1e-3, 0))
    after = mllm.hashes()
    assert [part for part in before if before[part] != after[part]] == ["projector"]


@pytest.mark.parametrize("name", QWEN)
def test_tokens_of_a_detached_packed_tower_are_in_raster_order(name: str) -> None:
    """By the stock merger, which joins neighbours: fed with them, it gives what the stock model makes of the picture."""
    mllm = MLLM.tiny(family=name)
    encoder, image = mllm.detach(), shaped(1, 64, 64)
    found = encoder.features([image])
    (h, w), merger = found.grid, mllm.model.model.visual.merger
    cells = found.tokens[0].reshape(h // 2, 2, w // 2, 2, -1).transpose(1, 2).reshape(h * w, -1)
    inputs = inputs_of(mllm.processor, [image])[0]
    assert inputs["image_grid_thw"].tolist() == [[1, h, w]]
    with torch.no_grad():
        expected = mllm.model.model.get_image_features(**inputs).pooler_output[0]
        torch.testing.assert_close(merger(cells), expected, rtol=0, atol=1e-5)


def test_the_base_view_is_what_a_detached_tiled_tower_sees() -> None:
    mllm = MLLM.tiny(family="llava_onevision")
    encoder, image = mllm.detach(), shaped(2, 130, 60)
    tiles = inputs_of(mllm.processor, [image])[0]["pixel_values"]
    assert len(tiles) > 2 and torch.equal(encoder.pixels([image])[0], tiles[0])


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (lambda: Encoder.tiny("clip"), "vision family is clip_vision_model, the MLLM's siglip_vision_model"),
        (lambda: Encoder.tiny("siglip", layer=-1), "the encoder's tap"),
        (lambda: Encoder.tiny("siglip", layers=4), r"weights do not fit.*first vision_model|weights do not fit.*first encoder"),
        (lambda: Encoder.tiny("siglip", width=64), "weights do not fit"),
        (lambda: Encoder.join([Encoder.tiny("siglip"), Encoder.tiny("siglip")]), "an ensemble of 2"),
    ],
)
def test_what_does_not_fit_is_not_put_back(encoder: Any, message: str, mllm: MLLM) -> None:
    before = mllm.hashes()
    with pytest.raises(BadInput, match=message) as caught:
        mllm.attach(encoder())
    assert "\n" not in str(caught.value) and mllm.hashes() == before


def test_an_encoder_for_other_pixels_is_not_put_back(mllm: MLLM) -> None:
    encoder = copy.copy(mllm.detach())
    encoder.processor = copy.copy(encoder.processor)
    encoder.processor.image_mean = [0.1, 0.2, 0.3]
    with pytest.raises(BadInput, match="normalisation"):
        mllm.attach(encoder)


# ---- replies and costs


@pytest.mark.parametrize("name", NAMES)
def test_replies_are_greedy_ones_of_the_stock_model(name: str) -> None:
    mllm = lively(name, "float32", scale=8.0)
    prompts = [replace(example, responses=()) for example in EXAMPLES]
    expected = []
    for example in prompts:
        trunk = mllm.encode(example).trunks[0]
        conversation, images = asked(replace(example, responses=(CHOSEN,)), 0)
        text = mllm.processor.apply_chat_template(conversation, add_generation_prompt=True)
        inputs = mllm.processor(text=text, images=[images] if images else None, return_tensors="pt")
        assert inputs["input_ids"][0].tolist() == trunk.span.ids
        end = mllm.processor.tokenizer.eos_token_id
        made = mllm.model.generate(**inputs, max_new_tokens=5, do_sample=False, eos_token_id=end, pad_token_id=end)
        expected.append(mllm.processor.tokenizer.decode(made[0, len(trunk.span) :], skip_special_tokens=True))
    assert len(set(expected)) >= 3, "replies must differ, or any order would pass"
    assert reply(mllm, prompts, max_new=5, batch=3) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", ["shared", "repeat"])
def test_operations_are_those_that_torch_counts(name: str, backend: Any) -> None:
    mllm = MLLM.tiny(family=name)
    freeze(mllm, Rates(1, 1, 1))
    for example in EXAMPLES[:4]:
        row = mllm.encode(example)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            logps = Scorer(mllm, backend)(collate([row])).logps
            forward = counter.get_total_flops()
            sum(response.sum() for responses in logps for response in responses).backward()
        assert row_flops(mllm.model.config, row, backend, backward=False) == pytest.approx(forward, rel=0.02)
        assert row_flops(mllm.model.config, row, backend) == pytest.approx(counter.get_total_flops(), rel=0.02)


# ---- what data may say, and what is refused


@pytest.mark.parametrize("name", QWEN)
def test_data_places_pictures_by_one_word_whatever_the_models_own(name: str) -> None:
    mllm = MLLM.tiny(family=name)
    said = replace(EXAMPLES[0], prompt="<image>\nIs it red?")
    assert mllm.encode(said).trunks[0].span == mllm.encode(EXAMPLES[0]).trunks[0].span
    for forged in ("<|image_pad|>", "<|vision_start|>"):
        with pytest.raises(BadInput, match="contains the control token"):
            mllm.encode(replace(EXAMPLES[0], prompt=f"Is it {forged} red?"))
    spelt = mllm.encode(replace(EXAMPLES[0], responses=(Response("no <|image_pad|>"),))).branches[0]
    assert mllm.processor.image_token_id not in spelt.ids


VICUNA = """{% for turn in messages %}{{ turn['role'].upper() + ': ' }}{% for part in turn['content'] %}
{{- '<image>\n' if part['type'] == 'image' else part['text'] + ' ' }}{% endfor %}{% endfor %}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""
SPACED = """{% for turn in messages %}{{ '<|im_start|>' + turn['role'] + ' ' }}{% for part in turn['content'] %}
{{- '<image>' if part['type'] == 'image' else '\n' + part['text'] }}{% endfor %}{{ '<|im_end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


@pytest.mark.parametrize(
    ("name", "template", "said"),
    [
        ("llava", VICUNA, " Red.<|im_end|>USER: And how many? ASSISTANT: Two of them.<|im_end|>"),
        (
            "llava_onevision",
            SPACED,
            "Red.<|im_end|><|im_start|>user \nAnd how many?<|im_end|><|im_start|>assistant\nTwo of them.<|im_end|>",
        ),
    ],
)
def test_templates_of_existing_ones_as_they_are(name: str, template: str, said: str, tmp_path: Path) -> None:
    """LLaVA-1.5's has no end of turns, OneVision's writes a turn otherwise than the prompt of one: the stock prompt decides.

    From folders that this package did not write, with a CLIP tower read at -2 in the first.
    """
    mllm = MLLM.tiny("clip", "llama") if name == "llava" else MLLM.tiny(family=name)
    mllm.processor.chat_template = template
    mllm.model.save_pretrained(tmp_path)
    mllm.processor.save_pretrained(tmp_path)
    again = MLLM.load(tmp_path).to(dtype="float64")
    assert again.tap == mllm.tap
    talk = next(example for example in EXAMPLES if example.id == "turns")
    assert again.processor.decode(again.encode(talk).branches[0].ids) == said
    for example, found in zip(EXAMPLES[:6], score(again, EXAMPLES[:6]), strict=True):
        for number, logps in enumerate(found):
            with torch.no_grad():
                torch.testing.assert_close(logps, stock(again, example, number)[0], rtol=0, atol=1e-7)


def test_a_processor_that_counts_otherwise_than_the_model_is_noticed() -> None:
    mllm = MLLM.tiny()
    other = MLLM.tiny().processor
    other.patch_size = 16
    wrong = MLLM(mllm.model, other, mllm.tap)
    with pytest.raises(BadInput, match="leaves room for 9 image tokens where the model has 36"):
        score(wrong, EXAMPLES[:1])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LlavaNextConfig(), "'llava_next' cannot be used: its tiles"),
        (PreTrainedConfig.from_dict({"model_type": "x"}), "nearest"),
    ],
)
def test_other_families_are_refused_with_the_reason(config: Any, message: str) -> None:
    config.model_type = config.model_type or "qwen3_vl"
    with pytest.raises(BadInput, match=message) as caught:
        family(config)
    assert "\n" not in str(caught.value)


def test_an_unknown_small_one() -> None:
    with pytest.raises(BadInput, match="known: llava, llava_onevision, qwen2_vl, qwen2_5_vl"):
        MLLM.tiny(family="idefics")


def test_joined_inputs_of_no_pictures_are_empty() -> None:
    assert join([]) == {} and collate([MLLM.tiny().encode(EXAMPLES[4])])["images"] == {}
