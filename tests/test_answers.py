"""Reading answers out of free replies: tables of strings, the world's own sentences, and what may never happen."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from pivot import answers
from pivot.answers.numbers import marked
from pivot.data import world
from pivot.records import BadInput, Example
from pivot.world.item import CUES, ask, draft, say

COLOURS = ("red", "blue", "light blue", "green")
NEVER = "the true answer is never looked at while reading"


def example(kind: str | None, answer: str | None = NEVER, **meta: object) -> Example:
    return Example("item-1", (), "?", answer=answer, answer_kind=kind, meta=meta)  # type: ignore[arg-type]


# reply -> (explained, short); the same unless an explained answer may name several
CHOICES: list[tuple[str, str | None, str | None]] = [
    ("red", "red", "red"),
    ("  Red. ", "red", "red"),
    ("**RED**", "red", "red"),
    ("The circle is red.", "red", "red"),
    ("red red red", "red", "red"),
    ("light blue", "light blue", "light blue"),
    ("Light-Blue!", "light blue", "light blue"),
    ("the light is blue", "blue", "blue"),
    ("ｂｌｕｅ", "blue", "blue"),
    ("red, blue", None, None),
    ("red and blue", None, None),
    ("the red one is left of the blue one, so it is green", "green", None),
    ("red or blue", None, None),
    ("red or blue, so green", "green", None),
    ("I see red and blue. Therefore, the answer is green.", "green", None),
    ("There is a blue square. The answer: red. The blue one is behind it.", "red", None),
    ("so red, and so blue", "blue", None),
    ("so it is red or blue", None, None),
    ("the circle is red and the square is blue", None, None),
    ("the blue one is so far from the red one", None, None),
    ("red, because the blue one is a square", "red", None),
    ("because the blue one is behind, it must be so: the answer is red because blue is not", "red", None),
    ("I see red and blue\nSo red", "red", None),
    ("Since the blue one is a square. The circle is red.", "red", None),
    ("because it is blue", "blue", "blue"),
    ("red, no wait, blue", None, None),
    ("it looks red but it is not red but blue", None, None),
    ("it is red or maybe a blue", None, None),
    ("red/blue", None, None),
    ("not red but blue", "blue", "blue"),
    ("blue, not red", "blue", "blue"),
    ("red is wrong", None, None),
    ("red is wrong, blue is right", "blue", "blue"),
    ("anything but red", None, None),
    ("The answer is red. No wait, blue.", None, None),
    ("blue rather than the red", "blue", "blue"),
    ("it isn't red", None, None),
    ("neither red nor blue", None, None),
    ("red? No.", None, None),
    ("Red? No, blue.", "blue", "blue"),
    ("red? no doubt", "red", "red"),
    ("I would not choose red", None, None),
    ("I wouldn't go with red, it is blue", "blue", "blue"),
    ("I don't think it's red", None, None),
    ("I do not believe that the right answer is red. It is blue", "blue", "blue"),
    ("I do not think so. red", "red", "red"),
    ("not really red", None, None),
    ("red is ruled out", None, None),
    ("red can be excluded, hence blue", "blue", "blue"),
    ("red doesn't match", None, None),
    ("red does not fit. blue", "blue", "blue"),
    ("red is unlikely", None, None),
    ("red is not likely", None, None),
    ("red won't work; blue", "blue", "blue"),
    ("no it is red", "red", "red"),
    ("blue is not right\nred", "red", "red"),
    ("red is likely", "red", "red"),
    ("red does match", "red", "red"),
    ("reddish", None, None),
    ("infrared", None, None),
    ("violet", None, None),
    ("", None, None),
    (" \n\t ", None, None),
    ("?!…", None, None),
    ("🟥", None, None),
]


@pytest.mark.parametrize(("reply", "explained", "short"), CHOICES)
def test_choices(reply: str, explained: str | None, short: str | None) -> None:
    assert answers.parse(reply, example("choice", choices=COLOURS, style="explained")) == explained
    assert answers.parse(reply, example("choice", choices=COLOURS, style="short")) == short


def test_the_longest_of_choices_that_begin_alike_is_meant() -> None:
    for choices in (("top", "top left"), ("top left", "top")):
        assert answers.choice("at the top left", choices) == "top left"
        assert answers.choice("at the top, left of it", choices) == "top left"  # punctuation does not part words
        assert answers.choice("at the top", choices) == "top"


YES_NO = [
    ("yes", "yes"),
    ("NO!", "no"),
    ("no, blue", "no"),
    ("Yes, there is no doubt.", "yes"),
    ("There is no circle, so yes would be wrong", "no"),
    ("no, yes", "no"),
    ("yes or no", None),
    ("yes. Or no", None),
    ("I have no idea", None),
    ("There is no doubt: yes", "yes"),
    ("no, wait, yes", None),
    ("not no", None),
    ("it is not yes", None),
    ("no, there is no doubt", "no"),
    ("yes/no", None),
    ("Yes and no", None),
    ("yesterday", None),
    ("I cannot know", None),
    ("y", None),
    ("", None),
]


@pytest.mark.parametrize(("reply", "read"), YES_NO)
@pytest.mark.parametrize("style", ["short", "explained"])
def test_of_yes_and_no_the_first_decides(reply: str, read: str | None, style: str) -> None:
    assert answers.parse(reply, example("choice", choices=("yes", "no"), style=style)) == read


# to "what colour is the shape in front?"
FRONT = [
    ("red", "red"),
    ("the red shape is in front.", "red"),
    ("the red shape is in front of the blue shape", "red"),
    ("The red one is clearly in front of the blue one.", "red"),
    ("the red stands in front of the blue", "red"),
    ("there is a red shape in front of a blue one", "red"),
    ("the one in front is red, the one behind is blue", "red"),
    ("The shape in front is the red one and the shape behind is blue", "red"),
    ("in front of the blue shape is the red one", "red"),
    ("blue is behind, red is in front", "red"),
    ("the blue shape is behind the red shape", "red"),
    ("the blue square is behind a red circle, green is apart", "red"),
    ("the blue shape has red in front", "red"),
    ("the red circle hides a part of the blue square", "red"),
    ("the red circle partly covers the blue square", "red"),
    ("the blue shape hides behind the red one", "red"),
    ("the blue shape is partly hidden by the red shape", "red"),
    ("I see red, blue and green. The one in front is red.", "red"),
    ("the red shape is in front of the blue one and the green one is apart", "red"),
    ("the blue shape is in front of the green one, so the red one is in front of the blue one", "red"),
    ("red, because the blue shape is in front of nothing", "red"),
    ("the red shape is not in front of the blue shape", None),
    ("the red shape isn't in front of the blue shape", None),
    ("the blue shape is not behind the red shape", None),
    ("the red shape is next to the blue shape", None),
    ("red is in front of blue and blue is in front of red", None),
    ("red and blue", None),
    ("red and blue overlap", None),
    ("red or blue is in front", None),
    ("red and the blue shape are in front", None),
    ("the red one or the blue one is in front", None),
    ("in front is not red but blue", "blue"),
    ("the one in front", None),
]


@pytest.mark.parametrize(("reply", "read"), FRONT)
def test_what_is_said_to_be_in_front(reply: str, read: str | None) -> None:
    for question in ("what colour is the shape in front? explain.", "two overlap. what colour is the one that hides a part of the other?"):
        for asked in (question, [{"role": "user", "content": question}]):
            assert answers.parse(reply, replace(example("choice", choices=COLOURS), prompt=asked)) == read


@pytest.mark.parametrize("question", ["what colour is the circle?", "what colour is the shape behind the one in front?"])
def test_where_nothing_else_is_asked_what_is_in_front_does_not_matter(question: str) -> None:
    asked = replace(example("choice", choices=COLOURS), prompt=question)
    assert answers.parse("the red shape is in front of the blue shape", asked) is None


@pytest.mark.parametrize("question", ["which one does not fit?", "which is the odd one out?", "Which isn't ruled out?"])
def test_what_does_not_fit_is_the_answer_where_that_is_asked(question: str) -> None:
    for reply in ("red does not fit", "red doesn't match", "red is unlikely", "red is ruled out"):
        asked = replace(example("choice", choices=COLOURS), prompt=question)
        assert answers.parse(reply, asked) == "red" and answers.parse(reply, replace(asked, prompt="which fits?")) is None
        assert answers.parse("not really red", asked) is None


LETTERS = [("B", "B"), ("(B)", "B"), ("a cat, so B", "B"), ("B. a dog", "B"), ("A or B", None), ("the answer is c", None), ("ABC", None)]


@pytest.mark.parametrize(("reply", "read"), LETTERS)
def test_letters_need_their_case(reply: str, read: str | None) -> None:
    assert answers.parse(reply, example("choice", choices=tuple("ABCD"))) == read


NUMBERS = [
    ("3", "3"),
    ("3.", "3"),
    ("the sum of 2 and 3 is 5.", "5"),
    ("2+3=5", "5"),
    ("5-3", None),
    ("5 minus 3", None),
    ("five minus three", None),
    ("5 minus 3 is 2", "2"),
    ("-3", "-3"),
    ("minus 3", "-3"),
    ("Negative three", "-3"),
    ("it is minus twenty-one", "-21"),
    ("minus -3", "3"),
    ("not minus 3", None),
    ("it is −4", "-4"),
    ("-0", "0"),
    ("3.50", "3.5"),
    (".5", "0.5"),
    ("1,000", "1000"),
    ("1,234,567.80", "1234567.8"),
    ("1,2", "2"),
    ("12%", "12"),
    ("$5", "5"),
    ("５", "5"),
    ("٣", "3"),
    ("x²", None),
    ("three", "3"),
    ("Twenty-one", "21"),
    ("ninety nine", "99"),
    ("forty", "40"),
    ("nine hundred", None),
    ("two hundred and five", None),
    ("two thousand and five", None),
    ("2 hundred 5", None),
    ("3 thousand", None),
    ("3 million", None),
    ("3-million", None),
    ("three dozen", None),
    ("3 hundredths", None),
    ("3 and a half", None),
    ("1,200 thousand", None),
    ("1,200 of a thousand", "1200"),
    ("zero", "0"),
    ("one", "1"),
    ("the red one stands beside 3 others", "3"),
    ("three, if you count the red one", "3"),
    ("3 or 4", None),
    ("3. Or 4.", None),
    ("It is not 3.", None),
    ("4, not 3", "4"),
    ("1, 2, 3", None),
    ("Answer: 4, 3", None),
    ("The answers are 4 and 3.", None),
    ("I count 1, 2, 3", "3"),
    ("3, 3", "3"),
    ("1 2 3 ... 11 12", None),
    ("count: 1, 2, 3", None),
    ("The count: 1, 2, 3. So 3", "3"),
    ("1, 2, 3: there are 3", "3"),
    ("2-3", None),
    ("2 – 3", None),
    ("2…3", None),
    ("2 to 3", None),
    ("from 2 up to 3", None),
    ("between 2 and 3", None),
    ("between two and three", None),
    ("between 2 and 5 lie 3 of them", "3"),
    ("2, maybe 3", None),
    ("2 (perhaps 3)", None),
    ("2, but it could be 3", None),
    ("2-3, I say 3", "3"),
    ("3 to 3", "3"),
    ("2\n- 3", "3"),
    ("one or two", None),
    ("one to two", None),
    ("the red one or 3", "3"),
    ("of 4, 3 are red", "3"),
    ("10^3", None),
    ("3.0.1", None),
    ("3/4", None),
    ("3 or 4, I say 3", "3"),
    ("the 3rd", None),
    ("A3", None),
    ("v1.2.3", None),
    ("weighty, often", None),
    ("many", None),
    ("", None),
]


@pytest.mark.parametrize(("reply", "read"), NUMBERS)
def test_numbers(reply: str, read: str | None) -> None:
    assert answers.parse(reply, example("number")) == read


MARKED = [("5", "5.0"), ("minus 5", "-5"), ("1,000", "1000"), ("٥", "5"), ("a 5", "a 05"), ("five", "five"), ("x5", "x5")]


def test_numbers_as_words_are_alike_where_their_values_are() -> None:
    assert all(marked(one) == marked(other) for one, other in MARKED)
    different = [marked(words) for words in ("5", "-5", "0.5", "50", "5 5", "five", "5th", "x5")]
    assert len(set(different)) == len(different) and marked("2 of -3.5 cm") == "n2 of nm3p5 cm"


TEXTS = [
    ("KAT", "kat"),
    (" kat. ", "kat"),
    ("the word is KAT.", "kat"),
    ("THE WORD IS KAT", "kat"),
    ("the word is kat", "kat"),
    ('the word is "kat", I think', "kat"),
    ("It says ‘Kat’!", "kat"),
    ("from A you reach B.", "b"),
    ("field B says 34.", "34"),
    ("the number is 345.", "345"),
    ("from small to large: red, blue,  green.", "red blue green"),
    ("Answer: the word is KAT.", "kat"),
    ("red, blue, green", "red blue green"),
    ("KAT or KAR", None),
    ("KAR, no: KAT", "kat"),
    ("it reads K-7", "k 7"),
    ("ＫＡＴ", "kat"),
    ("don't", "don't"),
    ("", None),
    ("...", None),
]


@pytest.mark.parametrize(("reply", "read"), TEXTS)
@pytest.mark.parametrize("style", ["short", "explained"])
def test_texts(reply: str, read: str | None, style: str) -> None:
    assert answers.parse(reply, example("text", style=style)) == read


@pytest.mark.parametrize(
    ("kind", "answer", "reply", "right"),
    [
        ("number", "3", "3.0", True),
        ("number", "three", "there are 3", True),
        ("number", "3", "30", False),
        ("number", "3", "-3", False),
        ("number", "0.1", "0.10000000000000000000000000000000000001", False),
        ("text", "KAT", "kat!", True),
        ("text", "KAT", "KAR", False),
        ("text", "red, blue", "Red  Blue", True),
        ("text", "red, blue", "blue, red", False),
        ("text", "KAT", "", False),
    ],
)
def test_grades(kind: str, answer: str, reply: str, right: bool) -> None:
    assert answers.grade(reply, example(kind, answer)) == float(right)


def test_the_world_is_read_as_it_speaks() -> None:
    """Each of its sentences, right or wrong, is understood: the chosen one is right, a wrong one only where its verdict is the same."""
    seen: set[tuple[str | None, str]] = set()
    for item in world.read(split="validation", size=320):
        seen.add((item.task, item.meta["style"]))
        for response in item.responses:
            verdict = item.meta["choices"] == ("yes", "no") and str(response.text).split(",")[0] == item.answer
            assert answers.grade(str(response.text), item) == float(response.role == "chosen" or verdict), (item.prompt, response.text)
    assert len(seen) == 32


def test_each_claim_of_the_world_is_read_as_its_own_value() -> None:
    """True and wrong ones of every task, short and explained."""
    for index in range(640):
        task, made = draft("validation", 1, index)
        for style in CUES:
            asked = example(made.kind, choices=made.choices, style=style)
            asked = replace(asked, prompt=ask(made.question, style))
            for claim in (made.answer, *(wrong for wrong, _ in made.wrong)):
                read = answers.parse(say(claim, style), asked)
                assert answers.same(read, replace(asked, answer=claim.value)), (task, say(claim, style), read)


def test_reading_does_not_depend_on_the_truth() -> None:
    texts = [row[0] for table in (CHOICES, YES_NO, LETTERS, NUMBERS, TEXTS) for row in table]
    for kind in ("choice", "number", "text"):
        for reply in texts:
            read = {answers.parse(reply, example(kind, truth, choices=COLOURS)) for truth in ("red", "3", "KAT", None)}
            assert len(read) == 1


def test_any_text_is_read_in_bounded_time() -> None:
    """No reply raises, and long hostile ones take linear time; a quadratic search of 100,000 characters would take minutes."""
    dice = random.Random(0)
    alphabet = "aA3 ,.-'\"/:or five red\n٣😀²\u0000\u202eß"
    replies = ["".join(dice.choices(alphabet, k=dice.randrange(40))) for _ in range(500)]
    hostile = [
        "1,111," * 16_000 + "x",
        "A " * 50_000 + "a",
        "'" * 100_000,
        "red or " * 15_000,
        "because red " * 9_000,
        "so red, blue " * 9_000,
        "9" * 20_000,
        "x" * 100_000,
        "\n" * 100_000,
    ]
    start = time.process_time()
    for reply in [*replies, *hostile]:
        for read in (answers.number(reply), answers.text(reply), answers.choice(reply, COLOURS, question="in front?")):
            assert read is None or read
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (example("box", "1"), "not one box"),
        (example("maths", "1"), "use reward maths"),
        (example("open", "1"), "use reward open"),
        (example(None, "1"), "no rule"),
        (example("choice", "red"), "without choices"),
        (example("text", None), "no answer"),
        (example("number", "many"), "not a number"),
    ],
)
def test_an_example_that_cannot_be_graded_is_named(broken: Example, says: str) -> None:
    with pytest.raises(BadInput, match=says) as caught:
        answers.grade("1", broken)
    assert "item-1" in str(caught.value) and "\n" not in str(caught.value)


def test_answers_need_no_torch() -> None:
    code = "import sys, pivot.answers; sys.exit(bool({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
