"""What docs/data.md shows is read by the readers that it names, and its commands are commands."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from pivot import cli, lookup, recipe
from pivot.data.writing.convert import named, written
from pivot.records import Response
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
