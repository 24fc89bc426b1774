"""What a user can get wrong: one line that says what, where and what to do, exit 2, no traceback; what was finished stays."""

from __future__ import annotations

import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pivot import cli
from pivot.encoder import Encoder
from pivot.files import write_text
from pivot.records import Example, Response
from pivot.runfolder import RunFolder
from pivot.stages import Stage, stages
from pivot.work import Work

RECIPE = """
name: small
init: tiny
data:
  pairs: {read: world, size: 8}
arms:
  original: {}
  dpo: {objective: {name: dpo}, rates: {tower: 1e-4, projector: 1e-4, llm: 1e-4}}
post: {batch: 4}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a recipe and files that are not what their names say."""
    (tmp_path / "small.yaml").write_text(RECIPE)
    (tmp_path / "broken.yaml").write_text("name: [")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "keep").touch()
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "data.jsonl").write_text('{"id": "bare", "prompt": "?"}\n')
    Encoder.tiny("siglip").save(tmp_path / "encoder")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a command says before it exits with 2."""
    capsys.readouterr()
    assert cli.call(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("pivot: ") and err.endswith("\n") and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize(
    ("arguments", "what", "advice"),
    [
        ("run small.yaml post.bach=4", "post: unknown key 'bach'", "did you mean 'batch'?"),
        ("run small.yaml post.batch=many", "post.batch", "not 'many'"),
        ("run small.yaml post.batch", "not an override: 'post.batch'", "write key.sub=value"),
        ("run small.yml", "recipe not found: small.yml", "check the path"),
        ("run smal", "no recipe named 'smal'", "give the path"),
        ("run dmo", "no recipe named 'dmo'", "did you mean 'demo'?"),
        ("run broken.yaml", "broken.yaml, line", "correct it"),
        ("run full", "no recipe named 'full'", "give the path"),
        ("run small.yaml data.pairs.read=wurld", "data.pairs: no data named 'wurld'", "did you mean 'world'?"),
        ("run small.yaml data.pairs.size=0", "size 0", "give at least one"),
        ("run small.yaml init=nowhere", "nowhere", "no such folder"),
        ("run small.yaml init=nowhere --plan", "MLLM 'nowhere': no such folder", "check the path"),
        ("run small.yaml init=small.yaml --plan", "MLLM 'small.yaml': no such folder", "check the path"),
        ("run small.yaml init=. --plan", "cannot open MLLM .", ""),
        ("run broken.png --plan", "broken.png is no text in UTF-8", "save it as UTF-8"),
        ("run small.yaml --plan probes={linear:{}}", "probes.linear.data: is missing", "pairs"),
        ("run small.yaml --plan data.pairs.tasks=[]", "tasks names none", "leave it out for all"),
        ("detach encoder out", "MLLM encoder: this is an encoder already (siglip_vision_model)", "give an MLLM"),
        ("data show rows,plain --image o.png", "example bare of rows,plain has no picture", "leave out --image"),
        ("run small.yaml --only bench-word", "no stage named 'bench-word'", "known: "),
        ("run small.yaml --only encoder-dpo/seed-0", "needs post-dpo/seed-0", "run that first"),
        ("run small.yaml --again", "--again runs finished stages from their beginning", "say which by --only"),
        ("run small.yaml out=broken.png", "broken.png", "check the path"),
        ("run small.yaml out=full", "full is not empty and not a run folder", "give another out="),
        ("run small.yaml out=", "out= names no folder", "give one"),
        ("report full", "not a run folder: full", "pivot run"),
        ("report nowhere", "no such run folder: nowhere", "check the path"),
        ("ask base nowhere.png what?", "image not found: nowhere.png", "check the path"),
        ("ask base broken.png what?", "image cannot be read: broken.png", "replace it"),
        ("detach nowhere out", "nowhere", "no such folder"),
        ("detach base full", "full exists already", "another path"),
        ("probe linear nowhere", "nowhere", ""),
        ("probe linear full --data world,siz=3", "unknown key 'siz'", "did you mean 'size'?"),
        ("bench run base --suite word", "no bench named 'word'", "did you mean 'world'?"),
        ("data make full", "full exists already", "another path"),
        ("report full --out page.html", "--out page.html names a page", "give a folder, such as --out page:"),
        ("ask base broken.png ''", "the question is empty", "write one"),
        ("probe linear full --at tower", "at: ", "not 'tower' (probe linear)"),
        ("probe linear full --test 2", "test: ", "less than 1, not 2.0 (probe linear)"),
        ("probe linear full --validation 0", "validation: ", "greater than 0, not 0.0 (probe linear)"),
        ("probe linear full --batch 0", "batch: ", "greater than or equal to 1"),
        ("bench run base --arm a/b", "--arm a/b", "give it letters"),
        ("data make /proc/out", "cannot write /proc/out: No such file or directory", "check the path"),
        ("data make broken.png/out", "cannot write broken.png/out: Not a directory", "check the path"),
        ("data show --image /proc/out.png", "cannot write /proc/out.png", "check the path"),
        ("run small.yaml out=/proc/out", "cannot write /proc/out", "check the path"),
        ("data show ''", "data '' names no reader", "write READER,KEY=VALUE"),
        ("data show world,tasks=wrd", "no task 'wrd'", "did you mean word?"),
        ("data show rows", "path: is missing", "give it"),
        ("data show rows,path=full", "rows not found: full/data.jsonl", "give the folder"),
        ("data show world,size=3 --index 9", "no example 9", "--index below"),
    ],
)
def test_wrong_input_is_one_line(here: Path, capsys: pytest.CaptureFixture[str], arguments: str, what: str, advice: str) -> None:
    said = refusal(capsys, *shlex.split(arguments))
    assert what in said and advice in said


# ---- rows that training cannot take


def reader(monkeypatch: pytest.MonkeyPatch, examples: list[Example]) -> str:
    """A reader of a third party's; returns the override that makes a recipe read it."""
    module = ModuleType("third_party.reader")
    module.read = lambda: examples  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "third_party.reader", module)
    return "data.pairs={read: third_party.reader}"


def pair(image: Any, chosen: str = "yes.", rejected: str = "no.") -> Example:
    return Example("row-7", (image,), "is it red?", (Response(chosen), Response(rejected, "rejected")))


def test_data_without_examples(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    said = refusal(capsys, "run", "small.yaml", reader(monkeypatch, []))
    assert "data.pairs of recipe 'small' has no examples; check" in said


@pytest.mark.parametrize(
    ("chosen", "image", "change", "what"),
    [
        ("", "good", "name=a", "no tokens"),
        ("yes.", "broken.png", "name=a", "image cannot be read: broken.png"),
        ("yes.", "nowhere.png", "name=a", "image not found: nowhere.png"),
        ("yes. " * 50, "good", "post.limit=60", "60"),
    ],
)
def test_a_bad_row_is_named(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    picture: Any,
    chosen: str,
    image: str,
    change: str,
    what: str,
) -> None:
    row = pair(picture(1) if image == "good" else image, chosen)
    said = refusal(capsys, "run", "small.yaml", change, reader(monkeypatch, [row]))
    assert what in said and ("row-7" in said or image in said)


# ---- disk full and Ctrl-C


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The kernel refuses to let files of this process grow beyond `size` bytes, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".tmp")]


@pytest.mark.parametrize("room", [500, 60_000])  # too little for the recipe; for the weights
def test_a_full_disk_is_one_line_and_the_rerun_goes_on(here: Path, capsys: pytest.CaptureFixture[str], room: int) -> None:
    with largest_file(room):
        said = refusal(capsys, "run", "small.yaml", "out=run")
    assert "disk full while writing run" in said and "free some space" in said
    folder = RunFolder(here / "run")
    assert leftovers(folder.path) == [] and not folder.done("post-dpo/seed-0")
    assert cli.call(["run", "small.yaml", "out=run"]) == 0
    assert folder.done("post-dpo/seed-0") and folder.done("encoder-dpo/seed-0")


@pytest.mark.parametrize("at", ["post-dpo/seed-0", "encoder-dpo/seed-0"])
def test_ctrl_c_is_one_line_and_the_rerun_goes_on(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    ran: list[str] = []

    def stage(work: Work, stage: Stage) -> list[Path]:
        ran.append(stage.name)
        if ran.count(stage.name) == 1 and stage.name == at:
            signal.raise_signal(signal.SIGINT)
        write_text(work.folder.path / stage.name / "out", "done")
        return [work.folder.path / stage.name / "out"]

    for kind in ("post", "detach", "report"):
        monkeypatch.setattr(Work, f"_{kind}", stage)
    assert f"stopped by Ctrl-C in {at}; what is finished is kept" in refusal(capsys, "run", "small.yaml")
    before = ran.copy()
    assert cli.call(["run", "small.yaml"]) == 0
    names = [stage.name for stage in stages(_loaded())]
    assert before[:-1] + ran[len(before) :] == names and before[-1] == at


def _loaded() -> Any:
    from pivot import recipe

    return recipe.load("small.yaml")


def test_ctrl_c_in_a_verb_that_is_no_run(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pivot.data.writing.write.write", lambda *_: signal.raise_signal(signal.SIGINT))
    assert "stopped by Ctrl-C" in refusal(capsys, "data", "make", "out")
    assert not (here / "out").exists() and leftovers(here) == []


@pytest.mark.slow
def test_a_real_interrupt_of_a_real_run(here: Path) -> None:
    """The signal comes from outside, at a moment of its own choice."""
    command = [sys.executable, "-m", "pivot", "run", "small.yaml", "data.pairs.size=400"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = here / "runs/small/post-dpo/seed-0/metrics.jsonl"
    while not log.exists() and process.poll() is None:
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err == f"pivot: stopped by Ctrl-C in post-dpo/seed-0; {cli.KEPT}\n"
