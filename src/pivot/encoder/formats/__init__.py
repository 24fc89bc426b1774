"""The layouts that encoders come in and go out in: one file a library.

Each format exports `opened(name or folder, dtype)`, `refusal(family)`, `write(model, processor, folder)`, `WEIGHTS_FILE`, and
two functions that use the library alone: `pixels(folder, images)` and `read(folder, pixel_values, tap)`.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from types import ModuleType

from pivot.encoder import towers
from pivot.encoder.formats import hf, open_clip, timm
from pivot.files import read_json
from pivot.records import BadInput

FORMATS: dict[str, ModuleType] = {"hf": hf, "timm": timm, "open_clip": open_clip}
WRITTEN = {"hf": "hf:ID", "timm": "timm:NAME", "open_clip": "open_clip:MODEL/TAG"}


def prefixed(prefix: str, name: str) -> ModuleType:
    """The format of an encoder's name by its prefix; a wrong one gets the nearest."""
    if prefix not in FORMATS:
        own = "; a tower of your own needs a dotted name, package.module:NAME" if prefix.isidentifier() else ""
        near = ", ".join(WRITTEN[form] for form in _near(prefix))
        raise BadInput(f"encoder '{name}': no prefix '{prefix}:'; nearest: {near}, or give a folder{own}")
    return FORMATS[prefix]


def named(prefix: str, said: str) -> ModuleType:
    """The format of `--to`; a wrong one gets the nearest."""
    if prefix not in FORMATS:
        raise BadInput(f"{said}; nearest: {', '.join(_near(prefix))}")
    return FORMATS[prefix]


def _near(prefix: str) -> list[str]:
    return get_close_matches(prefix, FORMATS, n=1) or list(FORMATS)


def of_folder(folder: Path) -> ModuleType:
    """The format of a folder, recognised by its files."""
    if (folder / open_clip.CONFIG_FILE).is_file():
        return open_clip
    config = folder / "config.json"
    if config.is_file():
        facts = read_json(config)
        if isinstance(facts, dict) and "architecture" in facts and "model_type" not in facts:
            return timm
    return hf


def table() -> dict[tuple[str, str], bool | str]:
    """What goes where: (family, library) to True, or to the reason why it cannot. A True cell may still refuse an odd shape."""
    families = [row.name for row in towers.ROWS if row.name != "pivot_outside"]  # which goes out as a pivot_tower
    return {(name, library): form.refusal(name) or True for name in families for library, form in FORMATS.items()}
