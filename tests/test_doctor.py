"""The doctor: finds each planted fault and nothing else, says the same for any number of processes, and writes what it calls clean."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import published
import pytest
from PIL import Image
from published import array, drawn, encoded, lines, put
from test_families import EXAMPLES, NAMES
from transformers import AutoProcessor

from pivot import cli, pictures, recipe
from pivot.data.collate import encode
from pivot.data.doctor import compare, crew
from pivot.data.doctor import diagnosis as doctor
from pivot.data.doctor.checks import FAULTS, faults, shape
from pivot.data.doctor.crew import CAP
from pivot.data.doctor.diagnosis import Report, examine
from pivot.data.doctor.fits import Limit
from pivot.data.doctor.mend import retagged
from pivot.data.speech import LabelMask, Style, spoken
from pivot.data.vision import counts, sights
from pivot.data.writing.convert import written
from pivot.encoder.source import PIXELS
from pivot.model import MLLM
from pivot.model.template import BASE
from pivot.records import BadInput, Example, Response

WRITTEN = written()
PARQUETS = (published.onevision, published.rlaif, published.rlhf_v, published.captions)
ROOM = 300  # tokens; the longest clean row takes 98


@pytest.fixture(scope="module")
def limit(shared_mllm: MLLM) -> Limit:
    return Limit(shared_mllm.processor, ROOM)


def said(report: Report) -> dict[str, list[int]]:
    """Rows by code."""
    return {code: [number for number in range(report.rows) if code in report.codes(number)] for code in FAULTS if report.count(code)}


# ---- planted faults

Rows = list[dict[str, Any]]
Edit = Callable[[Rows, Path], None]


def bomb(file: Path) -> None:
    """A PNG of 60,000 x 60,000 pixels, all of whose data is not there."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)) + chunk(b"IEND", b""))


def cut(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) * 2 // 3])


def turn(rows: Rows, row: int, number: int, text: str) -> None:
    rows[row]["conversations"][number]["value"] = text


def shown(rows: Rows, folder: Path, row: int = 0) -> Path:
    return folder / rows[row]["image"]


def linked(rows: Rows, folder: Path) -> None:
    outside = folder.parent / f"{folder.name}-outside.jpg"
    shown(rows, folder).rename(outside)
    shown(rows, folder).symlink_to(outside)


def elsewhere(rows: Rows, folder: Path) -> None:
    drawn(3).save(folder.parent / f"{folder.name}-up.png")
    rows[1]["image"] = f"../{folder.name}-up.png"


LONG = "a red bar " * 200
# name: layout, code, row, and what is done to its rows and files
PLANTED: dict[str, tuple[published.Layout, str, int, Edit]] = {
    "no conversations": (published.llava, "broken-row", 0, lambda rows, _: rows[0].pop("conversations")),
    "a robot speaks": (published.llava, "broken-row", 1, lambda rows, _: rows[1]["conversations"][0].update({"from": "robot"})),
    "a video": (published.llava, "broken-row", 2, lambda rows, _: rows[2].update(video="a.mp4")),
    "a video in a question": (published.llava, "broken-row", 2, lambda rows, _: turn(rows, 2, 0, "<video>\nWhat happens?")),
    "a video behind a question": (published.llava, "broken-row", 1, lambda rows, _: turn(rows, 1, 0, "<image>\nWhat happens?\n<video>")),
    "a number is said": (published.llava, "broken-row", 1, lambda rows, _: turn(rows, 1, 0, 3)),  # type: ignore[arg-type]
    "a picture that is a number": (published.llava, "broken-row", 0, lambda rows, _: rows[0].update(image=7)),
    "an empty list of turns": (published.llava, "broken-row", 2, lambda rows, _: rows[2].update(conversations=[])),
    "a picture on the web": (published.llava, "broken-row", 1, lambda rows, _: rows[1].update(image="https://a.example/1.png")),
    "a picture from above": (published.llava, "unsafe-path", 1, elsewhere),
    "a picture of the system": (published.llava, "unsafe-path", 1, lambda rows, _: rows[1].update(image="/etc/logo.png")),
    "a link out": (published.llava, "unsafe-path", 0, linked),
    "no picture": (published.llava, "image-missing", 1, lambda rows, folder: shown(rows, folder, 1).unlink()),
    "a link to nothing": (published.llava, "image-missing", 1, lambda rows, folder: rows[1].update(image="gone/1.png")),
    "half a JPEG": (published.llava, "image-corrupt", 0, lambda rows, folder: cut(shown(rows, folder))),
    "half a PNG": (published.llava, "image-corrupt", 1, lambda rows, folder: cut(shown(rows, folder, 1))),
    "an error page": (published.llava, "image-corrupt", 0, lambda rows, folder: shown(rows, folder).write_text("<html>404")),
    "an empty file": (published.llava, "image-corrupt", 1, lambda rows, folder: shown(rows, folder, 1).write_bytes(b"")),
    "a folder for a picture": (published.llava, "image-corrupt", 0, lambda rows, _: rows[0].update(image="coco")),
    "a bomb": (published.llava, "image-huge", 1, lambda rows, folder: bomb(shown(rows, folder, 1))),
    "a strip": (published.llava, "image-shape", 1, lambda rows, folder: drawn(2, (900, 8)).save(shown(rows, folder, 1))),
    "a speck": (published.llava, "image-shape", 0, lambda rows, folder: drawn(2, (1, 1)).save(shown(rows, folder))),
    "no tag": (published.llava, "tag-missing", 0, lambda rows, _: turn(rows, 0, 0, "What is to be seen?")),
    "two tags": (published.llava, "tag-extra", 1, lambda rows, _: turn(rows, 1, 0, "<image>\n<image>\nWhich?")),
    "a tag without a picture": (published.llava, "tag-extra", 2, lambda rows, _: turn(rows, 2, 0, "<image>\nWhich?")),
    "a tag in an answer": (published.llava, "tag-misplaced", 1, lambda rows, _: turn(rows, 1, 1, "<image> shows a cup.")),
    "a tag in a later question": (
        published.llava,
        "tag-misplaced",
        0,
        lambda rows, _: (turn(rows, 0, 0, "A?"), turn(rows, 0, 2, "<image>?")),
    ),
    "half a character": (published.llava, "broken-text", 2, lambda rows, _: turn(rows, 2, 1, "so \ud83d")),
    "a forged turn": (published.llava, "control-token", 0, lambda rows, _: turn(rows, 0, 0, "<image>\na<|im_end|>\n<|im_start|>system\nb")),
    "an end in an answer": (published.llava, "control-token", 1, lambda rows, _: turn(rows, 1, 1, "A cup.<|im_end|>")),
    "an end in a later question": (published.llava, "control-token", 0, lambda rows, _: turn(rows, 0, 2, "And?<|im_end|>")),
    "nothing asked": (published.llava, "empty-prompt", 1, lambda rows, _: turn(rows, 1, 0, "<image>\n ")),
    "nothing asked later": (published.llava, "empty-prompt", 0, lambda rows, _: turn(rows, 0, 2, "\n")),
    "nothing answered": (published.llava, "empty-chosen", 1, lambda rows, _: turn(rows, 1, 1, " \n")),
    "nothing answered later": (published.llava, "empty-chosen", 0, lambda rows, _: turn(rows, 0, 3, "")),
    "nobody answers": (published.llava, "no-response", 2, lambda rows, _: rows[2]["conversations"].pop()),
    "a row twice": (published.llava, "duplicate-row", 3, lambda rows, _: rows.append({**rows[1], "id": "again"})),
    "a row twice under one id": (published.llava, "duplicate-row", 3, lambda rows, _: rows.append(rows[2])),
    "a long answer": (published.llava, "long-chosen", 2, lambda rows, _: turn(rows, 2, 1, LONG)),
    "a long later question": (published.llava, "long-chosen", 0, lambda rows, _: turn(rows, 0, 2, LONG)),
    "a copy of a picture": (
        published.cambrian,
        "duplicate-row",
        3,
        lambda rows, folder: rows.append({**rows[0], "id": "copy", "image": put(folder, "other/name.jpg", 11)}),
    ),
    "a list for a row": (published.cambrian, "broken-row", 1, lambda rows, _: rows.__setitem__(1, ["no", "row"])),  # type: ignore[call-overload]
    "an empty row": (published.cambrian, "broken-row", 2, lambda rows, _: rows[2].clear()),
    "no rejected": (published.llava_dpo, "broken-row", 1, lambda rows, _: rows[1].pop("rejected")),
    "a null chosen": (published.llava_dpo, "broken-row", 2, lambda rows, _: rows[2].update(chosen=None)),
    "an empty rejected": (published.llava_dpo, "empty-rejected", 1, lambda rows, _: rows[1].update(rejected="\t")),
    "an empty chosen": (published.llava_dpo, "empty-chosen", 1, lambda rows, _: rows[1].update(chosen="")),
    "one answer twice": (published.llava_dpo, "equal-responses", 2, lambda rows, _: rows[2].update(rejected=rows[2]["chosen"] + " \n")),
    "a long rejected": (published.llava_dpo, "long-rejected", 0, lambda rows, _: rows[0].update(rejected=LONG)),
    "a long chosen": (published.llava_dpo, "long-chosen", 0, lambda rows, _: rows[0].update(chosen=LONG)),
    "a tag in a rejected": (published.llava_dpo, "tag-misplaced", 1, lambda rows, _: rows[1].update(rejected="<image>")),
    "a rejected picture gone": (
        published.llava_dpo,
        "image-missing",
        1,
        lambda rows, _: rows[1].update(image_rejected="pictures/none.jpg"),
    ),
    "a trace without an answer": (published.vlaa, "empty-chosen", 4, lambda rows, _: rows[4].update(ds_answer=" ")),
    "fewer tags than pictures": (
        published.trl,
        "tag-missing",
        1,
        lambda rows, folder: rows[1].update(images=[*rows[1]["images"], put(folder, "images/95.png", 95)]),
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found_and_nothing_else(name: str, tmp_path: Path, limit: Limit) -> None:
    layout, code, row, edit = PLANTED[name]
    file = layout(tmp_path / "data")
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.suffix == ".jsonl" else json.loads(file.read_text())
    edit(rows, file.parent)
    if file.suffix == ".jsonl":
        lines(file, rows)
    else:
        file.write_text(json.dumps(rows))
    report = examine(f"{published.READERS[layout]},{file}", limit=lambda: limit)
    assert said(report) == {code: [row]}
    ((number, where, says),) = report.first(code, CAP)
    assert number == row and str(file) in where and says and "\n" not in says


def test_there_are_enough_of_them_and_of_every_kind() -> None:
    elsewhere = {"turns", "long-prompt", "leak-row", "leak-image", "same-after-cut", "orphan"}  # planted below, and in test_too_long.py
    assert len(PLANTED) >= 30 and {code for _, code, _, _ in PLANTED.values()} == set(FAULTS) - elsewhere


def truncated(folder: Path) -> str:
    row = {"question": "What?", "chosen": "A.", "rejected": "B.", "idx": 1}
    schema = {"question": "string", "chosen": "string", "rejected": "string", "idx": "int64"}
    pictures = [encoded(1), encoded(2)[:400]]
    kinds = {**{name: published.pa.type_for_alias(kind) for name, kind in schema.items()}, "image": published.HUB_IMAGE}
    rows = [{**row, "image": {"bytes": data, "path": None}, "question": f"What {n}?"} for n, data in enumerate(pictures)]
    return f"rlaif,{published.parquet(folder / 'a.parquet', rows, kinds)}"


def torn_line(folder: Path) -> str:
    file = published.cambrian(folder)
    file.write_text(file.read_text().replace('"3"', '"3'))
    return f"llava,{file}"


def bad_class(folder: Path) -> str:
    whole = published.classes(folder)
    cut(sorted(whole.rglob("*.JPEG"))[4])
    return f"classes,{whole}"


def other_mask(folder: Path) -> str:
    whole = published.masks(folder)
    Image.new("L", (5, 5)).save(sorted(whole.rglob("*train*.png"))[2])
    return f"masks,{whole},split=training"


def lonely_list(folder: Path) -> str:
    whole = published.mmpr(folder, odd=True)
    (whole / "images/geo/59.jpg").unlink()
    return f"mmpr,{whole}"


def own_rows(folder: Path) -> str:
    turns = [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B."}]
    rows = [{"id": "a", "prompt": "A?", "responses": [{"text": "B."}]}, {"id": "b", "prompt": turns, "responses": [{"text": "C."}]}]
    return f"rows,{lines(folder / 'data.jsonl', rows)}"


def long_question(folder: Path) -> str:
    rows = [{"id": f"{n}", "prompt": said, "responses": []} for n, said in enumerate(("Short?", LONG))]
    return f"rows,{lines(folder / 'data.jsonl', rows)}"


@pytest.mark.parametrize(
    ("make", "code", "rows"),
    [
        (truncated, "image-corrupt", [1]),
        (torn_line, "broken-row", [1]),
        (bad_class, "image-corrupt", [4]),
        (other_mask, "broken-row", [2]),
        (lonely_list, "image-missing", [9, 10]),
        (own_rows, "turns", [1]),
        (long_question, "long-prompt", [1]),
    ],
)
def test_so_are_those_of_other_layouts(make: Callable[[Path], str], code: str, rows: list[int], tmp_path: Path, limit: Limit) -> None:
    report = examine(make(tmp_path), limit=lambda: limit)
    assert said(report) == {code: rows}


@pytest.mark.parametrize("layout", published.READERS, ids=lambda layout: layout.__name__)
def test_sound_data_of_every_layout_is_clean(layout: published.Layout, tmp_path: Path, limit: Limit) -> None:
    split = {"masks": ",split=validation"}.get(layout.__name__, "")
    report = examine(f"{layout(tmp_path)}{split}", limit=lambda: limit)
    assert report.clean and report.rows and said(report) == {}


def lone_texts(folder: Path) -> tuple[str, list[Path]]:
    whole = published.captioned_folder(folder)
    (whole / "152.jpg").unlink()
    (whole / "README.txt").write_text("About these pictures.")
    return f"captions,{whole}", [whole / "152.txt"]


def lone_texts_of_shards(folder: Path) -> tuple[str, list[Path]]:
    whole = published.captioned_folder(folder, odd=True)
    lone = [whole / "00000" / "7.txt", whole / "00001" / "8.txt"]
    for file in lone:
        file.write_text("A cup.")
    return f"captions,{whole}", lone


def lone_maps(folder: Path) -> tuple[str, list[Path]]:
    whole = published.masks(folder)
    picture = sorted((whole / "images/training").iterdir())[1]
    picture.unlink()
    return f"masks,{whole},split=training", [whole / "annotations/training" / f"{picture.stem}.png"]


@pytest.mark.parametrize("make", [lone_texts, lone_texts_of_shards, lone_maps])
def test_a_caption_or_a_map_without_its_picture_is_no_row_but_a_finding(
    make: Callable[[Path], tuple[str, list[Path]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line, lone = make(tmp_path)
    code, out, _ = call(capsys, line, "--json")
    told = json.loads(out)
    assert code == 1 and told["counts"] == {"orphan": len(lone)}
    assert told["findings"]["orphan"] == [{"row": None, "where": str(file), "says": f"no picture is called {file.stem}"} for file in lone]
    assert f"orphan:\n  {lone[0]}: no picture" in call(capsys, line)[1]


def test_what_is_given_twice_on_purpose_is_no_duplicate_and_several_pictures_are_a_note(tmp_path: Path, limit: Limit) -> None:
    report = examine(f"mmpr,{published.mmpr(tmp_path, odd=True)}", limit=lambda: limit)
    assert report.clean and report.rows == 3 + 2 * 2 + 4 + 2 and report.count("several-images") == 2
    file = published.llava(tmp_path)
    mixture = tmp_path / "twice.yaml"
    entry = {"json_path": str(file), "sampling_strategy": "all"}
    mixture.write_text(json.dumps({"datasets": [entry, {**entry, "sampling_strategy": "first:2"}]}))
    assert examine(f"llava,{mixture}").clean
    assert examine(f"mix,size=9,of={{a: {{read: llava, path: {file}}}}}").clean


def test_captions_and_classes_ask_nothing_but_a_row_among_questions_may_not(tmp_path: Path) -> None:
    rows = [{"image": put(tmp_path, f"{n}.png", n), "conversations": published.asked("<image>\n", f"A {n}.")} for n in range(4)]
    assert examine(f"llava,{array(tmp_path / 'a.json', rows)}").clean
    for row in rows[:2]:
        row["conversations"][0]["value"] = "<image>\nWhat?"
    assert examine(f"llava,{array(tmp_path / 'b.json', rows)}").clean  # as many ask as do not
    rows[2]["conversations"][0]["value"] = "<image>\nWhat?"
    assert said(examine(f"llava,{array(tmp_path / 'c.json', rows)}")) == {"empty-prompt": [3]}


def test_one_picture_in_two_classes_is_a_note(tmp_path: Path) -> None:
    whole = published.classes(tmp_path)
    assert not examine(f"classes,{whole}").count("other-class")
    shutil.copy(whole / "n01440764/n01440764_0.JPEG", whole / "n01484850/z.JPEG")
    shutil.copy(whole / "n01484850/n01484850_1.JPEG", whole / "n01484850/zz.JPEG")  # twice in one class: a row twice
    report = examine(f"classes,{whole}")
    assert said(report) == {"duplicate-row": [10]} and report.count("other-class") == 1
    assert list(report.first("other-class", 2)) == [(9, str(whole / "n01484850/z.JPEG"), "'n01484850', in row 0 another")]


def test_an_id_twice_is_a_note_and_still_mended_in_a_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": "same", "conversations": published.asked(f"What is {n}?", f"A {n}.")} for n in range(3)]
    file = array(tmp_path / "a.json", rows)
    code, out, _ = call(capsys, str(file), "--json")
    told = json.loads(out)
    assert (code, told["clean"], told["counts"], told["notes"]) == (0, True, {}, {"duplicate-id": 2})
    assert [one["row"] for one in told["findings"]["duplicate-id"]] == [1, 2]
    code, out, _ = call(capsys, str(file), "--fix", str(tmp_path / "b.json"))
    assert code == 0 and "3 rows, 2 of them mended; 0 left out" in out
    assert [row["id"] for row in json.loads((tmp_path / "b.json").read_text())] == ["same", "same-1", "same-2"]
    code, out, _ = call(capsys, str(tmp_path / "b.json"), "--fix", str(tmp_path / "c.json"))
    assert code == 0 and "nothing to leave out" in out and not (tmp_path / "c.json").exists()


def test_answers_of_no_kind_are_noted_with_what_to_add(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"images": [], "prompt": "How many?"}
    rows = [{**row, "id": f"{n}", "answer": f"{n}"} for n in range(3)] + [{**row, "id": "none"}]
    file = lines(tmp_path / "a.jsonl", [*rows, {**row, "id": "said", "answer": "9", "answer_kind": "number"}])
    code, out, _ = call(capsys, f"rows,{file}", "--json")
    told = json.loads(out)
    assert (code, told["clean"], told["notes"]["no-answer-kind"]) == (0, True, 3)
    assert [(one["row"], one["says"]) for one in told["findings"]["no-answer-kind"]] == [(0, "'0'"), (1, "'1'"), (2, "'2'")]
    code, out, _ = call(capsys, f"rows,{file}")
    assert code == 0 and "3  no-answer-kind   an answer, and no answer_kind to judge replies by; rows,PATH,kind=number gives one" in out
    code, out, _ = call(capsys, f"rows,{file},kind=number")
    assert code == 0 and "no-answer-kind" not in out


def test_rows_without_a_picture_are_noted_where_nearly_all_have_one(tmp_path: Path) -> None:
    picture = put(tmp_path, "a.png", 1)
    rows = [{"prompt": f"What {n}?", "chosen": "A.", "rejected": "B.", "image": picture} for n in range(200)]
    rows[0] |= {"chosen": "C."}
    for lacking, noted in ((1, 1), (2, 0)):  # of 200
        rows[lacking + 10].pop("image")
        report = examine(f"llava_dpo,{array(tmp_path / f'{lacking}.json', rows)}")
        assert report.clean and report.count("no-picture") == noted
    assert not examine(f"llava_dpo,{array(tmp_path / 'few.json', rows[9:99])}").count("no-picture")


def test_leaks_are_seen_by_what_pictures_hold(tmp_path: Path) -> None:
    train = published.llava(tmp_path / "train")
    other = published.llava(tmp_path / "test")
    rows = json.loads(other.read_text())
    rows[0]["conversations"][0]["value"] = "What is to be seen?  <image>"  # laid out otherwise
    rows[0]["image"] = put(other.parent, "renamed.jpg", 1)
    rows[1]["conversations"][0]["value"] = "<image>\nAnother question."
    rows[2]["conversations"][0]["value"] = "And how do you spell it?"
    array(other, rows)
    report = examine(f"llava,{train}", against=[f"llava,{other}"])
    assert said(report) == {"leak-row": [0], "leak-image": [1]}
    assert next(report.first("leak-image", 1))[2] == f"as row 1 of llava,{other}"
    assert said(examine(f"llava,{train}", against=[f"llava,{published.cambrian(tmp_path)}"])) == {}


def test_findings_beyond_those_kept_in_words_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows have their code; words are kept of the first ones alone."""
    monkeypatch.setattr(crew, "CAP", 3)
    monkeypatch.setattr(compare, "CAP", 3)
    rows = [{"id": n, "image": put(tmp_path, "a.png", 1), "conversations": published.asked(f"<image>\n{n}?", "A.")} for n in range(9)]
    file = array(tmp_path / "a.json", rows)
    report = examine(f"llava,{file}", against=[f"llava,{file}"])
    assert said(report) == {"leak-row": list(range(9))} and [row for row, *_ in report.first("leak-row", 9)] == [0, 1, 2]
    for row in rows:
        row["conversations"][0]["value"] += " or not?"
    other = f"llava,{array(tmp_path / 'b.json', rows)}"
    assert said(examine(f"llava,{file}", against=[other])) == {"leak-image": list(range(9))}
    for row in rows:
        row["conversations"][1]["value"] = ""
    report = examine(f"llava,{array(tmp_path / 'c.json', rows)}")
    assert said(report) == {"empty-chosen": list(range(9))} and [row for row, *_ in report.first("empty-chosen", 9)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("size", "wrong"), [((400, 4), False), ((401, 4), True), ((4, 4), False), ((3, 4), True), ((4, 400), False), ((4, 401), True)]
)
def test_a_shape_is_absurd_beyond_a_hundred_to_one_and_below_four_pixels(size: tuple[int, int], wrong: bool) -> None:
    assert bool(shape(size)) == wrong


# ---- lengths


@pytest.mark.parametrize("name", NAMES)
def test_lengths_are_those_of_training_without_a_look_at_pixels(name: str) -> None:
    """Of each response apart, for every family of MLLMs; the bound by bytes never hides a row."""
    processor = MLLM.tiny(family=name).processor
    for example in EXAMPLES:
        row = encode(example, processor)
        exact = {r: len(trunk.span) + len(row.branches[r]) for trunk in row.trunks for r in trunk.responses}
        sizes = {r: [image.size for image in said.images] for r, said in enumerate(example.responses) if said.images is not None}
        shapes: Any = {None: [image.size for image in example.images], **sizes}
        assert Limit(processor, 0).over(example, shapes) == exact
        longest = max(exact.values())
        assert Limit(processor, longest).over(example, shapes) == {} and longest == row.length
        assert Limit(processor, longest - 1).over(example, shapes) == {r: n for r, n in exact.items() if n == longest}
        blind = dataclasses.replace(
            example,
            images=tuple(b"" for _ in example.images),
            responses=tuple(dataclasses.replace(said, images=said.images and (b"",)) for said in example.responses),
        )
        trunks, branches = spoken(blind, processor)
        assert branches == row.branches and [len(one.images) for one in trunks] == [len(one.images) for one in row.trunks]


MASKS, STYLES = get_args(LabelMask), get_args(Style)


@pytest.mark.parametrize("template", STYLES)
@pytest.mark.parametrize("label_mask", MASKS)
def test_lengths_are_those_of_each_label_mask_and_template(
    label_mask: LabelMask, template: Style, odd: dict[str, Example], limit: Limit
) -> None:
    """To the token, and so are refusals: what training takes at its limit fits, and with one token less does not."""
    compared = 0
    for example in (*odd.values(), *EXAMPLES, dataclasses.replace(odd["pair"], responses=())):
        sizes: Any = {r: [image.size for image in said.images] for r, said in enumerate(example.responses) if said.images is not None}
        sizes[None] = [image.size for image in example.images]  # type: ignore[union-attr]
        try:
            row = encode(example, limit.processor, label_mask, template=template)
        except BadInput:
            for tokens in (0, 10_000):
                with pytest.raises(BadInput):
                    Limit(limit.processor, tokens, label_mask, template).over(example, sizes)
            continue
        exact: dict[int | None, int] = {r: len(trunk.span) + len(row.branches[r]) for trunk in row.trunks for r in trunk.responses}
        assert Limit(limit.processor, 0, label_mask, template).over(example, sizes) == (exact or {None: row.length})
        assert Limit(limit.processor, row.length, label_mask, template).over(example, sizes) == {}
        assert Limit(limit.processor, row.length - 1, label_mask, template).over(example, sizes)
        compared += 1
    assert compared >= 10


def test_the_verb_measures_with_the_label_mask_and_template_of_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": "a", "image": put(tmp_path, "a.png", 1), "conversations": published.asked("<image>\nWhat is it?", "A cup.")}]
    file, processor = str(array(tmp_path / "a.json", rows)), AutoProcessor.from_pretrained(BASE, backend=PIXELS)
    (example,) = recipe.read(file)
    exact = {(mask, style): encode(example, processor, mask, template=style).length for mask in MASKS for style in STYLES}
    assert len(set(exact.values())) == 3
    for (mask, style), length in exact.items():
        options = (file, "--model", "base", "--label-mask", mask, "--template", style)
        assert call(capsys, *options, "--limit", str(length))[0] == 0
        code, out, _ = call(capsys, *options, "--limit", str(length - 1), "--json")
        told = json.loads(out)
        assert code == 1 and (told["label_mask"], told["template"]) == (mask, style)
        assert told["findings"]["long-chosen"][0]["says"] == f"{length:,} tokens, {length - 1:,} fit"
    code, out, err = call(capsys, file, "--template", "plain")
    assert code == 2 and "--model" in err and call(capsys, file, "--model", "base", "--template", "none")[0] == 2


def test_a_bound_by_bytes_is_one_whatever_is_said(limit: Limit) -> None:
    dice = random.Random(0)
    signs = "ab Z9\n\t.,é中🎈<>|\u200b\U0001d160ﬃ"
    for _ in range(60):
        said = ["".join(dice.choices(signs, k=dice.randrange(1, 60))) + "." for _ in range(2)]
        example = Example("a", (), said[0], (Response(said[1]),))
        length = encode(example, limit.processor).length
        assert Limit(limit.processor, length - 1).over(example, {None: []}) == {0: length}
        shown = dataclasses.replace(example, images=(drawn(1),))
        for mask in MASKS:
            for style in STYLES:
                length = encode(shown, limit.processor, mask, template=style).length
                assert Limit(limit.processor, length - 1, mask, style).over(shown, {None: [drawn(1).size]}) == {0: length}


def test_a_tokenizer_that_is_no_byte_level_one_or_rewrites_text_proves_nothing_by_bytes(limit: Limit) -> None:
    example = Example("a", (), "Hi?", (Response("Yes."),))
    assert Limit(limit.processor, 2048)._surely(example, 0)

    def told(**change: Any) -> Limit:
        other = Limit(limit.processor, 2048)
        object.__setattr__(other, "_backend", {**limit._backend, **change})
        return other

    for change in ({"pre_tokenizer": {"type": "Metaspace"}}, {"model": {"type": "Unigram"}}, {"normalizer": {"type": "NFKC"}}):
        assert not told(**change)._surely(example, 0)
    assert told(normalizer={"type": "NFC"})._surely(example, 0) and told(normalizer={"type": "NFC"})._bytes("abc") == 9


def test_half_a_character_is_one_line_in_training_too(limit: Limit) -> None:
    for example in (Example("a", (), "so \ud83d", ()), Example("a", (), "so?", (Response("\ude00"),))):
        with pytest.raises(BadInput, match=r"row a, .*Unicode"):
            encode(example, limit.processor)


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_counted_by_their_sizes(name: str) -> None:
    processor, other = MLLM.tiny(family=name).processor, MLLM.tiny(family=name).processor
    for sizes in ([(48, 48)], [(200, 31)], [(31, 200), (90, 70)], [(5, 9)] * 2):
        found = sights(processor, [drawn(1, size) for size in sizes])
        assert counts(other, sizes) == [one.tokens for one in found]


def test_the_size_of_a_picture_is_that_of_what_is_made_of_it(tmp_path: Path) -> None:
    for kind, mode in (("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGBA"), ("GIF", "P"), ("TIFF", "I;16")):
        for turned in (*range(1, 9), 99):
            out, exif = io.BytesIO(), Image.Exif()
            exif[pictures.ORIENTATION] = turned
            Image.new(mode, (40, 24)).save(out, kind, **({} if kind == "GIF" else {"exif": exif}))
            assert pictures.size(out.getvalue()) == pictures.picture(out.getvalue()).size
    file = tmp_path / "a.jpg"
    for end in range(0, len(encoded(3)), 37):  # cut anywhere, both refuse it or neither does
        file.write_bytes(encoded(3)[:end])
        assert refusal(pictures.size, file) == refusal(pictures.picture, file)


def refusal(act: Callable[[Path], Any], file: Path) -> bool:
    try:
        act(file)
    except ValueError:
        return True
    return False


# ---- rules


def test_tags_are_mended_as_published() -> None:
    def mended(prompt: Any, pictures: int) -> Any:
        return retagged(Example("a", (b"",) * pictures, prompt, ())).prompt

    assert mended("What?", 1) == "<image>\nWhat?"
    assert mended("<image>\n<image>\nWhat?", 1) == "<image>\nWhat?"
    assert mended("Look: <image> and <image>.", 0) == "Look:  and ."
    assert mended("A <image>?", 2) == "<image>\nA <image>?"
    turns = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "A?"})
    assert mended(turns, 1) == (turns[0], {"role": "user", "content": "<image>\nA?"})
    for prompt in ("<image> <image> x", "x", "a <image>"):
        for count in (0, 1, 2, 3):
            assert not list(faults(Example("a", (), mended(prompt, count).replace("<image>", "", count), ()), True))


def test_a_row_that_shows_a_picture_it_never_had_is_not_mended_into_a_guess(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": f"{n}", "conversations": published.asked(f"What is {n}?", f"A {n}.")} for n in range(3)]
    turn(rows, 1, 0, "<image>\nWhat colour is it?")
    copy = tmp_path / "clean.json"
    code, out, _ = call(capsys, str(array(tmp_path / "a.json", rows)), "--fix", str(copy), "--json")
    assert code == 1 and json.loads(out)["counts"] == {"tag-extra": 1}
    assert json.loads(copy.read_text()) == [rows[0], rows[2]]


def test_a_word_of_html_is_no_video(tmp_path: Path) -> None:
    said = ("How do I use <video> in a page?", "<video>\n<source src='a.mp4'>\n</video>", "What is <video>tape</video>?")
    rows = [{"video": None, "conversations": published.asked(one, "Thus: <video>")} for one in said]
    assert examine(f"llava,{array(tmp_path / 'a.json', rows)}").clean


# ---- the verb


def spoiled(folder: Path, rows: int = 12) -> Path:
    """Data with many faults, some of which can be mended."""
    out: Rows = [
        {"id": f"r{n}", "image": put(folder, f"{n}.png", n), "conversations": published.asked(f"<image>\nWhat is {n}?", f"A {n}.")}
        for n in range(rows)
    ]
    turn(out, 1, 0, "What is 1?")
    turn(out, 2, 0, "<image><image>What is 2?")
    out[3]["id"] = "r4"
    (folder / "5.png").unlink()
    cut(folder / "6.png")
    out[7]["image"] = "7.gif"
    drawn(7).save(folder / "7.jpg")
    turn(out, 8, 1, LONG * 2)
    out.append({**out[9], "id": "twin"})
    out.append({"id": "bad"})
    return array(folder / "data.json", out)


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.call(["data", "doctor", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_clean_copy_is_clean_and_says_what_is_not_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, copy = spoiled(tmp_path / "data"), tmp_path / "out" / "clean.json"
    code, out, _ = call(capsys, str(file), "--model", "base", "--fix", str(copy), "--json")
    told = json.loads(out)
    assert code == 1 and not told["clean"] and told["rows"] == 14 and told["limit"] == 1024
    assert told["counts"] == {
        "broken-row": 1,
        "image-missing": 2,
        "image-corrupt": 1,
        "tag-missing": 1,
        "tag-extra": 1,
        "long-chosen": 1,
        "duplicate-row": 1,
    }
    assert told["notes"] == {"duplicate-id": 1}
    assert told["fix"] | {"source": "", "file": "", "list": ""} == {
        "file": "", "source": "", "list": "", "rows": 9, "mended": 4, "left_out": 5, "lost": {},
    }  # fmt: skip
    listed = [json.loads(line) for line in Path(told["fix"]["list"]).read_text().splitlines()]
    assert {one["row"]: one["done"] for one in listed} == {
        **dict.fromkeys((1, 2, 4, 7), "mended"),
        **dict.fromkeys((5, 6, 8, 12, 13), "left out"),
    }
    assert all(one["codes"] and len(one["why"]) == len(one["codes"]) and str(file) in one["where"] for one in listed)
    assert [one["id"] for one in listed] == ["r1", "r2", "r4", "r5", "r6", "r7", "r8", "twin", None]
    code, out, _ = call(capsys, told["fix"]["source"], "--model", "base", "--json")
    assert code == 0 and json.loads(out)["rows"] == 9 and json.loads(out)["counts"] == {}
    kept = [row["id"] for row in json.loads(copy.read_text())]
    assert kept == ["r0", "r1", "r2", "r4", "r4-4", "r7", "r9", "r10", "r11"]


@pytest.mark.parametrize("layout", [one for one, reader in published.READERS.items() if reader in WRITTEN], ids=lambda one: one.__name__)
def test_every_format_that_can_be_written_gets_a_clean_copy_of_itself(
    layout: published.Layout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One row of each is damaged: its picture, or where that lies in parquet the file is written anew with half of it."""
    source = layout(tmp_path / "data")
    damage(source)
    line = f"{published.READERS[layout]},{source}"
    copy = tmp_path / f"clean{'.parquet' if layout in PARQUETS else '.jsonl' if source.is_dir() else source.suffix}"
    code, out, _ = call(capsys, line, "--fix", str(copy), "--json")
    told = json.loads(out)
    assert code == 1 and told["counts"] == {"image-corrupt": told["fix"]["left_out"]} and told["fix"]["lost"] == {}
    code, out, _ = call(capsys, told["fix"]["source"], "--json")
    assert code == 0 and json.loads(out)["rows"] == told["rows"] - told["fix"]["left_out"] == told["fix"]["rows"] > 0


def damage(source: Path) -> None:
    inside = sorted(one for one in source.parent.rglob("*") if one.suffix in (".jpg", ".png", ".jpeg"))
    if inside:
        cut(inside[-1])
        return
    file = sorted(source.rglob("*.parquet"))[0] if source.is_dir() else source
    whole = published.pa.parquet.read_table(file)
    rows = whole.to_pylist()
    rows[1]["image"]["bytes"] = rows[1]["image"]["bytes"][:300]
    published.pq.write_table(published.pa.Table.from_pylist(rows, whole.schema), file)


def test_exit_codes_and_one_line_for_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = published.llava(tmp_path)
    code, out, err = call(capsys, str(file))
    assert (code, err) == (0, "") and "clean" in out and "--model" in out
    for arguments, says in (
        ([str(tmp_path / "none.json")], "no such folder or file"),
        ([str(file), "--model", "nowhere"], "no such folder"),
        ([str(file), "--limit", "0"], "--limit"),
        ([str(file), "--against", str(tmp_path / "none.json")], "no such folder or file"),
        ([str(file), "--fix", str(file)], "exists already"),
        ([f"classes,{published.classes(tmp_path)}", "--fix", str(tmp_path / "x.json")], "can be read but not written"),
        ([str(file), "--fix", str(tmp_path / "clean")], "rows of llava are written as .json, .jsonl or .parquet"),
        ([f"{own_rows(tmp_path)}", "--fix", str(tmp_path / "clean.json")], "rows are written as a folder"),
        ([str(file), "--fix", str(tmp_path / "kept.json")], f"{tmp_path / 'images' / 'kept'} exists already"),
    ):
        (tmp_path / "images" / "kept").mkdir(parents=True, exist_ok=True)
        code, out, err = call(capsys, *arguments)
        assert code == 2 and says in err and err.count("\n") == 1 and out == ""
    file.write_text(file.read_text()[:-30])
    code, out, _ = call(capsys, str(file))
    assert code == 1 and out.startswith("broken-file: row 2 of")
    whole = published.onevision(tmp_path)
    part = sorted(whole.rglob("*.parquet"))[1]
    part.write_bytes(part.read_bytes()[:-40])
    code, out, _ = call(capsys, f"onevision,{whole}", "--json")
    assert code == 1 and json.loads(out)["counts"] == {"broken-file": 1} and str(part) in out


def test_what_was_found_is_said_though_the_copy_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, copy = spoiled(tmp_path / "data"), tmp_path / "clean.json"

    def refused(*_: Any) -> Any:
        raise BadInput("row 3 cannot be said")

    with monkeypatch.context() as patched:
        patched.setattr("pivot.data.writing.convert._json", refused)
        code, out, err = call(capsys, str(file), "--fix", str(copy))
        assert code == 2 and "image-corrupt" in out and err == "pivot: row 3 cannot be said\n"
        assert list(tmp_path.iterdir()) == [tmp_path / "data"], "neither a copy nor a list of what is not in it"
        code, out, _ = call(capsys, str(file), "--fix", str(copy), "--json")
        assert code == 2 and json.loads(out)["fix"] == {"failed": "row 3 cannot be said"}
    assert call(capsys, str(file), "--fix", str(copy))[0] == 1 and copy.exists()


def test_a_copy_is_advised_only_where_the_format_can_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_readers").mkdir()
    (tmp_path / "my_readers" / "pairs.py").write_text("from pivot.data.llava import read\n__all__ = ['read']\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    file = spoiled(tmp_path / "data")
    for line, can in (
        (bad_class(tmp_path), False),
        (other_mask(tmp_path), False),
        (f"my_readers.pairs,{file}", False),
        (str(file), True),
        (own_rows(tmp_path), True),
    ):
        code, out, _ = call(capsys, line, "--model", "base")
        assert code == 1 and ("--fix OUT writes a copy" in out) == can and ("can be read but not written" in out) != can


def test_trouble_with_the_cache_is_none_of_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = f"rlaif,{published.rlaif(tmp_path)}"
    monkeypatch.setenv("PIVOT_CACHE", "/dev/null/x")
    code, out, err = call(capsys, line)
    assert (code, out, err.count("\n")) == (2, "", 1) and "cannot write /dev/null/x" in err and "PIVOT_CACHE=FOLDER" in err
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "cache"))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("pivot.files._sync", full)
        code, out, err = call(capsys, line)
    assert (code, out) == (2, "") and "disk full while writing" in err and "PIVOT_CACHE=FOLDER" in err
    assert call(capsys, line)[0] == 0


def test_what_the_format_cannot_say_is_named_with_the_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = published.llava_dpo(tmp_path, odd=True)
    shutil.rmtree(tmp_path / "pictures")
    for number in (61, 62, 66):
        put(tmp_path, f"pictures/{number}.jpg", number)
    code, out, _ = call(capsys, str(file), "--fix", str(tmp_path / "clean.json"))
    assert code == 1 and "6 rows, 0 of them mended; 1 left out" in out and "pictures of responses (1 rows)" in out


def test_text_for_people_is_short_whatever_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": n, "image": f"\x1b[31m{n}.jpg", "conversations": published.asked("<image>\nWhat?", "A.")} for n in range(50)]
    code, out, _ = call(capsys, str(lines(tmp_path / "a.jsonl", rows)))
    assert code == 1 and "50  image-missing" in out and len(out.splitlines()) < 12 and "line 3 of" in out and "\x1b" not in out


# ---- many rows


def many(folder: Path, rows: int, files: int, size: tuple[int, int] = (32, 24)) -> Path:
    """Rows whose pictures are of few kinds but lie in many files, with a fault here and there."""
    drawings = []
    for kind in range(10):
        out = io.BytesIO()
        Image.effect_noise(size, 5 + kind).convert("RGB").save(out, "JPEG", quality=75)
        drawings.append(out.getvalue())
    (folder / "pictures").mkdir(parents=True)
    for number in range(files):
        data = drawings[number % 10] + b"%d" % number  # behind a JPEG's end: all files differ
        (folder / f"pictures/{number}.jpg").write_bytes(data[:300] if number % 500 == 77 else data)
    file = folder / "data.jsonl"
    with file.open("w") as out_file:
        for number in range(rows):
            answer = "" if number % 997 == 5 else f"{published.called(number)} in picture {number}. " * (1 + number % 8)
            row = {"id": str(number), "image": f"pictures/{number % files}.jpg"}
            row["prompt"], row["chosen"], row["rejected"] = (
                f"<image>\nDescribe {number}.",
                answer,
                "Two cats and a dog. " * (1 + number % 5),
            )
            out_file.write(json.dumps(row) + "\n")
    return file


def plain(report: Report) -> Any:
    return report.flags.tolist(), {code: list(report.first(code, CAP)) for code in report.words.by}


def test_any_number_of_processes_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "WORTH", 1000)
    file = f"llava_dpo,{many(tmp_path, 2300, 600)}"
    alone = examine(file)
    assert said(alone)["empty-chosen"] == [5, 1002, 1999] and alone.count("image-corrupt") == 7 and alone.pictures == 600
    started: list[int] = []
    pool = crew.ProcessPoolExecutor
    monkeypatch.setattr(crew, "ProcessPoolExecutor", lambda size, *rest: started.append(size) or pool(size, *rest))
    assert plain(examine(file, workers=4)) == plain(alone) and started == [2]


@pytest.mark.slow
def test_a_hundred_thousand_rows_take_less_than_three_minutes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import time

    file = many(tmp_path, 100_000, 20_000, (640, 480))
    mean = sum(os.path.getsize(one) for one in (tmp_path / "pictures").iterdir()) / 20_000
    assert 30_000 < mean < 80_000
    begun = time.monotonic()
    code, out, _ = call(capsys, f"llava_dpo,{file}", "--model", "base", "--workers", "2", "--json")
    seconds, told = time.monotonic() - begun, json.loads(out)
    print(f"{100_000 / seconds:,.0f} rows/s, {seconds:.0f} s, {mean:,.0f} bytes a picture")
    assert code == 1 and told["pictures"] == 20_000 and told["counts"]["image-corrupt"] == 200 and told["counts"]["empty-chosen"] == 101
    assert seconds < 180
