"""LLMs by string: folders, Hub names and GGUF files; what goes wrong is one line; what comes in is what was saved."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL.Image import Image
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, LlavaForConditionalGeneration

from pivot.encoder import Encoder
from pivot.model import MLLM, llm, score
from pivot.model.languages import LANGUAGES, ROW_BY_ROW
from pivot.model.mllm import BASE
from pivot.records import BadInput, Example
from pivot.train import Settings
from pivot.train.reference import identity

BARE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|endoftext|>{% endfor %}"
PLAIN = BARE + "{% if add_generation_prompt %}[assistant] {% endif %}"


def saved(folder: Path, name: str = "llama", **changes: Any) -> Any:
    """A tiny LLM with the base's tokenizer, in a folder as transformers saves it. Biases and norms are not left at their start."""
    config = MLLM.tiny(llm=name).model.config.text_config
    for key, value in changes.items():
        setattr(config, key, value)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        body = AutoModelForCausalLM.from_config(config).eval()
        for key, parameter in body.named_parameters():
            if parameter.ndim == 1 and key != "lm_head.bias":
                parameter.data.add_(0.1 * torch.randn_like(parameter))
    body.save_pretrained(folder)
    AutoTokenizer.from_pretrained(BASE).save_pretrained(folder)
    return body


QUICK = ("llama", "qwen3", "smollm3", "gemma", "phi3", "gemma3_text")
CROSS = [row.name if row.name in QUICK else pytest.param(row.name, marks=pytest.mark.slow) for row in (*LANGUAGES, *ROW_BY_ROW)]


@pytest.mark.parametrize("name", CROSS)
@torch.no_grad()
def test_every_family_comes_from_its_folder_and_goes_into_one(name: str, tmp_path: Path, odd: Mapping[str, Example]) -> None:
    body = saved(tmp_path / "llm", name)
    mllm = MLLM.build(Encoder.tiny("siglip"), str(tmp_path / "llm"))
    state = {key: value for key, value in body.base_model.state_dict().items() if "inv_freq" not in key}
    found = mllm.model.model.language_model.state_dict()  # type: ignore[operator]
    assert state.keys() <= found.keys() and all(torch.equal(found[key][: len(value)], value) for key, value in state.items())
    mllm.save(tmp_path / "mllm")
    stock, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "mllm", output_loading_info=True)
    assert type(stock) is LlavaForConditionalGeneration
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    again = MLLM(stock, mllm.processor, mllm.tap)
    for one, other in zip(score(mllm, [odd["pair"]]), score(again, [odd["pair"]]), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    told = json.loads((tmp_path / "mllm" / "config.json").read_text())["text_config"]["pivot_source"]
    assert told == {"name": str(tmp_path / "llm")}


# ---- vocabularies


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [589, 640])
def test_room_for_new_tokens(tied: bool, rows: int, tmp_path: Path) -> None:
    """A tokenizer without template and ChatML gets both; embeddings grow only where there is no room, and the head with them."""
    body = saved(tmp_path, tie_word_embeddings=tied, vocab_size=rows)
    _rename(tmp_path, {"<|im_start|>": "x1", "<|im_end|>": "x2", "<image>": "x3"})
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    mllm = MLLM.build(Encoder.tiny("siglip"), str(tmp_path))
    ids = mllm.processor.tokenizer.get_vocab()
    assert sorted(ids[token] for token in ("<image>", "<|im_start|>", "<|im_end|>")) == [589, 590, 591]
    table, head = mllm.model.get_input_embeddings().weight, mllm.model.lm_head.weight  # type: ignore[operator]
    assert len(table) == len(head) == mllm.model.config.text_config.vocab_size == (592 if rows == 589 else 640)
    assert torch.equal(table[:589], body.get_input_embeddings().weight[:589])
    assert torch.equal(head[:589], body.get_output_embeddings().weight[:589])
    assert (head is table) == tied
    assert mllm.model.generation_config.eos_token_id == ids["<|im_end|>"], "not the tokenizer's own, which ends documents"
    mllm.save(tmp_path / "out")
    assert MLLM.load(tmp_path / "out").hashes() == mllm.hashes()


def test_a_given_template_needs_no_chatml(tmp_path: Path) -> None:
    saved(tmp_path)
    _rename(tmp_path, {"<|im_start|>": "x1", "<|im_end|>": "x2"})
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    mllm = MLLM.build(Encoder.tiny("siglip"), str(tmp_path), template=PLAIN)
    assert len(mllm.model.get_input_embeddings().weight) == 589  # type: ignore[operator]
    assert "<|im_start|>" not in mllm.processor.tokenizer.get_vocab()


def test_an_id_that_is_in_use_is_not_given_away(tmp_path: Path) -> None:
    saved(tmp_path)
    _rename(tmp_path, {"<image>": None})  # now 588 tokens, the last of which has id 588
    with pytest.raises(BadInput, match="its tokenizer leaves ids out, so <image> cannot be added"):
        MLLM.build(Encoder.tiny("siglip"), str(tmp_path))


def _rename(folder: Path, names: Mapping[str, str | None]) -> None:
    """Take tokens away from a saved tokenizer; with a new name their id stays taken."""
    text = json.loads((folder / "tokenizer.json").read_text())
    text["added_tokens"] = [token for token in text["added_tokens"] if token["content"] not in names]
    for old, new in names.items():
        number = text["model"]["vocab"].pop(old)
        if new is not None:
            text["model"]["vocab"][new] = number
    (folder / "tokenizer.json").write_text(json.dumps(text))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["extra_special_tokens"] = [name for name in config["extra_special_tokens"] if name not in names]
    config["eos_token"] = "<|endoftext|>" if config["eos_token"] in names else config["eos_token"]
    config.pop("processor_class", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


# ---- GGUF


def gguf_file(file: Path, body: Any, kind: str, template: str | None = None) -> None:
    """What llama.cpp's converter would write for this Llama or Qwen2, by the package's own writer."""
    gguf = pytest.importorskip("gguf")
    config, arch = body.config, body.config.model_type
    writer = gguf.GGUFWriter(str(file), arch)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    tokenizer, model = AutoTokenizer.from_pretrained(BASE), json.loads((BASE / "tokenizer.json").read_text())["model"]
    tokens = sorted(tokenizer.get_vocab(), key=lambda token: tokenizer.get_vocab()[token])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in tokenizer.all_special_tokens else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    if template:
        writer.add_chat_template(template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], config.num_hidden_layers)
    for name, tensor in body.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        value = tensor.numpy()
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):  # llama.cpp rotates neighbours, transformers halves
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            value = value.reshape(heads, 2, len(value) // heads // 2, -1).swapaxes(1, 2).reshape(value.shape)
        stored = gguf.GGMLQuantizationType[kind if value.ndim > 1 else "F32"]
        place = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(place, gguf.quants.quantize(value, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(("name", "kind", "off"), [("llama", "F32", 0.0), ("qwen2", "F16", 1e-3), ("qwen2", "Q8_0", 2e-2)])
@torch.no_grad()
def test_a_gguf_file_opens_as_what_it_was_made_from(name: str, kind: str, off: float, tmp_path: Path, odd: Mapping[str, Example]) -> None:
    body = saved(tmp_path, name)
    file = tmp_path / f"tiny-{kind}.gguf"
    gguf_file(file, body, kind, template=PLAIN)
    opened, tokenizer = llm.load(str(file), "float32")
    ids = torch.tensor([[5, 6, 9, 100, 300, 7]])
    right = body(input_ids=ids).logits
    error = (opened(input_ids=ids).logits - right).abs().max() / right.abs().max()
    assert error <= off and (error > 0) == (off > 0), "and what was packed must show that it was"
    text = "A red ring.<|im_end|>\n<|im_start|>user\n12"
    assert tokenizer(text).input_ids == AutoTokenizer.from_pretrained(BASE)(text).input_ids
    assert tokenizer.chat_template == PLAIN
    assert opened.config.pivot_source == {"name": str(file), **({"dequantised": "Q8_0"} if kind == "Q8_0" else {})}
    assert opened.dtype == torch.float32 and not hasattr(opened.config, "quantization_config")
    mllm = MLLM.build(Encoder.tiny("siglip"), str(file))
    mllm.save(tmp_path / "out")
    again = MLLM.load(tmp_path / "out")
    assert again.model.config.text_config.pivot_source == opened.config.pivot_source, "the label travels"
    assert torch.equal(score(again, [odd["pair"]])[0][0], score(mllm, [odd["pair"]])[0][0])


def test_a_gguf_without_its_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"needs the package gguf; run `pip install 'pivot-vision\[gguf\]'`"):
        llm.load(str(tmp_path / "a.gguf"), "float32")


# ---- what cannot be opened


class Trap:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (Path(self.where),)

    def __init__(self, where: str) -> None:
        self.where = where


def test_weights_with_code_in_them_do_not_run(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with (tmp_path / "pytorch_model.bin").open("wb") as file:
        pickle.dump(Trap(str(tmp_path / "run")), file)
    with pytest.raises(BadInput, match="cannot open LLM"):
        llm.load(str(tmp_path), "float32")
    assert not (tmp_path / "run").exists()


def test_plain_torch_weights_open(tmp_path: Path) -> None:
    body = saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(body.state_dict(), tmp_path / "pytorch_model.bin")
    opened, _ = llm.load(str(tmp_path), "float32")
    assert all(torch.equal(value, opened.state_dict()[key]) for key, value in body.state_dict().items())


def test_code_of_a_model_does_not_run(tmp_path: Path) -> None:
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "their_own", "auto_map": {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    with pytest.raises(BadInput, match="it needs code of its own, which is never run"):
        llm.load(str(tmp_path), "float32")
    assert not (tmp_path / "run").exists()


def _mllm(folder: Path) -> str:
    MLLM.tiny().save(folder)
    return str(folder)


def _encoder(folder: Path) -> str:
    Encoder.tiny("siglip").save(folder)
    AutoTokenizer.from_pretrained(BASE).save_pretrained(folder)
    return str(folder)


def _changed(**values: Any) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        saved(folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))
        return str(folder)

    return make


def _beside(*names: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        for name in names:
            (folder / name).mkdir(parents=True)
        return str(folder / "qwen")

    return make


def _gguf_folder(folder: Path) -> str:
    folder.mkdir()
    (folder / "tiny-Q8_0.gguf").write_bytes(b"GGUF")
    return str(folder)


def _no_gguf(folder: Path) -> str:
    return f"{_gguf_folder(folder)}/tiny-Q8_0.gguf"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_mllm, r"it holds an MLLM \(llava\), not an LLM"),
        (_encoder, r"it holds an encoder \(siglip_vision_model\), not an LLM"),
        (_changed(model_type="t5"), r"it is an encoder-decoder \(t5\)"),
        (_changed(model_type="clvp_encoder"), "cannot open LLM|no causal LLM"),
        (_changed(quantization_config={"quant_method": "gptq", "bits": 4}), r"its weights are quantised \(gptq\) and cannot be trained"),
        (_changed(model_type="granite", logits_scaling=4.0), "logits_scaling = 4"),
        (_changed(num_hidden_layers=3), r"9 weights are missing or of another shape, first model\.layers\.2"),
        (_changed(intermediate_size=48), r"6 weights are missing or of another shape, first model\.layers\.0\.mlp"),
        (_beside("qwen2", "llama"), r"no such folder; did you mean .*qwen2\?"),
        (_beside("other"), "no such folder; check the path, or write hf:OWNER/NAME"),
        (_gguf_folder, "name one of its GGUF files, such as .*tiny-Q8_0.gguf"),
        (_no_gguf, "cannot open LLM"),
        (lambda folder: f"{folder}-00001-of-00003.gguf", "one of several parts"),
        (lambda folder: f"{folder}.gguf", "no such file"),
        (lambda folder: "nobody/nothing-here", r"hf:nobody/nothing-here: config\.json, .* not found .*looked in the cache"),
        (lambda folder: "hf:nobody/nothing/x.gguf", r"hf:nobody/nothing: x\.gguf not found .*looked in the cache"),
    ],
)
def test_what_cannot_be_opened_is_one_line(make: Callable[[Path], str], message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        MLLM.build(Encoder.tiny("siglip"), make(tmp_path / "here"))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_folder_without_tokenizer_says_so(tmp_path: Path, picture: Callable[..., Image]) -> None:
    AutoModelForCausalLM.from_config(MLLM.tiny().model.config.text_config).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match=r"LLM folder .*: tokenizer\.json not found"):
        llm.load(str(tmp_path), "float32")


def test_where_it_came_from_makes_no_other_reference() -> None:
    """A cached reference must survive that a folder was moved."""
    one, other = MLLM.tiny(), MLLM.tiny()
    one.model.config.text_config.pivot_source = {"name": "/here"}
    other.model.config.text_config.pivot_source = {"name": "/there"}
    told = [identity(mllm, Settings(), torch.device("cpu")) for mllm in (one, other)]
    assert told[0] == told[1]
    other.model.config.text_config.rms_norm_eps *= 2
    assert identity(other, Settings(), torch.device("cpu")) != told[0]
