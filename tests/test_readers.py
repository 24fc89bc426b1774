"""Published formats: each fixture is known by its reader alone, read as what it says, and written back without loss."""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from published import (
    READERS,
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
from pivot.data import reading
from pivot.pictures import picture
from pivot.pictures import read as content
from pivot.records import BadInput, Example
from pivot.seen import Seen, reader_of, seen

Layout = Callable[..., Path]
ROWS = [layout for layout, reader in READERS.items() if reader not in ("classes", "masks")]
WRITTEN = [layout for layout in ROWS if layout.__name__ != "captioned_folder"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "cache"))


def read(format: str, path: Path, **options: Any) -> Sequence[Example]:
    return lookup.find("data", format)(str(path), **options)


def one(format: str, tmp_path: Path, row: dict[str, Any]) -> Example:
    return read(format, lines(tmp_path / "one.jsonl", [row]))[0]


# ---- all of them


@pytest.mark.parametrize("odd", [False, True], ids=["sound", "odd"])
@pytest.mark.parametrize("layout", READERS, ids=lambda layout: layout.__name__)
def test_each_layout_is_known_by_its_reader_alone(layout: Layout, odd: bool, tmp_path: Path) -> None:
    path = layout(tmp_path / "data", odd=odd)
    assert reader_of(path) == READERS[layout]
    assert not list((tmp_path / "cache").rglob("*")), "looking must not index"
    files = [path] if path.is_file() else sorted(file for kind in ("json", "jsonl", "parquet") for file in path.rglob(f"*.{kind}"))
    for file in files:  # each of its files, too
        known = [
            name
            for name in lookup.names("data")
            if getattr(importlib.import_module(f"pivot.data.{name}"), "knows", lambda _: False)(seen(file))
        ]
        assert known == [READERS[layout]], file


def test_whatever_fields_a_row_has_one_reader_at_most_knows_it() -> None:
    """Fields of all formats, thrown together: a path alone must never have two meanings."""
    knows = [module.knows for name in lookup.names("data") if hasattr(module := importlib.import_module(f"pivot.data.{name}"), "knows")]
    text = (
        "id image prompt question chosen rejected completion ds_name text caption gt ds_answer video answer image_rejected origin_dataset"
    )
    fields = {**dict.fromkeys(text.split(), "x"), "images": ["x"], "messages": [], "responses": [], "conversations": [], "label": True}
    dice = random.Random(0)
    claimed = 0
    for _ in range(1500):
        row = {key: fields[key] for key in dice.sample(sorted(fields), dice.randrange(1, 8))}
        for kind in ("rows", "parquet"):
            found = Seen(Path("x"), kind, row if kind == "rows" else dict.fromkeys(row, "string"))  # type: ignore[arg-type]
            who = [bool(claims(found)) for claims in knows]
            assert sum(who) <= 1, row
            claimed += sum(who)
    assert claimed > 500


@pytest.mark.parametrize("odd", [False, True], ids=["sound", "odd"])
@pytest.mark.parametrize("layout", ROWS, ids=lambda layout: layout.__name__)
def test_all_rows_are_read_with_their_own_pictures(layout: Layout, odd: bool, tmp_path: Path) -> None:
    """Each fixture's answers say what is drawn, so that a picture of another row would be noticed."""
    rows = read(READERS[layout], layout(tmp_path, odd=odd))
    numbers = {encoded(number, kind): number for number in range(200) for kind in ("JPEG", "PNG")}
    for row in rows:
        text = row.responses[0].text if isinstance(row.responses[0].text, str) else row.responses[0].text[0]["content"]
        seen = [numbers[content(image)] for image in row.images]
        if any(called(number) in text for number in range(200)) and seen:
            assert called(seen[0]) in text
        assert isinstance(row.id, str) and all(picture(image).size == (32, 24) for image in row.images)
    assert len({row.id for row in rows}) == len(rows)


@pytest.mark.parametrize("layout", ROWS, ids=lambda layout: layout.__name__)
def test_size_takes_the_first_rows_and_the_fingerprint_tells(layout: Layout, tmp_path: Path) -> None:
    path = layout(tmp_path, odd=True)
    whole, some = read(READERS[layout], path), read(READERS[layout], path, size=2)
    assert [row.id for row in some] == [row.id for row in whole[:2]] and len(some) == 2
    assert whole.fingerprint() != some.fingerprint() and whole.fingerprint() == read(READERS[layout], path).fingerprint()  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match="size 0: give at least one row"):
        read(READERS[layout], path, size=0)


def plain(example: Example) -> Example:
    """The example with pictures as their bytes, and without `<image>` in front, where pictures are anyway."""
    turns = reading.turns_of(example.prompt, "user")
    first = next((at for at, turn in enumerate(turns) if turn["role"] == "user"), None)
    if first is not None and sum(turn["content"].count("<image>") for turn in turns) == len(example.images):
        text = turns[first]["content"]
        bare = (
            text.replace("<image>\n", "").replace("<image>", "")
            if text.lstrip().startswith("<image>") or len(example.images) == 1
            else text
        )
        turns[first] = {**turns[first], "content": bare.strip()}
    responses = tuple(replace(said, images=said.images and tuple(map(content, said.images))) for said in example.responses)
    prompt = reading.bare(turns, "user")
    return replace(example, images=tuple(map(content, example.images)), prompt=prompt, responses=responses)  # type: ignore[arg-type]


def rewritten(examples: Sequence[Example], format: str, folder: Path) -> tuple[Sequence[Example], set[str]]:
    """The examples as JSON lines of a format, read again, and what was lost."""
    row, rows, lost = importlib.import_module(f"pivot.data.{format}").row, list[dict[str, Any]](), set[str]()
    for number, example in enumerate(examples):
        names = [f"{number}-{which}.img" for which in range(len(example.images))]
        for name, image in zip(names, example.images, strict=True):
            folder.mkdir(exist_ok=True)
            (folder / name).write_bytes(content(image))
        said, left = row(example, names)
        rows.append(json.loads(json.dumps(said)))
        lost |= set(left)
    return read(format, lines(folder / "again.jsonl", rows)), lost


@pytest.mark.parametrize("layout", WRITTEN, ids=lambda layout: layout.__name__)
def test_what_is_written_is_read_as_it_was(layout: Layout, tmp_path: Path) -> None:
    given = read(READERS[layout], layout(tmp_path / "given", odd=True))
    again, lost = rewritten(given, READERS[layout], tmp_path / "again")
    assert lost <= ({"pictures of responses"} if layout is llava_dpo else set())
    for before, after in zip(given, again, strict=True):
        if layout is llava_dpo:
            before = replace(before, responses=tuple(replace(said, images=None) for said in before.responses))
        assert plain(before) == plain(after)


@pytest.mark.parametrize("format", ["llava", "onevision", "mmpr", "llava_dpo", "rlaif", "vlaa", "trl", "captions"])
def test_what_a_format_cannot_hold_is_named(format: str, tmp_path: Path, odd: dict[str, Example]) -> None:
    """What comes back differs from what was given only where something is named."""
    for name, example in odd.items():
        example = replace(example, meta={"source": "a", "image": "meant otherwise"}, answer="5", answer_kind="number")
        try:
            (after,), lost = rewritten([example], format, tmp_path / name)
        except BadInput as refused:
            assert "which a row of" in str(refused) and example.id in str(refused)
            continue
        before, after = plain(example), plain(after)
        if lost & {
            "pictures but the first",
            "turns before the question",
            "turns after the first answer",
            "where the prompt ends",
        }:
            continue
        gone = {one.role for one in before.responses} - {one.role for one in after.responses}
        assert {f"{role} responses" for role in gone} <= lost
        assert before.meta["source"] == after.meta["source"]
        assert ("image" in after.meta) != ("meta.image" in lost)
        assert before.images == after.images and (before.prompt == after.prompt or "prompt" in lost)
        assert [said.text for said in after.responses] == [said.text for said in before.responses][: len(after.responses)]
        assert after.answer == before.answer and after.answer_kind == "number"


@pytest.mark.parametrize(
    ("format", "row"),
    [
        ("llava", {"conversations": asked("q", "a")}),
        ("onevision", {"conversations": asked("q", "a")}),
        ("mmpr", {"question": "q", "chosen": "a", "rejected": "b"}),
        ("llava_dpo", {"prompt": "q", "chosen": "a", "rejected": "b"}),
        ("rlaif", {"ds_name": "x", "question": "q", "chosen": "a", "rejected": "b"}),
        ("vlaa", {"question": "q", "gt": "a", "ds_answer": "a"}),
        ("trl", {"prompt": "q", "chosen": "a", "rejected": "b"}),
        ("captions", {"caption": "a"}),
    ],
)
def test_no_name_of_a_picture_leads_out_of_its_folder(format: str, row: dict[str, Any], tmp_path: Path) -> None:
    home = tmp_path / "home"
    (tmp_path / "secret.png").write_bytes(encoded(1, "PNG"))
    put(home, "inside.png", 2)
    (home / "link.png").symlink_to(tmp_path / "secret.png")
    (home / "linked").symlink_to(tmp_path)
    names = [
        "../secret.png",
        "a/../../secret.png",
        str(tmp_path / "secret.png"),
        "link.png",
        "linked/secret.png",
        "https://x.org/a.png",
        "nul\0.png",
    ]
    rows = read(format, lines(home / "rows.jsonl", [{**row, "image": name} for name in [*names, "inside.png"]]))
    for number, name in enumerate(names):
        with pytest.raises(BadInput) as wrong:
            _ = rows[number]
        assert f"line {number + 1} of {home / 'rows.jsonl'}" in str(wrong.value) and "\n" not in str(wrong.value)
        assert repr(name) in str(wrong.value) or "names no file" in str(wrong.value)
    assert picture(rows[len(names)].images[0]) == drawn(2)
    linked = read(format, home / "rows.jsonl", links=True)
    assert picture(linked[3].images[0]) == picture(linked[4].images[0]) == drawn(1)
    with pytest.raises(BadInput, match="leads out"):
        _ = linked[0]


WRONG = [
    ("llava", {"id": 1}, "'conversations' is missing (there is: id)"),
    ("llava", {"conversations": []}, "'conversations' is no list of turns"),
    ("llava", {"conversations": "hello"}, "'conversations' is no list of turns"),
    ("llava", {"conversations": [{"from": "tool", "value": "x"}]}, "turn 0 is from 'tool', not from human, gpt or system"),
    ("llava", {"conversations": [{"from": "human", "value": 5}]}, "the value of turn 0 is no text but 5"),
    ("llava", {"conversations": [{"from": "gpt", "value": "hi"}]}, "no turn is a human's"),
    ("llava", {"conversations": asked("q", "a"), "image": 7}, "'image' is no text but 7"),
    ("llava", {"conversations": asked("q", "a"), "image": "data:image/png;base64,???"}, "'image' is a data URI that cannot be decoded"),
    ("mmpr", {"question": "q", "chosen": "a", "rejected": None}, "'rejected' is missing (there is: question, chosen, rejected)"),
    ("mmpr", {"question": ["q"], "chosen": "a", "rejected": "b"}, "'question' is no text but ['q']"),
    ("llava_dpo", {"prompt": "q", "chosen": "a", "rejected": "b", "video": "v.mp4"}, "it is about a video"),
    ("llava_dpo", {"prompt": "q", "chosen": "a", "image": "x.png"}, "'rejected' is missing"),
    ("rlaif", {"ds_name": "x", "text": "{broken"}, "'text' is no JSON"),
    ("rlaif", {"ds_name": "x", "text": "[1]"}, "'text' is no JSON object"),
    ("rlaif", {"ds_name": "x", "text": '{"question": "q", "chosen": "a"}'}, "'rejected' is missing"),
    ("vlaa", {"question": "q", "caption": "c"}, "'gt' is missing"),
    ("vlaa", {"question": "q", "gt": "a", "ds_answer": 5}, "'ds_answer' is no text but 5"),
    ("trl", {"chosen": "a b", "rejected": "a c"}, "'prompt' is missing, and in text nobody can say where it ends"),
    ("trl", {"prompt": "q", "chosen": "a", "rejected": None}, "'rejected' is missing"),
    ("trl", {"prompt": "q", "rejected": "a"}, "'chosen' is missing"),
    (
        "trl",
        {"prompt": "q", "chosen": [{"role": "user", "content": "x"}], "rejected": "b"},
        "'chosen' does not go on where the prompt ends",
    ),
    ("trl", {"prompt": [{"role": "tool", "content": "x"}], "completion": "b"}, "message 0 of 'prompt' is from 'tool'"),
    (
        "trl",
        {"prompt": [{"role": "user", "content": [{"type": "audio"}]}], "completion": "b"},
        "has a part of type 'audio', not text or image",
    ),
    ("trl", {"prompt": [{"role": "user", "content": None}], "completion": "b"}, "the content of message 0 of 'prompt' is no text but None"),
    ("trl", {"prompt": [], "completion": "b"}, "'prompt' is neither text nor a list of messages"),
    ("trl", {"messages": {"role": "user"}}, "'messages' is neither text nor a list of messages"),
    ("trl", {"completion": "b"}, "'prompt' is missing"),
    (
        "trl",
        {"chosen": [{"role": "assistant", "content": "a"}], "rejected": [{"role": "assistant", "content": "b"}]},
        "do not begin alike with a user's turn",
    ),
    ("captions", {"image": "a.png"}, "'caption' is missing"),
    ("captions", {"image": "a.png", "captions": []}, "'captions' is an empty list"),
    ("captions", {"image": "a.png", "text": ["a", 5]}, "'text' is no text but 5"),
]


@pytest.mark.parametrize(("format", "row", "says"), WRONG, ids=[f"{format}-{number}" for number, (format, _, _) in enumerate(WRONG)])
def test_what_is_wrong_is_said_with_row_and_field(format: str, row: dict[str, Any], says: str, tmp_path: Path) -> None:
    file = lines(tmp_path / "rows.jsonl", [row])
    with pytest.raises(BadInput) as wrong:
        _ = read(format, file)[0]
    assert str(wrong.value).startswith(f"line 1 of {file}: ") and says in str(wrong.value) and "\n" not in str(wrong.value)


ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    1.5,
    "",
    "x",
    [],
    {},
    [None],
    [[]],
    [{}],
    {"role": 1},
    [{"role": "user", "content": [5]}],
    "[",
    "\0",
    "a/../..",
)


@pytest.mark.parametrize("layout", [layout for layout in WRITTEN if layout is not mmpr], ids=lambda layout: layout.__name__)
def test_whatever_stands_in_a_field_it_is_an_example_or_one_line(layout: Layout, tmp_path: Path) -> None:
    """Each value of each row, at any depth, is replaced by what does not belong there."""
    dice, format = random.Random(5), READERS[layout]
    given = rewritten(read(format, layout(tmp_path / "given", odd=True)), format, tmp_path / "again")[0]
    rows = [row for number in range(len(given)) for row in spoilt(dict(given.table.one(number)), dice)]  # type: ignore[attr-defined]
    broken = read(format, lines(tmp_path / "broken.jsonl", rows))
    refused = 0
    for number in range(len(broken)):
        try:
            assert isinstance(broken[number], Example)
        except BadInput as wrong:
            refused += 1
            assert str(wrong).startswith(f"line {number + 1} of ") and "\n" not in str(wrong)
    assert 0 < refused < len(rows)


def spoilt(row: Any, dice: random.Random) -> list[Any]:
    """Copies of a value, each with one thing in it replaced or taken away."""
    if isinstance(row, dict):
        taken = [{key: value for key, value in row.items() if key != gone} for gone in row]
        return taken + [{**row, key: other} for key in row for other in (*dice.sample(ODD_VALUES, 4), *spoilt(row[key], dice))]
    if isinstance(row, list):
        return [
            [*row[:at], other, *row[at + 1 :]] for at in range(len(row)) for other in (*dice.sample(ODD_VALUES, 4), *spoilt(row[at], dice))
        ]
    return []


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
    import pyarrow as pa

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
