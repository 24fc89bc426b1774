"""Files are whole or absent, logs survive a kill, hashes notice what changed."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pivot import files
from pivot.records import BadInput


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "facts.json"
    files.write_json(target, {"a": 1})
    with pytest.raises(RuntimeError), files.whole_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(target.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["facts.json"]


@pytest.mark.parametrize("before", [None, "old"])
def test_a_failed_folder_leaves_the_old_one_and_nothing_else(tmp_path: Path, before: str | None) -> None:
    target = tmp_path / "model"
    if before:
        with files.whole_folder(target) as temporary:
            (temporary / "weights").write_text(before)
    with pytest.raises(RuntimeError), files.whole_folder(target) as temporary:
        (temporary / "weights").write_text("half")
        raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == (["model", "weights"] if before else [])


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with files.whole_folder(tmp_path / "model") as temporary:
            (temporary / name).write_text(name)
    assert os.listdir(tmp_path) == ["model"] and os.listdir(tmp_path / "model") == ["second"]


@pytest.mark.parametrize("torn", [b"", b'{"step": 3, "lo', b"x" * 9000])
def test_appending_drops_a_torn_last_line(tmp_path: Path, torn: bytes) -> None:
    log = tmp_path / "metrics.jsonl"
    files.append_jsonl(log, {"step": 1}, {"step": 2})
    with log.open("ab") as file:
        file.write(torn)
    assert files.read_jsonl(log) == [{"step": 1}, {"step": 2}]
    files.append_jsonl(log, {"step": 3})
    assert [row["step"] for row in files.read_jsonl(log)] == [1, 2, 3]


def test_a_log_that_is_one_torn_line_starts_anew(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(b'{"step": 1')
    assert files.read_jsonl(log) == []
    files.append_jsonl(log, {"step": 2})
    assert files.read_jsonl(log) == [{"step": 2}]


def test_a_broken_line_inside_a_log_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnot json\n{"step": 2}\n')
    with pytest.raises(BadInput, match="line 2 of"):
        files.read_jsonl(tmp_path / "metrics.jsonl")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_line_that_names_the_file() -> None:
    with pytest.raises(BadInput, match="disk full while writing /dev/full; free some space"):
        files.append_jsonl("/dev/full", {"step": 1})


def test_a_full_disk_keeps_the_log_readable(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    files.append_jsonl(log, {"step": 1})
    code = "import resource, sys; from pivot import files; resource.setrlimit(resource.RLIMIT_FSIZE, (40, 40)); "
    code += "files.append_jsonl(sys.argv[1], {'step': 'x' * 100})"
    done = subprocess.run([sys.executable, "-c", code, str(log)], capture_output=True, text=True, check=False)
    assert "BadInput: disk full while writing" in done.stderr
    assert log.read_text() == '{"step": 1}\n'


def test_disk_full_is_recognised_through_other_libraries_errors() -> None:
    class Foreign(Exception): ...

    with pytest.raises(BadInput, match="disk full"), files.disk("model"):
        raise Foreign("I/O error: No space left on device (os error 28)")
    with pytest.raises(BadInput, match="disk full"), files.disk("model"):
        try:
            full_disk()
        except OSError as error:
            raise Foreign from error
    with pytest.raises(Foreign), files.disk("model"):
        raise Foreign("something else")


def test_json_takes_records_arrays_and_numbers_that_browsers_refuse(tmp_path: Path) -> None:
    files.write_json(
        tmp_path / "x.json", {"a": np.float32(0.5), "b": np.arange(2), "c": math.nan, "d": (math.inf, True), 3: torch.tensor(2)}
    )
    assert files.read_json(tmp_path / "x.json") == {"a": 0.5, "b": [0, 1], "c": None, "d": [None, True], "3": 2}


def test_equal_tensors_hash_equal_whatever_order_library_or_layout() -> None:
    a, b = torch.arange(6.0).reshape(2, 3), torch.ones(2, dtype=torch.bfloat16)
    expected = files.hash_tensors({"a": a, "b": b})
    assert files.hash_tensors({"b": b.clone(), "a": a.numpy()}) == expected
    assert files.hash_tensors([("a", a.T.contiguous().T), ("b", torch.nn.Parameter(b))]) == expected


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2, 3, dtype=torch.float64)},
        {"a": torch.zeros(2, 3, dtype=torch.int32)},
        {"b": torch.zeros(2, 3)},
        {"a": torch.zeros(2, 3), "b": torch.zeros(0)},
        {"a": torch.zeros(2, 3) + 1e-30},
        {"a": -torch.zeros(2, 3)},
    ],
)
def test_any_difference_between_tensors_changes_the_hash(other: dict[str, torch.Tensor]) -> None:
    assert files.hash_tensors(other) != files.hash_tensors({"a": torch.zeros(2, 3)})


@pytest.mark.parametrize("write", [files.write_text, lambda path, text: files.append_jsonl(path, text), "folder"])
@pytest.mark.parametrize("place", ["/proc/out", "file/out", "file/deep/out"])
def test_where_nothing_can_be_written_is_named_as_the_user_named_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any, place: str
) -> None:
    def whole_folder(path: str, text: str) -> None:
        with files.whole_folder(path) as temporary:
            (temporary / "inside").write_text(text)

    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("keep")
    with pytest.raises(BadInput, match=rf"^cannot write {place}: .*; check the path") as caught:
        (whole_folder if write == "folder" else write)(place, "text")
    assert ".tmp" not in str(caught.value)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "keep")]


def test_a_file_is_not_put_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out" / "inside").mkdir(parents=True)
    with pytest.raises(BadInput, match=rf"^cannot write {tmp_path / 'out'}: Is a directory"):
        files.write_text(tmp_path / "out", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_beside_a_file_what_killed_writers_of_it_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    kept = [
        f".a.b.{dead.pid}.tmp",
        f".b.{dead.pid}.tmp",
        f".a.{os.getppid()}.tmp",
        f"in/.a.{dead.pid}.tmp",
        f".a.01234567.{os.getppid()}.tmp",
    ]
    gone = [f".a.{dead.pid}.tmp/inside", f".a.01234567.{dead.pid}.tmp", f".a.old.{dead.pid}.tmp/inside"]
    for name in [*kept, *gone]:
        files.write_text(tmp_path / name, "text")
    files.sweep_beside(tmp_path / "a")
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == set(kept)
    assert len(list(tmp_path.iterdir())) == len(kept)
    files.sweep_beside(tmp_path / "none" / "a")


def test_several_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    """As threads do, and processes with equal numbers in two containers."""
    target = tmp_path / "a"
    with files.whole_file(target) as first:
        first.write_text("first")
        with files.whole_file(target) as second:
            second.write_text("second")
        assert target.read_text() == "second" and first.read_text() == "first"
    assert target.read_text() == "first" and [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_the_disk_says_of_a_temporary_is_said_of_its_target(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"cannot write .*/a: No such file"), files.whole_file(tmp_path / "a") as temporary:
        (temporary / "inside").write_text("text")


def test_a_folder_without_a_name_is_refused_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its contents would be swept as those of a killed writer."""
    (tmp_path / "keep").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="no name of its own"), files.whole_folder("."):
        pass
    assert (tmp_path / "keep").exists()


def test_only_what_killed_writers_of_ours_left_is_swept(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    alive = os.getppid()
    kept = [".notes.tmp", "project/.draft.tmp/text", f".model.{alive}.tmp/weights", "run/manifest.json", f"run/.a.json.{dead.pid}.tmp"]
    kept += ["plain.1.tmp", ".a.0.tmp", f".a.{dead.pid}.tmp.txt"]
    gone = [f".a.json.{dead.pid}.tmp", f"post/seed-0/.model.old.{dead.pid}.tmp/weights", f".b.json.{os.getpid()}.tmp"]
    for name in [*kept, *gone]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "manifest.json").touch()
    files.sweep(tmp_path)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {*kept, "manifest.json"} and not list(tmp_path.rglob(f"*.{dead.pid}.tmp/weights"))


def test_an_error_about_another_file_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="elsewhere"), files.whole_folder(tmp_path / "out"):
        (tmp_path / "elsewhere").read_text()
