"""LLaVA-NeXT's pairs: a JSON list of {prompt, chosen, rejected, image, answer}.

Wherever a prompt says `<image>`, its picture comes first. `image_rejected` is a picture of the rejected response's own. `answer`, from
which the published trainer only guesses lengths, is the reference that the pair was judged by. Rows about videos are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pivot.data.reading import Read, Row, first, root
from pivot.data.saying import missing, pair, question, reply, spread
from pivot.data.tables.table import table
from pivot.data.talk import placed
from pivot.data.turns import IMAGE
from pivot.records import Example, Response
from pivot.seen import Seen

FIELDS = ("prompt", "chosen", "rejected", "image", "image_rejected", "video")


def read(path: str, *, images: str | None = None, links: bool = False, size: int | None = None) -> Read:
    """Open a .json or .jsonl file, or a folder of them. `images`: the folder of pictures; `links`: links in it may lead out of it."""
    return Read(first(table(path), size), example, root(path, images, links))


def knows(seen: Seen) -> bool:
    """Pairs of plain text with one picture or video."""
    texts = all(isinstance(seen.first.get(key), str) for key in ("prompt", "chosen", "rejected"))
    about = seen.has("image") or seen.has("video") or seen.has("image_rejected")
    return seen.kind == "rows" and texts and about and not (seen.has("images") or seen.has("responses"))


def example(row: Row) -> Example:
    """One row."""
    if row.plain.get("video") is not None:
        raise row.wrong("it is about a video ('video'), and only pictures are read")
    images, other = row.pictures("image"), row.pictures("image_rejected")
    asked = row.text("prompt").replace(IMAGE, "").strip()
    return Example(
        id=row.id,
        images=images,
        prompt=placed(asked, len(images)),
        responses=(Response(row.text("chosen")), Response(row.text("rejected"), role="rejected", images=other or None)),
        **row.beside(*FIELDS),
    )


def row(example: Example, pictures: Sequence[Any]) -> tuple[dict[str, Any], list[str]]:
    """The example as a row. Of one picture it is no loss where `<image>` stood: it comes first."""
    chosen, rejected = pair(example, "llava_dpo")
    lost = list[str]()
    said = question(example, lost)
    asked = placed(said.replace(IMAGE, "").strip(), len(pictures))
    if len(pictures) > 1 and any(piece.strip() for piece in said.split(IMAGE)[:-1]):
        lost.append("where pictures stand")
    image = {} if not pictures else {"image": pictures[0] if len(pictures) == 1 else list(pictures)}
    own = {"prompt": asked, "chosen": reply(chosen.text, lost), "rejected": reply(rejected.text, lost)}
    plain, left = spread(example, {"id": example.id, **image, **own}, taken=FIELDS)
    return plain, lost + left + missing(example, [chosen, rejected])
