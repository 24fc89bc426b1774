"""Rows laid end to end: the same log-probabilities and gradients as padded ones, for every LLM that shares rows."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import send_to_device
from test_score import distance, exact_norms, lively, measured, scoring
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from training import DPO, SFT, curve, fresh, run, weights
from training import distance as apart

from pivot.data.collate import collate
from pivot.files import read_json
from pivot.model import MLLM, Scorer, packed
from pivot.model.branches import PADDING, Placement, place
from pivot.model.languages import LANGUAGES, ROW_BY_ROW, against_packing
from pivot.model.packed import PACKED
from pivot.model.sample import reply
from pivot.records import Example
from pivot.train.settings import Settings

NAMES = [row.name for row in LANGUAGES]
MIXED = ("single", "text only", "two images", "turns", "chat prompt")


@pytest.fixture
def rows(odd: Mapping[str, Example]) -> list[Example]:
    """One response each, of different lengths, with an image, with two and without."""
    return [replace(odd[name], responses=odd[name].responses[:1]) for name in MIXED]


def step(mllm: MLLM, examples: Sequence[Example], packing: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss in which every response weighs differently, and its gradients by parameter."""
    mllm.model.zero_grad()
    scorer = Scorer(mllm, packing=packing)
    assert scorer.packing is packing
    return measured(mllm, scorer(send_to_device(collate([mllm.encode(example) for example in examples]), mllm.model.device)).logps)


def widths(mllm: MLLM) -> list[tuple[int, ...]]:
    """Grows by the shape of what the LLM is given."""
    seen: list[tuple[int, ...]] = []
    llm = mllm.model.get_submodule(mllm.family.llm)
    llm.register_forward_pre_hook(lambda _, args, kwargs: seen.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True)
    return seen


@pytest.mark.parametrize(
    ("name", "dtype", "limit"),
    [
        *((name, "float64", 1e-12) for name in NAMES),
        *(pytest.param(name, "float32", 1e-5, marks=[] if name == NAMES[0] else pytest.mark.slow) for name in NAMES),
    ],
)
def test_packed_rows_score_as_padded_ones(name: str, dtype: str, limit: float, rows: list[Example]) -> None:
    mllm = lively("siglip", name, dtype)
    norms = [module for module in mllm.model.modules() if type(module).__name__.endswith("RMSNorm")]
    for norm in norms if name == "gemma" else ():
        norm.weight.data, norm.variance_epsilon = norm.weight.data + 1, norm.eps  # as the exact forward has it
    seen = widths(mllm)
    with exact_norms(mllm) if norms else nullcontext():
        padded, packed_ = step(mllm, rows, False), step(mllm, rows, True)
    assert distance(mllm, packed_, padded) <= limit
    lengths = [mllm.encode(example).length for example in rows]
    assert seen == [(len(rows), max(lengths)), (1, sum(lengths))]


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_vl", "qwen2_5_vl"])
def test_existing_families_pack_too(family: str, rows: list[Example]) -> None:
    """Qwen2-VL's positions run along three axes, and restart with every row along all of them."""
    mllm = MLLM.tiny(family=family).to(dtype="float64")
    with exact_norms(mllm):
        padded, packed_ = step(mllm, rows, False), step(mllm, rows, True)
    assert abs(packed_[0] - padded[0]) / abs(padded[0]) < 1e-12 and packed_[1].keys() == padded[1].keys()
    for part in ("tower", "projector", "llm"):
        names = [name for name in padded[1] if name.startswith(getattr(mllm.family, part))]
        largest = max(padded[1][name].abs().max() for name in names)
        assert max((packed_[1][name] - padded[1][name]).abs().max() for name in names) <= 1e-12 * largest > 0


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable")
@pytest.mark.parametrize("name", ["qwen2", "smollm3", "phi"])
def test_layers_that_are_computed_again_know_where_rows_end(name: str, rows: list[Example], monkeypatch: pytest.MonkeyPatch) -> None:
    mllm, told = lively("siglip", name), list[tuple[int, ...]]()
    plain = step(mllm, rows, True)
    mllm.model.train()
    mllm.model.gradient_checkpointing_enable({"use_reentrant": False})
    inner = mllm.model.get_submodule(mllm.family.llm).layers[0].self_attn
    inner.register_forward_pre_hook(lambda _, args, kwargs: told.append(kwargs["row_lengths"]), with_kwargs=True)
    assert distance(mllm, step(mllm, rows, True), plain) <= 1e-13
    assert told == [tuple(mllm.encode(example).length for example in rows)] * 2


def test_autocast_packs_as_closely(rows: list[Example]) -> None:
    mllm = lively(dtype="float32")
    exact = step(mllm, rows, False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        padded, packed_ = step(mllm, rows, False), step(mllm, rows, True)
    assert distance(mllm, packed_, padded) <= 0.02
    assert distance(mllm, packed_, exact) <= 1.5 * distance(mllm, padded, exact)


@pytest.mark.parametrize("label_mask", ["clean", "llava_next"])
def test_hidden_states_are_read_from_the_same_places(label_mask: Any, rows: list[Example]) -> None:
    mllm = lively()
    batch = collate([mllm.encode(example, label_mask) for example in rows])
    with torch.no_grad(), exact_norms(mllm):
        padded, packed_ = (Scorer(mllm, packing=packing)(batch, hidden=True) for packing in (False, True))
    torch.testing.assert_close(packed_.logps, padded.logps, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(packed_.hidden, padded.hidden, rtol=1e-12, atol=1e-12)


# ---- planted faults


def test_parity_sees_rows_that_see_each_other(rows: list[Example], monkeypatch: pytest.MonkeyPatch) -> None:
    mllm = lively()
    right, plain = step(mllm, rows, False), packed.attention
    monkeypatch.setitem(
        packed.AttentionInterface._global_mapping, PACKED, lambda *args, row_lengths=(), **options: plain(*args[:4], None, **options)
    )
    assert distance(mllm, step(mllm, rows, True), right) > 1e-3


def test_parity_sees_rows_cut_at_the_wrong_place(rows: list[Example], monkeypatch: pytest.MonkeyPatch) -> None:
    mllm, plain = lively(), packed.pack

    def shifted(placement: Placement) -> Placement:
        found = plain(placement)
        return replace(found, lengths=(found.lengths[0] + 1, found.lengths[1] - 1, *found.lengths[2:]))

    right = step(mllm, rows, False)
    monkeypatch.setattr(scoring, "pack", shifted)
    assert distance(mllm, step(mllm, rows, True), right) > 1e-3


def test_positions_restart_with_every_row(rows: list[Example]) -> None:
    """Rotary ones are relative, so that parity would hold without; but they would run out of the LLM's context."""
    mllm = MLLM.tiny()
    padded = place(collate([mllm.encode(example) for example in rows])["layout"], "shared")
    found = packed.pack(padded)
    assert found.positions.tolist() == [[at for length in found.lengths for at in range(length)]]
    assert found.lengths == tuple(mllm.encode(example).length for example in rows) and not (found.segment == PADDING).any()
    for name in ("read", "last"):
        assert torch.equal(found.take.flatten()[getattr(found, name)], padded.take.flatten()[getattr(padded, name)])


# ---- what it leaves alone


def test_branches_replies_and_files_are_those_of_an_llm_that_was_never_packed(odd: Mapping[str, Example], tmp_path: Path) -> None:
    examples = list(odd.values())
    never, kept = lively(dtype="float32"), lively(dtype="float32")
    scorer = Scorer(kept, packing=True)
    batch = collate([kept.encode(example) for example in examples])
    with torch.no_grad():
        assert all(
            torch.equal(a, b)
            for x, y in zip(scorer(batch).logps, Scorer(never)(batch).logps, strict=True)
            for a, b in zip(x, y, strict=True)
        )
    assert reply(kept, examples, max_new=8) == reply(never, examples, max_new=8)
    kept.save(tmp_path)
    assert PACKED not in (tmp_path / "config.json").read_text()
    assert MLLM.load(tmp_path).model.config.text_config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", [row.name for row in ROW_BY_ROW])
def test_llms_that_cannot_share_a_row_are_padded(name: str, rows: list[Example]) -> None:
    mllm = MLLM.tiny(llm=name)
    assert Scorer(mllm, packing=True).packing is False
    assert mllm.model.config.text_config._attn_implementation != PACKED
    assert (against_packing(mllm.model.config.text_config) or "").startswith("its ")


def test_eager_attention_is_padded() -> None:
    mllm = MLLM.tiny()
    mllm.model.set_attn_implementation("eager")
    assert Scorer(mllm, packing=True).packing is False and mllm.model.config.text_config._attn_implementation == "eager"


# ---- all rows in one kernel: on CUDA alone, so that here a stand-in takes what it is given


def stand_in(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, ends: Tensor, *_: int, scale: float, window_size: Any) -> Tensor:
    """(N, H, D), as torch documents it: row n from starts[n] to starts[n + 1]; a window of (-1, 0) is causal."""
    assert starts is ends and starts.dtype == torch.int32 and window_size == (-1, 0)
    assert query.shape == key.shape == value.shape and all(states.is_contiguous() for states in (query, key, value))
    found = []
    for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        row = [states[a:b].transpose(0, 1)[None] for states in (query, key, value)]
        found.append(torch.nn.functional.scaled_dot_product_attention(*row, is_causal=True, scale=scale)[0].transpose(0, 1))
    return torch.cat(found)


@pytest.mark.parametrize("name", ["qwen2", "gemma"])
def test_the_kernel_of_many_rows_is_given_what_it_documents(name: str, rows: list[Example], monkeypatch: pytest.MonkeyPatch) -> None:
    mllm, called = lively("siglip", name), list[Any]()

    def kernel(*args: Any, **options: Any) -> Tensor:
        called.append(inspect.signature(varlen_attn).bind(*args, **options))
        return stand_in(*args, **options)

    loop = step(mllm, rows, True)
    monkeypatch.setattr(packed, "_varlen", kernel)

    def at_once(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, row_lengths: Any = (), **options: Any) -> Any:
        return packed._at_once(query, key, value, row_lengths, options["scaling"]), None

    monkeypatch.setitem(packed.AttentionInterface._global_mapping, PACKED, at_once)
    assert distance(mllm, step(mllm, rows, True), loop) <= 1e-12
    longest = max(mllm.encode(example).length for example in rows)
    assert len(called) == 2 and called[0].arguments["max_q"] == called[0].arguments["max_k"] == longest


# ---- in a training


def test_a_packed_training_is_the_padded_one_but_for_rounding(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    found = {}
    for packing in (False, True):
        mllm, folder = fresh(shared_mllm), tmp_path / str(packing)
        run(mllm, SFT(), pairs, folder, packing=packing, checkpointing=packing)
        found[packing] = weights(mllm)
    assert curve(tmp_path / "True") == pytest.approx(curve(tmp_path / "False"), rel=1e-5)
    assert apart(found[True], found[False]) < 1e-4
    again = run(fresh(shared_mllm), SFT(), pairs, tmp_path / "True", packing=True, checkpointing=True)
    assert [event["kind"] for event in again] == ["done"], "a packed training is known again"
    assert read_json(tmp_path / "True" / "ledger.json")["settings"]["packing"] is True


def test_dpo_is_not_touched_and_what_cannot_be_packed_says_so(
    shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "cache"))
    for packing in (False, True):
        run(fresh(shared_mllm), DPO(), pairs, tmp_path / str(packing), packing=packing)
    assert curve(tmp_path / "True") == curve(tmp_path / "False")
    windowed = MLLM.tiny(llm="mistral-windowed")
    events = run(fresh(windowed), SFT(), pairs, tmp_path / "windowed", packing=True)
    assert [event["message"] for event in events if event["kind"] == "note"][-1] == (
        "rows are padded, since the LLM does not allow packing: its attention has a window of 8 tokens"
    )


def test_a_reference_knows_whether_it_was_packed(shared_mllm: MLLM) -> None:
    from pivot.train.reference import identity

    mllm, device = fresh(shared_mllm), torch.device("cpu")
    before = identity(mllm, Settings(), device)
    asked = identity(mllm, Settings(packing=True), device)
    Scorer(mllm, packing=True)
    assert identity(mllm, Settings(), device) == before and identity(mllm, Settings(packing=True), device) == asked
    assert [name for name in before if before[name] != asked[name]] == ["attention"]
