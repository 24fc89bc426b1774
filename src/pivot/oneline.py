"""Data named in one line, as on a command line."""

from __future__ import annotations

import os
from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pivot import lookup
from pivot.knobs import declared, nearest
from pivot.plain import override, parse
from pivot.records import BadInput
from pivot.seen import ROWS, reader_of

FILES = (*ROWS, ".ndjson", ".yaml", ".yml", ".csv", ".tsv", ".txt", ".zip", ".tar", ".gz")  # what a path ends in, and no module that reads


def described(source: str, sets: Collection[str] = ()) -> dict[str, Any]:
    """One line that names data, as plain values: `world,split=test,size=600`, or a path, whose format is found by looking.

    Commas within brackets part nothing. A first option without a key is the path, where the reader needs one: `rows,FOLDER`. What the
    reader takes as text alone stays as it is written: `path=2024` is a folder, not a number. `sets`: data sets that it might have meant.
    """
    reader, *options = _split(source)
    if not reader.strip():
        raise BadInput(f"data '{source}' names no reader; write READER,KEY=VALUE,... as in world,split=test,size=600")
    known = lookup.names("data")
    if reader.strip() not in known and Path(os.path.expanduser(reader)).exists():
        reader, options = _reader_of(reader), [f"path={reader}", *options]
    elif reader.strip() not in known and ("/" in reader or reader.strip().lower().endswith(FILES)):
        raise BadInput(f"data '{source}': no such folder or file; check the path, or name a reader: {', '.join(known)}")
    elif reader.strip() not in known and "." not in reader:
        what = "a reader or a data set" if sets else "a reader"
        raise BadInput(f"data '{source}': '{reader.strip()}' is neither a folder or file nor {what}; {_known(reader.strip(), known, sets)}")
    plain: dict[str, Any] = {"read": reader.strip()}
    knobs = declared(lookup.find("data", plain["read"])).model_fields
    for number, option in enumerate(options):
        key, sign, text = (part.strip() for part in option.partition("="))
        if not sign and number == 0 and key and "path" in knobs and knobs["path"].is_required():
            key, text = "path", key
        elif not sign or not key:
            raise BadInput(f"data '{source}': '{option}' is no KEY=VALUE; write READER,KEY=VALUE,... as in world,split=test,size=600")
        if key in knobs and knobs[key].annotation in (str, str | None) and text not in ("", "null", "~"):
            value = _lenient(text)
            plain[key] = value if isinstance(value, str) else text
        else:
            plain = override(plain, option)
    return plain


def _split(source: str) -> list[str]:
    """The parts between commas, of which those within brackets part nothing: published folders are called `tqa(cauldron,llava_format)`."""
    parts, depth = [""], 0
    for character in source:
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _reader_of(path: str) -> str:
    """Who reads what is there."""
    found = reader_of(Path(os.path.expanduser(path)))
    if found is None:
        raise BadInput(
            f"data '{path}': no reader knows what is there; name one, as in llava,{path} (known: {', '.join(lookup.names('data'))})"
        )
    return found


def _known(name: str, readers: Collection[str], sets: Collection[str]) -> str:
    """The nearest name, or all of them."""
    if get_close_matches(name, [*readers, *sets], n=1):
        return nearest(name, [*readers, *sets])
    return f"readers: {', '.join(readers)}{'; data sets: ' if sets else ''}{', '.join(sets)}"


def _lenient(text: str) -> Any:
    """YAML's value of a text, or the text itself where it is none."""
    try:
        return parse(text, "")
    except BadInput:
        return text
