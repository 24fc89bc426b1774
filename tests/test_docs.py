"""What docs/encoders.md promises is what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pivot import cli
from pivot.encoder import formats, names

TEXT = (Path(__file__).parents[1] / "docs" / "encoders.md").read_text(encoding="utf-8")


def rows(head: str) -> list[list[str]]:
    """Cells of the table whose head begins so."""
    lines = TEXT[TEXT.index(head) :].splitlines()
    table = lines[2 : next((i for i, line in enumerate(lines) if not line.startswith("|")), len(lines))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_the_table_of_layouts_is_the_codes() -> None:
    told = {(row[0], library): cell for row in rows("| family | hf |") for library, cell in zip(formats.FORMATS, row[1:], strict=True)}
    known = formats.table()
    assert told.keys() == known.keys()
    for place, cell in told.items():
        assert cell.startswith("no") == (known[place] is not True), f"{place}: the table says '{cell}', the code {known[place]}"


def test_the_names_shown_are_names() -> None:
    """Where a library knows its own names offline, they must be among them."""
    timm, open_clip = pytest.importorskip("timm"), pytest.importorskip("open_clip")
    shown = re.findall(r"(hf|timm|open_clip):([\w.-]+(?:/[\w.-]+)?)", TEXT)
    assert {library for library, _ in shown} == {"hf", "timm", "open_clip"}
    for library, name in shown:
        if library == "timm" and not name.startswith("NAME"):
            assert timm.is_model(name.partition(".")[0]) and name in timm.list_pretrained(), name
        elif library == "open_clip" and name != "MODEL/TAG":
            assert tuple(name.split("/")) in open_clip.list_pretrained(), name
    assert names.parse("hf:a/b@-1 + hf:c/d -> 24x24").grid == (24, 24)


def test_every_verb_that_it_names_exists(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in sorted(set(re.findall(r"`pivot ((?:encoder )?[a-z]+)", TEXT))):
        assert cli.call([*verb.split(), "--help"]) == 0, verb
        capsys.readouterr()
