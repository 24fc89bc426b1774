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
from published import READERS, asked, called, drawn, encoded, lines, llava_dpo, put

from pivot import lookup
from pivot.data import talk
from pivot.pictures import picture
from pivot.pictures import read as content
from pivot.records import BadInput, Example
from pivot.seen import Seen, reader_of, seen

Layout = Callable[..., Path]
ROWS = [layout for layout, reader in READERS.items() if reader not in ("classes", "masks")]
READERS_OF = {format: layout for layout, format in READERS.items()}
WRITTEN = [layout for layout in ROWS if layout.__name__ != "captioned_folder"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "cache"))


def read(format: str, path: Path, **options: Any) -> Sequence[Example]:
    return lookup.find("data", format)(str(path), **options)


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


def test_endings_in_capitals_are_endings(tmp_path: Path) -> None:
    for number, (layout, format) in enumerate(READERS.items()):
        path = layout(tmp_path / str(number))
        if path.is_file() and path.suffix in (".json", ".jsonl", ".parquet"):
            loud = path.with_suffix(path.suffix.upper())
            path.rename(loud)
            assert reader_of(loud) == format and len(read(format, loud)) == len(read(format, loud.rename(path))), layout
    whole = READERS_OF["onevision"](tmp_path / "parts")
    for file in sorted(whole.rglob("*.parquet")):
        file.rename(file.with_suffix(".PARQUET"))
    assert reader_of(whole) == "onevision" and len(read("onevision", whole)) > 0


def test_a_path_that_is_gone_is_one_line(tmp_path: Path) -> None:
    for name in ("none.json", "none.parquet", "none.yaml"):
        with pytest.raises(BadInput, match=f"data not found: .*{name}; check the path"):
            reader_of(tmp_path / name)


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
    turns = talk.turns_of(example.prompt, "user")
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
    prompt = talk.bare(turns, "user")
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


@pytest.mark.parametrize("layout", WRITTEN, ids=lambda layout: layout.__name__)
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
