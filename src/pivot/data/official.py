"""The rule by which the paper's released code draws 20,000 of MMPR's pairs.

Each annotation file is read until its first row whose image is a list; all that was read is shuffled; then, one by one, a row is kept if
its picture is there (a .gif by the name of the .jpg that it became), no response says `<image>`, and prompt and chosen response are of at
most 1,500 tokens, until there are enough. The released code stumbles over rows of text alone; here they are left out. Its shuffle was
Python's, ours is the same on every machine, so the seed is the same but not the rows.

Every annotation file is read once and whole, whatever the `repeat_time` of its entry in meta.json (`whole`). Two exceptions: an entry
that is there 0 times is left out, as its files need not be there, and a meta.json of no more than one annotation with a part of one
repetition gives that part. Give such an entry a `repeat_time` of 1. Of data opened with `size=` the rule sees those rows and no others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pivot import progress
from pivot.data.filters import SEED, SIZE, Picked, chosen
from pivot.data.reading import Read
from pivot.data.saying import of_role
from pivot.data.tables.table import Chosen, Joined, Table, joined
from pivot.data.talk import turns_of
from pivot.records import BadInput, Example
from pivot.world.dice import Dice

IMAGE = "<image>"
TOKENS = 1500
Count = Callable[[str], int]  # tokens of a text


def pick(examples: Sequence[Example], count: Count, size: int = SIZE, seed: int = SEED) -> Picked:
    """The rows that the rule takes, in its order, and how many it left out for what."""
    pool = readable(examples)
    left, taken = Counter[str](), list[int]()
    for number in Dice("official", seed).shuffled(pool):
        if len(taken) == size:
            break
        why = unfit(examples[number], count)
        if why:
            left[why] += 1
        else:
            taken.append(number)
            progress.tell("rows that fit", len(taken), size)
    if len(taken) < size:
        reasons = ", ".join(f"{rows:,} {why}" for why, rows in left.most_common()) or "none was left out"
        raise BadInput(f"{size:,} rows are asked for, and {len(taken):,} fit ({reasons}); give a smaller --size")
    return Picked(taken, {"rows": len(examples), "read": len(pool), "looked at": len(taken) + left.total(), **left, "taken": size})


def whole(examples: Sequence[Example]) -> Sequence[Example]:
    """Each annotation of a meta.json once, with all its rows. Data of another kind, or opened with `size=`, as they are."""
    if not (isinstance(examples, Read) and isinstance(examples.table, Joined)):
        return examples
    found = list[Table]()
    for one in map(_annotation, examples.table.tables):
        if not any(one is other for other in found):
            found.append(one)
    return replace(examples, table=joined(found))


def readable(examples: Sequence[Example]) -> list[int]:
    """Rows before each annotation's first list of images. An annotation that comes again counts once."""
    found = list[int]()
    for rows in _annotations(examples):
        for number in rows:
            if _is_list(examples, number):
                break
            found.append(number)
    return found


def _annotations(examples: Sequence[Example]) -> Iterator[range]:
    """The rows of each file; all rows where one is as good as many."""
    table = getattr(examples, "table", None)
    if isinstance(table, Chosen) and isinstance(table.numbers, range):
        table = table.table  # of which these are the first rows, as `size=` asks for
    if not isinstance(table, Joined):
        yield range(len(examples))
        return
    seen, start = list[Table](), 0
    for one in table.tables:
        annotation = _annotation(one)
        if not any(annotation is other for other in seen):
            yield range(start, min(start + len(one), len(examples)))
        seen.append(annotation)
        start += len(one)


def _annotation(table: Table) -> Table:
    """All rows of what may be their first part, as the data set's own list asks for."""
    return table.table if isinstance(table, Chosen) else table


def _is_list(examples: Sequence[Example], number: int) -> bool:
    table = getattr(examples, "table", None)
    if isinstance(table, Table):
        return isinstance(table[number].get("image"), list | tuple)
    return len(examples[number].images) > 1


def unfit(example: Example, count: Count) -> str | None:
    """Why a row is left out; None if it is not."""
    said, other = chosen(example), of_role(example, "rejected")
    if said is None or other is None:
        return "without a pair"
    if not example.images:
        return "without an image"
    image = renamed(example).images[0]
    if isinstance(image, Path) and not image.exists():
        return "whose image is not there"
    if any(IMAGE in turn["content"] for one in example.responses for turn in turns_of(one.text, "assistant")):
        return f"with {IMAGE} in a response"
    prompt = "\n".join(turn["content"] for turn in turns_of(example.prompt, "user"))
    return f"of more than {TOKENS:,} tokens" if count(prompt) + count(said) > TOKENS else None


def renamed(example: Example) -> Example:
    """A row's .gif by the name of the .jpg that it became."""
    images = tuple(one.with_suffix(".jpg") if isinstance(one, Path) and one.suffix == ".gif" else one for one in example.images)
    return replace(example, images=images)


def sft(number: int, example: Example) -> Example:
    """A row of the file for supervised training: {id, image, conversations, data_source}."""
    source = example.meta.get("dataset") or example.meta.get("data_source") or ""
    return _bare(number, example, {"data_source": source}, ("chosen",))


def dpo(number: int, example: Example) -> Example:
    """A row of the file for preferences: {id, image, prompt, chosen, rejected}. Both files have the same ids."""
    return _bare(number, example, {}, ("chosen", "rejected"))


def _bare(number: int, example: Example, meta: dict[str, str], roles: Sequence[str]) -> Example:
    responses = tuple(found for role in roles if (found := of_role(example, role)))
    return Example(str(number), renamed(example).images, example.prompt, responses, meta=meta)


def counter(source: str) -> Count:
    """Tokens of a text as the tokenizer of a folder or of a Hub model (`hf:OWNER/NAME`) counts them.

    Beside a torchvision that was made for another torch, transformers opens none before `pivot.encoder` is imported.
    """
    from transformers import AutoTokenizer

    if not source.startswith("hf:") and not Path(source).is_dir():
        raise BadInput(f"tokenizer not found: {source}; check the path, or write hf:OWNER/NAME for one of the Hub")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.removeprefix("hf:"))
    except (OSError, ValueError, KeyError) as failed:
        raise BadInput(f"tokenizer {source} cannot be opened ({str(failed).splitlines()[0]}); check it, or give another") from None
    return lambda text: len(tokenizer(text, add_special_tokens=False).input_ids)
