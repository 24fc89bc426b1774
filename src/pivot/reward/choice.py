"""A letter, equal or not. The example's choices may be letters, texts that are called by letters, or texts alone."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace

from pivot import answers
from pivot.records import Example
from pivot.reward._contract import unjudged

LETTERS = "ABCDEFGH"
LONE = re.compile(r"(?<!\w)(?<!\w['’])([A-H])(?!['’]?\w)")
TAG = re.compile(r"</?answer>")  # not the word "answer", which would make a conclusion of what follows
# "A dog": an article stands before a word that is no verb of a verdict. No choice is called so in running text without more.
ARTICLE = re.compile(r"(?<![\w'’(\[*])A(?=[ \t]+(?!(?:is|was|because|since|and|or|as|would|must|seems|looks|fits|shows|but|not)\b)[a-z])")
WHOLE = re.compile(r"[\s(\[*{$\"'`]*([A-Ha-h])[\s)\]*}$\"'`.:,!]*\Z")
BOXED = re.compile(r"\\boxed\s*\{\s*(?:\\text\s*\{)?\s*\(?([A-H])\)?\s*\}")


def reward(reply: str, example: Example) -> float:
    """1 if the reply settles on the right choice."""
    choices = tuple(map(str, example.meta.get("choices") or ()))
    truth = _letter(example.answer or "")
    if truth is None:
        if example.answer is None or not choices:
            return unjudged(f"the answer of {example.id} is neither a letter nor one of its choices")
        return float(answers.same(answers.parse(reply, replace(example, answer_kind="choice")), replace(example, answer_kind="choice")))
    return float(letter(reply, choices) == truth)


def letter(reply: str, choices: Sequence[str] = ()) -> str | None:
    """The letter that a reply settles on: said as such, or by the text of its choice. None if it leaves it open."""
    reply = TAG.sub("\n", unicodedata.normalize("NFKC", reply))
    if whole := WHOLE.match(reply.strip()):
        return whole[1].upper()
    if boxed := BOXED.findall(reply):
        return boxed[-1] if len(set(boxed)) == 1 else None
    named = ARTICLE.sub("a", reply)
    if LONE.search(named):
        return answers.choice(named, LETTERS)
    texts = {text: LETTERS[number] for number, text in enumerate(choices[: len(LETTERS)]) if len(text) > 1}
    return texts.get(answers.choice(reply, list(texts)) or "") if texts else None


def _letter(answer: str) -> str | None:
    """The letter of a true answer: "B", "b" or "(B) a dog"; None if it is a text."""
    found = re.match(r"[(\[]?([A-Ha-h])(?:[)\].:]|\Z)", unicodedata.normalize("NFKC", answer).strip())
    return found[1].upper() if found else None
