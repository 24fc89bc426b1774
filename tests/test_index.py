"""Rows by number: however a file is laid out they are what json.loads and pyarrow say, and a file of any size opens at once."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from published import encoded

from pivot import progress
from pivot.data.tables import index, parquet
from pivot.data.tables.index import index as indexed
from pivot.data.tables.places import places
from pivot.data.tables.table import Chosen, Table, joined, table
from pivot.records import BadInput
from pivot.seen import reader_of, seen

AWKWARD = ('"', "\\", "}", "]", "{", "[", ",", ":", "\n", "\t", "é", "日本", "\u2028", "\x85", "😀", "\\u0041", "a", " ", "0", "null")


@pytest.fixture(autouse=True)
def _small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks so small that every row crosses several; every file is kept in a cache of this test's own."""
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "CHUNK", 61)
    monkeypatch.setattr(index, "KEPT", 0)
    monkeypatch.setattr(parquet, "BATCH", 7)
    monkeypatch.setattr(parquet, "FEW", 3)


def nested(dice: random.Random, depth: int = 0) -> Any:
    """A random value whose texts are made of what misleads who looks for the ends of rows."""
    kind = dice.randrange(7 if depth < 3 else 5)
    if kind == 0:
        return dice.choice([None, True, False, dice.randrange(-(10**12), 10**12), dice.uniform(-1e9, 1e9)])
    if kind < 5:
        return "".join(dice.choices(AWKWARD, k=dice.randrange(12)))
    if kind == 5:
        return [nested(dice, depth + 1) for _ in range(dice.randrange(4))]
    return {"".join(dice.choices(AWKWARD, k=3)): nested(dice, depth + 1) for _ in range(dice.randrange(4))}


def some(seed: int, count: int) -> list[dict[str, Any]]:
    dice = random.Random(seed)
    return [{f"k{key}": nested(dice) for key in range(dice.randrange(5))} for _ in range(count)]


LAYOUTS = {
    "compact": lambda rows, plain: json.dumps(rows, separators=(",", ":"), ensure_ascii=plain),
    "pretty": lambda rows, plain: json.dumps(rows, indent=4, ensure_ascii=plain) + "\n",
    "tabs": lambda rows, plain: "\r\n\t " + json.dumps(rows, indent="\t", ensure_ascii=plain).replace("\n", "\r\n") + "\r\n\r\n",
    "bom": lambda rows, plain: "\ufeff" + json.dumps(rows, ensure_ascii=plain),
    "a row a line": lambda rows, plain: "[\n" + ",\n".join(json.dumps(row, ensure_ascii=plain) for row in rows) + "\n]",
    "lines": lambda rows, plain: "".join(json.dumps(row, ensure_ascii=plain) + "\n" for row in rows),
    "no last end": lambda rows, plain: "\n".join(json.dumps(row, ensure_ascii=plain) for row in rows),
    "blank lines": lambda rows, plain: "\n \n" + "\n\n\t\n".join(json.dumps(row, ensure_ascii=plain) for row in rows) + "\n\n  ",
    "windows": lambda rows, plain: "".join(json.dumps(row, ensure_ascii=plain) + "\r\n" for row in rows),
    "bom and a blank line": lambda rows, plain: "\ufeff \r\n\n" + "".join(json.dumps(row, ensure_ascii=plain) + "\n" for row in rows),
    "bom and lines": lambda rows, plain: "\ufeff" + "".join(json.dumps(row, ensure_ascii=plain) + "\n" for row in rows),
}


# ---- JSON


@pytest.mark.parametrize("plain", [True, False], ids=["ascii", "utf8"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_what_json_says_however_they_are_laid_out(layout: str, plain: bool, tmp_path: Path) -> None:
    for seed, count in enumerate((1, 2, 40, 0)[: 3 if layout.startswith("bom") else 4]):
        rows = some(seed, count)
        file = tmp_path / f"{seed}.json"
        file.write_bytes(LAYOUTS[layout](rows, plain).encode())
        found = table(file)
        assert len(found) == count and list(found) == rows
        assert [found[number] for number in reversed(range(count))] == rows[::-1]


@pytest.mark.parametrize("chunk", [16, 17, 64, 1 << 20])
def test_where_chunks_end_makes_no_difference(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [*some(5, 30), {"long": "x" * 3000 + "\n}]" * 50}, *some(6, 3)]
    for layout in ("pretty", "blank lines"):
        file = tmp_path / f"{layout}.json"
        file.write_bytes(LAYOUTS[layout](rows, False).encode())
        monkeypatch.setattr(index, "CHUNK", chunk)
        monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / f"cache-{chunk}"))
        assert list(table(file)) == rows


def test_places_are_those_that_an_editor_shows(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('\n{"a": 1}\n\n   \n{"a": 2}\nbroken\n[1]\n')
    found = table(file)
    assert [found.where(number) for number in range(4)] == [f"line {line} of {file}" for line in (2, 5, 6, 7)]
    with pytest.raises(BadInput, match=r"line 6 of .*: it is not JSON"):
        _ = found[2]
    with pytest.raises(BadInput, match=r"line 7 of .*: it is no object in \{\}"):
        _ = found[3]
    (tmp_path / "b.json").write_text('[{"a": 1}, {"a": 2}]')
    assert table(tmp_path / "b.json").where(1) == f"row 1 of {tmp_path / 'b.json'}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[{"a": 1}, {"a": ', "row 1 of .* is not complete JSON .*fetch it again"),
        ('[{"a": 1}, {"a": 1}', "row 2 of .* is not complete JSON"),
        ('[{"a": 1}, {"a": tru}]', "row 1 of .* is not complete JSON"),
        ('[{"a": 1}, 5]', r"row 1 of .* \(byte 11\) is no object"),
        ('["a"]', "row 0 of .* is no object"),
        ('[{"a": 1}] [{"a": 2}]', r"goes on behind the end of its array \(byte 11\)"),
        ('[{"a": 1}]\n[{"a": 2}]\n', r"goes on behind the end of its array \(byte 11\)"),
        ('[{"a": 1}]\n{"a": 2}', r"goes on behind the end of its array \(byte 11\)"),
        ('[{"a": 1}]' + " " * 200 + "x" + " " * 200, r"goes on behind the end of its array \(byte 210\)"),
        ('[{"a": 1}],', r"goes on behind the end of its array \(byte 10\)"),
        ("[]\x85", r"goes on behind the end of its array \(byte 2\)"),
        ('[{"a": 1} {"a": 2}]', r"row 1 of .* \(byte 10\) has no comma in front of it"),
        ('[{"a": 1}{"a": 2}]', r"row 1 of .* \(byte 9\) has no comma in front of it"),
        ('[{"a": 1},,{"a": 2}]', r"row 1 of .* \(byte 11\) has 2 commas in front of it"),
        ('[{"a": 1},' + " " * 200 + ',{"a": 2}]', r"row 1 of .* \(byte 211\) has 2 commas in front of it"),
        ('[,{"a": 1}]', r"row 0 of .* \(byte 2\) has a comma in front of it"),
        ('[{"a": 1},]', r"the array of .* ends with a comma \(byte 10\)"),
        ("[,]", r"the array of .* ends with a comma \(byte 2\)"),
        ("hello", "holds no rows: it begins with b'h'"),
        ("\x1f\x8b", "holds no rows"),
    ],
)
def test_a_file_that_is_no_rows_says_where(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BadInput, match=says) as wrong:
        table(tmp_path / "a.json")
    assert "\n" not in str(wrong.value)
    assert not list((tmp_path / "cache").rglob("*.index"))


@pytest.mark.parametrize("text", ['[{"a": 1}]\n [{"a": 2}]', '[{"a": 1} , , {"a": 2}]', '[{"a": 1} \n {"a": 2}]', "[ { } , ]  ", "[]  x"])
def test_what_is_wrong_between_rows_is_found_wherever_chunks_end(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").write_text(text)
    said = set[str]()
    for chunk in range(1, len(text) + 2):
        monkeypatch.setattr(index, "CHUNK", chunk)
        with pytest.raises(BadInput) as wrong:
            table(tmp_path / "a.json")
        said.add(str(wrong.value))
    assert len(said) == 1


def test_the_hash_is_of_the_whole_file(tmp_path: Path) -> None:
    for text in ('[{"a": 1}]', '[{"a": 1}]' + "\n" * 200):
        (tmp_path / "a.json").write_text(text)
        assert indexed(tmp_path / "a.json").hash == hashlib.sha256(text.encode()).hexdigest()


def test_a_row_without_an_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "LONGEST", 500)
    (tmp_path / "a.json").write_text('[{"a": "' + "x" * 5000 + '"}]')
    with pytest.raises(BadInput, match=r"row 0 of .* is not complete JSON"):
        table(tmp_path / "a.json")


def test_a_row_nested_too_deeply_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}\n")
    with pytest.raises(BadInput, match="nested too deeply"):
        _ = table(tmp_path / "a.jsonl")[0]
    (tmp_path / "a.json").write_text('[{"a": ' + "[" * 100_000 + "]" * 100_000 + "}]")
    with pytest.raises(BadInput, match="nested too deeply"):
        table(tmp_path / "a.json")


def test_yaml_nested_too_deeply_has_no_reader(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("[" * 1500 + "]" * 1500)
    assert reader_of(tmp_path / "a.yaml") is None


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("start", ["[", '[{"a": ', '{"a": '])
def test_a_first_row_nested_too_deeply_has_no_reader(start: str, name: str, tmp_path: Path) -> None:
    ends = {"[": "]", '[{"a": ': "}]", '{"a": ': "}"}
    (tmp_path / name).write_text(start + "[" * 100_000 + "]" * 100_000 + ends[start])
    assert seen(tmp_path / name).first == {} and reader_of(tmp_path / name) is None


def test_rows_of_a_file_that_is_gone_are_still_said_in_a_message(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n\n[2]\n')
    found = table(file)
    file.unlink()
    assert found.where(1) == f"row 1 of {file}" and list(places(found, [0, 1])) == [f"row 0 of {file}", f"row 1 of {file}"]


def test_what_is_not_there_or_no_file_is_one_line(tmp_path: Path) -> None:
    for path, says in (
        (tmp_path / "gone.json", "data not found"),
        (tmp_path / "gone.parquet", "data not found"),
        (tmp_path, "holds no rows"),
    ):
        with pytest.raises(BadInput, match=says):
            table(path)
    with pytest.raises(BadInput, match="is a folder"):
        indexed(tmp_path)


# ---- the cache


def test_an_index_is_found_again_and_not_trusted_when_the_file_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, built = tmp_path / "a.jsonl", list[str]()
    whole = index._built
    monkeypatch.setattr(index, "_built", lambda *given: (built.append("x"), whole(*given))[1])
    file.write_text('{"a": 1}\n{"a": 2}\n')
    first = indexed(file)
    again = indexed(file)
    assert len(built) == 1 and np.array_equal(first.spans, again.spans) and (first.hash, first.layout) == (again.hash, again.layout)
    assert isinstance(again.spans, np.memmap)
    changed = file.stat().st_mtime_ns
    size = file.stat().st_size
    file.write_text('{"a": 3}\n\n{"b":4}\n')
    assert file.stat().st_size == size, "its time alone tells that it is another"
    os.utime(file, ns=(changed + 1, changed + 1))
    assert list(table(file)) == [{"a": 3}, {"b": 4}] and len(built) == 2 and indexed(file).hash != first.hash
    for kept in (tmp_path / "cache").rglob("*.index"):
        kept.write_bytes(kept.read_bytes()[: kept.stat().st_size // 2])
    assert list(table(file)) == [{"a": 3}, {"b": 4}] and len(built) == 3


def test_a_cache_that_cannot_be_written_costs_time_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "file" / "cache"))
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    assert list(table(tmp_path / "a.jsonl")) == [{"a": 1}]
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    with pytest.raises(BadInput, match="cannot write"):  # which has no other way to be read by row
        table(tmp_path / "a.parquet")


def test_progress_is_told(tmp_path: Path) -> None:
    told = list[tuple[str, int, int]]()
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n' * 100)
    pq.write_table(pa.table({"a": range(20)}), tmp_path / "a.parquet")
    with progress.heard(lambda *said: told.append(said)):
        table(tmp_path / "a.jsonl")
        table(tmp_path / "a.parquet")
    assert {what for what, _, _ in told} == {"index of a.jsonl, MB", "index of a.parquet, rows"} and told[-1][1:] == (20, 20)


# ---- several files


def test_files_of_a_folder_are_one_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, count in (("b/2.jsonl", 3), ("a.json", 2), ("b/1.jsonl", 0), (".hidden.json", 5), ("c.txt", 1)):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        rows = [{"from": name, "row": row} for row in range(count)]
        (tmp_path / "data" / name).write_text("\n".join(map(json.dumps, rows)) if name.endswith("l") else json.dumps(rows))
    found = table(tmp_path / "data")
    assert [(row["from"], row["row"]) for row in found] == [
        ("a.json", 0),
        ("a.json", 1),
        ("b/2.jsonl", 0),
        ("b/2.jsonl", 1),
        ("b/2.jsonl", 2),
    ]
    assert found.where(2) == f"line 1 of {tmp_path / 'data/b/2.jsonl'}" and found[-1]["row"] == 2
    pq.write_table(pa.table({"a": [1]}), tmp_path / "data" / "z.parquet")
    assert list(table(tmp_path / "data")) == [{"a": 1}]  # of two kinds, parquet


def test_tables_say_when_they_differ(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    (tmp_path / "b.jsonl").write_text('{"a": 1}\n{"a": 3}\n')
    one, other = table(tmp_path / "a.jsonl"), table(tmp_path / "b.jsonl")
    tables: Sequence[Table] = [
        one,
        other,
        joined([one, other]),
        joined([other, one]),
        Chosen(one, [0]),
        Chosen(one, [1]),
        Chosen(one, range(1)),
    ]
    assert len({found.fingerprint() for found in tables}) == len(tables)
    assert list(Chosen(joined([one, other]), np.array([3, 0]))) == [{"a": 3}, {"a": 1}]


# ---- parquet

PICTURE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def test_rows_of_parquet_are_what_pyarrow_says(tmp_path: Path) -> None:
    dice = random.Random(3)
    rows = [
        {
            "text": "".join(dice.choices(AWKWARD, k=5)) if number % 5 else None,
            "kind": dice.choice(["a", "b", None]),
            "turns": [{"from": "human", "value": str(number)}] * (number % 3),
            "score": number / 7,
            "flag": number % 2 == 0,
        }
        for number in range(53)
    ]
    turns = pa.list_(pa.struct({"from": pa.string(), "value": pa.string()}))
    kinds = {"text": pa.string(), "kind": pa.dictionary(pa.int32(), pa.string()), "turns": turns, "score": pa.float64(), "flag": pa.bool_()}
    whole = pa.Table.from_pylist(rows, schema=pa.schema(list(kinds.items())))
    rows = [{key: value for key, value in row.items() if value is not None} for row in rows]  # a field that is null is no field
    for group in (1, 5, 7, 20, 100):
        pq.write_table(whole, tmp_path / f"{group}.parquet", row_group_size=group)
        found = table(tmp_path / f"{group}.parquet")
        assert len(found) == 53 and list(found) == rows and found[52] == rows[52]
        assert list(pickle.loads(pickle.dumps(found))) == rows  # as it travels to another process


@pytest.mark.parametrize("group", [1, 4, 50])
@pytest.mark.parametrize(
    ("kind", "wrap"),
    [
        (PICTURE, lambda data: data and {"bytes": data, "path": "a.jpg"}),
        (pa.binary(), lambda data: data),
        (pa.large_binary(), lambda data: data),
        (pa.struct({"bytes": pa.binary()}), lambda data: data and {"bytes": data}),
        (pa.list_(PICTURE), lambda data: data and [{"bytes": data, "path": None}, {"bytes": data[::-1], "path": "b"}]),
        (pa.list_(pa.binary()), lambda data: data and [data, data[::-1]]),
        (pa.large_list(pa.binary()), lambda data: data and [data, data[::-1]]),
    ],
    ids=["hub", "bytes", "large bytes", "no path", "list", "list of bytes", "large list"],
)
def test_pictures_inside_stay_where_they_are(kind: pa.DataType, wrap: Any, group: int, tmp_path: Path) -> None:
    data = [None if number % 4 == 2 else encoded(number) for number in range(20)]
    rows = [{"n": number, "image": wrap(one)} for number, one in enumerate(data)]
    pq.write_table(
        pa.Table.from_pylist(rows, schema=pa.schema({"n": pa.int64(), "image": kind})), tmp_path / "a.parquet", row_group_size=group
    )
    found = table(tmp_path / "a.parquet")
    for number, one in enumerate(data):
        held = found[number].get("image")
        if one is None:
            assert held is None
        elif isinstance(held, tuple):
            assert [each.read() for each in held] == [one, one[::-1]]
        else:
            assert held.read() == one and str(held) == f"image of row {number} of {tmp_path / 'a.parquet'}"
    copies = sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*.arrow"))
    assert copies < 20_000  # numbers and names


def test_a_picture_without_bytes_and_a_damaged_file_are_one_line(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": pa.array([{"bytes": None, "path": "gone.jpg"}], PICTURE)}), tmp_path / "a.parquet")
    with pytest.raises(BadInput, match=r"image not found: image of row 0 of .* holds no bytes; drop the row"):
        table(tmp_path / "a.parquet")[0]["image"].read()
    whole = tmp_path / "b.parquet"
    pq.write_table(pa.table({"a": [str(number) * 50 for number in range(999)]}), whole, compression="none")
    whole.write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(BadInput, match="is no parquet file that can be read"):
        table(whole)
    (tmp_path / "c.parquet").write_text("<html>")
    with pytest.raises(BadInput, match="is no parquet file"):
        table(tmp_path / "c.parquet")


def test_an_empty_parquet_file_has_no_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": pa.array([], pa.string())}), tmp_path / "a.parquet")
    assert len(table(tmp_path / "a.parquet")) == 0


def test_a_changed_parquet_file_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": [1, 2]}), file)
    before, changed = table(file), file.stat().st_mtime_ns
    assert table(file).fingerprint() == before.fingerprint()
    pq.write_table(pa.table({"a": [1, 3]}), file)
    os.utime(file, ns=(changed + 1, changed + 1))
    assert list(table(file)) == [{"a": 1}, {"a": 3}] and table(file).fingerprint() != before.fingerprint()


# ---- size

MANY = 1_000_000
OPEN = """
import json, random, sys, time
from pathlib import Path
from pivot.data import reading, llava, onevision
reader = onevision if sys.argv[1].endswith(".parquet") else llava
start = time.perf_counter()
rows = reader.read(sys.argv[1])
opened = time.perf_counter() - start
dice = random.Random(0)
asked = [dice.randrange(len(rows)) for _ in range(2000)]
start = time.perf_counter()
for number in asked:
    assert rows[number].id == f"row-{number}"
each = (time.perf_counter() - start) / len(asked)
(peak,) = [line.split() for line in open("/proc/self/status") if line.startswith("VmHWM")]  # rusage would tell the parent's peak, too
memory = int(peak[1]) / 2**20
print(json.dumps({"rows": len(rows), "opened": opened, "each": each, "memory": memory}))
"""


def written(file: Path) -> None:
    """A million of LLaVA's rows, of some 300 bytes each."""
    talk = [
        {"from": "human", "value": "<image>\nWhat stands on the “table”?"},
        {"from": "gpt", "value": "A cup of tea, and behind it a book. " * 4},
    ]
    if file.suffix == ".parquet":
        kind = pa.list_(pa.struct({"from": pa.string(), "value": pa.string()}))
        with pq.ParquetWriter(file, pa.schema({"id": pa.string(), "image": pa.string(), "conversations": kind})) as out:
            for start in range(0, MANY, 100_000):
                numbers = range(start, start + 100_000)
                names = [f"{number}.jpg" for number in numbers]
                talks = pa.ListArray.from_arrays(pa.array(range(0, 200_001, 2), pa.int32()), pa.array(talk * 100_000, kind.value_type))
                out.write_batch(pa.RecordBatch.from_arrays([[f"row-{number}" for number in numbers], names, talks], schema=out.schema))
        return
    array, said = file.suffix == ".json", json.dumps(talk, indent=1 if file.suffix == ".json" else None, ensure_ascii=False)
    with file.open("w", encoding="utf-8") as out:
        out.write("[" if array else "")
        for number in range(MANY):
            out.write(f'{"," if array and number else ""}{{"id": "row-{number}", "image": "{number}.jpg", "conversations": {said}}}')
            out.write("" if array else "\n")
        out.write("]" if array else "")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process's memory is read from Linux's /proc")
@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet"])
def test_a_million_rows_open_in_a_gigabyte(kind: str, tmp_path: Path) -> None:
    """In processes of their own: indexed at 50,000 rows a second or more, found again at once, each row read within a millisecond."""
    file = tmp_path / f"rows.{kind}"
    written(file)

    def opened() -> dict[str, float]:
        done = subprocess.run([sys.executable, "-c", OPEN, str(file)], capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    first, again = opened(), opened()
    print(f"\n{kind}: first {first}, again {again}")
    for one in (first, again):
        assert one["rows"] == MANY and one["memory"] < 1 and one["each"] < 1e-3
    assert MANY / first["opened"] > 50_000 and again["opened"] < 1
