"""Pages: one file with nothing from elsewhere, no script, and no way for data to become markup."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from PIL import Image

from pivot.pictures import picture
from pivot.records import BadInput

if TYPE_CHECKING:
    from pivot.records import Picture

# Characters that no HTML page may hold, and those that turn around the text that follows.
UNFIT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\u202a-\u202e\u2066-\u2069]")


def template(file: Path, **known: Any) -> Template:
    """A template that escapes whatever is printed in it; `head.html` and `style.html` are at hand for all."""
    loader = FileSystemLoader([file.parent, Path(__file__).parent])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(known)
    return environment.get_template(file.name)


def rendered(template: Template, facts: dict[str, Any]) -> str:
    """The page, as a file can hold it."""
    return UNFIT.sub("\N{REPLACEMENT CHARACTER}", template.render(facts))


def thumbnail(source: Picture, longest: int, exact: int | None = None) -> dict[str, Any]:
    """A picture as a data URI. Always encoded anew, so that what reaches the page is an image and nothing else.

    `exact`: one whose longer side has more pixels becomes a JPEG, which of a photograph takes a tenth of the room.
    """
    image = picture(source)
    whole = image.size
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    kind, out = ("PNG" if exact is None or max(whole) <= exact else "JPEG"), io.BytesIO()
    try:
        image.save(out, kind, quality=85, optimize=True)
    except (OSError, ValueError) as broken:
        raise BadInput(f"image cannot be shown ({broken})") from None
    uri = f"data:image/{kind.lower()};base64,{base64.b64encode(out.getvalue()).decode()}"
    return {"uri": uri, "width": image.width, "height": image.height, "whole": whole}
