"""Which rows a rule takes, against the slow and plain way to say it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import published
import pytest

import pivot
from pivot import cli, recipe
from pivot.data import filters, mmpr, official
from pivot.data.filters import Summary
from pivot.data.writing import convert
from pivot.records import BadInput, Example, Response
from pivot.world.dice import Dice

BASE = Path(pivot.__file__).parent / "base"  # whose tokenizer is at hand


def said(number: int) -> str:
    """Text of any length, here and there with a special token."""
    dice = Dice("text", number)
    token = dice.pick(["", "", "", "<think> so </think>\n", " <review>"])
    return token + dice.pick([" ", "\n", "\t "]).join(["word"] * dice.between(0, 160))


@pytest.fixture(scope="module")
def many() -> list[Example]:
    """Rows of all lengths; some have no chosen response, some one of several turns."""
    rows = [Example(f"row-{n}", (), "?", (Response(said(n)), Response("no", "rejected"))) for n in range(600)]
    rows[7] = replace(rows[7], responses=(Response("no", "rejected"),))
    rows[8] = replace(rows[8], responses=())
    turns = [("assistant", "one two"), ("user", "<think> " + "w " * 200), ("assistant", "three")]
    rows[9] = replace(rows[9], responses=(Response(tuple({"role": role, "content": content} for role, content in turns)),))
    return rows


@pytest.fixture(scope="module")
def rows(many: list[Example]) -> Summary:
    return filters.summary(many)


def plain(example: Example) -> tuple[int, bool] | None:
    """Words and special tokens, as one would count them by hand."""
    for response in example.responses:
        if response.role == "chosen":
            text = response.text if isinstance(response.text, str) else " ".join(t["content"] for t in response.text if t["role"] != "user")
            return sum(1 for word in text.replace("\n", " ").replace("\t", " ").split(" ") if word), "<think>" in text or "<review>" in text
    return None


RULES: dict[str, Callable[[int, bool], bool]] = {
    "under30": lambda words, special: words < 30,
    "nothink": lambda words, special: words < 60 and not special,
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_draws_from_exactly_the_rows_that_fit(many: list[Example], rows: Summary, rule: str) -> None:
    fits = [n for n, example in enumerate(many) if (found := plain(example)) and RULES[rule](*found)]
    assert 50 < len(fits) < 400 and 9 in fits
    whole = filters.pick(rule, rows, len(fits))[""]
    assert sorted(whole.numbers) == fits and list(whole.numbers) != fits
    part = filters.pick(rule, rows, 20)[""]
    assert list(part.numbers) == list(whole.numbers)[:20]
    assert part.counts["rows"] == 600 and part.counts["without a chosen response"] == 2 and len(fits) in part.counts.values()
    with pytest.raises(BadInput, match=rf"{len(fits) + 1} rows with fewer than .* and there are {len(fits)}; ask for fewer"):
        filters.pick(rule, rows, len(fits) + 1)


@pytest.mark.parametrize("percent", [0, 1, 50, 80, 100])
@pytest.mark.parametrize("size", [1, 99, 100])
def test_a_new_distribution_has_exactly_its_share(many: list[Example], rows: Summary, percent: int, size: int) -> None:
    picked = filters.pick(f"shift:{percent}", rows, size)[""]
    found = [plain(many[number]) for number in picked.numbers]
    marked = sum(words > 100 or special for words, special in filter(None, found))
    assert None not in found and len(set(picked.numbers)) == size
    assert abs(marked - size * percent / 100) <= 0.5 and list(picked.counts.values())[-1] == marked
    if 0 < marked < size - 1:
        first = [number for number in picked.numbers if rows.marked[number]]
        assert list(picked.numbers)[:marked] != first  # they do not lie in two heaps


def test_borders_of_the_rules_are_the_papers() -> None:
    """Under30: fewer than 30 words. NoThink: fewer than 60. Shifted: more than 100. The official rule: at most 1,500 tokens."""
    rows = [Example(f"{n}", (), "?", (Response("w " * n), Response("no", "rejected"))) for n in (29, 30, 59, 60, 100, 101)]
    held = filters.summary(rows)
    for rule, fits in (("under30", [0]), ("nothink", [0, 1, 2])):
        assert sorted(filters.pick(rule, held, len(fits))[""].numbers) == fits
        with pytest.raises(BadInput, match=f"there are {len(fits)};"):
            filters.pick(rule, held, len(fits) + 1)
    assert held.marked.tolist() == [False] * 5 + [True]
    for tokens, why in ((1500, None), (1501, "of more than 1,500 tokens")):
        pair = (Response("c" * (tokens - 1)), Response("r" * 9999, "rejected"))
        assert official.unfit(Example("a", (b"",), "p", pair), len) == why


def test_a_new_distribution_of_too_few_says_of_what_there_are_too_few(rows: Summary) -> None:
    with pytest.raises(BadInput, match="500 rows with more than 100 words or a special token are asked for"):
        filters.pick("shift:100", rows, 500)
    with pytest.raises(BadInput, match="500 rows not with more than 100 words"):
        filters.pick("shift:0", rows, 500)


def test_nested_sets_begin_as_the_smaller_ones(rows: Summary) -> None:
    found = filters.pick("nested:30,300,100", rows)
    assert list(found) == ["-30", "-100", "-300"]
    three, ten, thirty = (list(one.numbers) for one in found.values())
    assert ten[:30] == three and thirty[:100] == ten and len(set(thirty)) == 300
    assert filters.pick("nested:600", rows)["-600"].numbers != sorted(range(600))
    with pytest.raises(BadInput, match="601 rows of any kind are asked for, and there are 600"):
        filters.pick("nested:601,5", rows)


def test_what_is_drawn_depends_on_the_seed_and_on_nothing_else(rows: Summary) -> None:
    for rule in ("under30", "nothink", "shift:50", "nested:40"):
        one, same, other = (list(next(iter(filters.pick(rule, rows, 40, seed).values())).numbers) for seed in (777, 777, 778))
        assert one == same and set(one) != set(other)
    assert filters.pick("nested:5", Summary(np.zeros(1000, np.int64), np.zeros(1000, bool)))["-5"].numbers == [176, 417, 483, 439, 890]


@pytest.mark.parametrize(
    "rule", ["under31", "under30:3", "shift", "shift:101", "shift:-1", "shift:1.5", "nested:", "nested:3,x", "nested:0"]
)
def test_a_rule_that_is_none_is_refused(rows: Summary, rule: str) -> None:
    with pytest.raises(BadInput, match=f"rule '{rule}'"):
        filters.pick(rule, rows, 5)


# ---- the official rule


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """MMPR with rows that the rule leaves out, each for a reason of its own, and an annotation that turns to lists on its way."""
    whole = published.mmpr(tmp_path)
    meta = json.loads((whole / "meta.json").read_text())
    place = next(entry for name, entry in meta.items() if name == "ai2d_cot_prefix")
    annotation = whole / Path(*Path(place["annotation"]).parts[1:])
    images = whole / Path(*Path(place["root"]).parts[1:])
    good = {"image": published.put(images, "good.png", 1), "question": "What?", "chosen": "A cup.", "rejected": "A cat."}
    published.put(images, "was.jpg", 2)
    published.put(images, "is.gif", 3)
    made: list[dict[str, Any]] = [
        good,
        {**good, "image": "was.gif"},
        {**good, "image": "is.gif"},
        {**good, "image": "none.png"},
        {key: value for key, value in good.items() if key != "image"},
        {**good, "chosen": "An <image>."},
        {**good, "rejected": "An <image>."},
        {**good, "chosen": "cup " * 1500},
        {**good, "rejected": "cat " * 3000},
        {**good, "image": [good["image"]]},
        {**good, "question": "behind the list"},
    ]
    published.lines(annotation, made)
    return whole


def test_the_official_rule_against_the_slow_way(data: Path) -> None:
    examples = recipe.read(str(data))
    count = official.counter(str(BASE))
    assert isinstance(examples, mmpr.Read)
    fits = [n for n, one in enumerate(examples) if _stands(one, count) and _before_lists(examples, n)]
    whole = official.pick(examples, count, len(fits))
    assert sorted(whole.numbers) == fits
    assert list(official.pick(examples, count, 2).numbers) == list(whole.numbers)[:2]
    assert [examples[n].prompt for n in fits[:3]] == ["<image>\nWhat?"] * 3 and len(fits) == 5  # 3 here, 2 of the other annotation
    with pytest.raises(BadInput, match=r"6 rows are asked for, and 5 fit \(2 with <image> in a response, .*1 without an image") as refused:
        official.pick(examples, count, 6)
    for why in ("2 whose image is not there", "1 of more than 1,500 tokens"):
        assert why in str(refused.value)


def _stands(one: Example, count: Callable[[str], int]) -> bool:
    chosen, rejected = (str(response.text) for response in one.responses)
    if not one.images or "<image>" in chosen + rejected:
        return False
    name = str(one.images[0])
    there = Path(name[:-4] + ".jpg" if name.endswith(".gif") else name).exists()
    return there and count(str(one.prompt)) + count(chosen) <= 1500


def _before_lists(examples: Any, number: int) -> bool:
    """Whether the row is of an annotation's part without lists, and of its first repetition."""
    name = examples[number].meta["dataset"]
    earlier = [n for n in range(number + 1) if examples[n].meta["dataset"] == name]
    repeated = examples.where(number) in {examples.where(n) for n in earlier[:-1]}
    return not repeated and not any(isinstance(examples.table[n]["image"], list) for n in earlier if "image" in examples.table[n])


@pytest.fixture
def repeated(tmp_path: Path) -> Path:
    """Four annotations of six rows, with a list in the last but one of two of them: half, twice, two and a half times, as they are."""
    home = tmp_path / "MMPR"
    image = published.put(home / "images", "one.png", 1)
    meta = {}
    for name, times, listed in (("half", 0.5, True), ("twice", 2, True), ("more", 2.5, False), ("once", 1, False)):
        rows = [{"image": image, "question": f"{name} {n}", "chosen": "a", "rejected": "b"} for n in range(6)]
        if listed:
            rows[4] = {**rows[4], "image": [image]}  # type: ignore[dict-item]
        published.lines(home / f"{name}.jsonl", rows)
        meta[name] = {"root": "images", "annotation": f"{name}.jsonl", "repeat_time": times}
    (home / "meta.json").write_text(json.dumps(meta))
    return home


def test_every_annotation_is_read_once_to_its_first_list(repeated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """However often its rows come otherwise."""
    examples = official.whole(recipe.read(str(repeated)))
    found = [str(examples[n].prompt).removeprefix("<image>\n") for n in official.readable(examples)]
    assert found == [f"{name} {n}" for name, until in (("half", 4), ("twice", 4), ("more", 6), ("once", 6)) for n in range(until)]
    command = ["data", "filter", str(repeated), str(tmp_path / "new"), "--rule", "official20k", "--size", "20", "--tokenizer", str(BASE)]
    assert cli.call([*command, "--json"]) == 0
    assert {one["counts"]["read"] for one in json.loads(capsys.readouterr().out)["sets"]} == {20}
    prompts = [row["prompt"].removeprefix("<image>\n") for row in json.loads((tmp_path / "new" / "dpo.json").read_text())]
    assert sorted(prompts) == sorted(found)


@pytest.mark.parametrize("size", [2, 8, 9, 14, 29, 1000])
def test_of_the_first_rows_each_annotation_is_read_to_its_own_list(repeated: Path, size: int) -> None:
    """half 0 .. 2, twice 0 .. 5 and again, more 0 .. 5 twice and its half, once 0 .. 5: by name, as one would do it by hand."""
    part, told, over = recipe.read(f"mmpr,{repeated},size={size}"), list[str](), set[str]()
    assert isinstance(part, mmpr.Read) and official.whole(part)[0] == part[0]
    for n in range(len(part)):
        name, said = part[n].meta["dataset"], str(part[n].prompt)
        if isinstance(part.table[n]["image"], list) or said in told:
            over.add(str(name))
        if name not in over:
            told.append(said)
    assert [str(part[n].prompt) for n in official.readable(part)] == told


def test_the_official_files_are_parallel(data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "new"
    command = ["data", "filter", str(data), str(out), "--rule", "official20k", "--size", "4"]
    assert cli.call(command) == 2
    assert "name whose with --tokenizer" in capsys.readouterr().err
    assert cli.call([*command, "--tokenizer", str(BASE), "--json"]) == 0
    sets = json.loads(capsys.readouterr().out)["sets"]
    sft, dpo = (json.loads((out / name).read_text()) for name in ("sft.json", "dpo.json"))
    assert [row["id"] for row in sft] == [row["id"] for row in dpo] and len(sft) == 4
    for one, other in zip(sft, dpo, strict=True):
        assert set(one) == {"id", "conversations", "data_source", "image"}
        assert set(other) == {"id", "prompt", "chosen", "rejected", "image"}
        assert one["image"] == other["image"] and one["data_source"] in ("ai2d_cot_prefix", "geo_correctness")
        assert [turn["value"] for turn in one["conversations"]] == [other["prompt"], other["chosen"]]
        assert one["image"].endswith(("good.png", "was.jpg", ".jpg"))
    for one, format in zip(sets, ("llava", "llava_dpo"), strict=True):
        assert one["data"] == f"{format},{out}/{'sft' if format == 'llava' else 'dpo'}.json,images={data}" and not one["lost"]
        assert all(isinstance(image, Path) and image.exists() for row in recipe.read(one["data"]) for image in row.images)
    assert cli.call([*command, "--tokenizer", str(BASE)]) == 2 and "exists already" in capsys.readouterr().err


def test_the_official_rule_counts_after_torchvision_is_mended(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = list[str]()
    monkeypatch.setattr("pivot.encoder.torchvision.mend", lambda: done.append("mended"))
    monkeypatch.setattr(official, "counter", lambda _: done.append("opened") or len)
    command = ["data", "filter", str(data), str(tmp_path / "new"), "--rule", "official20k", "--size", "4", "--tokenizer", str(BASE)]
    assert cli.call(command) == 0, capsys.readouterr().err
    assert done == ["mended", "opened"]


@pytest.mark.slow
def test_the_official_rule_needs_nothing_that_another_verb_imported(data: Path, tmp_path: Path) -> None:
    """Beside a torchvision made for another torch, transformers opens no tokenizer as it stands: only a fresh process shows it."""
    command = ["data", "filter", str(data), str(tmp_path / "new"), "--rule", "official20k", "--size", "4", "--tokenizer", str(BASE)]
    done = subprocess.run([sys.executable, "-m", "pivot", *command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") and (tmp_path / "new" / "dpo.json").is_file()


# ---- on the command line


def written(tmp_path: Path, many: Sequence[Example]) -> Path:
    *_, _done = convert.write([one for one in many if len(one.responses) == 2], tmp_path / "in.jsonl", "mmpr")
    return tmp_path / "in.jsonl"


def test_what_is_taken_is_written_in_the_format_of_the_data(
    tmp_path: Path, many: list[Example], capsys: pytest.CaptureFixture[str]
) -> None:
    source = written(tmp_path, many)
    assert cli.call(["data", "filter", str(source), str(tmp_path / "a.jsonl"), "--rule", "nothink", "--size", "30"]) == 0
    first, second, counted = capsys.readouterr().out.splitlines()
    assert first == f"30 rows: {tmp_path}/a.jsonl" and second == f"  read it as: mmpr,{tmp_path}/a.jsonl"
    assert counted.startswith("  of 597 rows, 0 without a chosen response, ") and counted.endswith(", 30 taken")
    assert len(recipe.read(str(tmp_path / "a.jsonl"))) == 30
    again = ["data", "filter", str(source), str(tmp_path / "b.parquet"), "--rule", "nothink", "--size", "30", "--to", "llava", "--json"]
    assert cli.call(again) == 0
    (told,) = json.loads(capsys.readouterr().out)["sets"]
    assert told["lost"] == {"rejected responses": 30} and told["counts"]["taken"] == 30
    assert [one.id for one in recipe.read(told["data"])] == [one.id for one in recipe.read(str(tmp_path / "a.jsonl"))]


def test_nested_sets_are_a_file_each(tmp_path: Path, many: list[Example]) -> None:
    source = written(tmp_path, many)
    assert cli.call(["data", "filter", str(source), str(tmp_path / "set.jsonl"), "--rule", "nested:5,20"]) == 0
    five, twenty = ([json.loads(line)["id"] for line in (tmp_path / f"set-{n}.jsonl").read_text().splitlines()] for n in (5, 20))
    assert len(five) == 5 and twenty[:5] == five and len(set(twenty)) == 20
    assert cli.call(["data", "filter", str(source), str(tmp_path / "few.jsonl"), "--rule", "under30"]) == 2
    assert not (tmp_path / "few.jsonl").exists()
