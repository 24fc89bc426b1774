"""The embedded world: exact, the same everywhere, and no scene in two splits. That text tells nothing: `test_world_text.py`."""

from __future__ import annotations

import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from pivot.data.world import read
from pivot.records import BadInput, Example
from pivot.world.describe import caption, questions
from pivot.world.dice import Dice
from pivot.world.glyphs import BITMAPS, LOOKALIKE
from pivot.world.item import CUES, DESCRIBE, DOMAINS, FAMILIES, LOOK, TASKS, Form, ask, draft, item, say, split_of
from pivot.world.render import draw
from pivot.world.scene import CLASSES, ORIENTATIONS, TEXTURES
from pivot.world.words import tokenizer

GOLDEN = Path(__file__).parent / "golden" / "world.json"
ERRORS = {
    "attribute swapped",
    "attribute made up",
    "object made up",
    "object overlooked",
    "off by one",
    "relation flipped",
    "glyph misread",
    "sum made up",
    "height made up",
}


def fingerprint(example: Example) -> str:
    """Everything that a user sees of an item: pixels, words, masks."""
    picture = example.images[0]
    said = [(r.text, r.role, r.error) for r in example.responses]
    masks = b"".join(np.packbits(thing.mask).tobytes() for thing in example.truth.objects)
    words = repr((example.id, example.prompt, said, example.answer, example.truth.caption, picture.size)).encode()
    region = np.packbits(example.truth.region).tobytes()
    return blake2b(picture.tobytes() + words + masks + region + example.truth.classes.tobytes(), digest_size=10).hexdigest()


def golden_items() -> list[Example]:
    """200 items over all sizes, seeds, splits, and every form of every task."""
    sizes = (48, 64, 100, 224, 384)
    return [
        item(("train", "validation", "test")[i % 3], i % 7, 3 * i, pixels=sizes[i % 5], form=get_args(Form)[i // 5 % 4]) for i in range(200)
    ]


def test_two_hundred_items_are_what_they_were() -> None:
    # After a wanted change of the world: python tests/test_world.py
    assert [fingerprint(example) for example in golden_items()] == json.loads(GOLDEN.read_text())


def test_sixteen_families_four_a_domain() -> None:
    assert len(TASKS) == 16
    assert [len(tasks) for tasks in FAMILIES.values()] == [4, 4, 4, 4]
    seen = {example.task: example.domain for example in read(size=32)}
    assert seen == DOMAINS


@pytest.mark.parametrize("index", range(0, 32, 2))
def test_every_item_is_complete(index: int) -> None:
    for i in range(index, index + 960, 32):
        example = item("train", 3, i, pixels=48)
        chosen, *rejected = example.responses
        assert chosen.role == "chosen" and len(rejected) == 3
        assert {r.role for r in rejected} == {"rejected"} and {r.error for r in rejected} <= ERRORS
        assert len({r.text for r in example.responses}) == len(example.responses)
        truth = example.truth
        assert truth.classes.shape == truth.region.shape == example.images[0].size[::-1]
        assert truth.region.any() or "there is no" in say_all(example)
        painted = np.zeros_like(truth.region)
        for thing in truth.objects:
            assert thing.kind in CLASSES
            assert (truth.classes[thing.mask] == CLASSES.index(thing.kind)).all()
            assert not (painted & thing.mask).any()
            painted |= thing.mask
        assert (painted == (truth.classes != 0)).all()


def say_all(example: Example) -> str:
    """Both styles of the answer, for the one case in which there is nothing to point at."""
    _, made = draft("train", 3, int(example.id.split("-")[-2]))
    return made.answer.explained


def test_the_odd_one_is_odd_in_one_way_only() -> None:
    """Nothing but kind or colour sets one of the four apart; a second odd one would be a second right answer."""
    for i in range(0, 400, 2):
        shapes = draft("test", 9, i, ("odd_one",))[1].scene.shapes
        apart = [field for field in ("kind", "colour", "texture", "orientation", "r") if len({getattr(s, field) for s in shapes}) > 1]
        assert apart in (["kind"], ["colour"])


def test_objects_can_be_seen() -> None:
    """At the smallest size every object shows at least four pixels, also the one behind."""
    for i in range(640):
        example = item("train", 4, i, pixels=48)
        assert all(thing.mask.sum() >= 4 for thing in example.truth.objects), example.id


def test_responses_of_a_pair_have_one_style_and_length() -> None:
    gaps = []
    for i in range(1600):
        example = item("train", 5, i)
        chosen, rejected = example.responses[0].text, example.responses[1].text
        assert chosen.endswith(".") == rejected.endswith(".")
        gaps.append(len(chosen.split()) - len(rejected.split()))
    assert max(map(abs, gaps)) <= 2
    assert abs(np.mean(gaps)) < 0.05


def test_splits_never_share_a_scene() -> None:
    """Whatever the seeds: the scene's own hash says where it belongs."""
    scenes: dict[str, set[str]] = defaultdict(set)
    for split in ("train", "validation", "test"):
        for seed in (0, 7):
            for i in range(480):
                _, made = draft(split, seed, i)
                assert split_of(made.scene) == split
                scenes[split].add(made.scene.digest())
    assert not scenes["train"] & scenes["test"]
    assert not scenes["train"] & scenes["validation"]
    assert not scenes["validation"] & scenes["test"]


def test_twins_are_neighbours_with_opposite_answers() -> None:
    data = read(size=960, split="test", tasks=("twins",))
    for i in range(0, 200, 2):
        a, b = data[i], data[i + 1]
        assert a.meta["pair"] == b.meta["pair"] and {a.answer, b.answer} == {"yes", "no"}
        assert a.prompt.rsplit("?")[0] == b.prompt.rsplit("?")[0]
        changed = np.any(np.asarray(a.images[0]) != np.asarray(b.images[0]), axis=-1).mean()
        assert 0 < changed < 0.25


def test_same_scene_at_every_size() -> None:
    """The share of each object hardly depends on the size in pixels."""
    for i in range(32):
        _, made = draft("train", 6, i)
        small, large = draw(made.scene, 96), draw(made.scene, 384)
        for index in range(len(made.scene.items)):
            a, b = (small.owner == index + 1).mean(), (large.owner == index + 1).mean()
            assert abs(a - b) < 0.004 + 0.12 * b


def test_longer_data_start_with_the_shorter() -> None:
    short, long = read(size=40, seed=2), read(size=400, seed=2)
    assert [fingerprint(e) for e in short] == [fingerprint(long[i]) for i in range(40)]


def test_world_data_are_indexed_as_a_list_is() -> None:
    """So is whatever else is made when it is asked for: `Lazy` does the indexing for all of them."""
    data = read(size=10)
    names = [example.id for example in data]
    assert len(names) == 10
    for index in (0, 9, -1, -10, slice(2, 5), slice(None, None, -3), slice(8, 99), slice(5, 2)):
        found = data[index]
        assert ([example.id for example in found] if isinstance(found, list) else found.id) == names[index]
    for index in (10, -11):
        with pytest.raises(IndexError):
            data[index]


def test_font() -> None:
    assert len(BITMAPS) == 36 and len({str(rows) for rows in BITMAPS.values()}) == 36
    assert all(LOOKALIKE[LOOKALIKE[letter]] == letter != LOOKALIKE[letter] for letter in BITMAPS)


def test_nothing_said_teaches_what_the_probe_asks() -> None:
    """Texture and orientation stand in the truth, and in no word of any form."""
    taboo = {*TEXTURES, *ORIENTATIONS}
    for i in range(320):
        for form in get_args(Form):
            example = item("train", 8, i, form=form)
            said = f"{example.prompt} {example.truth.caption} {[r.text for r in example.responses]}"
            assert not taboo & set(re.findall(r"\w+", said))


def spoken(index: int) -> Iterator[str]:
    """What every form of an item says, without its picture."""
    _, made = draft("validation", 21, index)
    for style in CUES:
        yield ask(made.question, style)
        yield from (say(claim, style) for claim in (made.answer, *(claim for claim, _ in made.wrong)))
    yield from (DESCRIBE, LOOK, caption(made.scene))
    for question, short, explained in questions(made.scene, Dice("words", index)):
        yield from (ask(question, "short"), short, explained)


def test_every_word_of_the_world_is_one_token() -> None:
    """As it begins a text and as it follows a space; learnt from fewer scenes than the shipped one, and met in others."""
    made = tokenizer(scenes=480)
    words = Counter(word for index in range(1600) for text in spoken(index) for word in re.findall(r" ?[a-z]+", text))
    assert len(words) > 100 and {"the", " the", "red", " red", "describe", " diamond", "how"} <= set(words)
    assert {word: tokens for word in words if len(tokens := made.encode(word).tokens) != 1} == {}
    assert made.encode("the word is KAT 307.").tokens == ["the", "Ġword", "Ġis", "Ġ", "K", "A", "T", "Ġ", "3", "0", "7", "."]


@pytest.mark.parametrize("options", [{"size": 0}, {"pixels": 20}, {"split": "dev"}, {"tasks": ("countin",)}, {"form": "poem"}])
def test_wrong_use_is_named(options: dict) -> None:
    with pytest.raises(BadInput):
        read(**options)[0]


@pytest.mark.slow
def test_speed() -> None:
    """At least 300 items a second at 64 px on one core."""
    data = read(size=1280, pixels=64)
    start = time.process_time()
    for i in range(960):
        data[i]
    assert 960 / (time.process_time() - start) >= 300


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps([fingerprint(example) for example in golden_items()], indent=0) + "\n")
