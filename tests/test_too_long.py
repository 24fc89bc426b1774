"""Rows over the limit that are cut: what is left is what a slice leaves, scores as it did in the whole row, and is counted."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.utils import send_to_device
from test_score import lively
from torch import Tensor
from training import DPO, SFT, curve, fresh, run

from pivot import cli, recipe, rehearsal
from pivot.data.collate import Row, TooLong, collate, encode
from pivot.data.doctor.fits import Limit
from pivot.data.speech import LabelMask
from pivot.files import read_json
from pivot.model import MLLM, Scorer
from pivot.objective.dpo import Objective as Pairs
from pivot.pictures import size
from pivot.plan import plan
from pivot.records import BadInput, Example, Response
from pivot.runfolder import RunFolder

SHAPES = ("pair", "group", "text only", "two images", "turns", "chat prompt", "own image")
LONG = Response(("so " * 30).strip())


def trunk_of(row: Row, response: int) -> int:
    """Tokens in front of a response."""
    return next(len(trunk.span) for trunk in row.trunks if response in trunk.responses)


@pytest.mark.parametrize("label_mask", ["clean", "llava_next"])
@pytest.mark.parametrize("name", SHAPES)
def test_each_response_is_its_own_slice(name: str, label_mask: LabelMask, odd: Mapping[str, Example], shared_mllm: MLLM) -> None:
    """At every limit that leaves each response a token: ids and what is supervised, sliced by hand from the row as it was."""
    whole = encode(odd[name], shared_mllm.processor, label_mask)
    least = max(len(trunk.span) for trunk in whole.trunks) + 1
    assert least < whole.length
    for limit in range(least, whole.length + 2):
        found = encode(odd[name], shared_mllm.processor, label_mask, limit, too_long="cut")
        for number, (branch, before) in enumerate(zip(found.branches, whole.branches, strict=True)):
            room = limit - trunk_of(whole, number)
            assert (branch.ids, branch.supervised) == (before.ids[:room], before.supervised[:room])
        assert [trunk.span for trunk in found.trunks] == [trunk.span for trunk in whole.trunks]
        assert found.cut == (limit < whole.length) and found.length <= limit
        assert encode(odd[name], shared_mllm.processor, label_mask, None, limit, too_long="cut").branches == found.branches
        assert encode(odd[name], shared_mllm.processor, label_mask, limit, limit + 1, too_long="cut").branches == found.branches


def test_a_caption_is_cut_too(odd: Mapping[str, Example], shared_mllm: MLLM) -> None:
    shown = replace(odd["single"], prompt="")
    whole = encode(shown, shared_mllm.processor, template="plain")
    found = encode(shown, shared_mllm.processor, limit=whole.length - 2, template="plain", too_long="cut")
    assert found.branches[0].ids == whole.branches[0].ids[:-2] and found.cut


def test_chosen_and_rejected_are_cut_each_by_itself(odd: Mapping[str, Example], shared_mllm: MLLM) -> None:
    pair = replace(odd["pair"], responses=(LONG, odd["pair"].responses[1]))
    whole = shared_mllm.encode(pair)
    found = shared_mllm.encode(pair, limit=whole.length - 9, too_long="cut")
    assert len(found.branches[0]) == len(whole.branches[0]) - 9 and found.branches[1] == whole.branches[1]


def test_of_a_conversation_the_last_turns_go(odd: Mapping[str, Example], shared_mllm: MLLM) -> None:
    tokenizer, whole = shared_mllm.processor.tokenizer, shared_mllm.encode(odd["turns"])
    said = []
    for limit in range(len(whole.trunks[0].span) + 1, whole.length + 1):
        branch = shared_mllm.encode(odd["turns"], limit=limit, too_long="cut").branches[0]
        said.append(tokenizer.decode([i for i, learnt in zip(branch.ids, branch.supervised, strict=True) if learnt]))
    assert said == sorted(said, key=len) and {"Red.<|im_end|>", "Red.<|im_end|>Two of them.<|im_end|>"} < set(said)
    assert said.count("Red.<|im_end|>") > 5, "the user's turn, and the header of an answer that is not there any more"


@pytest.mark.parametrize("short", [0, 1, 5])
def test_a_prompt_that_leaves_no_room_is_refused(short: int, odd: Mapping[str, Example], shared_mllm: MLLM) -> None:
    limit = len(shared_mllm.encode(odd["pair"]).trunks[0].span) - short
    with pytest.raises(BadInput) as caught:
        shared_mllm.encode(odd["pair"], limit=limit, too_long="cut")
    said = (
        f"row pair, response 0: {limit + short} tokens without its response, of which 36 image; the limit is {limit}, which leaves nothing"
    )
    assert str(caught.value).startswith(said) and "shorten the prompt or leave the row out" in str(caught.value)
    asked = replace(odd["pair"], responses=())
    with pytest.raises(BadInput, match=f"row pair: {limit + short} tokens, of which 36 image and 0 response"):
        shared_mllm.encode(asked, limit=limit - (short == 0), too_long="cut")


def test_only_a_response_without_room_of_its_own_is_named(odd: Mapping[str, Example], shared_mllm: MLLM) -> None:
    """Its own pictures make its trunk longer than the others'."""
    own = odd["own image"]
    both = tuple(picture for response in own.responses for picture in response.images or ()) * 2
    wide = replace(own, responses=(own.responses[0], replace(own.responses[1], images=both), own.responses[2]))
    whole = shared_mllm.encode(wide)
    with pytest.raises(BadInput, match=r"row own image, response 1: .* 72 image"):
        shared_mllm.encode(wide, limit=trunk_of(whole, 1), too_long="cut")


def test_an_unknown_way_is_named(odd: Mapping[str, Example], shared_mllm: MLLM) -> None:
    with pytest.raises(BadInput, match="no too_long 'crop'; known: refuse, cut"):
        shared_mllm.encode(odd["pair"], too_long="crop")  # type: ignore[arg-type]


# ---- found beforehand


def found(example: Example, mllm: MLLM, limit: int, too_long: TooLong, label_mask: LabelMask = "clean") -> set[str]:
    """The doctor's codes."""
    own = {n: response.images for n, response in enumerate(example.responses) if response.images is not None}
    sizes = {which: [size(one) for one in images or ()] for which, images in {None: example.images, **own}.items()}
    return {fault.code for fault in Limit(mllm.processor, limit, label_mask, too_long=too_long).faults(example, sizes)}


@pytest.mark.parametrize("label_mask", ["clean", "llava_next"])
@pytest.mark.parametrize("name", [*SHAPES, "asked"])
def test_the_doctor_tells_what_a_cut_saves(name: str, label_mask: LabelMask, odd: Mapping[str, Example], shared_mllm: MLLM) -> None:
    """At every limit: what training refuses to cut, and nothing else, is long-prompt to the doctor."""
    example = odd.get(name) or replace(odd["pair"], responses=())
    whole = shared_mllm.encode(example, label_mask)
    refused = set()
    for limit in range(max(1, len(whole.trunks[0].span) - 2), whole.length + 1):
        codes = found(example, shared_mllm, limit, "cut", label_mask)
        assert not codes - {"long-prompt", "same-after-cut"}
        try:
            shared_mllm.encode(example, label_mask, limit, too_long="cut")
        except BadInput:
            refused.add(limit)
        assert ("long-prompt" in codes) == (limit in refused) == ("long-prompt" in found(example, shared_mllm, limit, "refuse", label_mask))
        assert bool(found(example, shared_mllm, limit, "refuse", label_mask)) == (limit < whole.length)
    assert refused


def test_responses_that_differ_only_behind_the_cut_are_found(odd: Mapping[str, Example], shared_mllm: MLLM) -> None:
    """They would be one branch twice; at every other limit they are two."""
    texts = ("a red bar and a cup", "a red bar and a hat")
    pair = replace(odd["pair"], responses=(Response(texts[0]), Response(texts[1], role="rejected")))
    whole = shared_mllm.encode(pair)
    merged = set()
    for limit in range(trunk_of(whole, 0) + 1, whole.length + 1):
        one, other = shared_mllm.encode(pair, limit=limit, too_long="cut").branches
        if one == other:
            merged.add(limit)
        assert found(pair, shared_mllm, limit, "cut") == ({"same-after-cut"} if one == other else set())
        assert "same-after-cut" not in found(pair, shared_mllm, limit, "refuse")
    assert merged and whole.length not in merged


def test_a_copy_without_what_cannot_be_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command that the stop names; rows that a cut keeps stay."""
    said = [("Why?", "So."), ("why " * 40, "So."), ("Why?", "so " * 40)]
    rows = [{"id": str(n), "prompt": prompt, "responses": [{"text": text}]} for n, (prompt, text) in enumerate(said)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data, out = f"rows,{tmp_path / 'data.jsonl'}", tmp_path / "out"
    with pytest.raises(
        BadInput, match=r"`pivot data doctor DATA --model MLLM --limit 40 --too-long cut --fix OUT` leaves out all such rows"
    ):
        [MLLM.tiny().encode(row, limit=40, too_long="cut") for row in recipe.read(data)]
    asked = ["data", "doctor", data, "--model", "base", "--limit", "40", "--workers", "1"]
    assert cli.call([*asked, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["counts"] == {"long-prompt": 1, "long-chosen": 1}
    assert cli.call([*asked, "--too-long", "cut", "--fix", str(out)]) == 1
    assert [row.id for row in recipe.read(f"rows,{out}")] == ["0", "2"]


# ---- scored


@pytest.mark.parametrize("label_mask", ["clean", "llava_next"])
def test_what_is_left_scores_as_in_the_whole_row_by_every_way(label_mask: LabelMask, odd: Mapping[str, Example]) -> None:
    """Attention is causal, so that an end which is gone changes nothing before it: shared, repeated, and end to end."""
    mllm = lively()
    examples = [replace(one, responses=(one.responses[0], LONG)) for one in odd.values() if one.id not in ("own image", "two images")]

    def scored(rows: Sequence[Row], backend: Any = "shared", packing: bool = False) -> list[list[Tensor]]:
        with torch.no_grad():
            return Scorer(mllm, backend, packing=packing)(send_to_device(collate(rows), mllm.model.device)).logps

    whole = [mllm.encode(example, label_mask) for example in examples]
    room = [len(row.trunks[0].span) + 6 for row in whole]
    rows = [mllm.encode(example, label_mask, limit, too_long="cut") for example, limit in zip(examples, room, strict=True)]
    assert all(row.cut for row in rows)
    before, singly = (
        scored(whole),
        [replace(row, trunks=(replace(row.trunks[0], responses=(0,)),), branches=row.branches[1:]) for row in rows],
    )
    for backend in ("shared", "repeat"):
        for row, found, wanted in zip(rows, scored(rows, backend), before, strict=True):
            learnt = sum(row.trunks[0].span.supervised)
            for branch, one, other in zip(row.branches, found, wanted, strict=True):
                assert len(one) == learnt + sum(branch.supervised)
                torch.testing.assert_close(one, other[: len(one)], rtol=1e-6, atol=1e-6)
    for found, wanted in zip(scored(singly, packing=True), before, strict=True):
        torch.testing.assert_close(found[0], wanted[1][: len(found[0])], rtol=1e-6, atol=1e-6)


# ---- trained


@pytest.fixture
def long(pairs: list[Example], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Example]:
    """Eight pairs, of which three have a response that is too long for `LIMIT`."""
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "cache"))
    return [
        replace(row, responses=(row.responses[0], replace(LONG, role="rejected"))) if n in (1, 2, 6) else row for n, row in enumerate(pairs)
    ]


LIMIT = 70


@pytest.mark.parametrize("objective", [SFT(), DPO()])
def test_training_counts_what_it_cuts(objective: Any, long: list[Example], shared_mllm: MLLM, tmp_path: Path) -> None:
    """Every time that such a row is read: in the log by update, in the ledger in all. SFT reads the chosen responses alone."""
    cut = sum(shared_mllm.encode(row, limit=LIMIT, too_long="cut").cut for row in objective.source(long))
    assert cut == (3 if isinstance(objective, Pairs) else 0)
    run(fresh(shared_mllm), objective, long, tmp_path / "run", epochs=2, limit=LIMIT, too_long="cut", validation=long)
    counts = curve(tmp_path / "run", metric="cut_rows")
    assert sum(counts[:2]) == sum(counts[2:]) == cut
    assert read_json(tmp_path / "run" / "ledger.json")["cut_rows"] == 2 * cut
    assert all(map(math.isfinite, curve(tmp_path / "run") + curve(tmp_path / "run", "eval")))


def test_a_reference_of_whole_rows_is_not_that_of_cut_ones(long: list[Example], shared_mllm: MLLM, tmp_path: Path) -> None:
    """Nor the other way round; the same limit on rows that it does not touch."""
    for name, too_long, cached in (("a", "refuse", False), ("b", "cut", False), ("c", "cut", True), ("d", "refuse", True)):
        run(fresh(shared_mllm), DPO(), long[3:6], tmp_path / name, limit=LIMIT, too_long=too_long)
        assert read_json(tmp_path / name / "ledger.json")["reference"]["cached"] is cached


def test_another_way_in_the_same_folder_is_refused(long: list[Example], shared_mllm: MLLM, tmp_path: Path) -> None:
    run(fresh(shared_mllm), SFT(), long[3:6], tmp_path / "run", limit=LIMIT)
    with pytest.raises(BadInput, match=r"another training \(changed: .*settings.too_long"):
        run(fresh(shared_mllm), SFT(), long[3:6], tmp_path / "run", limit=LIMIT, too_long="cut")


# ---- planned


def test_a_plan_counts_tokens_as_they_will_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also of rows whose pictures stay closed; and a run that refuses them would stop."""
    monkeypatch.setattr(rehearsal, "LOOKED_AT", 2)
    rates = dict.fromkeys(("tower", "projector", "llm"), 1e-4)
    told: dict[str, Any] = {
        "name": "small",
        "init": "tiny",
        "data": {"pairs": {"read": "world", "size": 12}},
        "arms": {"dpo": {"objective": {"name": "dpo"}, "rates": rates}},
    }
    mllm, rows = MLLM.tiny(), DPO().source(recipe.read("world,size=12"))
    limit = max(len(mllm.encode(row).trunks[0].span) for row in rows) + 1
    cut = [mllm.encode(row, limit=limit, too_long="cut") for row in rows]
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump({**told, "post": {"batch": 4, "limit": limit, "too_long": "cut"}}))
    (stage,) = (row for row in plan(recipe.load(str(file)), RunFolder(tmp_path / "run")).stages if row["stage"] == "post-dpo/seed-0")
    assert stage["text_tokens"] == sum(row.text_tokens for row in cut)
    assert stage["memory"]["longest"] == limit and stage["too_long"] == 0 and stage["cut"] == sum(row.cut for row in cut) / 12 > 0
    assert cli.call(["run", str(file), "--plan", f"out={tmp_path / 'run'}"]) == 0
    assert f"post-dpo/seed-0: {stage['cut']:.1%} of the rows are over the limit and will be cut" in capsys.readouterr().out
    assert cli.call(["run", str(file), "--plan", f"out={tmp_path / 'run'}", "post.limit=40"]) == 2
    assert "which leaves nothing to learn from" in capsys.readouterr().err
