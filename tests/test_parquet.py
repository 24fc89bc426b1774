"""Parquet that changes, is damaged or lacks its pictures: never an old picture, never a traceback."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from published import HUB_IMAGE, encoded, put

from pivot.data.tables import parquet
from pivot.data.tables.table import table
from pivot.pictures import Missing
from pivot.records import BadInput
from pivot.seen import reader_of


@pytest.fixture(autouse=True)
def _small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(parquet, "BATCH", 3)


def held(file: Path, pictures: list[Any], group: int = 2) -> Path:
    """A file of pictures; each is bytes, or what the Hub's struct holds."""
    rows = [{"image": one if isinstance(one, dict) else {"bytes": one, "path": None}} for one in pictures]
    pq.write_table(pa.Table.from_pylist(rows, pa.schema({"image": HUB_IMAGE})), file, row_group_size=group)
    return file


# ---- a file that changes


def test_pictures_of_a_file_that_was_written_anew_are_the_new_ones(tmp_path: Path) -> None:
    file = held(tmp_path / "a.parquet", [encoded(number) for number in range(6)])
    assert [row["image"].read() for row in table(file)] == [encoded(number) for number in range(6)]
    changed = file.stat().st_mtime_ns
    held(file, [encoded(number) for number in range(10, 17)], group=3)  # other pictures, other groups
    os.utime(file, ns=(changed + 1, changed + 1))
    assert [row["image"].read() for row in table(file)] == [encoded(number) for number in range(10, 17)]


@pytest.mark.parametrize("travelled", [False, True])
def test_a_picture_is_not_read_from_another_file_than_was_indexed(travelled: bool, tmp_path: Path) -> None:
    file = held(tmp_path / "a.parquet", [encoded(number) for number in range(6)])
    found, changed = table(file), file.stat().st_mtime_ns
    found = pickle.loads(pickle.dumps(found)) if travelled else found
    assert found[0]["image"].read() == encoded(0)
    held(file, [encoded(number) for number in range(6)][::-1])
    os.utime(file, ns=(changed + 1, changed + 1))
    with pytest.raises(BadInput, match=r"a\.parquet has changed since its rows were indexed; start again"):
        found[5]["image"].read()
    file.unlink()
    with pytest.raises(BadInput, match="image cannot be read: image of row 5 of"):
        found[5]["image"].read()


# ---- a cache that is damaged


@pytest.mark.parametrize("name", ["*.arrow", "*.hash"])
@pytest.mark.parametrize("damage", [b"", b"\xff\xfe" * 40, b"half"], ids=["empty", "noise", "half"])
def test_a_damaged_copy_is_made_anew(name: str, damage: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": list(range(8))}), file)
    before = table(file)
    (kept,) = (tmp_path / "cache").rglob(name)
    kept.write_bytes(kept.read_bytes()[: kept.stat().st_size // 2] if damage == b"half" else damage)
    again = table(file)
    assert [row["a"] for row in again] == list(range(8)) and again.fingerprint() == before.fingerprint()


def test_a_copy_of_another_file_is_made_anew(tmp_path: Path) -> None:
    for name, size in (("a", 8), ("b", 2)):
        pq.write_table(pa.table({"a": list(range(size))}), tmp_path / f"{name}.parquet")
    long = table(tmp_path / "a.parquet").kept  # type: ignore[attr-defined]
    short = table(tmp_path / "b.parquet").kept  # type: ignore[attr-defined]
    shutil.copy(short, long)
    assert len(list(table(tmp_path / "a.parquet"))) == 8


def test_a_copy_that_is_damaged_while_it_is_read_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": list(range(8))}), file)
    found = table(file)
    (kept,) = (tmp_path / "cache").rglob("*.arrow")
    kept.write_bytes(b"")
    with pytest.raises(BadInput, match=r"row 0 of .*: its copy .* is damaged .*; delete that and start again"):
        _ = found[0]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "file"))
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    with pytest.raises(BadInput, match=r"cannot write .*PIVOT_CACHE"):
        table(tmp_path / "a.parquet")


# ---- pictures beside the file


def test_a_picture_without_bytes_is_the_file_of_its_name_below_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    put(folder, "0.png", 0)
    put(folder, "more/1.png", 1)
    file = held(folder / "a.parquet", [{"bytes": None, "path": name} for name in ("0.png", "more/1.png", str(folder / "0.png"))])
    assert [row["image"].read() for row in table(file)] == [(folder / name).read_bytes() for name in ("0.png", "more/1.png", "0.png")]


def test_no_name_leads_out_of_the_folder(tmp_path: Path) -> None:
    folder, outside = tmp_path / "data", tmp_path / "out"
    put(outside, "0.png", 0)
    put(tmp_path / "database", "0.png", 0)
    folder.mkdir()
    (folder / "link.png").symlink_to(outside / "0.png")
    (folder / "linked").symlink_to(outside)
    led = [str(outside / "0.png"), "../out/0.png", "../database/0.png", "link.png", "linked/0.png"]
    names = [*led, ".", "..", "", "a\0b", "gone.png", None]
    found = table(held(folder / "a.parquet", [{"bytes": None, "path": name} for name in names]))
    for row in found:
        with pytest.raises(Missing, match="holds no bytes"):
            row["image"].read()


# ---- types, and files that are none


def test_dictionaries_inside_of_lists_and_structs_are_texts(tmp_path: Path) -> None:
    word = pa.dictionary(pa.int32(), pa.string())
    kinds = {"tags": pa.list_(word), "more": pa.large_list(word), "said": pa.list_(pa.struct({"by": word, "n": pa.int64()})), "one": word}
    rows = [
        {"tags": [f"t{n}", "x"], "more": [f"m{n}"] * (n % 3), "said": [{"by": f"s{n}", "n": n}], "one": f"o{n}"} if n % 4 else {"one": "-"}
        for n in range(20)
    ]
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(kinds)), tmp_path / "a.parquet", row_group_size=4)
    assert list(table(tmp_path / "a.parquet")) == rows


@pytest.mark.parametrize("kept", [0, 4, 200, -20])
def test_a_cut_file_by_its_path_alone_cannot_be_read(kept: int, tmp_path: Path) -> None:
    file = held(tmp_path / "a.parquet", [encoded(0)])
    file.write_bytes(file.read_bytes()[:kept])
    for path in (file, tmp_path):
        with pytest.raises(BadInput, match=r"a\.parquet is no parquet file that can be read \(.*\); fetch it again") as wrong:
            reader_of(path)
        assert "\n" not in str(wrong.value)
