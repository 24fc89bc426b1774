"""Run folders: files are whole or absent, logs survive a kill, marks notice what changed."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pivot import runfolder
from pivot.records import BadInput, Measurement
from pivot.runfolder import RunFolder

FOUND = Measurement("probe", "linear", {"kind": 0.75}, 4, arm="dpo", seed=1, items={"kind": {"a": 1.0, "b": 0.5}}, parts={"mean": ["kind"]})


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "facts.json"
    runfolder.write_json(target, {"a": 1})
    with pytest.raises(RuntimeError), runfolder.whole_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(target.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["facts.json"]


@pytest.mark.parametrize("before", [None, "old"])
def test_a_failed_folder_leaves_the_old_one_and_nothing_else(tmp_path: Path, before: str | None) -> None:
    target = tmp_path / "model"
    if before:
        with runfolder.whole_folder(target) as temporary:
            (temporary / "weights").write_text(before)
    with pytest.raises(RuntimeError), runfolder.whole_folder(target) as temporary:
        (temporary / "weights").write_text("half")
        raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == (["model", "weights"] if before else [])


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with runfolder.whole_folder(tmp_path / "model") as temporary:
            (temporary / name).write_text(name)
    assert os.listdir(tmp_path) == ["model"] and os.listdir(tmp_path / "model") == ["second"]


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from pivot import runfolder
with runfolder.whole_file(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_the_target_and_a_leftover_that_the_next_run_sweeps(folder: RunFolder) -> None:
    folder.note(a=1)
    subprocess.run([sys.executable, "-c", KILLED_WRITER, str(folder.manifest_file)], check=False)
    assert folder.manifest() == {"a": 1}
    assert len(list(folder.path.glob(runfolder.LEFTOVER))) == 1
    unswept = runfolder.hash_file(folder.path)
    with folder.alone():
        assert not list(folder.path.glob(runfolder.LEFTOVER))
        (folder.path / ".lock").unlink()
        assert runfolder.hash_file(folder.path) == unswept


def test_a_second_run_in_the_folder_is_refused_until_the_first_ends(folder: RunFolder) -> None:
    with folder.alone(), pytest.raises(BadInput, match="another run is writing"), folder.alone():
        pass
    with folder.alone():
        pass


@pytest.mark.parametrize("torn", [b"", b'{"step": 3, "lo', b"x" * 9000])
def test_appending_drops_a_torn_last_line(tmp_path: Path, torn: bytes) -> None:
    log = tmp_path / "metrics.jsonl"
    runfolder.append_jsonl(log, {"step": 1}, {"step": 2})
    with log.open("ab") as file:
        file.write(torn)
    assert runfolder.read_jsonl(log) == [{"step": 1}, {"step": 2}]
    runfolder.append_jsonl(log, {"step": 3})
    assert [row["step"] for row in runfolder.read_jsonl(log)] == [1, 2, 3]


def test_a_log_that_is_one_torn_line_starts_anew(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(b'{"step": 1')
    assert runfolder.read_jsonl(log) == []
    runfolder.append_jsonl(log, {"step": 2})
    assert runfolder.read_jsonl(log) == [{"step": 2}]


def test_a_broken_line_inside_a_log_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnot json\n{"step": 2}\n')
    with pytest.raises(BadInput, match="line 2 of"):
        runfolder.read_jsonl(tmp_path / "metrics.jsonl")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_line_that_names_the_file() -> None:
    with pytest.raises(BadInput, match="disk full while writing /dev/full; free some space"):
        runfolder.append_jsonl("/dev/full", {"step": 1})


def test_a_full_disk_keeps_the_log_readable(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    runfolder.append_jsonl(log, {"step": 1})
    code = "import resource, sys; from pivot import runfolder; resource.setrlimit(resource.RLIMIT_FSIZE, (40, 40)); "
    code += "runfolder.append_jsonl(sys.argv[1], {'step': 'x' * 100})"
    done = subprocess.run([sys.executable, "-c", code, str(log)], capture_output=True, text=True, check=False)
    assert "BadInput: disk full while writing" in done.stderr
    assert log.read_text() == '{"step": 1}\n'


def test_disk_full_is_recognised_through_other_libraries_errors() -> None:
    class Foreign(Exception): ...

    with pytest.raises(BadInput, match="disk full"), runfolder.disk("model"):
        raise Foreign("I/O error: No space left on device (os error 28)")
    with pytest.raises(BadInput, match="disk full"), runfolder.disk("model"):
        try:
            full_disk()
        except OSError as error:
            raise Foreign from error
    with pytest.raises(Foreign), runfolder.disk("model"):
        raise Foreign("something else")


def test_json_takes_records_arrays_and_numbers_that_browsers_refuse(tmp_path: Path) -> None:
    runfolder.write_json(
        tmp_path / "x.json", {"a": np.float32(0.5), "b": np.arange(2), "c": math.nan, "d": (math.inf, True), 3: torch.tensor(2)}
    )
    assert runfolder.read_json(tmp_path / "x.json") == {"a": 0.5, "b": [0, 1], "c": None, "d": [None, True], "3": 2}


def test_equal_tensors_hash_equal_whatever_order_library_or_layout() -> None:
    a, b = torch.arange(6.0).reshape(2, 3), torch.ones(2, dtype=torch.bfloat16)
    expected = runfolder.hash_tensors({"a": a, "b": b})
    assert runfolder.hash_tensors({"b": b.clone(), "a": a.numpy()}) == expected
    assert runfolder.hash_tensors([("a", a.T.contiguous().T), ("b", torch.nn.Parameter(b))]) == expected


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
    assert runfolder.hash_tensors(other) != runfolder.hash_tensors({"a": torch.zeros(2, 3)})


def test_a_mark_holds_until_an_output_or_what_it_came_from_changes(folder: RunFolder) -> None:
    model, encoder = folder.post("dpo", 0) / "model", folder.encoder("dpo", 0)
    runfolder.write_text(model / "weights", "one")
    runfolder.write_text(encoder / "weights", "one")
    assert not folder.done("post")
    folder.mark("post", [model], steps=3)
    folder.mark("detach", [encoder], needs=["post"])
    assert folder.done("post") and folder.done("detach") and folder.facts("post") == {"steps": 3}
    runfolder.write_text(encoder / "weights", "two")
    assert folder.done("post") and not folder.done("detach")
    runfolder.write_text(encoder / "weights", "one")
    runfolder.write_text(model / "weights", "two")
    assert not folder.done("post")
    folder.mark("post", [model])
    assert folder.done("post") and not folder.done("detach")


def test_a_pinned_fact_may_not_change(folder: RunFolder) -> None:
    folder.pin("ids", "abc", "the examples")
    folder.pin("ids", "abc", "the examples")
    with pytest.raises(BadInput, match="the examples no longer match"):
        folder.pin("ids", "abd", "the examples")


def test_measurements_come_back_as_they_went(folder: RunFolder) -> None:
    folder.write_measurement(FOUND)
    assert folder.measurements() == [FOUND]
    assert [path.name for path in (folder.path / "measurements").iterdir()] == ["dpo-seed-1-probe-linear.json"]


def test_a_damaged_measurement_is_named(folder: RunFolder) -> None:
    file = folder.write_measurement(FOUND)
    for text in ('{"kind": "probe"', '{"kind": "probe"}', "[]"):
        file.write_text(text)
        with pytest.raises(BadInput, match=r"dpo-seed-1-probe-linear\.json"):
            folder.measurements()


def test_what_is_not_a_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such run folder"):
        RunFolder.existing(tmp_path / "none")
    with pytest.raises(BadInput, match="not a run folder"):
        RunFolder.existing(tmp_path)


def test_the_module_needs_no_torch() -> None:
    code = "import sys, pivot.runfolder; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
