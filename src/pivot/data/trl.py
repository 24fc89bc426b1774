"""TRL's rows: prompt with chosen and rejected, prompt with completion, messages, or a prompt alone; `images`, or one `image`, beside.

Each is text, or chat messages whose content is text or a list of parts, {"type": "text", "text": ...} and {"type": "image"} where a
picture stands, which `<image>` stands for here. Without `prompt`, chosen and rejected are whole conversations, and the prompt is what
they begin with alike, up to a user's turn. `label: false` says that a completion is a rejected one. A `rejected_response` beside messages
(ms-swift's rows) stands against their last answer. A last question that nobody answers is kept in `meta`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pivot.data.reading import Read, Row, first, root
from pivot.data.saying import missing, of_role, spread
from pivot.data.tables.table import table
from pivot.data.talk import bare, parted, placed, turns_of, unanswered
from pivot.data.turns import IMAGE
from pivot.records import Example, Response, Turn
from pivot.seen import Seen

FIELDS = ("prompt", "chosen", "rejected", "completion", "messages", "rejected_response", "images", "image")
ROLES = ("user", "assistant", "system")
OTHERS = ("question", "conversations", "responses", "gt", "ds_name")  # fields of other formats that have some of these, too


def read(path: str, *, images: str | None = None, links: bool = False, size: int | None = None) -> Read:
    """Open a .json, .jsonl or .parquet file, or a folder of them. `images`: the folder of pictures; `links`: links may lead out of it."""
    return Read(first(table(path), size), example, root(path, images, links))


def knows(seen: Seen) -> bool:
    """One of these shapes, unless it is LLaVA-NeXT's pair with its one picture."""
    has = seen.has("chosen", "rejected") or seen.has("prompt", "completion") or seen.has("messages") or seen.has("prompt", "images")
    pair = all(isinstance(seen.first.get(key), str) for key in ("prompt", "chosen", "rejected"))
    other = any(seen.has(key) for key in OTHERS)
    llava = seen.kind == "rows" and pair and not seen.has("images") and any(map(seen.has, ("image", "image_rejected", "video")))
    return seen.kind in ("rows", "parquet") and has and not other and not llava


def example(row: Row) -> Example:
    """One row."""
    there = {key for key in FIELDS if row.plain.get(key) is not None}
    judged = "completion" in there and isinstance(row.plain.get("label"), bool)
    beside = row.beside(*FIELDS, *(["label"] if judged else []))
    if there & {"chosen", "rejected"}:
        prompt, responses = _pair(row)
    elif there >= {"messages", "rejected_response"}:
        prompt, responses = _against(row)
    elif "messages" in there:
        turns = messages(row, row.get("messages"), "messages")
        prompt, responses = parted(turns)
        beside["meta"] = unanswered(turns, beside["meta"])
    else:
        prompt, responses = bare(messages(row, row.get("prompt"), "prompt"), "user"), ()
        if "completion" in there:
            said = bare(messages(row, row.get("completion"), "completion", "assistant"), "assistant")
            responses = (Response(said, role="rejected" if judged and not row.plain["label"] else "chosen"),)
    pictures = row.pictures("images") or row.pictures("image")
    return Example(id=row.id, images=pictures, prompt=prompt, responses=responses, **beside)


def _pair(row: Row) -> tuple[str | tuple[Turn, ...], tuple[Response, ...]]:
    """Prompt and responses of a row with `chosen` and `rejected`."""
    said = [messages(row, row.get(key), key, "assistant") for key in ("chosen", "rejected")]
    if row.plain.get("prompt") is not None:
        start = messages(row, row.get("prompt"), "prompt")
    elif isinstance(row.plain["chosen"], str) or isinstance(row.plain["rejected"], str):
        raise row.wrong("'prompt' is missing, and in text nobody can say where it ends; give 'prompt'")
    else:
        start = said[0][: _common(said)]
    if not start:
        raise row.wrong("chosen and rejected do not begin alike with a user's turn, and there is no 'prompt'")
    ends = [turns[len(start) :] if turns[: len(start)] == start else turns for turns in said]
    for key, turns in zip(("chosen", "rejected"), ends, strict=True):
        if not turns or turns[0]["role"] != "assistant":
            raise row.wrong(f"'{key}' does not go on where the prompt ends: with an assistant's turn")
    chosen, rejected = (bare(turns, "assistant") for turns in ends)
    return bare(start, "user"), (Response(chosen), Response(rejected, role="rejected"))


def _against(row: Row) -> tuple[str | tuple[Turn, ...], tuple[Response, ...]]:
    """Messages whose last one, an answer, has a rejected one beside it."""
    *start, last = messages(row, row.get("messages"), "messages")
    if last["role"] != "assistant" or not start:
        raise row.wrong("'rejected_response' stands against the last message, which is no assistant's answer to anything")
    return bare(start, "user"), (Response(last["content"]), Response(row.text("rejected_response"), role="rejected"))


def _common(conversations: Sequence[Sequence[Turn]]) -> int:
    """How many turns conversations begin with alike, up to a user's turn that each of them goes on behind."""
    alike = 0
    for number, turns in enumerate(zip(*conversations, strict=False)):
        if any(turn != turns[0] for turn in turns) or any(len(whole) == number + 1 for whole in conversations):
            break
        alike = number + 1 if turns[0]["role"] == "user" else alike
    return alike


def messages(row: Row, given: Any, key: str, speaker: str = "user") -> list[Turn]:
    """Text or chat messages as turns."""
    if isinstance(given, str):
        return [{"role": speaker, "content": given}]
    if not isinstance(given, Sequence) or not given or not all(isinstance(turn, Mapping) for turn in given):
        raise row.wrong(f"'{key}' is neither text nor a list of messages")
    turns = list[Turn]()
    for number, turn in enumerate(given):
        if turn.get("role") not in ROLES:
            raise row.wrong(f"message {number} of '{key}' is from {turn.get('role')!r}, not from {', '.join(ROLES)}")
        turns.append({"role": turn["role"], "content": _content(row, turn.get("content"), f"message {number} of '{key}'")})
    return turns


def _content(row: Row, given: Any, what: str) -> str:
    if not isinstance(given, Sequence) or isinstance(given, str):
        return row.said(given, f"the content of {what}")
    said = ""
    for part in given:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("text", "image"):
            raise row.wrong(f"{what} has a part of type {kind!r}, not text or image")
        said += IMAGE if kind == "image" else row.said(part.get("text"), f"a text in {what}")
    return said


def row(example: Example, pictures: Sequence[Any]) -> tuple[dict[str, Any], list[str]]:
    """The example as chat messages of parts, which TRL takes with pictures and without, so that all rows have the same types."""
    chosen, rejected = of_role(example, "chosen"), of_role(example, "rejected")
    own: dict[str, Any] = {
        "id": example.id,
        "images": list(pictures),
        "prompt": _messages(placed(example.prompt, len(pictures), ""), "user"),
    }
    kept = [response for response in (chosen, rejected) if response] or list(example.responses[:1])
    if chosen and rejected:
        own |= {"chosen": _messages(chosen.text, "assistant"), "rejected": _messages(rejected.text, "assistant")}
    elif kept:
        own |= {"completion": _messages(kept[0].text, "assistant")} | ({"label": False} if rejected else {})
    plain, lost = spread(example, own, taken=[*FIELDS, *(["label"] if "completion" in own else [])])
    return plain, lost + missing(example, kept)


def _messages(said: str | Sequence[Turn], speaker: str) -> list[dict[str, Any]]:
    return [{"role": turn["role"], "content": _parts(turn["content"])} for turn in turns_of(said, speaker)]


def _parts(content: str) -> list[dict[str, Any]]:
    first, *rest = content.split(IMAGE)
    parts: list[dict[str, Any]] = [{"type": "text", "text": first}] if first or not rest else []
    for piece in rest:
        parts += [{"type": "image", "text": None}, *([{"type": "text", "text": piece}] if piece else [])]
    return parts
