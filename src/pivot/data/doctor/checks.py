"""What can be wrong with a row of data, and the checks that need its text alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pivot.data.talk import turns_of
from pivot.records import Example, Response, Turn

IMAGE = "<image>"  # as in `turns.py`, which loads torch

# Every fault by its code, in the order of the report. Those of a row's text and pictures are found row by row, the others by comparison.
FAULTS = {
    "broken-row": "the reader refuses the row",
    "unsafe-path": "a name leads out of the folder of pictures",
    "image-missing": "a picture is not there",
    "orphan": "a caption or a map is there without its picture, and so is no row",
    "image-corrupt": "a picture cannot be decoded",
    "image-huge": "a picture has so many pixels that it must be a trap",
    "image-shape": "a picture is a thin strip or a speck",
    "tag-missing": "fewer <image> in the prompt than pictures",
    "tag-extra": "more <image> in the prompt than pictures",
    "tag-misplaced": "<image> behind the prompt: in a response or in a later turn",
    "broken-text": "text that is no Unicode: half of a surrogate pair",
    "turns": "turns that cannot be trained on",
    "control-token": "text contains a control token of the model",
    "empty-prompt": "the prompt says nothing",
    "empty-chosen": "a chosen response says nothing",
    "empty-rejected": "a rejected response says nothing",
    "equal-responses": "chosen and rejected say the same, up to white space",
    "no-response": "no response, where other rows have one",
    "long-prompt": "pictures and prompt leave a response no room within the token limit",
    "long-chosen": "over the token limit with the chosen response",
    "long-rejected": "over the token limit with the rejected response",
    "same-after-cut": "chosen and rejected differ only behind the token limit",
    "duplicate-row": "an earlier row has the same pictures, prompt and responses",
    "leak-row": "other data has the same prompt to the same pictures",
    "leak-image": "other data has one of the pictures",
}
# Worth a word, but nothing is wrong with it.
NOTES = {
    "several-images": "more than one picture",
    "no-picture": "no picture, where more than 99 of 100 rows have one",
    "other-class": "an earlier row has the same picture and another class",
    "no-answer-kind": "an answer, and no answer_kind to judge replies by; rows,PATH,kind=number gives one (docs/data.md, Answers)",
    "duplicate-id": "an earlier row has the same id",  # published mixtures repeat them, and nothing goes by them
}
BIT = {code: 1 << number for number, code in enumerate([*FAULTS, *NOTES])}
# No processor sees anything in a picture 100 times as long as wide, nor in a side under 4 pixels, which some take for colour channels.
LONGEST_SHAPE, SHORTEST_SIDE = 100, 4


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with one row. `says`: what exactly."""

    code: str
    says: str


def faults(example: Example, tagged: bool) -> Iterator[Fault]:
    """What is wrong with a row's text. `tagged`: rows of its format must say <image> for each picture."""
    asked = turns_of(example.prompt, "user")
    if len(example.images) > 1:
        yield Fault("several-images", f"{len(example.images)} pictures")
    if example.answer is not None and example.answer_kind is None:
        yield Fault("no-answer-kind", short(example.answer))
    for where, text in texts(example):
        if (at := halved(text)) is not None:
            yield Fault("broken-text", f"{where}, character {at}")
    yield from _tags(example, asked, tagged)
    yield from _order(example, asked)
    yield from _responses(example.responses)


def _tags(example: Example, asked: Sequence[Turn], tagged: bool) -> Iterator[Fault]:
    placed, pictures = sum(turn["content"].count(IMAGE) for turn in asked), len(example.images)
    behind = [turn for response in example.responses for turn in turns_of(response.text, "assistant") if IMAGE in turn["content"]]
    if behind:
        yield Fault("tag-misplaced", f"{IMAGE} in what the {behind[0]['role']} says: {short(behind[0]['content'])}")
    placed += sum(turn["content"].count(IMAGE) for turn in behind if turn["role"] == "user")
    if placed > pictures:
        yield Fault("tag-extra", f"{placed} {IMAGE} for {pictures} pictures")
    elif placed < pictures and (tagged or placed):
        yield Fault("tag-missing", f"{placed} {IMAGE} for {pictures} pictures")


def _order(example: Example, asked: Sequence[Turn]) -> Iterator[Fault]:
    """A prompt ends with the user's turn, a response begins and ends with the assistant's."""
    if not asked or asked[-1]["role"] != "user":
        yield Fault("turns", f"the prompt ends with a turn of the {asked[-1]['role']}" if asked else "the prompt has no turn")
    for number, response in enumerate(example.responses):
        said = turns_of(response.text, "assistant")
        if not said or said[0]["role"] != "assistant" or said[-1]["role"] != "assistant":
            yield Fault("turns", f"response {number} does not begin and end with the assistant's turn")
        elif any(turn["role"] == "user" and not turn["content"].replace(IMAGE, "").strip() for turn in said):
            yield Fault("empty-prompt", f"in response {number} a later turn of the user says nothing")


def _responses(responses: Sequence[Response]) -> Iterator[Fault]:
    empty = set[int]()
    for number, response in enumerate(responses):
        if any(turn["role"] == "assistant" and not turn["content"].strip() for turn in turns_of(response.text, "assistant")):
            empty.add(number)
            yield Fault("empty-rejected" if response.role == "rejected" else "empty-chosen", f"response {number} ({response.role})")
    said = [" ".join(" ".join(turn["content"] for turn in turns_of(response.text, "assistant")).split()) for response in responses]
    for number, response in enumerate(responses):
        if response.role != "rejected" or response.images is not None or number in empty:
            continue
        plain = (n for n, other in enumerate(responses) if other.role == "chosen" and other.images is None)
        twin = next((n for n in plain if said[n] == said[number]), None)
        if twin is not None:
            yield Fault("equal-responses", f"responses {twin} and {number}: {short(said[number])}")


def blank(example: Example) -> bool:
    """Whether nothing is asked. In data of captions or classes nothing ever is."""
    return not any(turn["content"].replace(IMAGE, "").strip() for turn in turns_of(example.prompt, "user") if turn["role"] == "user")


def texts(example: Example) -> Iterator[tuple[str, str]]:
    """All that is said, and where."""
    for turn in turns_of(example.prompt, "user"):
        yield "the prompt", turn["content"]
    for number, response in enumerate(example.responses):
        for turn in turns_of(response.text, "assistant"):
            yield f"response {number}", turn["content"]


def halved(text: str) -> int | None:
    """Where half of a surrogate pair stands, which JSON can hold, and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as broken:
        return broken.start
    return None


def shape(size: tuple[int, int]) -> str | None:
    """What is wrong with the shape of a picture."""
    short_side, long_side = sorted(size)
    absurd = short_side < SHORTEST_SIDE or long_side > LONGEST_SHAPE * short_side
    return f"{size[0]} x {size[1]} pixels" if absurd else None


def asks(example: Example) -> str:
    """The prompt as one may compare it: however it is laid out, wherever its pictures stand."""
    return "\n".join(
        f"{turn['role']}: {' '.join(turn['content'].replace(IMAGE, ' ').split())}" for turn in turns_of(example.prompt, "user")
    )


def short(text: str) -> str:
    """The beginning of a text, in one line that may be shown."""
    line = re.sub(r"[\x00-\x1f\x7f]+", " ", text[:200])
    return repr(line if len(line) <= 50 else f"{line[:47]}...")
