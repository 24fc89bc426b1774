"""What docs/data.md shows is read by the readers that it names, and its commands are commands."""

from __future__ import annotations

import json
import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml

from pivot import cli, lookup, recipe
from pivot.data.writing.convert import named, written
from pivot.records import AnswerKind, Response
from pivot.reward._contract import made
from pivot.seen import reader_of

TEXT = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
FORMATS = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##)", TEXT, re.MULTILINE | re.DOTALL))


def test_every_reader_has_a_section() -> None:
    assert set(lookup.names("data")) - {"world"} == set(FORMATS)


@pytest.mark.parametrize("name", [name for name, section in FORMATS.items() if "```json" in section])
def test_the_row_shown_is_read_by_its_reader_alone(name: str, tmp_path: Path) -> None:
    (row,) = re.findall(r"```json\n(.*?)\n```", FORMATS[name], re.DOTALL)
    plain = json.loads(row)
    inside = name in ("onevision", "rlaif")  # published as parquet, with the picture's bytes, which the page leaves out
    if inside:
        import pyarrow as pa
        import pyarrow.parquet as pq

        plain["image"]["bytes"] = b"bytes"
        pq.write_table(pa.Table.from_pylist([plain]), tmp_path / "rows.parquet")
    else:
        (tmp_path / "rows.jsonl").write_text(json.dumps(plain) + "\n")
    file = next(tmp_path.iterdir())
    assert reader_of(file) == name
    (example,) = recipe.read(f"{name},{file}")
    assert example.images and (example.responses or example.answer)


def answers() -> list[tuple[str, str, str, dict[str, Any]]]:
    """Kind, answer, right reply and meta of each row of the table of answers."""
    table = TEXT.partition("## Answers")[2].partition("\n## ")[0]
    found = re.findall(r"^\| `(\w+)` \| `(.*?)` \|(?: `(.*?)`)? \|(?: `(\{.*?\})`.*?)? \|$", table, re.MULTILINE)
    return [(kind, answer, reply, json.loads(meta or "{}")) for kind, answer, reply, meta in found]


@pytest.mark.parametrize(("kind", "answer", "reply", "meta"), answers())
def test_answers_are_given_and_judged_as_shown(kind: str, answer: str, reply: str, meta: dict[str, Any], tmp_path: Path) -> None:
    plain = {"id": "1", "prompt": "What?", "answer": answer, "answer_kind": kind}
    (tmp_path / "own.jsonl").write_text(json.dumps({**plain, "meta": meta}) + "\n")
    (tmp_path / "other.jsonl").write_text(json.dumps({**plain, **meta, "images": []}) + "\n")
    judge = made("mixed")
    for line in (f"rows,{tmp_path / 'own.jsonl'}", f"trl,{tmp_path / 'other.jsonl'}"):
        (example,) = recipe.read(line)
        if kind == "maths" and not find_spec("math_verify"):
            continue
        if reply:
            assert judge(reply, example) == 1.0 and judge("I cannot tell.", example) == 0.0
            assert not judge("I cannot tell.", example).failed
        else:
            assert judge("anything", example).failed


def test_every_kind_of_answer_is_shown() -> None:
    assert {kind for kind, *_ in answers()} == set(get_args(AnswerKind)) and len(answers()) == len(get_args(AnswerKind)) + 1


def test_boxes_in_other_coordinates_are_compared_by_the_option_and_keys_shown(tmp_path: Path) -> None:
    ((_, answer, _, meta),) = [row for row in answers() if row[0] == "box"]
    (option,) = re.findall(r"option `reply_in` of reward `iou`: `(.*?)`\)", TEXT)
    row = {"id": "1", "prompt": "Where?", "answer": answer, "answer_kind": "box"}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({**row, "meta": one}) + "\n" for one in (meta, {"coordinates": "pixels"})))
    known, unknown = recipe.read(f"rows,{tmp_path / 'a.jsonl'}")
    judge, reply = made(yaml.safe_load(option)), "[62.5, 62.5, 312.5, 375]"
    assert judge(reply, known) == pytest.approx(1.0) and judge(reply, unknown).failed


def test_headings_and_blocks_stand_apart() -> None:
    assert not re.search(r"[^\n]\n#{2,3} ", TEXT)


def test_copies_of_the_doctor_are_called_as_they_can_be_written() -> None:
    asked = re.findall(r"pivot data doctor (\w+),.* --fix (\S+)", TEXT)
    assert asked
    for reader, out in asked:
        named(Path(out), reader)
    (only_read,) = re.findall(r"can only be read \((.*), and readers", TEXT)
    assert set(re.findall(r"`(\w+)`", only_read)) == set(lookup.names("data")) - {"world"} - set(written())


def test_a_mixture_is_what_the_page_shows(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```yaml\n(.*?)\n```", FORMATS["mix"], re.DOTALL)
    spec = yaml.safe_load(shown)["chats"]
    assert spec.pop("read") == "mix" and {part["weight"] for part in spec["of"].values()} == {3, 1}
    for part in spec["of"].values():
        lookup.find("data", part["read"])


def test_the_reader_shown_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)\n```", TEXT, re.DOTALL)
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "pairs.py").write_text(code)
    (tmp_path / "rows.json").write_text('[{"uid": "7", "file": "7.jpg", "ask": "what?", "good": "a", "bad": "b", "by": "me"}]')
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        (example,) = recipe.read(f"my_lab.pairs,path={tmp_path / 'rows.json'}")
    finally:
        for name in ("my_lab.pairs", "my_lab"):
            sys.modules.pop(name, None)
    assert example.responses == (Response("a"), Response("b", role="rejected"))
    assert (example.id, example.prompt, dict(example.meta)) == ("7", "what?", {"by": "me"})


def commands() -> list[list[str]]:
    """Every command line of the page, without what follows a #."""
    return [shlex.split(line, comments=True)[1:] for line in re.findall(r"^pivot data .*$", TEXT, re.MULTILINE)]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_the_commands_shown_are_commands(words: list[str]) -> None:
    """They name data that is not here, so they are parsed and not run."""
    group: Any = typer.main.get_command(cli.app)
    verb = group.commands["data"].commands[words[1]]
    assert verb.make_context(words[1], words[2:])
    source = words[3 if words[1] == "prefer" else 2]  # there the model stands first
    assert source.partition(",")[0] in (*lookup.names("data"), "my-pairs", "own-pairs")
