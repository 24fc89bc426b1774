"""LLM families: who shares a row, who gets one a response and why, and that both say what the stock model says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training import DPO, distance, fresh, run, weights
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, MambaConfig

from pivot.data.collate import encode
from pivot.encoder import Encoder
from pivot.model import MLLM, languages, score
from pivot.model.languages import LANGUAGES, ROW_BY_ROW, backend, language
from pivot.model.sample import reply
from pivot.records import BadInput, Example, Response

NAMES = [row.name for row in (*LANGUAGES, *ROW_BY_ROW)]
SHAPES = ("group", "text only", "turns")


def lively(name: str) -> MLLM:
    """Weights so large that every token matters, in fp64."""
    mllm = MLLM.tiny("siglip", name).to(dtype="float64")
    with torch.no_grad():
        for parameter in mllm.model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return mllm


def plain(mllm: MLLM, example: Example, number: int) -> Tensor:
    """One response by one call of the stock model on one unpadded row: nothing of the scorer is in it."""
    only = Example(example.id, example.images, example.prompt, (example.responses[number],))
    row = encode(only, mllm.processor)
    trunk, branch = row.trunks[0].span, row.branches[0]
    ids = torch.tensor([trunk.ids + branch.ids])
    seen = mllm.processor.image_processor(images=list(example.images), return_tensors="pt") if example.images else {}
    pixels = seen["pixel_values"].to(mllm.model.dtype) if seen else None
    logits = mllm.model(input_ids=ids, pixel_values=pixels).logits[0, :-1]
    logps = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return logps[[len(trunk) + at - 1 for at, wanted in enumerate(branch.supervised) if wanted]]


def worst(found: list[list[Tensor]], wanted: list[list[Tensor]]) -> float:
    return max((a - b).abs().max().item() for x, y in zip(found, wanted, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_every_family_is_scored_as_plain_calls_say(name: str, odd: Mapping[str, Example]) -> None:
    """Rows are padded on the right and given no mask, which must not matter to windows and carried states either."""
    mllm, examples = lively(name), [odd[shape] for shape in SHAPES]
    wanted = [[plain(mllm, example, n) for n in range(len(example.responses))] for example in examples]
    assert worst(score(mllm, examples), wanted) < 1e-7
    assert worst(score(mllm, examples, "repeat"), wanted) < 1e-7


@pytest.mark.parametrize("name", ["mistral-windowed", "gemma3_text", "jamba", "lfm2"])
@torch.no_grad()
def test_sharing_a_row_would_be_wrong_for_those_that_fall_back(
    name: str, odd: Mapping[str, Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    mllm, examples = lively(name), [odd["group"]]
    right = score(mllm, examples)
    monkeypatch.setattr(languages, "backend", lambda llm, asked: (asked, None))
    assert worst(score(mllm, examples), right) > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_stock_llava_says_of_text_what_the_llm_says_alone(name: str) -> None:
    """Scaled embeddings, missing positions, partial rotation: all of it is inside, and the head is a plain map."""
    row = language(name)
    mllm = MLLM.tiny("siglip", name)
    inside: Any = mllm.model.model.language_model
    alone = AutoModelForCausalLM.from_config(mllm.model.config.text_config).eval()
    alone.base_model.load_state_dict(inside.state_dict())
    alone.get_output_embeddings().weight.data = mllm.model.lm_head.weight.data
    ids = torch.tensor([[5, 9, 11, 300, 7, 8, 12, 4, 77, 3]])
    ids[ids == mllm.model.config.image_token_id] = 6
    with torch.no_grad():
        torch.testing.assert_close(mllm.model(input_ids=ids).logits, alone(input_ids=ids).logits)
    assert type(alone.base_model) is type(inside) and alone.config.model_type == row.model_type


@pytest.mark.parametrize("name", ["smollm3", "gemma", "phi", "phi3", "olmo2", "gemma3_text", "mistral-windowed", "jamba"])
def test_replies_do_not_depend_on_the_company(name: str, odd: Mapping[str, Example]) -> None:
    """`generate` pads on the left; whether that is right for a family shows when a short prompt is answered beside a long one."""
    mllm = lively(name).to(dtype="float32")
    examples = [odd["pair"], odd["chat prompt"]]
    assert reply(mllm, examples, max_new=5) == [reply(mllm, [example], max_new=5)[0] for example in examples]


# ---- which backend


def config(kind: str, **values: Any) -> Any:
    made = CONFIG_MAPPING[kind](**values)
    made._attn_implementation = "sdpa"
    return made


@pytest.mark.parametrize(
    ("llm", "reason"),
    [
        (config("qwen2"), None),
        (config("qwen2", sliding_window=4096, use_sliding_window=False), None),
        (config("qwen2", sliding_window=4096, use_sliding_window=True, max_window_layers=2), "its attention has a window of 4096 tokens"),
        (config("mistral", sliding_window=None), None),
        (config("mistral", sliding_window=4096, max_position_embeddings=32768), "its attention has a window of 4096 tokens"),
        (config("phi3", sliding_window=262144, max_position_embeddings=131072), None),  # Phi-4-mini: no row is that long
        (config("phi3", sliding_window=2047, max_position_embeddings=4096), "its attention has a window of 2047 tokens"),
        (config("gemma3_text"), "its attention has a window of 4096 tokens"),
        (config("jamba"), "its layers carry a state along the row"),
        (config("lfm2", layer_types=["conv", "full_attention"], num_hidden_layers=2), "its layers carry a state along the row (conv)"),
        (config("mamba"), "its layers carry a state along the row"),
        (config("gpt_neox"), "its family 'gpt_neox' is not among the tested (gemma, llama,"),
    ],
)
def test_the_backend_and_the_reason_for_another(llm: Any, reason: str | None) -> None:
    found, why = backend(llm, "shared")
    assert found == ("shared" if reason is None else "repeat")
    assert (why is None) if reason is None else (why or "").startswith(reason)
    assert backend(llm, "repeat") == ("repeat", None), "nobody asked for more"


def test_attention_without_a_4d_mask_falls_back() -> None:
    llm = config("llama")
    llm._attn_implementation = "flash_attention_2"
    assert backend(llm, "shared") == ("repeat", "its attention 'flash_attention_2' takes no 4-D mask (sdpa and eager do)")


# ---- what stock LLaVA would change


def small(kind: str, **values: Any) -> Any:
    common = {"vocab_size": 589, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    ids = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**{**common, "intermediate_size": 64, **ids, **values}))


def build(llm: Any) -> MLLM:
    base = MLLM.tiny()
    return MLLM.build(Encoder.tiny("siglip"), llm, tokenizer=base.processor.tokenizer, template=base.processor.chat_template)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("gemma2", {"head_dim": 16}, r"changes its logits after the head \(final_logit_softcapping = 30"),
        ("gemma3_text", {"head_dim": 16, "final_logit_softcapping": 20.0}, "final_logit_softcapping = 20"),
        ("granite", {"logits_scaling": 8.0}, r"logits_scaling = 8\.0"),
        ("cohere", {}, r"logit_scale = 0\.0625"),
        ("bert", {"is_decoder": True}, "other logits than alone"),
        ("mamba", {"state_size": 8}, r"stock LLaVA cannot run it.*past_key_values"),
        ("gemma3_text", {"head_dim": 16, "use_bidirectional_attention": True}, "it is not causal"),
    ],
)
def test_what_stock_llava_would_change_is_refused(kind: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        build(small(kind, **values))
    assert "\n" not in str(caught.value) and f"LLM '{kind}' cannot be built into an MLLM" in str(caught.value)


def test_a_scale_of_one_is_no_scale() -> None:
    build(small("granite", logits_scaling=1.0))


def test_a_bias_of_the_head_is_refused_unless_it_is_zero() -> None:
    """Phi-1.5 and Phi-2: stock LLaVA's head has none, so it would be lost where the folder is opened."""
    assert build(small("phi")).model.lm_head.bias is None
    biased = small("phi")
    biased.lm_head.bias.data[3] = 1
    with pytest.raises(BadInput, match=r"its head has a bias.*Phi-3"):
        build(biased)


def test_a_table_of_another_name_comes_apart_from_its_head(odd: Mapping[str, Example]) -> None:
    """Stock LLaVA ties its head to `embed_tokens` and to nothing else; GPT-2's table is `wte`."""
    llm = small("gpt2", n_positions=256, tie_word_embeddings=True)
    mllm = build(llm)
    assert mllm.model.config.tie_word_embeddings is False
    assert mllm.model.lm_head.weight is not mllm.model.get_input_embeddings().weight
    assert torch.equal(mllm.model.lm_head.weight, mllm.model.get_input_embeddings().weight)
    mllm.to(dtype="float64")
    with torch.no_grad():
        assert worst(score(mllm, [odd["pair"]]), [[plain(mllm, odd["pair"], n) for n in range(2)]]) < 1e-7


def test_mamba_is_a_state_space_model_and_no_family_of_ours() -> None:
    with pytest.raises(BadInput, match="'mamba' is not in the table"):
        MLLM.tiny(llm="mamba")
    assert backend(MambaConfig(), "shared")[0] == "repeat"


def test_one_response_is_the_same_in_either_backend(odd: Mapping[str, Example]) -> None:
    mllm = lively("llama")
    one = [Example("one", odd["pair"].images, "Is it red?", (Response("yes"),))]
    assert worst(score(mllm, one), score(mllm, one, "repeat")) == 0


def test_long_rope_ends_where_a_row_would_depend_on_its_company(odd: Mapping[str, Example]) -> None:
    """transformers changes the angles of a whole batch when its longest row passes the original length."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64, "factor": 2.0}
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    llm = small("phi3", original_max_position_embeddings=64, max_position_embeddings=128, rope_parameters={**rope, **factors})
    mllm = build(llm).to(dtype="float64")
    long = Example("long", odd["pair"].images, "word " * 12, odd["pair"].responses)
    with pytest.raises(BadInput, match=r"row long: .* the LLM's context holds 64"):
        score(mllm, [odd["pair"], long])
    with torch.no_grad():
        wanted = [[plain(mllm, odd["pair"], n) for n in range(2)]]
        assert worst(score(mllm, [odd["pair"]]), wanted) < 1e-7
        mllm.model.config.text_config.rope_parameters["rope_type"] = "default"  # the bound gone, the angles as they were built
        assert worst(score(mllm, [odd["pair"], long])[:1], wanted) > 1e-4


def test_training_falls_back_and_says_so_once(pairs: list[Example], tmp_path: Path) -> None:
    mllm = fresh(MLLM.tiny(llm="mistral-windowed"))
    before = weights(mllm)
    events = run(mllm, DPO(beta=0.1), pairs, tmp_path / "windowed", epochs=2)
    said = [event["message"] for event in events if "message" in event]
    assert len(said) == 1 and said[0].endswith("the LLM does not allow shared: its attention has a window of 8 tokens")
    assert events[0]["kind"] == "note"
    assert distance(weights(mllm), before, "model.vision_tower") > 0
    quiet = run(fresh(MLLM.tiny()), DPO(beta=0.1), pairs, tmp_path / "branched")
    assert not [event for event in quiet if "message" in event]
