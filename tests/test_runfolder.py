"""Run folders: marks notice what changed, a killed writer is swept, of several runs each claims its stages."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pivot import files, runfolder
from pivot.records import BadInput, Measurement
from pivot.runfolder import RunFolder

FOUND = Measurement("probe", "linear", {"kind": 0.75}, 4, arm="dpo", seed=1, items={"kind": {"a": 1.0, "b": 0.5}}, parts={"mean": ["kind"]})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from pivot import files
with files.whole_file(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_the_target_and_a_leftover_that_the_next_run_sweeps(folder: RunFolder) -> None:
    folder.note(name="a")
    subprocess.run([sys.executable, "-c", KILLED_WRITER, str(folder.manifest_file)], check=False)
    assert folder.manifest() == {"name": "a"}
    assert len(list(folder.path.glob(files.LEFTOVER))) == 1
    unswept = files.hash_file(folder.path)
    with folder.alone():
        assert not list(folder.path.glob(files.LEFTOVER))
        (folder.path / ".lock").unlink()
        assert files.hash_file(folder.path) == unswept  # that file aside, all is as it was


def test_a_run_killed_before_its_first_file_is_gone_on_with(folder: RunFolder) -> None:
    folder.path.mkdir()
    (folder.path / ".lock").touch()
    subprocess.run([sys.executable, "-c", KILLED_WRITER, str(folder.manifest_file)], check=False)
    with folder.alone():
        assert sorted(os.listdir(folder.path)) == [".claims", ".lock", "manifest.json"] and folder.manifest() == {}
    with folder.alone():
        pass


@pytest.mark.parametrize("inside", [".notes.tmp", ".draft.1234567.tmp", "run/manifest.json", "notes", "manifest.json"])
def test_a_folder_of_somebody_else_is_refused_and_stays_as_it_is(tmp_path: Path, inside: str) -> None:
    files.write_text(tmp_path / inside, '{"name": "a page", "icons": []}')
    with pytest.raises(BadInput, match="is not empty and not a run folder; give another out="), RunFolder(tmp_path).alone():
        pass
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()] == [inside]


def test_only_work_to_lose_counts_as_a_start(folder: RunFolder) -> None:
    with folder.alone():
        folder.pin("init", "abc", "the weights")
        files.write_text(folder.post("dpo", 0) / "metrics.jsonl", "")
        assert not folder.started()
        for checkpoint in (folder.post("dpo", 0) / "checkpoint-5", folder.path / "align" / "checkpoint-5"):
            checkpoint.mkdir(parents=True)
            assert folder.started()
            checkpoint.rmdir()
        folder.mark("report")
        assert folder.started()


def test_who_wants_the_folder_alone_is_refused_until_all_have_left(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runfolder, "DOOR", 0.2)
    with folder.alone(), pytest.raises(BadInput, match="another run is writing"), folder.alone():
        pass
    with folder.alone(), pytest.raises(BadInput, match="another run is writing"), folder.joined(lambda shared: None):
        pass
    with folder.joined(lambda shared: None), pytest.raises(BadInput, match="another run is writing"), folder.alone():
        pass
    with folder.alone():
        pass


def test_runs_join_each_other_once_the_first_has_begun(folder: RunFolder) -> None:
    told: list[bool] = []
    with ThreadPoolExecutor(1) as threads:

        def first(shared: bool) -> None:
            told.append(shared)
            threads.submit(joins, folder, told)
            time.sleep(0.3)
            assert told == [False]  # the second is at the door

        with folder.joined(first):
            threads.shutdown()
    assert told == [False, True]


def joins(folder: RunFolder, told: list[bool]) -> None:
    with folder.joined(told.append):
        pass


CLAIMS_AND_DIES = """
import os, signal, sys
from pathlib import Path
from pivot.runfolder import RunFolder
with RunFolder(Path(sys.argv[1])).claim("post-dpo/seed-0") as mine:
    print(mine, flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_claim_holds_against_others_and_dies_with_its_process(folder: RunFolder) -> None:
    command = [sys.executable, "-c", CLAIMS_AND_DIES, str(folder.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdin and other.stdout.readline() == "True\n"
        assert folder.claimed("post-dpo/seed-0") and not folder.claimed("post-dpo/seed-1")
        with folder.claim("post-dpo/seed-0") as mine:
            assert not mine
        other.stdin.write("\n")
        other.stdin.flush()
        other.wait()
    assert not folder.claimed("post-dpo/seed-0")


def test_marks_of_several_runs_all_stay(folder: RunFolder) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: (folder.mark(f"stage-{n}"), folder.pin(f"pin-{n}", "a", "it")), range(40)))
    assert len(folder.manifest()["stages"]) == len(folder.manifest()["pinned"]) == 40


def test_a_mark_holds_until_an_output_or_what_it_came_from_changes(folder: RunFolder) -> None:
    model, encoder = folder.post("dpo", 0) / "model", folder.encoder("dpo", 0)
    files.write_text(model / "weights", "one")
    files.write_text(encoder / "weights", "one")
    assert not folder.done("post")
    folder.mark("post", [model], steps=3)
    folder.mark("detach", [encoder], needs=folder.versions(["post"]))
    assert folder.done("post") and folder.done("detach") and folder.facts("post") == {"steps": 3}
    files.write_text(encoder / "weights", "two")
    assert folder.done("post") and not folder.done("detach")
    files.write_text(encoder / "weights", "one")
    files.write_text(model / "weights", "two")
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
