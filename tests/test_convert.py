"""Data from one format to another: what the target holds comes back equal, pictures to the byte, and what it cannot hold is named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import kills
import numpy as np
import published
import pytest
from PIL import Image

from pivot import cli, pictures, recipe
from pivot.data import llava, rows
from pivot.data.writing import convert
from pivot.data.writing import write as own
from pivot.records import BadInput, Example, Response, Role, Truth

KINDS = {"a.jpg": "JPEG", "b/c d.png": "PNG", "b/e.gif": "GIF", "f.webp": "WEBP"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of pictures of several kinds."""
    for number, (name, kind) in enumerate(KINDS.items()):
        file = tmp_path / "pictures" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        colours = np.random.default_rng(number).integers(0, 256, (9, 11, 3), dtype=np.uint8)
        Image.fromarray(colours).save(file, kind)
    return tmp_path / "pictures"


@pytest.fixture
def given(folder: Path) -> list[Example]:
    """Rows of every shape that conversations come in, with pictures as files."""
    files = [folder / name for name in KINDS]
    talk = tuple({"role": ("assistant", "user")[n % 2], "content": f"turn {n}, \u2028 \N{PILE OF POO}"} for n in range(3))
    asked = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "<image>\nWhat?"})
    chosen, rejected = Response("Two of <b>them</b>."), Response("No.", "rejected")
    return [
        Example("one", (files[0],), "<image>\nHow many?", (chosen, rejected), answer="2", answer_kind="number", task="count"),
        Example("two/../é", tuple(files[1:3]), "<image><image>\nAlike?", (chosen,), meta={"source": "x", "score": 4, "tags": ("a", "b")}),
        Example("talk", (files[3],), "<image>\nColour?", (Response(talk), Response("Blue.", "rejected")), meta={"score": 0.5}),
        Example("asked", (files[0],), asked, (chosen, rejected), domain="General", meta={"box": {"x": 1, "y": (2, 3)}}),
        Example("sampled", (), "?", (Response("x", "sampled", rating=0.5),)),
        Example("no picture", (), "2 + 3?", (Response("5"), Response("6", "rejected"))),
    ]


def through(given: Sequence[Example], out: Path, to: str | None = None, **options: Any) -> tuple[convert.Written, Sequence[Example]]:
    *_, done = convert.write(given, out, to, **options)
    assert done.rows == len(given) and not list(out.parent.rglob(".*"))
    return done, recipe.read(done.source)


def contents(example: Example | Response) -> list[bytes]:
    return [pictures.read(image) for image in example.images or ()]


def bare(said: str | Sequence[Mapping[str, str]], speaker: str) -> list[tuple[str, str]]:
    """Who says what, without what stands for pictures: formats that must say <image> say where, in others a rule does."""
    turns = [{"role": speaker, "content": said}] if isinstance(said, str) else said
    texts = [(turn["role"], " ".join(turn["content"].replace("<image>", " ").split())) for turn in turns]
    return [(role, text) for role, text in texts if text or len(texts) == 1]


def what_is_left(example: Example, lost: Collection[str]) -> dict[str, Any]:
    """What an example says without what is named as lost; a name that nobody knows is a KeyError."""
    responses = [(one.role, bare(one.text, "assistant"), one.rating, one.error, contents(one)) for one in example.responses]
    own = ("answer_kind", "task", "domain")
    found: dict[str, Any] = {"id": example.id, "prompt": bare(example.prompt, "user"), "images": contents(example), "meta": example.meta}
    found |= {name: getattr(example, name) for name in own} | {"answer": example.answer}
    found["truth"] = example.truth and example.truth.classes.tolist()
    roles = {role for role in get_args(Role) if f"{role} responses" in lost}
    metas = {name.removeprefix("meta.").partition(" ")[0] for name in lost if name.startswith("meta.")}
    found["meta"] = {key: value for key, value in example.meta.items() if key not in metas}
    found["responses"] = [(role, text) for role, text, *_ in responses if role not in roles]
    beside = {"ratings": 2, "errors of responses": 3, "pictures of responses": 4}
    found |= {name: [one[at] for one in responses if one[0] not in roles] for name, at in beside.items()}
    for name in lost:
        if name == "pictures but the first":
            found["images"] = found["images"][:1]
        elif name == "where pictures stand":  # which `bare` leaves out
            continue
        elif name == "where the prompt ends":
            found["prompt"] += [turn for _, said in found.pop("responses") for turn in said]
        elif name == "turns before the question":
            found["prompt"] = found["prompt"][-1:]
        elif name == "turns after the first answer":
            found["responses"] = [(role, text[:1]) for role, text in found["responses"]]
        elif name == "roles of responses":
            found["responses"] = [text for _, text in found["responses"]]
        elif name.removesuffix(" responses") not in roles and not name.startswith("meta."):
            del found[name]
    return found


def takes(row: Callable[..., Any] | None, example: Example) -> bool:
    """Whether a format has rows of this kind: some have nothing but pairs, or nothing but pictures with their captions."""
    try:
        return row is None or bool(row(example, list(example.images)))
    except BadInput as refused:
        assert "write another format" in str(refused)
        return False


def nothing_is_lost_unnamed(given: Sequence[Example], out: Path, to: str, **options: Any) -> int:
    row = None if to == "rows" else convert.row_of(to)
    taken = convert.Subset(given, [number for number, example in enumerate(given) if takes(row, example)])
    if not taken:
        return 0
    done, read = through(taken, out, to, **options)
    counted = Counter[str]()
    for one, other in zip(taken, read, strict=True):
        lost = set(row(one, list(one.images))[1] if row else [])
        texts = {name for name in done.lost if name.endswith("as JSON text") and name.split()[0].removeprefix("meta.") in one.meta}
        before, after = what_is_left(one, lost | texts), what_is_left(other, lost | texts)
        if to == "vlaa":  # which knows the task from the picture's folder
            after |= {name: None for name in ("task", "answer_kind") if name in before and before[name] is None}
        if to == "rlaif":  # whose rows have a place for it, filled or not
            after["meta"] = {key: value for key, value in after["meta"].items() if key != "ds_name" or key in before["meta"]}
        assert before == after
        counted.update(lost | texts)
    assert counted == done.lost
    return len(taken)


TARGETS = ("captions", "llava", "llava_dpo", "mmpr", "onevision", "rlaif", "rows", "trl", "vlaa")
SPLITS = {(published.masks, False): "validation", (published.masks, True): "training", (published.classes, True): "val"}


def test_these_are_the_formats_that_can_be_written() -> None:
    assert convert.written() == list(TARGETS)


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("ending", [".json", ".jsonl", ".parquet"])
def test_what_the_target_holds_comes_back_equal(tmp_path: Path, given: list[Example], ending: str, copy: bool) -> None:
    for to in TARGETS:
        out = tmp_path / to / (f"out{ending}" if to != "rows" else "out")
        assert nothing_is_lost_unnamed(given, out, to, copy=copy, root=tmp_path / "pictures") >= 3


@pytest.mark.parametrize("odd", [pytest.param(False, marks=pytest.mark.slow), True], ids=["sound", "odd"])
@pytest.mark.parametrize("layout", published.READERS, ids=lambda layout: layout.__name__)
def test_any_published_format_becomes_any_other(tmp_path: Path, layout: published.Layout, odd: bool) -> None:
    split = SPLITS.get((layout, odd))
    given = recipe.read(f"{published.READERS[layout]},{layout(tmp_path / 'in', odd)}{f',split={split}' if split else ''}")
    written = 0
    for number, to in enumerate(TARGETS):
        ending = (".parquet", ".json", ".jsonl")[(number + odd) % 3] if to != "rows" else ""
        written += bool(nothing_is_lost_unnamed(given, tmp_path / to / f"out{ending}", to))
    assert written >= 4


@pytest.mark.parametrize("ending", [".json", ".parquet"])
def test_a_field_called_as_one_of_the_formats_own_costs_neither_pictures_nor_texts(
    tmp_path: Path, given: list[Example], ending: str
) -> None:
    names = sorted({name for to in TARGETS if to != "rows" for name in convert.row_of(to)(given[0], list(given[0].images))[0]} | {"images"})
    assert {"image", "images", "chosen", "conversations"} <= set(names)
    odd = [replace(given[0], meta={name: "unrelated"}) for name in names]
    for to in TARGETS:
        out = tmp_path / to / (f"out{ending}" if to != "rows" else "out")
        assert nothing_is_lost_unnamed(odd, out, to, root=tmp_path / "pictures") == len(odd)


@pytest.mark.parametrize("own", [{}, {"unanswered": "2"}, {"unanswered": "2", "unanswered_": [3]}])
def test_a_field_called_unanswered_costs_no_question(tmp_path: Path, own: dict[str, Any]) -> None:
    turns = [*published.asked("What?", "A cup."), {"from": "human", "value": "And this?"}]
    (row,) = recipe.read(f"llava,{published.array(tmp_path / 'in.json', [{'id': 'a', **own, 'conversations': turns}])}")
    assert ({"role": "user", "content": "And this?"},) in row.meta.values()
    _, (read,) = through([row], tmp_path / "out.json", "llava")
    (written,) = json.loads((tmp_path / "out.json").read_text())
    assert read == row and written == {"id": "a", **own, "conversations": turns}


def test_messages_keep_a_last_question_that_nobody_answers(tmp_path: Path) -> None:
    said = [{"role": role, "content": f"{role} speaks"} for role in ("user", "assistant", "system", "user")]
    (row,) = recipe.read(f"trl,{published.lines(tmp_path / 'in.jsonl', [{'id': 'a', 'messages': said, 'score': 1}])}")
    assert row.responses == (Response("assistant speaks"),) and row.meta == {"unanswered": tuple(said[2:]), "score": 1}
    for to, name in (("trl", "out.jsonl"), ("trl", "out.parquet"), ("llava", "out.json"), ("rows", "out")):
        done, (read,) = through([row], tmp_path / name, to)
        assert read == row and not done.lost


def test_a_last_question_that_nobody_answers_comes_back_or_is_named(tmp_path: Path) -> None:
    asked = [*published.asked("What?", "A cup."), {"from": "human", "value": "And this?"}, {"from": "human", "value": "Hello?"}]
    mine = {"id": "b", "unanswered": "2", "conversations": published.asked("What?", "A cup.")}
    file = published.array(tmp_path / "in.json", [{"id": "a", "conversations": asked}, mine])
    given = recipe.read(f"llava,{file}")
    assert given[0].responses == (Response("A cup."),)
    for ending in (".json", ".parquet"):
        done, read = through(given[:1], tmp_path / f"out{ending}", "llava")
        assert not done.lost and read[0] == given[0]
    assert json.loads((tmp_path / "out.json").read_text()) == [{"id": "a", "conversations": asked}]
    _, read = through(given, tmp_path / "both.json", "llava")
    assert list(read) == list(given) and json.loads((tmp_path / "both.json").read_text())[1] == mine
    for to in TARGETS:
        out = tmp_path / to / ("out.json" if to != "rows" else "out")
        assert nothing_is_lost_unnamed(given[:1], out, to) == takes(None if to == "rows" else convert.row_of(to), given[0])


# ---- where pictures are


def test_pictures_that_are_files_keep_their_names(tmp_path: Path, folder: Path, given: list[Example]) -> None:
    done, read = through(given, tmp_path / "new/out.json", root=folder)
    assert done.source == f"llava,{tmp_path}/new/out.json,images={folder}" and done.copied == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.json"]
    plain = json.loads((tmp_path / "new/out.json").read_text())
    assert [row.get("image") for row in plain] == ["a.jpg", ["b/c d.png", "b/e.gif"], "f.webp", "a.jpg", None, None]
    assert read[0].images == given[0].images


def test_rows_that_lie_in_the_folder_of_pictures_need_no_name_for_it(tmp_path: Path, folder: Path, given: list[Example]) -> None:
    done, read = through(given, folder / "out.json", root=folder)
    assert done.source == f"llava,{folder}/out.json" and read[0].images == given[0].images


def test_copies_lie_beside_the_rows_each_file_once(tmp_path: Path, folder: Path, given: list[Example]) -> None:
    done, _ = through(given, tmp_path / "new/out.json", root=folder, copy=True)
    assert done.copied == len(KINDS) and done.root is None
    copies = tmp_path / "new/images/out/files"
    assert {str(file.relative_to(copies)) for file in copies.rglob("*") if file.is_file()} == set(KINDS)
    with pytest.raises(BadInput, match="images/out exists already"):
        list(convert.write(given, tmp_path / "new/out.jsonl", "llava", root=folder, copy=True))
    assert not (tmp_path / "new/out.jsonl").exists()


def test_pictures_that_are_no_files_are_written_with_the_ending_of_what_they_hold(tmp_path: Path, folder: Path) -> None:
    held = [(folder / name).read_bytes() for name in KINDS]
    shown = Image.new("RGB", (5, 4), "red")
    made = [Example("../x/é", tuple(held), "?"), Example("../x/é", (shown,), "?")]
    done, read = through(made, tmp_path / "out.json")
    assert contents(read[0]) == held and done.copied == 5 and done.source == f"llava,{tmp_path}/out.json"
    names = sorted(file.name for file in (tmp_path / "images/out/rows").iterdir())
    assert [name.rpartition(".")[2] for name in names] == ["jpg", "png", "gif", "webp", "png"]
    assert pictures.picture(read[1].images[0]).tobytes() == shown.tobytes()


@pytest.mark.parametrize("order", [1, -1])
def test_where_some_pictures_are_files_and_some_are_not_all_are_copied(tmp_path: Path, folder: Path, order: int) -> None:
    outside = tmp_path / "elsewhere.jpg"
    outside.write_bytes((folder / "a.jpg").read_bytes())
    made = [Example(str(n), (source,), "?") for n, source in enumerate([folder / "b/e.gif", outside, (folder / "f.webp").read_bytes()])]
    done, read = through(made[::order], tmp_path / "out.jsonl", "llava", root=folder)
    assert [contents(one) for one in read] == [contents(one) for one in made[::order]]
    assert done.copied == 3 and done.root is None and len(read) == done.rows


def test_parquet_holds_bytes_and_names_and_gives_them_back(tmp_path: Path, folder: Path, given: list[Example]) -> None:
    import pyarrow.parquet as pq

    done, read = through(given, tmp_path / "out.parquet", "llava", root=folder)
    named = [[image["path"] for image in row or ()] for row in pq.read_table(tmp_path / "out.parquet").column("image").to_pylist()]
    assert named == [["a.jpg"], ["b/c d.png", "b/e.gif"], ["f.webp"], ["a.jpg"], [], []]
    _, again = through(read, tmp_path / "again.json")
    assert [contents(one) for one in again] == [contents(one) for one in given]
    assert sorted(path.name for path in (tmp_path / "images/again/rows").iterdir())[1] == "000001-0-c_d.png"
    assert done.copied == 0


def test_parquet_is_written_in_groups_that_a_picture_can_be_read_from(tmp_path: Path, folder: Path) -> None:
    import pyarrow.parquet as pq

    many = [Example(str(n), (folder / "a.jpg",), f"{n}?", (Response("x"),)) for n in range(250)]
    through(many, tmp_path / "a.parquet", "llava")
    through([replace(one, images=()) for one in many], tmp_path / "b.parquet", "llava")
    assert [pq.ParquetFile(tmp_path / f"{name}.parquet").num_row_groups for name in "ab"] == [3, 1]


# ---- what a target cannot hold


def test_what_is_lost_is_named_and_counted_by_rows(tmp_path: Path, given: list[Example]) -> None:
    truth = Truth(np.zeros((2, 2), np.uint8), (), np.zeros((2, 2), bool))
    several = (Response("a", "sampled", rating=1.0), Response("b", "sampled"), Response("c", error="made up"))
    made = [*given, replace(given[0], responses=several, truth=truth)]
    done, _ = through(made, tmp_path / "out.json", "llava", root=tmp_path / "pictures")
    of_responses = {"rejected responses": 4, "sampled responses": 1, "errors of responses": 1, "ratings": 1, "roles of responses": 1}
    assert done.lost == {**of_responses, "truth": 1}


def test_fields_of_no_one_type_become_json_text_in_parquet_and_are_named(tmp_path: Path) -> None:
    metas: list[dict[str, Any]] = [
        {"mixed": 1, "keys": {"a": 1}, "whole": 3, "empty": {}, "void": None, "list": ()},
        {"mixed": "one", "keys": {"b": 1}, "whole": 2.5, "big": 1 << 70},
        {"whole": 1 << 20, "list": (1, None)},
    ]
    made = [Example(str(n), (), "?", meta=meta) for n, meta in enumerate(metas)]
    done, read = through(made, tmp_path / "out.parquet", "llava")
    text = "meta.{} but as JSON text".format
    assert done.lost == {text("mixed"): 2, text("keys"): 2, text("empty"): 1, text("big"): 1, "meta.void": 1}
    assert [one.meta for one in read] == [
        {"mixed": "1", "keys": '{"a": 1}', "whole": 3, "empty": "{}", "list": ()},
        {"mixed": '"one"', "keys": '{"b": 1}', "whole": 2.5, "big": str(1 << 70)},
        {"whole": 1 << 20, "list": (1, None)},
    ]


def test_values_that_json_has_no_word_for_are_left_out_and_named(tmp_path: Path) -> None:
    """One such column costs no format the whole set, ours neither."""
    odd = {"what": object(), "when": datetime(2026, 1, 2), "void": float("nan"), "deep": {"x": (1.0, float("-inf"))}, "keys": {1: 2}}
    made = [Example("a", (), "?", meta={**odd, "kept": 1}), Example("b", (), "?", meta={"kept": 2.5})]
    for to, name in (("llava", "out.json"), ("trl", "out.jsonl"), ("rows", "out")):
        done, read = through(made, tmp_path / name, to)
        assert done.lost == {f"meta.{key}": 1 for key in odd} and [one.meta for one in read] == [{"kept": 1}, {"kept": 2.5}]
    done, read = through([replace(made[0], meta={"what": object(), "half": 0.5})], tmp_path / "out.parquet", "llava")
    assert done.lost == {"meta.what": 1} and read[0].meta == {"half": 0.5}


def test_no_answer_and_an_empty_one_are_not_taken_for_another(tmp_path: Path, given: list[Example]) -> None:
    for answer, lost in ((None, {}), ("", {"answer": 1}), ("B", {})):
        done, read = through(
            [replace(given[0], answer=answer, responses=(Response("B."),))],
            tmp_path / f"a{answer}.json",
            "vlaa",
            root=tmp_path / "pictures",
        )
        assert done.lost == lost and read[0].answer == (answer or None)


@pytest.mark.parametrize(
    ("prompt", "named"),
    [("Is <image> like <image>?", 1), ("<image>\nor <image>?", 1), ("<image><image>\nAlike?", 0), ("<image>\n <image> Alike?", 0)],
)
def test_tags_that_a_format_puts_in_front_are_named_where_they_stood_elsewhere(
    tmp_path: Path, given: list[Example], prompt: str, named: int
) -> None:
    pair = replace(given[1], prompt=prompt, responses=given[0].responses)
    done, _ = through([pair], tmp_path / "out.json", "llava_dpo", root=tmp_path / "pictures")
    assert done.lost == ({"where pictures stand": 1} if named else {})


# ---- what goes wrong


def test_nothing_is_left_of_what_was_not_finished(tmp_path: Path, folder: Path, given: list[Example]) -> None:
    made = [*given, Example("gone", (folder / "none.jpg",), "?"), Example("broken", (b"no picture",), "?")]
    for out, options in ((tmp_path / "new/a.json", {"copy": True}), (tmp_path / "new/a.parquet", {})):
        with pytest.raises(BadInput, match=r"^row 6: image not found: .*none\.jpg"):
            list(convert.write(made, out, "llava", root=folder, **options))
        assert not list((tmp_path / "new").rglob("*.*"))
    with pytest.raises(BadInput, match="row 0: image cannot be read: 10 bytes"):
        list(convert.write(made[-1:], tmp_path / "b.json"))
    writing = convert.write(given, tmp_path / "stopped.json", root=folder, copy=True)
    next(writing)
    writing.close()
    assert not list(tmp_path.rglob("*stopped*"))


@pytest.mark.parametrize(("name", "copy"), [("a.json", True), ("a.parquet", False), ("a", False)])
def test_what_a_killed_conversion_left_is_gone_after_the_next(
    name: str, copy: bool, tmp_path: Path, folder: Path, given: list[Example]
) -> None:
    out = tmp_path / "new" / name

    def killed() -> None:
        for written in convert.write(given, out, root=folder, copy=copy):
            if written.rows > 1:
                kills.die()

    assert kills.forked(killed) == -signal.SIGKILL
    assert list(out.parent.rglob(".*.tmp")) and not out.exists()
    list(convert.write(given, out, root=folder, copy=copy))
    assert not list(out.parent.rglob(".*.tmp")) and out.exists()


@pytest.mark.parametrize(
    ("out", "to", "said"),
    [
        ("a.csv", None, "ends in .json, .jsonl or .parquet"),
        ("a.csv", "llava", "are written as .json"),
        ("a.json", "world", "'world' can be read but not written; write "),
        ("a.json", "lava", "did you mean 'llava'"),
        ("a.json", "rows", "rows are written as a folder"),
    ],
)
def test_what_cannot_be_written_is_said(tmp_path: Path, out: str, to: str | None, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        list(convert.write([Example("a", (), "?")], tmp_path / out, to))


# ---- on the command line


def test_the_verb_says_how_to_read_what_it_wrote_and_what_is_lost(
    tmp_path: Path, folder: Path, given: list[Example], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    through(given, folder / "in.json", root=folder)
    monkeypatch.chdir(tmp_path)
    assert cli.call(["data", "convert", "llava,pictures/in.json", "out.parquet", "--to", "llava"]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["6 rows: out.parquet", "  read it as: llava,out.parquet"]
    assert cli.call(["data", "convert", "pictures/in.json", "out", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"out": "out", "data": "rows,out", "rows": 6, "copied": 0, "lost": {}}
    assert isinstance(recipe.read("out"), rows.Rows)
    assert cli.call(["data", "convert", "rows,out", "back.json", "--to", "llava"]) == 0
    assert "read it as: llava,back.json,images=out" in capsys.readouterr().out
    assert isinstance(recipe.read("llava,back.json,images=out"), llava.Read)
    assert cli.call(["data", "convert", "rows,out", "back.json"]) == 2


def test_a_world_goes_through_with_its_truth_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["data", "convert", "world,size=3", str(tmp_path / "out.jsonl"), "--to", "llava"]) == 0
    said = capsys.readouterr().out
    assert "3 pictures beside them" in said and "truth (3 rows)" in said and "rejected responses (3 rows)" in said


def test_own_rows_keep_the_bytes_of_pictures(tmp_path: Path, folder: Path) -> None:
    made = [Example("a", tuple(folder / name for name in KINDS), "?", (Response("x", images=(folder / "a.jpg",)),))]
    assert list(own.write(made, tmp_path / "out")) == [1]
    (read,) = rows.read(str(tmp_path / "out"))
    assert contents(read) == contents(made[0])
    assert read.responses[0].images and pictures.read(read.responses[0].images[0]) == (folder / "a.jpg").read_bytes()


MEASURED = """
import sys
from pathlib import Path
from pivot.data import mmpr
from pivot.data.writing import convert
given = mmpr.read(sys.argv[1])
for done in convert.write(given, Path(sys.argv[2]), "mmpr"): pass
assert done.rows == len(given)
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])  # ru_maxrss begins with the parent's
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's own peak")
@pytest.mark.parametrize("ending", [".json", ".parquet"])
def test_memory_does_not_grow_with_rows(tmp_path: Path, ending: str) -> None:
    peaks = []
    for count in (10_000, 100_000):
        source = tmp_path / f"{count}.jsonl"
        rows = ({"question": f"What is {n}?", "chosen": "word " * (n % 120), "rejected": "no " * 20} for n in range(count))
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        run = [sys.executable, "-c", MEASURED, str(source), str(tmp_path / f"{count}{ending}")]
        done = subprocess.run(run, check=True, capture_output=True, text=True, env={**os.environ, "PIVOT_CACHE": str(tmp_path / "cache")})
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] < 250 and peaks[1] - peaks[0] < 40, peaks  # MB: an index takes 20, the rows as examples 130
