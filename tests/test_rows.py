"""Rows on disk: what was written is read, lazily, and what is wrong with a line is named with its number."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from pivot import cli, recipe
from pivot.data import rows, world
from pivot.data.writing.write import ROWS, write
from pivot.pictures import picture
from pivot.records import BadInput, Example, Response, Thing, Truth
from pivot.world.item import Form


def written(examples: Sequence[Example], folder: Path) -> rows.Rows:
    assert list(write(examples, folder)) == list(range(1, len(examples) + 1))
    return rows.read(str(folder))


def pixels(images: Sequence[Any] | None) -> list[bytes] | None:
    return None if images is None else [picture(image).tobytes() for image in images]


def same(one: Example, other: Example) -> None:
    """Equal to the last pixel and bit; arrays and pictures cannot be compared by ==."""
    bare = {"images": (), "truth": None, "responses": ()}
    assert replace(one, **bare) == replace(other, **bare)
    assert pixels(one.images) == pixels(other.images)
    assert [replace(r, images=None) for r in one.responses] == [replace(r, images=None) for r in other.responses]
    assert [pixels(r.images) for r in one.responses] == [pixels(r.images) for r in other.responses]
    assert (one.truth is None) == (other.truth is None)
    if one.truth and other.truth:
        for a, b in ((one.truth.classes, other.truth.classes), (one.truth.region, other.truth.region)):
            assert a.dtype == b.dtype and np.array_equal(a, b)
        assert one.truth.caption == other.truth.caption and len(one.truth.objects) == len(other.truth.objects)
        for mine, theirs in zip(one.truth.objects, other.truth.objects, strict=True):
            assert (mine.kind, dict(mine.attributes)) == (theirs.kind, dict(theirs.attributes))
            assert mine.mask.dtype == theirs.mask.dtype and np.array_equal(mine.mask, theirs.mask)


@pytest.mark.parametrize("form", get_args(Form))
def test_what_was_written_is_read(tmp_path: Path, form: str) -> None:
    given = world.read(split="test", size=32, seed=3, form=form, pixels=56)  # type: ignore[arg-type]
    read = written(given, tmp_path)
    assert len(read) == 32
    for one, other in zip(given, read, strict=True):
        same(one, other)
    same(given[31], read[-1])
    assert [example.id for example in read[3:5]] == [example.id for example in given[3:5]]


def test_rows_of_every_shape_are_read_as_they_were(tmp_path: Path, odd: dict[str, Example]) -> None:
    """Text only, several images, chat prompts, responses with pictures and ratings of their own; ids that no file could bear."""
    more = Example(
        id="../a b/é" * 60,
        images=next(iter(odd.values())).images,
        prompt="two\nlines\u2028and \N{PILE OF POO}",
        responses=(Response("5", "sampled", rating=0.25, error="a\nb"), Response("6", "sampled", images=())),
        answer="5",
        answer_kind="number",
        meta={"nested": {"list": (1, (2.5, None))}, "flag": True},
    )
    bare = replace(more, id="bare", truth=Truth(np.zeros((5, 7), np.uint8), (), np.ones((5, 7), bool)))
    given = [*odd.values(), more, bare]
    read = written(given, tmp_path)
    for one, other in zip(given, read, strict=True):
        same(one, other)
    assert not list(tmp_path.glob(".*")) and len(list(tmp_path.glob("truth/*"))) == 1


def test_rows_without_truth_leave_no_folder_for_it(tmp_path: Path, odd: dict[str, Example]) -> None:
    written(list(odd.values()), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [ROWS, "images"]


def test_the_fingerprint_tells_what_was_edited_and_costs_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = written(world.read(size=6), tmp_path)
    monkeypatch.setattr(rows, "_example", None)
    before = found.fingerprint()
    assert rows.read(str(tmp_path)).fingerprint() == before
    assert rows.read(str(tmp_path), size=5).fingerprint() != before
    for file in (next(tmp_path.rglob("*.png")), next(tmp_path.rglob("*.npz")), tmp_path / "data.jsonl"):
        kept = file.read_bytes()
        file.write_bytes(b" " + kept)
        edited = rows.read(str(tmp_path)).fingerprint()
        assert edited != before
        before = edited


def test_pictures_are_opened_only_when_they_are_looked_at(tmp_path: Path) -> None:
    read = written(world.read(size=3), tmp_path)
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    (image,) = read[1].images
    assert isinstance(image, Path)
    with pytest.raises(BadInput, match="image not found"):
        picture(image)


def test_the_first_rows_of_a_file_given_by_its_own_name(tmp_path: Path) -> None:
    written(world.read(size=5), tmp_path)
    assert len(recipe.read(f"rows,path={tmp_path / ROWS},size=2")) == 2
    with pytest.raises(BadInput, match="size 0"):
        rows.read(str(tmp_path), size=0)


@pytest.mark.parametrize("place", ["nowhere", "images"])
def test_a_folder_without_rows_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(BadInput, match=rf"rows not found: .*{place}.*; give the folder"):
        rows.read(str(tmp_path / place))


GOOD: dict[str, Any] = {"id": "a", "images": [], "prompt": "?", "responses": []}


def lines(folder: Path, *given: Any) -> rows.Rows:
    text = [line if isinstance(line, str) else json.dumps(line) for line in given]
    (folder / ROWS).write_text("\n".join(text), encoding="utf-8")  # no newline at the end: other tools leave it out
    return rows.read(str(folder))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"id": "a", "prom', "it is not JSON"),
        ("[1]", "object"),
        ({"id": "a"}, "prompt: Field required"),
        ({**GOOD, "promt": "?"}, "promt: Extra inputs"),
        ({**GOOD, "id": 3}, "id: Input should be a valid string"),
        ({**GOOD, "images": "a.png"}, "images: Input should be a valid"),
        ({**GOOD, "responses": [{"text": "x", "role": "choosen"}]}, "responses.0.role"),
        ({**GOOD, "answer_kind": "chois"}, "answer_kind"),
        ({**GOOD, "prompt": [{"role": "user"}]}, "prompt"),
        ({**GOOD, "images": ["../secret.png"]}, "leads out of"),
        ({**GOOD, "images": ["/etc/passwd"]}, "leads out of"),
        ({**GOOD, "images": ["link/secret.png"]}, "leads out of"),
        ({**GOOD, "images": ["a\0b"]}, "leads out of"),
        ({**GOOD, "responses": [{"text": "x", "images": ["../secret.png"]}]}, "leads out of"),
        ({**GOOD, "truth": {"file": "../secret.png"}}, "leads out of"),
        ({**GOOD, "truth": {"file": "none.npz"}}, "truth not found"),
        ({**GOOD, "truth": {"file": ROWS}}, "truth cannot be read"),
        ({**GOOD, "truth": {"file": "one.npz"}}, "truth cannot be read"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, line: Any, said: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "secret.png").touch()
    (folder / "link").symlink_to(tmp_path)
    one = world.read(size=1)[0].truth
    assert one and list(write([Example("x", (), "?", truth=replace(one, objects=one.objects[:1]))], tmp_path / "other"))
    (tmp_path / "other/truth/000000.npz").rename(folder / "one.npz")  # has one object, where the line names none
    read = lines(folder, GOOD, "", line, GOOD)
    assert len(read) == 3 and read[0].id == read[2].id == "a"
    with pytest.raises(BadInput, match=rf"line 3 of .*{ROWS}: .*") as caught:
        read[1]
    assert said in str(caught.value) and "; " in str(caught.value) and "\n" not in str(caught.value)


def test_a_kind_given_for_all_is_that_of_answers_that_have_none(tmp_path: Path) -> None:
    """Kinds that rows have stay, what has no answer gets none, and the data is another then."""
    given = [{**GOOD, "answer": "2"}, {**GOOD, "answer": "2", "answer_kind": "maths"}, GOOD, {**GOOD, "answer": "3", "answer_kind": None}]
    lines(tmp_path, *given)
    line = f"rows,{tmp_path / ROWS}"
    assert [row.answer_kind for row in recipe.read(line)] == [None, "maths", None, None]
    assert [row.answer_kind for row in recipe.read(f"{line},kind=number")] == ["number", "maths", None, "number"]
    assert [row.answer_kind for row in recipe.read(f"{line},kind=text,size=1")] == ["text"]
    read = [rows.read(str(tmp_path), kind=kind) for kind in (None, "number", "text")]  # type: ignore[arg-type]
    assert len({some.fingerprint() for some in read}) == 3
    with pytest.raises(BadInput, match="kind: input should be 'choice', 'number', 'text', 'box', 'maths' or 'open', not 'count'"):
        recipe.read(f"{line},kind=count")


def test_what_json_cannot_hold_is_named_and_nothing_half_is_left(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="row odd: its meta"):
        list(write([Example("odd", (), "?", meta={"what": object()})], tmp_path))
    assert not (tmp_path / ROWS).exists()


def test_masks_of_many_pixels_take_little_room(tmp_path: Path) -> None:
    corner = np.zeros((480, 640), bool)
    corner[:200, :100] = True
    things = tuple(Thing("square", {}, np.roll(corner, 40 * n, axis=1)) for n in range(10))
    written([Example("big", (), "?", truth=Truth(np.zeros((480, 640), np.uint8), things, corner))], tmp_path)
    assert (tmp_path / "truth/000000.npz").stat().st_size < 20_000


def test_a_probe_reads_them_as_it_reads_the_world(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pivot.encoder import Encoder

    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "cache"))
    Encoder.tiny("siglip").save(tmp_path / "encoder")
    assert cli.call(["data", "make", str(tmp_path / "data"), "--data", "world,split=test,size=40"]) == 0
    found = []
    for source in ("world,split=test,size=40", f"rows,path={tmp_path / 'data'}"):
        capsys.readouterr()
        assert cli.call(["probe", "linear", str(tmp_path / "encoder"), "--data", source, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1] and found[0]["measurements"][0]["metrics"]["kind"] > 0


def test_lines_are_counted_only_for_a_row_with_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To count them takes as long as to read all that lies before: 0.2 s for a row deep in 500,000."""
    made = written(world.read(size=4), tmp_path / "rows")
    asked: list[int] = []
    monkeypatch.setattr(type(made.lines), "where", lambda lines, index: asked.append(index) or f"line {index + 1}")
    assert len([made[index] for index in range(4)]) == 4 and asked == []
    for truth in (tmp_path / "rows").rglob("*.npz"):
        truth.unlink()
    with pytest.raises(BadInput, match="line 3: truth not found"):
        made[2]
    assert asked == [2]
