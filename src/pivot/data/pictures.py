"""What pictures hold, as a hash: caches and resumed runs must notice one that changed under the same name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pivot.records import BadInput, picture

if TYPE_CHECKING:
    from pivot.records import Picture


def fingerprint(images: Sequence[Picture]) -> str:
    """sha256 over what the pictures hold, in order: pixels of images in memory, bytes of files."""
    digest = hashlib.sha256()
    for image in images:
        if isinstance(image, bytes):
            kind, content = "file", image
        elif isinstance(image, str | Path):
            if not Path(image).is_file():
                raise BadInput(f"image not found: {image}; check the path or the data's image root")
            kind, content = "file", Path(image).read_bytes()
        else:
            # As RGB, which is what encoders get: the bytes of a palette image do not hold its palette.
            kind, content = f"pixels {image.size}", picture(image).tobytes()
        digest.update(f"{kind} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
