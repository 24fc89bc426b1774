"""A letter, equal or not. The example's choices may be letters, texts that are called by letters, or texts alone."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence

from pivot import answers
from pivot.answers.numbers import marked
from pivot.records import Example
from pivot.reward._contract import unjudged

LETTERS = string.ascii_uppercase
FIRST = 8  # letters that are read whatever there is to choose from: "B or C" is open where C is no choice, too
LONE = re.compile(r"(?<!\w)(?<!\w['’])([A-Z])(?!['’]?\w)")
SMALL = re.compile(r"(?<!\w)(?<!\w['’])([a-z])(?!['’]?\w)")
# What a small letter must stand behind to be one: "the answer is b", "option (b)".
CALLED = re.compile(
    r"\b(?:answer|option|choice)\b(?:\s(?:is|was|(?:must|should|would) be))?\s{0,3}[:=]?[\s(\[*\"'`]{0,4}(?<!\w)[a-z](?!['’]?\w)",
    re.IGNORECASE,
)
TAG = re.compile(r"</?answer>")  # not the word "answer", which would make a conclusion of what follows
# "A dog", "I think": no letter, because a word follows that is no verb of a verdict. No choice is called so in running text without more.
ARTICLE = re.compile(r"(?<![\w'’(\[*])A(?=[ \t]+(?!(?:is|was|because|since|and|or|as|would|must|seems|looks|fits|shows|but|not)\b)[a-z])")
PRONOUN = re.compile(r"(?<![\w'’(\[*])I(?=[ \t]+(?!(?:is|was|because|since|and|or|as|seems|looks|fits|shows|but)\b)[a-z])")
WHOLE = re.compile(r"[\s(\[*{$\"'`]*([A-Za-z])[\s)\]*}$\"'`.:,!]*\Z")
BOXED = re.compile(r"\\boxed\s*\{\s*(?:\\text\s*\{)?\s*\(?([A-Z])\)?\s*\}")


def reward(reply: str, example: Example) -> float:
    """1 if the reply settles on the right choice. Unjudged where the true answer is neither a letter in range nor one of the choices."""
    listed = example.meta.get("choices") or ()
    if isinstance(listed, str) or not isinstance(listed, Sequence):
        return unjudged(f"meta['choices'] of {example.id} is no list")
    choices = tuple(map(str, listed))
    truth = _truth(example.answer or "", choices)
    if truth is None:
        return unjudged(f"the answer of {example.id} is neither a letter nor one of its choices")
    question = example.prompt if isinstance(example.prompt, str) else example.prompt[-1]["content"]
    if isinstance(truth, str):
        return float(letter(reply, choices, question) == truth)
    return float(_named(reply, choices, range(len(choices)), question, example.meta.get("style") != "short") == truth)


def letter(reply: str, choices: Sequence[str] = (), question: str = "") -> str | None:
    """The letter that a reply settles on: said as such, or by the text of its choice. None if it leaves it open."""
    reply = TAG.sub("\n", unicodedata.normalize("NFKC", reply))
    texts = {text.upper() for text in choices[: len(LETTERS)] if len(text) == 1}
    letters = [sign for at, sign in enumerate(LETTERS) if not choices or at < len(choices) or (at < FIRST and sign not in texts)]
    if (whole := WHOLE.match(reply.strip())) and whole[1].upper() in letters:
        return whole[1].upper()
    if boxed := set(BOXED.findall(reply)) & set(letters):
        return boxed.pop() if len(boxed) == 1 else None
    capital = SMALL.sub(lambda small: small[1].upper(), reply) if CALLED.search(reply) else reply
    capital = PRONOUN.sub("i", ARTICLE.sub("a", capital))
    if said := set(LONE.findall(capital)) & set(letters):
        # Where nobody knows how many choices there are, the late letters are points and variables beside an early one.
        early = not choices and said & set(LETTERS[:FIRST])
        return answers.choice(capital, LETTERS[:FIRST] if early else letters, question=question)
    # A text that is the letter of some choice is read as that above.
    place = _named(reply, choices, [at for at, text in enumerate(choices[: len(LETTERS)]) if text.upper() not in letters], question)
    return None if place is None else LETTERS[place]


def _named(reply: str, choices: Sequence[str], places: Sequence[int], question: str, several: bool = True) -> int | None:
    """Which of the choices at these places a reply settles on by their text: it is that text to the sign, or names it in its words."""
    exact = [place for place in places if _plain(choices[place]) == _plain(reply)]
    if len(exact) == 1:
        return exact[0]
    keys = {place: marked(unicodedata.normalize("NFKC", choices[place])) for place in places}
    words = [answers.normal(key) for key in keys.values()]
    alone = {key: place for place, key in keys.items() if words.count(answers.normal(key)) == 1}  # "50" and "50%" are the same words
    said = answers.choice(marked(unicodedata.normalize("NFKC", reply)), list(alone), several, question) if alone else None
    return None if said is None else alone[said]


def _truth(answer: str, choices: Sequence[str]) -> str | int | None:
    """The letter of a true answer, "B", "b" or "(B) a dog"; the place among the choices of one that is a text; None if it is neither."""
    found = re.match(r"[(\[]?([A-Za-z])(?:[)\].:]|\Z)", unicodedata.normalize("NFKC", answer).strip())
    alike = [place for place, text in enumerate(choices) if _plain(text) == _plain(answer)]
    alike = alike or [place for place, text in enumerate(choices) if answers.normal(text) == answers.normal(answer) != ""]
    place = alike[0] if len(alike) == 1 else None
    if found:
        at = LETTERS.index(found[1].upper())
        text = len(answer.strip()) > 1 and place not in (None, at)  # "p.m." of "a.m." and "p.m." begins as a letter does
        if not text and (not choices or at < len(choices)):
            return LETTERS[at]
    return place


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(".")
