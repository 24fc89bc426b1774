"""A text that a reply quotes or comes to."""

from __future__ import annotations

import re
import unicodedata

from pivot.answers.mention import Mention, last, normal

QUOTED = re.compile(r"[\"“”«]([^\"“”«»]+)[\"“”»]|(?<!\w)['‘]([^'‘’]+)['’](?!\w)")
CAPITALS = re.compile(r"(?<!\w)[A-Z0-9]+(?:[ -][A-Z0-9]+)*(?!\w)")
LEAD = re.compile(r"\b(?:is|are|was|says|say|reads|read|shows|spells|reach)\b", re.IGNORECASE)


def text(reply: str) -> str | None:
    """The part of the reply that holds the answer, normalised."""
    reply = unicodedata.normalize("NFKC", reply).strip()
    tail = re.split(r":\s", reply)[-1]
    if normal(tail):
        reply = tail
    quoted = [Mention(m[1] or m[2], m.start(), m.end()) for m in QUOTED.finditer(reply)]
    capitals = [Mention(m[0], m.start(), m.end()) for m in CAPITALS.finditer(reply)] if re.search(r"[a-z]", reply) else []
    for mentions in (quoted, capitals):
        if mentions:
            settled = last(mentions, reply)
            return normal(settled) or None if settled else None
    after = LEAD.split(reply)[-1]
    return normal(after) or normal(reply) or None
