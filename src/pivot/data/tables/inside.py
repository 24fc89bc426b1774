"""A picture that lies in a parquet file, read when its bytes are asked for."""

from __future__ import annotations

import bisect
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pivot.data.tables.copies import value
from pivot.data.tables.groups import BROKEN, Group, Mark, ends
from pivot.pictures import Missing, read
from pivot.records import BadInput


@dataclass(frozen=True)
class Inside:
    """A picture in a column of a parquet file: of a row, and where that holds several, its number among them."""

    file: Path
    column: str
    row: int  # of the file
    mark: Mark
    number: int | None = None
    name: str | None = None  # the path that the file gives it

    def __str__(self) -> str:
        return f"{self.column} of row {self.row} of {self.file}"

    def read(self) -> bytes:
        """The bytes of the picture's own file."""
        try:
            behind = ends(self.file, self.mark)
            group = bisect.bisect_right(behind, self.row)
            found = value(Group(self.file, self.mark, self.column, group), self.row - (behind[group - 1] if group else 0))
        except BROKEN as broken:
            raise BadInput(f"image cannot be read: {self} ({broken}); fetch the file again or drop the row") from None
        if self.number is not None:
            found = found[self.number]
        data = found["bytes"] if isinstance(found, Mapping) else found
        if data is None and (beside := self._beside()):
            return read(beside)
        if data is None:
            raise Missing(f"image not found: {self} holds no bytes; drop the row")
        return bytes(data)

    def _beside(self) -> Path | None:
        """The file of the picture's name below the folder of the parquet file, wherever links lead."""
        if not self.name or "\0" in self.name:
            return None
        folder = os.path.realpath(self.file.parent)
        found = os.path.realpath(os.path.join(folder, self.name))
        return Path(found) if found.startswith(os.path.join(folder, "")) and os.path.isfile(found) else None
