"""The embedded world: exact, the same everywhere, no scene in two splits, and worth nothing without its pictures."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import MaxAbsScaler

from pivot.data.world import read
from pivot.records import BadInput, Example
from pivot.world.glyphs import BITMAPS, LOOKALIKE
from pivot.world.item import DOMAINS, FAMILIES, TASKS, draft, item, say, split_of
from pivot.world.render import draw
from pivot.world.scene import CLASSES, ORIENTATIONS, TEXTURES

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
    """200 items over all tasks, splits, sizes and seeds."""
    sizes = (48, 64, 100, 224, 384)
    return [
        item(("train", "validation", "test")[i % 3], i % 7, 3 * i, pixels=sizes[i % 5], form=("pair", "turns")[i % 2]) for i in range(200)
    ]


def test_two_hundred_items_are_what_they_were() -> None:
    # After a wanted change of the world: python -m tests.test_world
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
        assert chosen.role == "chosen" and len(rejected) >= 3
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


def test_font() -> None:
    assert len(BITMAPS) == 36 and len({str(rows) for rows in BITMAPS.values()}) == 36
    assert all(LOOKALIKE[LOOKALIKE[letter]] == letter != LOOKALIKE[letter] for letter in BITMAPS)


def test_nothing_said_teaches_what_the_probe_asks() -> None:
    """Texture and orientation stand in the truth, and in no word of any form."""
    taboo = {*TEXTURES, *ORIENTATIONS}
    for i in range(320):
        for form in ("pair", "turns", "caption"):
            example = item("train", 8, i, form=form)
            said = f"{example.prompt} {example.truth.caption} {[r.text for r in example.responses]}"
            assert not taboo & set(said.replace("'", " ").replace(",", " ").replace(".", " ").split())


def texts(split: str, count: int) -> list[tuple[str, str, str, str, str]]:
    """(task, question, answer, chosen, rejected) without rendering."""
    rows = []
    for i in range(count):
        task, made = draft(split, 11, i)
        style = ("short", "explained")[i % 3 % 2]
        rows.append((task, made.question, made.answer.value, say(made.answer, style), say(made.wrong[0][0], style)))
    return rows


@pytest.fixture(scope="module")
def corpus() -> tuple[list, list]:
    return texts("train", 9600), texts("test", 4800)


def test_question_alone_does_not_tell_the_answer(corpus: tuple[list, list]) -> None:
    """Per task, logistic regression from the question's words and word pairs stays within 5 points of the most frequent answer.

    Per task a test set of 300 has a standard error of up to 3 points, so the bound for one task adds two of those;
    the mean over the tasks must stay within the 5 points alone.
    """
    train, test = corpus
    gains = {}
    for task in TASKS:
        fit, held = ([row for row in part if row[0] == task] for part in (train, test))
        words = CountVectorizer(ngram_range=(1, 3), token_pattern=r"\S+", binary=True)
        model = LogisticRegression(max_iter=300).fit(words.fit_transform([r[1] for r in fit]), [r[2] for r in fit])
        accuracy = model.score(words.transform([r[1] for r in held]), [r[2] for r in held])
        majority = Counter(r[2] for r in held).most_common(1)[0][1] / len(held)
        gains[task] = accuracy - majority
        assert gains[task] <= 0.05 + 2 * (majority * (1 - majority) / len(held)) ** 0.5, (task, accuracy, majority)
    assert np.mean(list(gains.values())) <= 0.05


def test_text_does_not_tell_chosen_from_rejected(corpus: tuple[list, list]) -> None:
    """A classifier that sees the question and both responses picks the chosen one in at most 55 %.

    Features: words, word pairs and spelled characters of a response, and each word joined with each word of the question.
    They enter as a difference, so that the classifier is antisymmetric like the choice it makes. A tie counts half.
    """
    train, test = corpus
    vectors = CountVectorizer(token_pattern=r"\S+", binary=True)

    def crossed(rows: list, column: int) -> list[str]:
        texts = []
        for row in rows:
            words = row[column].split()
            pairs = ["_".join(p) for p in pairwise(words)]
            spelled = [f"{i}:{c}" for w in words if w.isupper() or w.isdigit() for i, c in enumerate(w)]
            texts.append(" ".join([*words, *pairs, *spelled, *(f"{q}|{w}" for q in (*row[1].split(), row[0]) for w in words)]))
        return texts

    chosen, rejected = crossed(train, 3), crossed(train, 4)
    vectors.fit(chosen + rejected)
    flips = np.arange(len(train)) % 2 * 2 - 1

    def difference(rows: list) -> object:
        return vectors.transform(crossed(rows, 3)) - vectors.transform(crossed(rows, 4))

    fit = difference(train).multiply(flips[:, None]).tocsr()
    scaler = MaxAbsScaler()
    model = LogisticRegression(max_iter=300, fit_intercept=False, C=0.3).fit(scaler.fit_transform(fit), flips)
    scores = model.decision_function(scaler.transform(difference(test)))
    assert ((scores > 0) + 0.5 * (scores == 0)).mean() <= 0.55


def test_the_text_tests_can_fail(corpus: tuple[list, list]) -> None:
    """Planted fault: rejected answers that are always the same word are found out at once."""
    _, test = corpus
    planted = [(task, question, answer, chosen, "seven") for task, question, answer, chosen, _ in test]
    words = CountVectorizer(token_pattern=r"\S+", binary=True).fit([r[3] for r in planted] + ["seven"])
    gap = words.transform([r[3] for r in planted]) - words.transform([r[4] for r in planted])
    flips = np.arange(len(planted)) % 2 * 2 - 1
    model = LogisticRegression(fit_intercept=False).fit(gap.multiply(flips[:, None]).tocsr(), flips)
    assert (model.decision_function(gap) > 0).mean() > 0.95


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
