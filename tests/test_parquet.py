"""Parquet that changes, is damaged or lacks its pictures: never an old picture, never a traceback."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from published import HUB_IMAGE, encoded, put

from pivot.data.tables import copies, groups, index, parquet, walks
from pivot.data.tables.groups import Group
from pivot.data.tables.table import table
from pivot.pictures import Missing
from pivot.records import BadInput
from pivot.seen import reader_of


@pytest.fixture(autouse=True)
def _small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(parquet, "BATCH", 3)
    monkeypatch.setattr(groups, "ROWS", 3)
    monkeypatch.setattr(walks, "GROUPS", 1)
    monkeypatch.setattr(walks, "SPARSE", 2)
    monkeypatch.setattr(copies, "RESERVE", 0)
    monkeypatch.setattr(copies, "_walks", walks.Walks())
    monkeypatch.setattr(copies, "_given_up", set())


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


def test_what_killed_writers_left_in_the_cache_is_swept_and_what_others_write_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "KEPT", 0)
    wide(tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')

    def leave(folder: str) -> list[Path]:
        """A temporary that is being written, and an old one; their processes are not of this container."""
        left = [tmp_path / "cache" / folder / f".{name}.arrow.0123abcd.{os.getpid()}.tmp" for name in ("new", "old")]
        for path in left:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        os.utime(left[1], (0, 0))
        return left

    for name in ("a.jsonl", "a.parquet"):
        new, old = leave("index")
        rows = table(tmp_path / name)
        assert new.exists() and not old.exists()
    new, old = leave("pictures/some")
    copy_all(rows)
    assert new.exists() and not old.exists()


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


# ---- pictures in any order

WRAPS: dict[str, tuple[pa.DataType, Any]] = {
    "hub": (HUB_IMAGE, lambda data: {"bytes": data, "path": "a.jpg"}),
    "bytes": (pa.binary(), lambda data: data),
    "list": (pa.list_(HUB_IMAGE), lambda data: [{"bytes": data, "path": None}, {"bytes": data[::-1], "path": "b"}]),
    "large list": (pa.large_list(pa.large_binary()), lambda data: [data, data[::-1]]),
}


def said(number: int) -> bytes | None:
    """What stands in a row, of some of them nothing."""
    return None if number % 7 == 6 else b"picture %d " % number * (5 + number % 3)


def wide(file: Path, kind: str = "hub", rows: int = 60, group: int = 10) -> Path:
    of, wrap = WRAPS[kind]
    plain = [{"n": number, "image": None if (data := said(number)) is None else wrap(data)} for number in range(rows)]
    pq.write_table(pa.Table.from_pylist(plain, pa.schema({"n": pa.int64(), "image": of})), file, row_group_size=group)
    return file


def right(rows: Sequence[Any], number: int) -> bool:
    """Whether a row holds its pictures."""
    image, data = rows[number].get("image"), said(number)
    if data is None or image is None:
        return image is data
    return [one.read() for one in image] == [data, data[::-1]] if isinstance(image, tuple) else image.read() == data


def shuffled(size: int, seed: int = 0, times: int = 1) -> list[int]:
    numbers = list(range(size)) * times
    random.Random(seed).shuffle(numbers)
    return numbers


def kept(cache: Path) -> list[Path]:
    return sorted(cache.rglob("pictures/*/*"))


def copy_all(rows: Sequence[Any]) -> None:
    """Ask for rows as in shuffled order until each group has been left and asked for again."""
    last = [*range(9, len(rows), 10), len(rows) - 1]
    assert all(right(rows, number) for number in last)
    copies._walks.left.update(copies._walks.going)
    copies._walks.going.clear()
    assert all(right(rows, number) for number in last)


def unread(_group: Group) -> Iterator[pa.RecordBatch]:
    raise AssertionError("the parquet file was read")


@pytest.mark.parametrize("kind", WRAPS)
def test_rows_in_any_order_by_any_threads_hold_their_pictures_and_each_group_is_copied_once(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, written, write = table(wide(tmp_path / "a.parquet", kind)), list[Group](), copies._write
    monkeypatch.setattr(copies, "_write", lambda group, path: (written.append(group), write(group, path)))
    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(lambda number: right(rows, number), shuffled(60, times=8)))
    walked = [group.number for group in copies._walks.going]
    assert sorted([group.number for group in written] + walked) == list(range(6)), "nothing twice"
    copy_all(rows)
    assert [path.name for path in kept(tmp_path / "cache")] == [f"{number}.arrow" for number in range(6)]
    monkeypatch.setattr(Group, "batches", unread)
    assert all(right(rows, number) for number in shuffled(60, 1))


@pytest.mark.parametrize("window", [1 << 20, 200])
def test_reading_in_order_copies_nothing_however_often_and_holds_no_more_than_its_window(
    window: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walks, "WINDOW", window)
    rows = table(wide(tmp_path / "a.parquet"))
    assert all(right(rows, number) for _ in range(3) for number in range(60))
    assert all(right(rows, number) for number in range(4)), "a look at the first ones"
    assert kept(tmp_path / "cache") == []
    for walk in copies._walks.going.values():
        assert len(walk.held) == 1 or sum(column.nbytes for _, column in walk.held) <= window


def test_a_large_group_is_walked_alone_and_a_row_too_far_behind_is_of_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walks, "WINDOW", 200)
    monkeypatch.setattr(walks, "WALKED", 1500)
    monkeypatch.setattr(groups, "LARGE", 100)
    rows = table(wide(tmp_path / "a.parquet", group=30))
    assert right(rows, 29) and right(rows, 59) and len(copies._walks.going) == 1
    assert kept(tmp_path / "cache") == [] and right(rows, 50) and right(rows, 31)
    assert [path.name for path in kept(tmp_path / "cache")] == ["1.arrow"]


def test_threads_that_want_one_group_wait_for_one_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, written, write, together = table(wide(tmp_path / "a.parquet")), list[Path](), copies._write, Barrier(4)
    for number in (9, 19, 29):
        assert right(rows, number)
    monkeypatch.setattr(copies, "_write", lambda group, path: (written.append(path), write(group, path)))
    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(lambda number: (together.wait(), right(rows, number))[1], range(4)))
    assert len(written) == 1 and kept(tmp_path / "cache") == written


def test_a_file_of_two_names_has_one_copy_that_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").symlink_to(tmp_path / "a.parquet")
    both, written, write, together = (
        [table(tmp_path / name) for name in ("a.parquet", "b.parquet")],
        list[Path](),
        copies._write,
        Barrier(2),
    )
    for rows in both:
        assert all(right(rows, number) for number in (9, 19))
    monkeypatch.setattr(copies, "_write", lambda group, path: (written.append(path), write(group, path)))
    with ThreadPoolExecutor(2) as threads:
        assert all(threads.map(lambda rows: (together.wait(), right(rows, 3))[1], both))
    assert written == kept(tmp_path / "cache") and len(written) == 1


@pytest.mark.slow
def test_processes_may_copy_the_same_groups_at_once(tmp_path: Path) -> None:
    wide(tmp_path / "a.parquet", rows=200)
    script = """
import sys, test_parquet as t
t.walks.GROUPS, t.walks.SPARSE, t.copies.RESERVE = 1, 2, 0
rows = t.table(t.Path(sys.argv[1]))
assert all(t.right(rows, number) for number in t.shuffled(200, int(sys.argv[2]), times=8))
"""
    command = [sys.executable, "-c", script, str(tmp_path / "a.parquet")]
    runs = [subprocess.Popen([*command, str(seed)], cwd=Path(__file__).parent) for seed in range(3)]
    assert [one.wait() for one in runs] == [0, 0, 0]
    names = {path.name for path in kept(tmp_path / "cache")}
    assert names <= {f"{number}.arrow" for number in range(20)} and len(names) > 15, "some may be walked to the end"


@pytest.mark.slow
def test_a_group_of_4000_photos_is_read_and_copied_in_half_a_gigabyte(tmp_path: Path) -> None:
    """400 MB of bytes that cannot be compressed, of which parquet makes pages of a thousand rows."""
    pq.write_table(pa.table({"image": [random.Random(row).randbytes(100_000) for row in range(4000)]}), tmp_path / "a.parquet")
    script = """
import random, sys
from pathlib import Path
from pivot.data.tables import copies, table
copies.RESERVE = 0
rows = table.table(Path(sys.argv[1]))
for row in (0, 2999, 3999, 5, 2000):
    assert rows[row]["image"].read() == random.Random(row).randbytes(100_000)
(peak,) = [line.split() for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(peak[1]) / 2**20)
"""
    told = subprocess.run([sys.executable, "-c", script, str(tmp_path / "a.parquet")], capture_output=True, text=True, check=True)
    assert [path.name for path in kept(tmp_path / "cache")] == ["0.arrow"]
    assert float(told.stdout) < 0.5


@pytest.mark.parametrize("lack", ["room", "folder", "link", "rights", "full", "read-only", "read-only below"])
def test_where_copies_cannot_be_written_rows_are_read_all_the_same_and_it_is_told_once(
    lack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows, tries = table(wide(tmp_path / "a.parquet")), list[Group]()

    def fails(group: Group, path: Path) -> None:
        tries.append(group)
        number = {"rights": errno.EACCES, "read-only below": errno.EROFS}.get(lack)
        raise OSError(number, os.strerror(number)) if number else BadInput(f"disk full while writing {path}")

    def refuses(path: Path, *given: Any, **more: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    if lack == "room":
        monkeypatch.setattr(copies, "RESERVE", 1 << 60)
    elif lack == "folder":
        (tmp_path / "cache" / "pictures").touch()
    elif lack == "link":
        (tmp_path / "cache" / "pictures").symlink_to(tmp_path / "gone")
    elif lack == "read-only":
        monkeypatch.setattr(Path, "mkdir", refuses)
    else:
        monkeypatch.setattr(copies, "_write", fails)
    with caplog.at_level(logging.WARNING):
        assert all(right(rows, number) for number in shuffled(60, times=4))
    assert (
        len(caplog.messages) == 1 and "PIVOT_CACHE=FOLDER" in caplog.text and len(tries) == (lack in ("rights", "full", "read-only below"))
    )
    assert kept(tmp_path / "cache") == []


@pytest.mark.parametrize("moment", ["first", "last", "written"])
def test_copies_may_be_deleted_while_they_are_written(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows, write, batches, deleted = table(wide(tmp_path / "a.parquet")), copies._write, Group.batches, list[Path]()

    def delete() -> None:
        deleted.extend(kept(tmp_path / "cache"))
        shutil.rmtree(tmp_path / "cache" / "pictures", ignore_errors=True)

    def gone(group: Group) -> Iterator[pa.RecordBatch]:
        found = list(batches(group))
        for number, batch in enumerate(found):
            if number == (0 if moment == "first" else len(found) - 1):
                delete()
            yield batch

    with monkeypatch.context() as at, caplog.at_level(logging.WARNING):
        if moment == "written":
            at.setattr(copies, "_write", lambda group, path: (write(group, path), delete()))
        else:
            at.setattr(Group, "batches", gone)
        assert all(right(rows, number) for number in shuffled(60, times=2))
        assert deleted or moment == "first"
        assert kept(tmp_path / "cache") == []
    copies._walks.going.clear()  # ways that delete at their end
    copy_all(rows)
    assert len(kept(tmp_path / "cache")) == 6 and not caplog.messages, "they are copied once nobody deletes them"


def test_a_group_that_an_arrow_file_cannot_hold_is_tried_once_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = list[Group]()

    def fails(group: Group, path: Path) -> None:
        tries.append(group)
        raise pa.ArrowInvalid("not in a file")

    monkeypatch.setattr(copies, "_write", fails)
    rows = table(wide(tmp_path / "a.parquet"))
    assert all(right(rows, number) for number in shuffled(60, times=4))
    assert len(tries) == len(set(tries)) > 1


@pytest.mark.parametrize("kind", WRAPS)
def test_equal_rows_of_a_group_are_copied_once(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walks, "WINDOW", 200)
    of, wrap = WRAPS[kind]
    pictures = [None if number % 5 == 4 else b"%d" % (number % 3) * 1000 for number in range(20)]
    plain = [{"image": data and wrap(data)} for data in pictures]
    pq.write_table(pa.Table.from_pylist(plain, pa.schema({"image": of})), tmp_path / "a.parquet", row_group_size=20)
    rows = table(tmp_path / "a.parquet")
    first = [rows[number]["image"] for number in (18, 0, 18, 0)]
    assert [(one[0] if isinstance(one, tuple) else one).read() for one in first] == [b"0" * 1000] * 4
    (copy,) = kept(tmp_path / "cache")
    assert copy.stat().st_size < (14_000 if "list" in kind else 7_000), "three and not sixteen, each list with its reverse"
    monkeypatch.setattr(Group, "batches", unread)
    for number, data in enumerate(pictures):
        image = rows[number].get("image")
        one = image[0] if isinstance(image, tuple) else image
        assert (one and one.read()) == data


def test_equal_pictures_that_are_stored_once_do_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a group takes in parquet is not what its copy does."""
    monkeypatch.setattr(walks, "WINDOW", 200)
    held(tmp_path / "a.parquet", [{"bytes": b"x" * 1000, "path": str(number)} for number in range(20)], group=20)
    left = list[int]()

    def disk(_folder: Path) -> SimpleNamespace:
        left.append(9000 - sum(path.stat().st_size for path in kept(tmp_path / "cache")))
        return SimpleNamespace(free=left[-1])

    monkeypatch.setattr(copies.shutil, "disk_usage", disk)
    rows = table(tmp_path / "a.parquet")
    assert all(rows[number]["image"].read() == b"x" * 1000 for number in (19, 2, 19, 2))
    assert kept(tmp_path / "cache") == [] and 9000 > min(left) > 0


@pytest.mark.parametrize("damage", ["empty", "half", "noise", "other", "gone"])
def test_a_damaged_copy_of_a_group_is_made_anew(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = table(wide(tmp_path / "a.parquet", rows=55))
    copy_all(rows)
    whole = {path: path.read_bytes() for path in kept(tmp_path / "cache")}
    assert len(whole) == 6
    other = whole[max(whole)]  # the last group, which is shorter
    for path, data in whole.items():
        path.unlink()  # a file that is mapped is never written to
        if damage != "gone":
            path.write_bytes({"empty": b"", "half": data[: len(data) // 2], "noise": b"\xff\xfe" * 40, "other": other}[damage])
    copies._mapped.cache_clear()
    monkeypatch.setattr(copies, "_walks", walks.Walks())
    copy_all(rows)
    assert {path: path.read_bytes() for path in kept(tmp_path / "cache")} == whole


def test_copies_are_not_of_a_file_that_was_written_anew(tmp_path: Path) -> None:
    file = wide(tmp_path / "a.parquet")
    rows, changed = table(file), file.stat().st_mtime_ns
    copy_all(rows)
    pq.write_table(pq.read_table(file).slice(7), file, row_group_size=10)
    os.utime(file, ns=(changed + 1, changed + 1))
    copies._mapped.cache_clear()
    with pytest.raises(BadInput, match=r"a\.parquet has changed since its rows were indexed; start again"):
        rows[21]["image"].read()
    anew = table(file)
    assert all(anew[number].get("image") is None or anew[number]["image"].read() == said(number + 7) for number in shuffled(53, times=8))


def test_what_cannot_be_read_in_a_group_is_said_at_each_row_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Group.batches

    def torn(group: Group) -> Iterator[pa.RecordBatch]:
        yield next(whole(group))
        raise pa.ArrowInvalid("torn")

    rows = table(wide(tmp_path / "a.parquet"))
    monkeypatch.setattr(Group, "batches", torn)
    for _ in range(2):
        assert right(rows, 0) and right(rows, 1)
        for number in (3, 4, 8):
            with pytest.raises(BadInput, match=rf"image cannot be read: image of row {number} of .* \(torn\); fetch the file again"):
                rows[number]["image"].read()
