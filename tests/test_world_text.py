"""Text alone is worth nothing in the world: not a question, not a pair of responses, not all responses of an item together."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import MaxAbsScaler

from pivot.world.describe import lines
from pivot.world.dice import Dice
from pivot.world.draft import YES_NO, Claim, Draft
from pivot.world.glyphs import LOOKALIKE
from pivot.world.item import DOMAINS, FAMILIES, TASKS, draft, say

EACH = 2000  # items of a task to learn from, and as many to be judged on: a share of a half has a standard error of 1.1 points
POINTS = 0.05  # what a question or a pair may give away
SHARE = 0.03  # above the share of one response among all


@dataclass(frozen=True)
class Said:
    """The words of an item, and nothing of its picture. The true one of `options` comes first, then the wrong ones in their order."""

    question: str
    value: str
    options: tuple[str, ...]


Corpus = dict[str, list[Said]]


def said(made: Draft, style: str) -> Said:
    return Said(made.question, made.answer.value, tuple(say(claim, style) for claim in (made.answer, *(claim for claim, _ in made.wrong))))


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """Drafts straight from the families: which split a scene belongs to is a matter of its hash."""
    found: Corpus = defaultdict(list)
    for task in TASKS:
        family = FAMILIES[DOMAINS[task]][task]
        for i in range(2 * EACH):
            found[task].append(said(family(Dice("text", task, i)), ("short", "explained")[i % 2]))
    return found


# ---- the question


def asked_for(item: Said) -> Iterator[str]:
    """What to guess: an answer of a few known ones as a whole, a longer one by its first and by its last part."""
    parts = item.value.split(", ") if ", " in item.value else item.value
    yield from (parts[0], parts[-1]) if item.value.isupper() or item.value.isdigit() or ", " in item.value else (item.value, item.value)


def question_gain(items: Sequence[Said]) -> float:
    """By how much logistic regression from a question's words, word pairs and triples beats the most frequent answer."""
    half, gains = len(items) // 2, []
    words = CountVectorizer(ngram_range=(1, 3), token_pattern=r"\S+", binary=True)
    asked = words.fit_transform([item.question for item in items])
    for answers in zip(*map(asked_for, items), strict=True):
        model = LogisticRegression(max_iter=200).fit(asked[:half], answers[:half])
        majority = Counter(answers[half:]).most_common(1)[0][1] / half
        gains.append(model.score(asked[half:], answers[half:]) - majority)
    return max(gains)


@pytest.mark.parametrize("task", TASKS)
def test_a_question_alone_does_not_tell_the_answer(corpus: Corpus, task: str) -> None:
    assert question_gain(corpus[task]) <= POINTS


# ---- the question and two responses


def crossed(question: str, response: str) -> str:
    """Words, word pairs and spelled characters of a response, and each of its words joined with each word of the question."""
    words = response.split()
    pairs = ["_".join(pair) for pair in pairwise(words)]
    spelled = [f"{i}:{c}" for word in words if word.isupper() or word.isdigit() for i, c in enumerate(word)]
    return " ".join([*words, *pairs, *spelled, *(f"{asked}|{word}" for asked in question.split() for word in words)])


def pair_accuracy(items: Sequence[Said]) -> float:
    """How often a classifier picks the chosen of two responses; a tie counts half.

    Features enter as a difference, so that it is antisymmetric like the choice it makes.
    """
    half, flips = len(items) // 2, np.arange(len(items)) % 2 * 2 - 1
    vectors = CountVectorizer(token_pattern=r"\S+", binary=True)
    both = vectors.fit_transform([crossed(item.question, item.options[n]) for n in (0, 1) for item in items])
    apart = both[: len(items)] - both[len(items) :]
    scaler = MaxAbsScaler()
    fit = scaler.fit_transform(apart[:half].multiply(flips[:half, None]).tocsr())
    model = LogisticRegression(max_iter=200, fit_intercept=False, C=0.01).fit(fit, flips[:half])
    scores = model.decision_function(scaler.transform(apart[half:]))
    return float(((scores > 0) + 0.5 * (scores == 0)).mean())


@pytest.mark.parametrize("task", TASKS)
def test_a_pair_does_not_tell_the_chosen_response(corpus: Corpus, task: str) -> None:
    assert pair_accuracy(corpus[task]) <= 0.5 + POINTS


# ---- all responses together


def tokens(option: str) -> list[str]:
    """The part of a response that differs from its rivals', last token first: words of a list, else characters."""
    last = option.removesuffix(".").split(": ")[-1].split()
    return last[::-1] if option.count(",") > 1 else list(last[-1][::-1])


def one_hot(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1, 1) == np.unique(values)


def clues(items: Sequence[Said]) -> tuple[np.ndarray, np.ndarray]:
    """(N, K) in how many tokens each response differs from the others, and (N * K, F) features.

    They are the rank among the others by everything that could set a response apart, and how it begins, if there are few beginnings.
    """
    spelled = [[tokens(option) for option in item.options] for item in items]
    known = {token: n for n, token in enumerate(sorted({token for item in spelled for option in item for token in option}))}
    longest = max(len(option) for item in spelled for option in item)
    codes = np.array([[[known[t] for t in option] + [-1] * (longest - len(option)) for option in item] for item in spelled])  # (N, K, L)
    lookalike = np.array([*(known.get(LOOKALIKE.get(token, ""), -2) for token in known), -2])  # padding is like nothing
    apart = (codes[:, :, None] != codes[:, None]).sum(axis=3)  # (N, K, K)
    numbers = np.array([[int(t) if (t := "".join(option)[::-1]).isdigit() else 0 for option in item] for item in spelled])
    far = np.sort(apart, axis=2)
    measures = [
        apart.sum(axis=2),
        far[:, :, 1],
        far[:, :, -1],
        numbers,
        np.abs(numbers - numbers.mean(axis=1, keepdims=True)),
        (lookalike[codes][:, :, None] == codes[:, None]).sum(axis=(2, 3)),
        np.array([np.argsort(np.argsort(item.options)) for item in items]),
        np.array([[len(option) for option in item.options] for item in items]),
    ]
    features = []
    for values in measures:
        below, above = ((sign * values[:, :, None] > sign * values[:, None]).sum(axis=2) for sign in (1, -1))
        features.append(one_hot(below * 10 + above))
    starts = one_hot(np.array([option.split(",")[0].split()[-1] for item in items for option in item.options]))
    return measures[0], np.hstack([*features, *([starts] if starts.shape[1] <= 30 else [])]).astype(float)


def set_shares(items: Sequence[Said]) -> dict[str, float]:
    """How often three choosers pick the true one of all: the most central, the least central, a learnt one. Ties share the credit."""
    total, features = clues(items)
    n, k = total.shape
    model = LogisticRegression(max_iter=200).fit(features[: n // 2 * k], np.tile(np.arange(k) == 0, n // 2))
    scores = model.decision_function(features[n // 2 * k :]).round(9).reshape(-1, k)

    def share(merit: np.ndarray) -> float:
        best = merit == merit.max(axis=1, keepdims=True)
        return float((best[:, 0] / best.sum(axis=1)).mean())

    return {"central": share(-total), "outer": share(total), "learnt": share(scores)}


@pytest.mark.parametrize("task", TASKS)
def test_the_whole_set_does_not_tell_the_true_response(corpus: Corpus, task: str) -> None:
    """No response is picked more often than one of four; where one of them says yes, which is true in half of the items, that half."""
    items = corpus[task]
    assert {len(item.options) for item in items} == {4}
    shares = set_shares(items)
    assert max(shares.values()) <= (1 / 2 if items[0].value in YES_NO else 1 / 4) + SHARE, shares


# ---- the tests can fail


def swayed(item: Said, number: int, first: bool) -> bool:
    """Six times of ten what `first` says, else the contrary."""
    return first == (Dice("sway", item.question, number).below(10) < 6)


def test_a_wording_that_goes_with_the_answer_is_found(corpus: Corpus) -> None:
    """Planted: "do you see" is said six times of ten where the answer is yes, and four times of ten where it is no."""
    planted = []
    for number, item in enumerate(corpus["existence"]):
        rest = item.question.removeprefix("is there").removeprefix("do you see")
        planted.append(replace(item, question=("do you see" if swayed(item, number, item.value == "yes") else "is there") + rest))
    assert question_gain(planted) > POINTS


@pytest.mark.parametrize("task", ["attribute", "front", "word", "counting", "relation"])
def test_a_word_that_is_chosen_more_often_is_found(corpus: Corpus, task: str) -> None:
    """Planted: of the two responses the one that comes first in the alphabet is chosen six times of ten."""
    planted = []
    for number, item in enumerate(corpus[task]):
        low, high = sorted(item.options[:2])
        planted.append(replace(item, options=(low, high) if swayed(item, number, True) else (high, low)))
    assert pair_accuracy(planted) > 0.5 + POINTS


def one_slip_each(letters: str) -> tuple[str, ...]:
    return (letters, *(letters[:i] + LOOKALIKE[letters[i]] + letters[i + 1 :] for i in range(3)))


def two_exchanged(order: str) -> tuple[str, ...]:
    a, b, c = order.split(", ")
    return tuple(", ".join(names) for names in ((a, b, c), (b, a, c), (a, c, b), (c, b, a)))


def numbers_around(value: str) -> tuple[str, ...]:
    return tuple(str(int(value) + step) for step in (0, -1, 1, 2))


def letters_with_one_lookalike(value: str) -> tuple[str, ...]:
    return (value, LOOKALIKE[value], *[letter for letter in "AEISO" if letter not in (value, LOOKALIKE[value])][:2])


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("word", one_slip_each),
        ("number", one_slip_each),
        ("ordering", two_exchanged),
        ("bars", numbers_around),
        ("arithmetic", numbers_around),
        ("arrows", letters_with_one_lookalike),
    ],
)
def test_a_set_that_gathers_round_the_truth_is_found(corpus: Corpus, task: str, options: Callable[[str], tuple[str, ...]]) -> None:
    """Planted: wrong responses that are each made from the true one alone."""
    shares = set_shares([replace(item, options=options(item.value)) for item in corpus[task]])
    assert shares["learnt"] > 0.25 + SHARE


# ---- what is said to be wrong


def slips(true: str, wrong: str) -> list[str]:
    """How each character that differs came about."""
    return ["lookalike" if LOOKALIKE[a] == b else "other" for a, b in zip(true, wrong, strict=True) if a != b]


def fits(task: str, made: Draft, claim: Claim, error: str) -> bool:
    """Whether a wrong claim of this item has the error that it is said to have."""
    true, wrong = made.answer.value, claim.value
    if made.choices == YES_NO:  # two noes may be wrong about different things
        return claim.explained != made.answer.explained
    seen = [text for text, _, _ in lines(made.scene)]
    if error == "off by one" and task != "arrows":
        return abs(int(true) - int(wrong)) == 1 or (task == "number" and true[:2] == wrong[:2] and int(true) ^ 1 == int(wrong))
    if error in ("sum made up", "height made up"):
        return abs(int(true) - int(wrong)) > 1
    if error == "glyph misread":
        return "lookalike" in slips(true, wrong) and wrong not in seen
    if task in ("form", "arrows"):
        return (wrong in seen) == (error in ("attribute swapped", "relation flipped", "off by one"))
    if task == "ordering":
        return error == "relation flipped" and sorted(true.split(", ")) == sorted(wrong.split(", ")) and true != wrong
    return wrong != true


def test_each_wrong_response_names_its_error() -> None:
    kinds = defaultdict(set)
    for i in range(3200):
        task, made = draft("train", 13, i)
        for claim, error in made.wrong:
            kinds[task].add(error)
            assert fits(task, made, claim, error), (task, made.answer.value, claim.value, error)
    assert kinds["word"] == {"glyph misread"} and kinds["number"] == {"glyph misread", "off by one"}
    assert kinds["form"] == {"glyph misread", "attribute swapped", "attribute made up"}
    assert kinds["arrows"] == {"glyph misread", "relation flipped", "off by one", "object made up"}
