"""The page of examples: of any format, with the difference marked, and with nothing of the data's that could become markup."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import published
import pytest
from PIL import Image
from test_page import FETCHED, OVERFLOWING, TEXTS, THEMES, WIDTHS, visit

from pivot import cli, recipe
from pivot.data import page, world
from pivot.data.differ import difference
from pivot.data.lazy import Lazy
from pivot.records import BadInput, Example, Response, Truth
from pivot.world.dice import Dice

EVIL = "<script>document.body.id='evil'</script>\"'><img src=x onerror=alert(1)>{{ 7*7 }}</ins></article>\0\u202e&amp;"
SHOWN = EVIL.replace("\0", "\ufffd").replace("\u202e", "\ufffd")


class Tree(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.words, self.attributes = list[str](), list[str](), list[tuple[str, str, str | None]]()
        self.marked: dict[str, list[str]] = {"ins": [], "del": []}
        self.within = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.within = tag

    def handle_endtag(self, tag: str) -> None:
        self.within = ""

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.within in self.marked:
            self.marked[self.within].append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)


def shown(*examples: Example) -> Tree:
    return Tree(page.render(examples, range(len(examples)), "title"))


# ---- the difference


def words(number: int) -> str:
    dice = Dice("words", number)
    parts = [dice.pick(["a", "b", "c", "Ünï", "d."]) + dice.pick([" ", "\n", "  ", "\u2003"]) for _ in range(dice.below(30))]
    return dice.pick(["", " ", "\n\n"]) + "".join(parts) + dice.pick(["", "end"])


@pytest.mark.parametrize("number", range(0, 120, 2))
def test_pieces_make_up_both_texts_and_common_ones_are_common(number: int) -> None:
    one, other = words(number), words(number + 1)
    mine, theirs = difference(one, other)
    assert "".join(run.text for run in mine) == one and "".join(run.text for run in theirs) == other
    common = [[word for run in runs if run.common for word in run.text.split()] for runs in (mine, theirs)]
    assert common[0] == common[1]
    assert len(common[0]) >= _longest_common(one.split(), other.split()) // 2
    assert not any(run.text != run.text.rstrip() for run in (*mine, *theirs) if not run.common and run.text.strip())


def _longest_common(one: list[str], other: list[str]) -> int:
    """Of subsequences, by the textbook's table."""
    best = [0] * (len(other) + 1)
    for word in one:
        row = [0]
        for at, theirs in enumerate(other):
            row.append(best[at] + 1 if word == theirs else max(best[at + 1], row[-1]))
        best = row
    return best[-1]


def test_texts_alike_up_to_white_space_have_nothing_marked() -> None:
    for one, other in (("", ""), ("a b", "a  b\n"), (" a", "a")):
        assert all(run.common or not run.text.strip() for runs in difference(one, other) for run in runs)
    mine, theirs = difference("It is a red cup.", "It is a blue cup.")
    assert [run.text for run in mine if not run.common] == ["red"] and [run.text for run in theirs if not run.common] == ["blue"]


def test_words_that_recur_without_end_cost_no_minutes() -> None:
    one, other = (" ".join(str(n % k) for n in range(2000)) for k in (2, 3))
    mine, _ = difference(one, other)  # 110 s if every pair of equal words is an anchor
    assert "".join(run.text for run in mine) == one


# ---- the page


def test_what_differs_is_marked_on_both_sides_and_in_no_other_response() -> None:
    pair = (Response("It is a red cup."), Response("It is a blue cup.", "rejected"), Response("It is a pot.", "sampled", rating=0.5))
    tree = shown(Example("x", (), "What?", pair))
    assert tree.marked["ins"][1:] == ["red"] and tree.marked["del"][1:] == ["blue"]  # the first of each is in the legend
    assert "rating 0.5" in tree.text
    alone = shown(Example("x", (), "What?", pair[:1]))
    assert len(alone.marked["ins"]) == len(alone.marked["del"]) == 1


def test_later_answers_are_compared_with_later_answers() -> None:
    def talk(first: str, last: str) -> tuple[dict[str, str], ...]:
        said = (("assistant", first), ("user", "And?"), ("assistant", last))
        return tuple({"role": role, "content": content} for role, content in said)

    tree = shown(Example("x", (), "?", (Response(talk("one", "two")), Response(talk("one", "three"), "rejected"))))
    assert tree.marked["ins"][1:] == ["two"] and tree.marked["del"][1:] == ["three"]


@pytest.mark.parametrize("layout", published.READERS, ids=lambda layout: layout.__name__)
def test_rows_of_any_format_are_shown_whole(tmp_path: Path, layout: published.Layout) -> None:
    split = ",split=training" if layout is published.masks else ""
    source = f"{published.READERS[layout]},{layout(tmp_path)}{split}"
    examples = recipe.read(source)
    tree = Tree(page.render(examples, range(len(examples)), source))
    text = " ".join(tree.text.split())
    for example in examples:
        said = [example.prompt, *(response.text for response in example.responses), example.id, example.answer or ""]
        for one in said:
            for turn in [one] if isinstance(one, str) else [turn["content"] for turn in one]:
                assert " ".join(turn.split()) in text
    assert tree.tags.count("img") == sum(len(example.images) for example in examples)
    assert "cannot be read" not in text and "no picture" not in text


def test_text_from_data_stays_text() -> None:
    turns = ({"role": "system", "content": EVIL}, {"role": "user", "content": EVIL})
    pair = (Response(f"a {EVIL}", error=EVIL), Response(f"b {EVIL}", "rejected"))
    rows = [
        Example(EVIL, (), turns, pair, EVIL, "text", EVIL, EVIL, meta={EVIL: [EVIL]}),
        Example("x", (Path(EVIL.replace("\0", "")),), EVIL, (Response(EVIL, images=(Path("<b>"),)),)),
    ]
    harmless = [
        Example(
            "x",
            (),
            ({"role": "system", "content": "x"}, *turns[:1]),
            (Response("a x", error="e"), Response("b", "rejected")),
            "x",
            "text",
            "x",
            "x",
            meta={"x": "x"},
        ),
        Example("x", (Path("none"),), "x", (Response("x", images=(Path("none"),)),)),
    ]
    tree, plain = (Tree(page.render(some, range(2), title)) for some, title in ((rows, EVIL), (harmless, "x")))
    assert sorted(tree.tags) == sorted(plain.tags)
    assert {(tag, name) for tag, name, _ in tree.attributes} == {(tag, name) for tag, name, _ in plain.attributes}
    assert tree.text.count(SHOWN) >= 10 and "script" not in tree.tags


class Torn(Lazy[Example]):
    """Rows of which the second cannot be read."""

    def __len__(self) -> int:
        return 3

    def one(self, index: int) -> Example:
        if index == 1:
            raise BadInput("line 2 of <x>: it is not JSON; drop it")
        return Example(str(index), (b"no picture", Path("/nowhere.png"), Image.new("RGB", (5, 4))), "?")


def test_broken_rows_and_pictures_are_shown_as_such() -> None:
    tree = Tree(page.render(Torn(), range(3), "title"))
    assert "1 cannot be read" in tree.text and "line 2 of <x>: it is not JSON" in tree.text
    assert tree.text.count("✗ no picture") == 4 and tree.text.count("image not found: /nowhere.png") == 2
    assert tree.tags.count("img") == 2 and tree.tags.count("article") == 3


def test_much_is_cut_and_said_to_be_cut() -> None:
    import numpy as np

    truth = Truth(np.arange(60, dtype=np.uint8).reshape(6, 10), (), np.zeros((6, 10), bool))
    tree = shown(Example("x", (Image.new("RGB", (3000, 20)),) * 8, "w " * 9000, truth=truth, meta={"what": object()}))
    assert "14,000 more characters" in " ".join(tree.text.split()) and "and 2 more" in tree.text and "39, 40 ..." in tree.text
    widths = [int(value or 0) for tag, name, value in tree.attributes if (tag, name) == ("img", "width")]
    assert widths == [page.LARGEST] * 6 and "3000 × 20" in tree.text


def test_which_rows_are_shown() -> None:
    assert page.chosen_rows(5, 24) == [0, 1, 2, 3, 4] and page.chosen_rows(9, 2, 3) == [3, 4]
    drawn = page.chosen_rows(1000, 10, 500, seed=1)
    assert drawn == sorted(set(drawn)) == page.chosen_rows(1000, 10, 500, seed=1) != page.chosen_rows(1000, 10, 500, seed=2)
    assert len(drawn) == 10 and min(drawn) >= 500
    with pytest.raises(BadInput, match="no row 5: there are 5; give --start below that"):
        page.chosen_rows(5, 1, 5)


def test_the_verb_writes_the_page_and_never_over_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    assert cli.call(["data", "show", "world,size=30", "--out", str(out), "--items", "3", "--start", "5"]) == 0
    assert capsys.readouterr().out == f"page of 3 of 30 rows: {out}\n"
    html = out.read_text(encoding="utf-8")
    assert html.count("<article") == 3 and 'id="row-7"' in html and "Content-Security-Policy" in html
    assert cli.call(["data", "show", "world,size=30", "--out", str(out)]) == 2 and "exists already" in capsys.readouterr().err
    assert cli.call(["data", "show", "world,size=30", "--out", str(tmp_path / "b.html"), "--seed", "3", "--items", "4", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 4
    assert cli.call(["data", "show", "world,size=3", "--out", str(tmp_path / "c.html"), "--start", "3"]) == 2


@pytest.mark.parametrize("verb", ["show", "doctor"])
def test_neither_half_a_character_nor_a_sequence_for_the_terminal_gets_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    evil = "so \ud83d \x1b]0;title\x07\x1b[31m\rred\x9b2J\u202e"
    rows = [{"id": f"{n} {evil}", evil: evil, "conversations": published.asked(f"one\n{evil}", evil)} for n in range(2)]
    file = tmp_path / "a.json"
    rows += [{"id": evil, "conversations": published.asked(*said)} for said in ((evil, "\ufeff"), ("What?", "A."))]
    file.write_text(json.dumps(rows))
    cli.call(["data", verb, f"llava,{file}"])
    out, err = capsys.readouterr()
    assert out and err == "" and all(sign.isprintable() or sign == "\n" for sign in out)
    assert cli.call(["data", verb, f"llava,{file}", "--json"]) == (verb == "doctor")
    told = json.loads(capsys.readouterr().out)
    assert told["prompt"] == f"one\n{evil}" if verb == "show" else told["counts"]["broken-text"] == 3


def test_lines_of_a_text_stay_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = published.lines(tmp_path / "a.jsonl", [{"id": "a\nb", "conversations": published.asked("one\ntwo", "é中\N{PILE OF POO}\nx")}])
    assert cli.call(["data", "show", f"llava,{file}"]) == 0
    assert capsys.readouterr().out == "a\\nb\n  prompt: one\ntwo\n  chosen: é中\N{PILE OF POO}\nx\n"


# ---- in a browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of ordinary rows, and one under attack without the policy that would stop what got through."""
    folder = tmp_path_factory.mktemp("pages")
    rows = [*world.read(size=6), *recipe.read(str(published.llava(folder / "llava", odd=True))), *Torn()[::2]]
    long = Response(" ".join(["word"] * 300) + " " + "x" * 500)
    rows.append(Example("y" * 300, (Image.new("RGB", (2000, 30)), Image.new("RGB", (30, 2000))), "?", (long, Response("no", "rejected"))))
    evil = [Example(EVIL, (), EVIL, (Response(EVIL), Response(f"x {EVIL}", "rejected")), EVIL, task=EVIL, meta={EVIL: EVIL})]
    written = {}
    for name, some in {"honest": rows, "evil": [*evil, *rows]}.items():
        html = page.render(some, range(len(some)), f"{name} " + "/long/path" * 12)
        written[name] = folder / f"{name}.html"
        written[name].write_text(html.replace("Content-Security-Policy", "X-None" if name == "evil" else "Content-Security-Policy"))
    return written


@pytest.mark.browser
@pytest.mark.parametrize("which", ["honest", "evil"])
def test_the_page_is_quiet_and_alone_and_fits(browser: Any, pages: dict[str, Path], which: str) -> None:
    for width in WIDTHS:
        asked = visit(browser, pages[which], width, "light")
        assert [url for url in asked if not url.startswith("data:image/")] == [pages[which].as_uri()]
        assert browser.execute_script(FETCHED) == [] and browser.get_log("browser") == []
        assert browser.execute_script(OVERFLOWING) == [0]
    assert browser.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0) && document.images.length") > 8
    assert browser.execute_script("return document.querySelectorAll('script, iframe, object, [onload], [onerror], #evil').length") == 0


@pytest.mark.browser
@pytest.mark.parametrize("theme", THEMES)
def test_every_text_is_large_and_clear_enough(browser: Any, pages: dict[str, Path], theme: str) -> None:
    for width in WIDTHS:
        visit(browser, pages["honest"], width, theme)
        texts = browser.execute_script(TEXTS)
        assert len(texts) > 60
        assert [text for text in texts if text[1] < 12] == [] and [text for text in texts if text[2] < 4.5] == []
    lines = browser.execute_script("return ['ins', 'del'].map(e => getComputedStyle(document.querySelector(e)).textDecorationStyle)")
    assert lines == ["solid", "dashed"]
