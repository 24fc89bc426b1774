"""What each published format means: turns, pairs, pictures, mixtures, and the oddities that its rows are known for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from published import (
    array,
    asked,
    called,
    cambrian,
    drawn,
    encoded,
    hub,
    lines,
    llava,
    llava_dpo,
    mmpr,
    onevision,
    parquet,
    put,
    rlhf_v,
    trl,
    vlaa,
)
from published import captions as captioned
from published import rlaif as rlaif_v

from pivot import lookup, recipe
from pivot.pictures import picture
from pivot.pictures import read as content
from pivot.records import BadInput, Example
from pivot.seen import reader_of


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "cache"))


def read(format: str, path: Path, **options: Any) -> Sequence[Example]:
    return lookup.find("data", format)(str(path), **options)


def one(format: str, tmp_path: Path, row: dict[str, Any]) -> Example:
    return read(format, lines(tmp_path / "one.jsonl", [row]))[0]


# ---- LLaVA, Cambrian, OneVision


def test_llava_keeps_turns_ids_and_unknown_fields(tmp_path: Path) -> None:
    rows = read("llava", llava(tmp_path, odd=True))
    assert [row.id for row in rows] == ["000000000009", "gqa-2", "talk-3", "4", "starts-with-gpt", "system-6", "unanswered-7"]
    talk = rows[0].responses[0].text
    assert [turn["role"] for turn in talk] == ["assistant", "user", "assistant"] and talk[2]["content"] == "No, it is small."  # type: ignore[index]
    assert (
        rows[1].prompt == "Name the shape.\n<image>" and rows[1].meta == {"data_source": "gqa"} and picture(rows[1].images[0]) == drawn(2)
    )
    assert rows[2].images == () and "“naïve”" in str(rows[2].prompt)
    assert len(rows[3].images) == 2
    assert rows[4].prompt == "What is 2 + 2?" and rows[4].responses[0].text == "4."
    assert rows[5].prompt == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you?"})
    assert rows[6].responses[0].text == "Yes."  # what nobody answers is dropped


def test_a_gpt_that_speaks_between_system_and_human_is_dropped(tmp_path: Path) -> None:
    said = [{"from": "system", "value": "s"}, {"from": "gpt", "value": "hello"}, *asked("q", "a")]
    row = one("llava", tmp_path, {"conversations": said})
    assert [turn["role"] for turn in row.prompt] == ["system", "user"] and row.responses[0].text == "a"  # type: ignore[index]


def test_cambrian_is_llava_by_lines(tmp_path: Path) -> None:
    rows = read("llava", cambrian(tmp_path, odd=True))
    assert [len(row.images) for row in rows] == [1, 1, 0, 1, 0] and rows[3].meta == {"source": "vg"}
    assert rows.where(4).startswith("line 5 of ")  # type: ignore[attr-defined]


def test_parts_of_onevision_are_one_and_its_sub_sets_are_found_by_path(tmp_path: Path) -> None:
    whole = onevision(tmp_path, odd=True)
    rows = read("onevision", whole)
    assert [row.id for row in rows] == ["ai2d-21", "ai2d-22", "ai2d-23", "ai2d-24", "magpie-1", "magpie-2", "tqa-25", "tqa-26"]
    assert [row.meta["data_source"] for row in rows[3:5]] == ["ai2d", "magpie_pro"]
    assert content(rows[2].images[0]) == encoded(23) and rows[4].images == ()
    assert rows.tagged  # type: ignore[attr-defined]
    comma = whole / "tqa(cauldron,llava_format)"  # as they are called, a comma and all
    assert [row.id for row in recipe.read(str(comma))] == ["tqa-25", "tqa-26"]
    assert len(recipe.read(f"onevision,{comma},size=1")) == 1


@pytest.mark.parametrize(
    ("strategy", "numbers"),
    [
        ("all", range(10)),
        ("first:3", range(3)),
        ("end:3", range(7, 10)),
        ("first:25%", range(3)),  # rounded up
        ("end:1%", range(9, 10)),
        ("first:20%", range(2)),
        ("first:30", range(10)),
        ("random:4", None),
        ("random:35%", None),
    ],
)
def test_a_mixture_takes_of_each_file_what_it_says(strategy: str, numbers: range | None, tmp_path: Path) -> None:
    array(tmp_path / "a.json", [{"id": str(n), "conversations": asked("q", "a")} for n in range(10)])
    lines(tmp_path / "b.jsonl", [{"id": "b", "conversations": asked("q", "a")}])
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(f"datasets:\n  - json_path: /their/machine/a.json\n    sampling_strategy: '{strategy}'\n  - json_path: b.jsonl\n")
    ids = [row.id for row in read("llava", mixture, seed=1)]
    assert reader_of(mixture) == "llava" and ids.pop() == "b"
    if numbers is None:
        assert len(ids) == len(set(ids)) == 4 and ids == [row.id for row in read("llava", mixture, seed=1)][:-1]
        assert len({tuple(row.id for row in read("llava", mixture, seed=seed)) for seed in range(5)}) > 1
    else:
        assert ids == [str(number) for number in numbers]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("datasets: []", "it needs a list 'datasets'"),
        ("datasets: [{sampling_strategy: all}]", "entry 0 of datasets has no json_path"),
        ("datasets: [{json_path: a.json, sampling_strategy: half}]", "sampling_strategy 'half' is none of all, first:N"),
        ("datasets: [{json_path: gone.json}]", "data not found"),
    ],
)
def test_what_is_wrong_with_a_mixture_is_said(text: str, says: str, tmp_path: Path) -> None:
    array(tmp_path / "a.json", [{"conversations": asked("q", "a")}])
    (tmp_path / "mixture.yaml").write_text(text)
    with pytest.raises(BadInput, match=says):
        read("llava", tmp_path / "mixture.yaml")


# ---- pairs


def test_mmpr_follows_its_meta_file(tmp_path: Path) -> None:
    whole = mmpr(tmp_path, odd=True)
    rows = read("mmpr", whole)
    assert [row.meta["dataset"] for row in rows] == ["ai2d_cot_prefix"] * 3 + ["geo_correctness"] * 4 + ["odd"] * 4 + ["part"] * 2
    assert [row.prompt for row in rows[2:4]] == ["<image>\nWhat is it?"] * 2
    assert [said.role for said in rows[0].responses] == ["chosen", "rejected"] and called(51) in str(rows[0].responses[0].text)
    gif, text, several, placed = rows[7:11]
    assert [image.name for image in gif.images] == ["56.jpg"] and text.images == () and text.prompt == "What is 2 + 2?"  # type: ignore[union-attr]
    assert len(several.images) == 2 and several.prompt == "<image>\n<image>\nWhat is it?" and placed.prompt == "<image> or <image>?"
    assert rows.where(3) == f"line 1 of {whole / 'annotations/geo_correctness.jsonl'}" == rows.where(5)  # type: ignore[attr-defined]
    prompts = [row.prompt for row in rows]
    moved = whole.rename(tmp_path / "renamed")
    assert [row.prompt for row in read("mmpr", moved / "meta.json")] == prompts
    with pytest.raises(BadInput, match="is not there any more"):
        _ = rows[0]
    assert all(picture(image) for row in read("mmpr", moved) for image in row.images)
    alone = read("mmpr", moved / "annotations/geo_correctness.jsonl", images=str(moved / "images/geo"))
    assert len(alone) == 2 and picture(alone[0].images[0]).size == (32, 24)


def test_mmpr_says_what_is_not_there(tmp_path: Path) -> None:
    whole = mmpr(tmp_path)
    (whole / "annotations" / "geo_correctness.jsonl").unlink()
    with pytest.raises(BadInput, match=r"no rows found of geo_correctness \(.*renamed|no rows found of geo_correctness") as wrong:
        read("mmpr", whole)
    assert str(whole / "annotations/geo_correctness.jsonl") in str(wrong.value) and "left_out" not in str(wrong.value)
    for entry, says in (
        ({"annotation": "../a.jsonl"}, "annotation of 'a' is '../a.jsonl'; give a path within"),
        ({"annotation": "annotations/ai2d_cot_prefix.jsonl", "root": "../../etc"}, "root of 'a' is '../../etc'"),
        ({"annotation": "annotations/ai2d_cot_prefix.jsonl", "repeat_time": "2"}, "repeat_time of 'a' is '2'"),
        ({"annotation": "annotations/ai2d_cot_prefix.jsonl", "repeat_time": -1}, "repeat_time of 'a' is -1"),
        ({"annotation": "annotations/ai2d_cot_prefix.jsonl", "repeat_time": 0}, "names no rows"),
    ):
        (whole / "meta.json").write_text(json.dumps({"a": entry}))
        with pytest.raises(BadInput) as wrong:
            read("mmpr", whole)
        assert says in str(wrong.value)
    (whole / "meta.json").write_text('{"a": {"annot')
    with pytest.raises(BadInput, match="is no list of data sets"):
        read("mmpr", whole)


def test_a_row_of_mmpr_cannot_choose_its_folder(tmp_path: Path) -> None:
    """The folder of an entry's pictures is said by meta.json alone, whatever fields a row has."""
    whole = mmpr(tmp_path)
    put(tmp_path, "secret.png", 3)
    row = {"image": "secret.png", "question": "q", "chosen": "a", "rejected": "b", "root": str(tmp_path), "folder": str(tmp_path)}
    lines(whole / "annotations/ai2d_cot_prefix.jsonl", [row])
    assert read("mmpr", whole)[0].images == (whole / "images/ai2d/secret.png",)


def test_a_path_of_a_meta_file_begins_in_its_folder_though_it_begins_with_a_slash(tmp_path: Path) -> None:
    whole = mmpr(tmp_path / "in")
    secret = lines(tmp_path / "secret.jsonl", [{"question": "q", "chosen": "a", "rejected": "b"}])
    entry = {"root": "/MMPR-v1.2/images/ai2d", "annotation": "/annotations/ai2d_cot_prefix.jsonl"}
    (whole / "meta.json").write_text(json.dumps({"a": entry}))
    assert read("mmpr", whole)[0].images == (whole / "images/ai2d/abc/51.png",)
    for other in ({"annotation": str(secret)}, {"root": str(tmp_path)}):
        (whole / "meta.json").write_text(json.dumps({"a": {**entry, **other}}))
        try:
            found = [image for row in read("mmpr", whole) for image in row.images]
        except BadInput as refused:
            assert "no rows found of a" in str(refused)
        else:
            assert found and all(whole in Path(str(image)).parents for image in found)


def test_of_pictures_that_are_not_there_only_a_gif_becomes_a_jpg(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "b.gif"):
        put(tmp_path, name, 1)
    rows = [{"image": name, "question": "q", "chosen": "a", "rejected": "b"} for name in ("a.gif", "b.gif", "a.png", "c.gif")]
    read_rows = read("mmpr", lines(tmp_path / "rows.jsonl", rows))
    assert [image.name for row in read_rows for image in row.images] == ["a.jpg", "b.gif", "a.png", "c.gif"]  # type: ignore[union-attr]


@pytest.mark.parametrize(("repeat", "rows"), [(1, 3), (2, 6), (0.5, 1), (0.34, 1), (1.5, 4), (2.0, 6), (0.9999999, 3)])
def test_repeat_time_is_times_and_a_first_part(repeat: float, rows: int, tmp_path: Path) -> None:
    whole = mmpr(tmp_path)
    entry = {"root": "MMPR-v1.2/images/ai2d", "annotation": "MMPR-v1.2/annotations/ai2d_cot_prefix.jsonl", "repeat_time": repeat}
    (whole / "meta.json").write_text(json.dumps({"a": entry}))
    found = read("mmpr", whole)
    assert [str(row.responses[0].text) for row in found] == [f"It is a {called(51 + number % 3)}." for number in range(rows)]


def test_dpo_prompts_have_their_picture_in_front(tmp_path: Path) -> None:
    rows = read("llava_dpo", llava_dpo(tmp_path, odd=True))
    assert [row.prompt for row in rows[3:]] == [
        "<image>\nDescribe  it,\nplease.",
        "<image>\nDescribe it.",
        "<image>\nDescribe picture 62.",
        "Say no.",
    ]
    assert rows[0].answer == f"A {called(61)}." and rows[2].answer is None
    assert rows[5].responses[0].images is None and content(rows[5].responses[1].images[0]) == (tmp_path / "pictures/66.jpg").read_bytes()  # type: ignore[index]


def test_rlaif_and_rlhf_v_are_read_alike(tmp_path: Path) -> None:
    one, other = read("rlaif", rlaif_v(tmp_path / "a", odd=True)), read("rlaif", rlhf_v(tmp_path / "b", odd=True))
    assert one[3].prompt == "What stands in picture 74?" and one[3].meta["idx"] == 7 and one[3].meta["image_path"] == "74.jpg"
    assert len({row.id for row in one}) == 4  # though idx is the same everywhere
    assert other[1].responses[1].text == f"Two of {called(82)}." and other[1].meta["note"] == "“checked”" and "text" not in other[1].meta
    assert content(other[1].images[0]) == encoded(82)
    said = {"ds_name": "x", "question": "What?", "chosen": "A.", "rejected": "B.", "text": "a note, no JSON"}
    assert read("rlaif", array(tmp_path / "c.json", [said]))[0].meta == {"ds_name": "x", "text": "a note, no JSON"}


# ---- VLAA, TRL, captions


def test_vlaa_knows_how_an_answer_is_judged_by_where_its_picture_is_from(tmp_path: Path) -> None:
    rows = read("vlaa", vlaa(tmp_path, odd=True))
    kinds = ["number", "choice", "maths", "choice", "open", "open", "open", "box", "box", "number", None]
    assert [row.answer_kind for row in rows] == kinds and rows[9].answer == "3" and rows[10].meta["verifier_type"] == "open"
    assert rows[0].meta["caption"].endswith("on a plain ground.") and rows[0].meta["meta"]["caption_model_id"] == "gpt-4o"
    assert "<think>" in str(rows[0].responses[0].text) and rows[7].task == "coco"
    below = [{"id": 1, "image": "images/coco/a.png", "question": "q", "gt": [0.1, 0.2, 0.3, 0.4], "caption": "c", "answer": "other"}]
    (row,) = read("vlaa", array(tmp_path / "grpo.json", below))
    assert row.images == (tmp_path / "images/coco/a.png",) and row.answer == "[0.1, 0.2, 0.3, 0.4]" and row.responses == ()
    assert row.meta["answer"] == "other"
    golds = {'["A", true]': ["A", True], '{"x": null}': {"x": None}, "false": False}
    odd = [{"id": n, "image": "coco/a.png", "question": "q", "gt": gold, "caption": "c"} for n, gold in enumerate(golds.values())]
    assert [row.answer for row in read("vlaa", array(tmp_path / "odd.json", odd))] == list(golds), "as JSON says it, and not Python"


def test_trl_takes_text_messages_and_implicit_prompts(tmp_path: Path) -> None:
    rows = read("trl", trl(tmp_path, odd=True))
    parts, text, whole, again, plain_text, short, talk, wrong = rows[2:]
    assert parts.prompt == "<image>What is 93?" and parts.responses[1].text == f"A {called(94)}, I think." and len(parts.images) == 1
    assert text.prompt == "<image>\nWhat is it?" and len(text.images) == 1
    assert [turn["role"] for turn in whole.prompt] == ["system", "user", "assistant", "user"]  # type: ignore[index]
    assert [said.text for said in whole.responses] == ["Hi.", "Go."]
    assert again.prompt == "Hello." and [said.text for said in again.responses] == ["Hi.", "Go."] and again.meta == {"score": 3}
    assert plain_text.responses[0].text == short.responses[0].text == "Hi." and short.prompt == "Hello." and short.images == ()
    assert talk.prompt == ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Look: <image>"})
    assert [turn["role"] for turn in talk.responses[0].text] == ["assistant", "user", "assistant"]  # type: ignore[index]
    assert [said.role for said in wrong.responses] == ["rejected"]


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_an_implicit_prompt_ends_with_a_user_even_where_answers_begin_alike(tmp_path: Path) -> None:
    start = [turn("user", "a"), turn("assistant", "b"), turn("user", "c")]
    row = one(
        "trl", tmp_path, {"chosen": [*start, turn("assistant", "d")], "rejected": [*start[:2], turn("user", "x"), turn("assistant", "d")]}
    )
    assert row.prompt == "a" and [len(said.text) for said in row.responses] == [3, 3]
    same = one("trl", tmp_path, {"chosen": [*start, turn("assistant", "d")], "rejected": [*start, turn("assistant", "d")]})
    assert same.prompt == tuple(start) and [said.text for said in same.responses] == ["d", "d"]


def test_trl_is_read_from_parquet_too(tmp_path: Path) -> None:
    part = pa.struct({"type": pa.string(), "text": pa.string()})
    said = pa.list_(pa.struct({"role": pa.string(), "content": pa.list_(part)}))
    picture_of = pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    answers = {key: [{"role": "assistant", "content": [{"type": "text", "text": key}]}] for key in ("chosen", "rejected")}
    asked = [
        {"role": "user", "content": [{"type": "text", "text": "Is "}, {"type": "image", "text": None}, {"type": "image", "text": None}]}
    ]
    row = {"prompt": asked, **answers, "images": [hub(1), hub(2)]}
    file = parquet(tmp_path / "a.parquet", [row] * 3, {"prompt": said, "chosen": said, "rejected": said, "images": picture_of})
    assert reader_of(file) == "trl"
    (*_, found) = read("trl", file)
    assert found.prompt == "Is <image><image>" and [content(image) for image in found.images] == [encoded(1), encoded(2)]


def test_captions_take_the_first_of_several(tmp_path: Path) -> None:
    rows = read("captions", captioned(tmp_path, odd=True))
    assert rows[1].prompt == "" and rows[1].responses[0].text == f"A {called(142)}."
    assert rows[1].meta == {"url": "wiki/142", "captions": (f"A {called(142)}.", "A drawing.")}
    put(tmp_path, "a.png", 1)
    both = one("captions", tmp_path, {"image": "a.png", "caption": "short", "text": "long"})
    assert both.responses[0].text == "short" and both.meta == {"text": "long"}


def test_rows_of_messages_with_a_rejected_response_are_pairs(tmp_path: Path) -> None:
    file, turns = tmp_path / "rows.jsonl", [("user", "<image>is it red?"), ("assistant", "yes"), ("user", "sure?"), ("assistant", "quite")]
    row = {"messages": [{"role": role, "content": said} for role, said in turns], "rejected_response": "no", "images": ["a.jpg"]}
    file.write_text(json.dumps(row) + "\n" + json.dumps({**row, "messages": row["messages"][:1]}))
    found = recipe.read(str(file))
    assert [(said.role, said.text) for said in found[0].responses] == [("chosen", "quite"), ("rejected", "no")]
    assert [turn["role"] for turn in found[0].prompt] == ["user", "assistant", "user"]  # type: ignore[index]
    with pytest.raises(BadInput, match=r"line 2 of .*'rejected_response' stands against the last message"):
        found[1]
