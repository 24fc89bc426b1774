"""The MLLM: stock all the way, checked at load, the same for the same seed."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import pytest
import torch
from PIL.Image import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    LlamaConfig,
    LlavaForConditionalGeneration,
    Qwen2Config,
)

from pivot.data.collate import encode, join
from pivot.data.turns import formatting
from pivot.encoder import Encoder, towers
from pivot.model import MLLM, score
from pivot.model.languages import LANGUAGES
from pivot.model.mllm import BASE
from pivot.records import BadInput, Example, Response, Tap

LIMIT = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}


def chat(picture: Image) -> Example:
    return Example("one", (picture,), "What is it?", (Response("A red ring."), Response("A blue square.", role="rejected")))


@pytest.mark.parametrize(
    ("encoder", "llm"),
    list(zip([row.name for row in towers.FAMILIES], cycle([LANGUAGES[0].model_type, LANGUAGES[2].model_type]), strict=False)),
)
def test_opens_with_plain_transformers(encoder: str, llm: str, tmp_path: Path, picture: Callable[..., Image]) -> None:
    mllm = MLLM.tiny(encoder, llm)
    mllm.save(tmp_path)
    row = encode(chat(picture(0)), mllm.processor)
    with torch.no_grad():
        ids = torch.tensor([row.trunks[0].span.ids])
        expected = mllm.model(input_ids=ids, **join(row.trunks[0].images)).logits
    assert not any("auto_map" in (tmp_path / name).read_text() for name in ("config.json", "processor_config.json")), "needs own code"
    model, processor = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path, backend="pil")
    assert type(model) is LlavaForConditionalGeneration
    assert not getattr(model.config.vision_config, "vision_use_head", False), "a pooling head would be trained by nothing"
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
    text = processor.apply_chat_template([turn], add_generation_prompt=True)
    inputs = processor(text=text, images=picture(0), return_tensors="pt")
    assert inputs["input_ids"].tolist() == ids.tolist()
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, expected)


def test_saving_and_loading_changes_nothing(mllm: MLLM, tmp_path: Path, pairs: list[Example]) -> None:
    mllm.save(tmp_path)
    again = MLLM.load(tmp_path)
    assert again.hashes() == mllm.hashes() and again.tap == mllm.tap
    for a, b in zip(score(mllm, pairs), score(again, pairs), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("part", "weight"),
    [
        ("tower", "encoder.layers.0.mlp.fc1.weight"),
        ("projector", "multi_modal_projector.linear_1.bias"),
        ("llm", "layers.1.self_attn.q_proj.weight"),
    ],
)
def test_a_changed_part_is_refused_by_name(part: str, weight: str, mllm: MLLM, tmp_path: Path) -> None:
    mllm.save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if name.endswith(weight))
    weights[name][0] += 1e-3
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=f"weights of its {part} are not those that were saved"):
        MLLM.load(tmp_path)


def test_a_missing_weight_is_refused(mllm: MLLM, tmp_path: Path) -> None:
    mllm.save(tmp_path)
    (tmp_path / "pivot.json").unlink()
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop(next(name for name in weights if name.endswith("fc1.weight")))
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"1 weights are missing.*fc1\.weight"):
        MLLM.load(tmp_path)


def test_a_plain_llava_folder_has_its_tap_read_from_its_config(tmp_path: Path) -> None:
    mllm = MLLM.tiny("clip", "llama")
    mllm.model.config.vision_feature_layer = -3
    mllm.model.save_pretrained(tmp_path)
    mllm.processor.save_pretrained(tmp_path)
    assert MLLM.load(tmp_path).tap == Tap(layer=-3, prefix=1)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vision_feature_select_strategy": "full"}))
    with pytest.raises(BadInput, match="needs 'default'"):
        MLLM.load(tmp_path)


def test_half_precision_is_storage(mllm: MLLM, tmp_path: Path) -> None:
    mllm.to(dtype="float16").save(tmp_path)
    assert MLLM.load(tmp_path).model.dtype == torch.float32
    assert MLLM.load(tmp_path, dtype="float16").model.dtype == torch.float16


def test_seeds_decide_every_weight() -> None:
    state = torch.random.get_rng_state()
    first, again, other = MLLM.tiny(seed=3), MLLM.tiny(seed=3), MLLM.tiny(seed=4)
    assert first.hashes() == again.hashes()
    assert all(first.hashes()[part] != other.hashes()[part] for part in ("tower", "projector", "llm"))
    assert torch.equal(torch.random.get_rng_state(), state), "building must leave the caller's random numbers alone"


def test_parts_cover_every_parameter_once(shared_mllm: MLLM) -> None:
    found = [id(p) for part in shared_mllm.parts().values() for p in part.parameters()]
    assert sorted(found) == sorted(id(p) for p in shared_mllm.model.parameters())


@pytest.fixture(scope="module")
def chatml_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 as a folder: a ChatML tokenizer that knows no image token, more embeddings than tokens."""
    folder = tmp_path_factory.mktemp("qwen2")
    body = AutoModelForCausalLM.from_config(Qwen2Config(vocab_size=600, tie_word_embeddings=True, **LIMIT))
    body.generation_config.repetition_penalty = 1.5
    body.save_pretrained(folder)
    turns = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'].strip() }}<|im_end|>\n{% endfor %}"
    _tokenizer_without(folder, "<image>", template=turns + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
    return folder


def _tokenizer_without(folder: Path, *names: str, template: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokenizer.save_pretrained(folder)
    text = json.loads((folder / "tokenizer.json").read_text())
    text["added_tokens"] = [token for token in text["added_tokens"] if token["content"] not in names]
    for name in names:
        if name in text["model"]["vocab"]:  # its id stays taken: a new token would get that of another one
            text["model"]["vocab"][f"unused {name}"] = text["model"]["vocab"].pop(name)
    (folder / "tokenizer.json").write_text(json.dumps(text))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["extra_special_tokens"] = [name for name in config.get("extra_special_tokens", []) if name not in names]
    config.pop("processor_class", None)
    if config.get("eos_token") in names:
        config["eos_token"] = "<|endoftext|>"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(template)


def test_build_from_an_encoder_and_a_chatml_llm(chatml_llm: Path, tmp_path: Path, picture: Callable[..., Image]) -> None:
    encoder = Encoder.tiny("vit")
    weights = {name: value.clone() for name, value in encoder.model.state_dict().items()}
    mllm = MLLM.build(encoder, str(chatml_llm), layer=-2, seed=1)
    config = mllm.model.config
    assert type(mllm.model) is LlavaForConditionalGeneration
    assert config.vision_feature_layer == -2 and config.vision_feature_select_strategy == "default"
    assert config.text_config.vocab_size == 600, "room for the image token was there: no resize"
    assert mllm.processor.image_processor is encoder.processor
    assert mllm.model.generation_config.repetition_penalty is None, "the LLM's sampling defaults must not come along"
    assert mllm.model.lm_head.weight is mllm.model.model.language_model.embed_tokens.weight
    for name, value in mllm.parts()["tower"].state_dict().items():
        assert torch.equal(value, weights[name]), name
    row = encode(chat(picture(0)), mllm.processor)
    text = mllm.processor.decode(row.trunks[0].span.ids)
    assert text.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<image>")
    assert text.endswith("<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\n")
    mllm.save(tmp_path)
    torch.testing.assert_close(score(MLLM.load(tmp_path), [chat(picture(0))]), score(mllm, [chat(picture(0))]), rtol=0, atol=0)


def test_build_from_an_llm_with_a_template_of_its_own(tmp_path: Path, picture: Callable[..., Image]) -> None:
    said = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|endoftext|>{% endfor %}"
    template = said + "{% if add_generation_prompt %}[assistant] {% endif %}"
    AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=509, **LIMIT)).save_pretrained(tmp_path)
    _tokenizer_without(tmp_path, "<image>", "<|im_start|>", "<|im_end|>", template=template)
    mllm = MLLM.build(Encoder.tiny("siglip"), str(tmp_path))
    assert mllm.model.get_input_embeddings().num_embeddings == len(mllm.processor.tokenizer) > 509, "resized for the image token"
    assert mllm.model.lm_head.out_features == len(mllm.processor.tokenizer)
    row = encode(chat(picture(0)), mllm.processor)
    text = mllm.processor.decode(row.trunks[0].span.ids)
    assert text == "[user] " + "<image>" * 36 + "\nWhat is it?<|endoftext|>[assistant] "
    assert mllm.processor.decode(row.branches[0].ids) == "A red ring.<|endoftext|>"
    assert mllm.model.generation_config.eos_token_id == formatting(mllm.processor).tail[0]
    with pytest.raises(BadInput, match="ChatML"):
        encode(chat(picture(0)), mllm.processor, "llava_next")


def test_detached_features_are_those_inside(shared_mllm: MLLM, picture: Callable[..., Image]) -> None:
    encoder = shared_mllm.detach()
    images = [picture(n) for n in range(3)]
    assert encoder.inside is not None
    into, out = encoder.inside(images)
    assert torch.equal(encoder.features(images).tokens, into)
    assert torch.equal(encoder.features(images, at="projector").tokens, out)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MLLM.load("/nowhere/at/all"), "no such folder"),
        (lambda: MLLM.build("hf:nobody/nothing-here", "x"), "nothing-here"),
        (lambda: MLLM.build(Encoder.tiny("siglip"), "/no/llm"), "cannot open LLM /no/llm"),
        (lambda: MLLM.tiny("siglipp"), "siglip"),
        (lambda: MLLM.tiny(llm="qwen4"), "nearest: qwen"),
    ],
)
def test_bad_names_are_one_line(call: Callable[[], MLLM], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_model_of_another_family_is_refused_by_name(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=64, **LIMIT)).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="no MLLM family 'llama'; nearest: llava"):
        MLLM.load(tmp_path)


def test_blank_is_the_shipped_architecture_and_depends_on_the_seed_alone() -> None:
    one, same, other = MLLM.blank(), MLLM.blank(), MLLM.blank(seed=1)
    assert one.hashes() == same.hashes() and one.hashes()["tower"] != other.hashes()["tower"]
    shipped = MLLM.load("base").model.state_dict()
    assert {name: value.shape for name, value in one.model.state_dict().items()} == {name: value.shape for name, value in shipped.items()}
