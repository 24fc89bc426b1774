"""Preference pairs from a model's own attempts: which are made, how they are balanced, what is kept, and going on after a kill."""

from __future__ import annotations

import fcntl
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import picture_of

from pivot import answers, cli, recipe
from pivot.data.writing.pairs import finish, write
from pivot.data.writing.write import write as write_rows
from pivot.files import hash_file, read_json, read_jsonl
from pivot.model import MLLM
from pivot.model.rollout import Sampling, draws
from pivot.records import BadInput, Example, Response
from pivot.reward._contract import Score, unjudged
from pivot.train.attempts import Attempts
from pivot.train.judge import Judge
from pivot.train.pairing import Attempt, Pair, Record, balanced, candidates, reason
from pivot.train.prefer import prefer
from pivot.train.wanted import Settings, known, question

BOTH = ("correctness", "dropout")


@pytest.fixture(scope="module")
def base() -> MLLM:
    return MLLM.load("base")


def attempts(base: MLLM, examples: Sequence[Example], **options: Any) -> Attempts:
    settings = Settings(**{"samples": 4, "max_new": 24, "seed": 3, **options})
    return Attempts(base, examples, settings, Judge(settings, torch.device("cpu")))


# ---- which pairs there are


def told(row: Sequence[Attempt], *methods: Any) -> dict[Any, list[tuple[int, int]]]:
    found = candidates(Record(0, "", methods or BOTH, tuple(row)), 0.5)
    return {method: [(pair.chosen, pair.rejected) for pair in pairs] for method, pairs in found.items()}


def test_right_stands_against_wrong_and_what_cannot_be_learned_from_nowhere() -> None:
    right, wrong = Attempt("red", 1, reward=0.5), Attempt("blue", 1, reward=0.49)
    useless = [
        Attempt("red ", 1, reward=1.0),  # says what an earlier one says
        Attempt("red and then", 3, finished=False, reward=1.0),
        Attempt(" ", 0, reward=0.0),
        Attempt("<image>", 1, reward=0.0),
        Attempt("green", 1, failed="the judge is asleep"),
        Attempt("mauve", 1, "data", reward=0.0),  # not the model's own
    ]
    assert told([right, *useless, wrong]) == {"correctness": [(0, 7)], "dropout": []}
    assert told([right, wrong], "dropout") == {"dropout": []}
    says = {reason(row, "correctness", 0.5) for row in ([right, *useless], [wrong, useless[1]], useless[1:])}
    assert says == {"all right", "all wrong", "no attempt that is whole and judged"}


def test_a_continuation_is_rejected_unless_it_is_right_or_says_the_same() -> None:
    begun = [Attempt("a red cup", 3), Attempt("a red cup", 3, reward=1.0), Attempt("a red cup", 3, reward=0.0), Attempt("red", 1)]

    def ways(**of: Any) -> list[int]:
        row = [replace(one, text=f"{one.text} {n}") for n, one in enumerate(begun)]
        row += [Attempt(f"new {n}", 3, "continued", begun=n, kept=1, **of) for n in range(4)]
        return [chosen for chosen, _ in told(row, "dropout")["dropout"]]

    assert ways() == ways(reward=0.0) == [0, 1]
    assert ways(reward=1.0) == ways(finished=False) == []
    same = Attempt("a red\ncup", 3, "continued", begun=0, kept=1)
    assert told([begun[0], same, same], "dropout") == {"dropout": []}
    assert reason([begun[0], same], "dropout", 0.5).startswith("continued") and reason(begun[2:], "dropout", 0.5).startswith("nothing")


def test_both_methods_do_not_take_the_same_two_texts() -> None:
    row = [Attempt("a b", 2, reward=1.0), Attempt("a c", 2, reward=0.0), Attempt("a c", 2, "continued", reward=0.0, begun=0, kept=1)]
    assert told(row) == {"correctness": [(0, 1)], "dropout": []} and told(row, "dropout") == {"dropout": [(0, 2)]}


@pytest.mark.parametrize(
    ("route", "kind", "methods"),
    [
        (None, "choice", ("correctness",)),
        (None, "open", ("dropout",)),
        (None, None, ("dropout",)),
        ("both", "open", BOTH),
        ("dropout", "choice", ("dropout",)),
        ("correctness", None, ("correctness",)),
    ],
)
def test_the_route_follows_from_the_answer_unless_it_is_named(route: Any, kind: Any, methods: tuple[str, ...]) -> None:
    assert Settings(route=route).methods(known(Example("x", (), "?", answer="a", answer_kind=kind))) == methods
    assert route or Settings().methods(known(Example("x", (), "?", answer_kind=kind))) == ("dropout",)


# ---- lengths


def problem(dice: random.Random, rows: int, most: int) -> list[list[Pair]]:
    """Rows of right and wrong attempts, of which the right ones tend to be longer."""
    found = []
    for _ in range(rows):
        right = [dice.randrange(2, 12) for _ in range(dice.randrange(1, most))]
        wrong = [dice.randrange(1, 9) for _ in range(dice.randrange(1, most))]
        found.append([Pair("correctness", a, 100 + b, (right[a], wrong[b])) for a, b in product(range(len(right)), range(len(wrong)))])
    return found


def choices(group: Sequence[Pair], most: int) -> list[tuple[Pair, ...]]:
    """All sets of pairs that share no attempt, as large as such sets may be."""
    size = min(most, len({pair.chosen for pair in group}), len({pair.rejected for pair in group}))
    return [some for some in combinations(group, size) if not any(a.shares(b) for a, b in combinations(some, 2))]


def total(taken: Sequence[Sequence[Pair]]) -> int:
    return sum(pair.longer for some in taken for pair in some)


@pytest.mark.parametrize("most", [1, 2])
def test_sides_are_nearly_as_like_in_length_as_the_best_of_all_choices(most: int) -> None:
    dice, excess, at_random = random.Random(most), 0, 0
    for _ in range(60):
        groups = problem(dice, 4, 4)
        taken = balanced(groups, most)
        possible = [choices(group, most) for group in groups]
        assert all(set(some) in map(set, one) for some, one in zip(taken, possible, strict=True))
        best = min(abs(total(one)) for one in product(*possible))
        excess += abs(total(taken)) - best
        at_random += abs(total([dice.choice(one) for one in possible])) - best
    assert excess / 60 < 0.5 < at_random / 60


def test_many_rows_come_out_even_though_the_likest_pairs_do_not() -> None:
    groups = problem(random.Random(0), 500, 5)
    likest = [min(group, key=lambda pair: abs(pair.longer)) for group in groups]
    taken = balanced(groups, 1)
    left = total(taken)
    assert total([likest]) > 300 and abs(left) < 5
    for group, (pair,) in zip(groups, taken, strict=True):  # no single exchange would help
        assert all(abs(left - pair.longer + other.longer) >= abs(left) for other in group)


def test_pairs_are_alike_within() -> None:
    """Where the sum is nothing either way, and where one of two exchanges makes it nothing at the lesser price."""

    def left(*rows: Sequence[int]) -> list[int]:
        groups = [[Pair("correctness", n, n, (longer + 9, 9)) for n, longer in enumerate(row)] for row in rows]
        return [pair.longer for some in balanced(groups, 1) for pair in some]

    assert left([5, 0], [-5, 0]) == [0, 0]
    assert left([0, -4], [2, -2], [2]) == [0, -2, 2]
    assert left([2, -2], [0, -4], [2]) == [-2, 0, 2]


# ---- what the model is asked


def test_attempts_follow_from_the_row_and_not_from_its_company(base: MLLM) -> None:
    rows = recipe.read("world,size=22")
    together = attempts(base, rows).at(range(16, 22))
    assert attempts(base, rows).at([20]) == [together[4]]
    assert attempts(base, rows, seed=4).at(range(16, 22)) != together
    assert [len(record.attempts) for record in together] == [4] * 6
    grades = [answers.grade(attempt.text, rows[record.row]) for record in together for attempt in record.attempts]
    assert grades == [attempt.reward for record in together for attempt in record.attempts] and len(set(grades)) == 2


def test_dropout_goes_on_from_the_beginning_and_sees_no_picture(base: MLLM) -> None:
    shown = replace(recipe.read("world,size=1")[0], responses=(Response("the square is yellow and the ring is red."),), answer=None)
    first, bare = attempts(base, [shown, replace(shown, images=())], chosen="data", share=0.4).at(range(2))
    assert first.methods == ("dropout",) and [attempt.origin for attempt in first.attempts] == ["data", *["continued"] * 4]
    tokens = base.processor.tokenizer
    ids = tokens(shown.responses[0].text).input_ids
    assert {attempt.kept for attempt in first.attempts[1:]} == {int(0.4 * len(ids))}
    start = tokens.decode(ids[: int(0.4 * len(ids))])
    assert all(attempt.text.startswith(start) and attempt.reward is None for attempt in first.attempts[1:])
    (other,) = attempts(base, [replace(shown, images=(picture_of(0),))], chosen="data", share=0.4).at([0])
    assert other.attempts == first.attempts  # with another picture not one word changes
    assert len(bare.attempts) == 1 and reason(bare.attempts, "dropout", 0.5)
    sampled = attempts(base, recipe.read("world,size=8"), route="dropout", samples=3).at(range(8))
    pairs = [(record, pair) for record in sampled for pair in candidates(record, 0.5)["dropout"]]
    assert pairs
    for record, pair in pairs:
        chosen, rejected = record.attempts[pair.chosen], record.attempts[pair.rejected]
        assert (chosen.reward, rejected.reward) == (1.0, 0.0) and pair.tokens == (chosen.tokens, rejected.tokens)


@pytest.mark.parametrize("chosen", ["sampled", "data"])
def test_settings_reach_the_sampler_and_no_two_attempts_share_a_draw(base: MLLM, monkeypatch: pytest.MonkeyPatch, chosen: Any) -> None:
    drawn = list[tuple[list[str], Sampling]]()

    def spy(keys: Sequence[str], sampling: Sampling) -> Any:
        drawn.append((list(keys), sampling))
        return draws(keys, sampling)

    monkeypatch.setattr("pivot.train.attempts.draws", spy)
    rows = [replace(row, answer=None, responses=row.responses[:1]) for row in recipe.read("world,size=2")]
    found = {}
    for seed in (3, 4):
        drawn.clear()
        options: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9, "samples": 3, "max_new": 20, "chosen": chosen, "route": "both"}
        attempts(base, rows, seed=seed, **options).at([1])
        first, *continued = drawn
        assert first[1] == Sampling(3, 0.7, 0.9, 20) and len(first[0]) == 1 and continued
        assert all(sampling == Sampling(1, 0.7, 0.9, 20) for _, sampling in continued)
        keys = [key for some, _ in drawn for key in some]
        assert len(set(keys)) == len(keys) > 2
        found[seed] = set(keys)
    assert not found[3] & found[4]


def test_what_an_attempt_goes_on_with_does_not_depend_on_the_threshold(base: MLLM) -> None:
    rows = recipe.read("world,size=12")

    def rejected(threshold: float) -> dict[Any, str]:
        options: dict[str, Any] = {"reward": {"name": "length"}, "route": "both", "threshold": threshold}
        found = attempts(base, rows, **options).at(range(12))
        return {(one.row, at.begun): at.text for one in found for at in one.attempts if at.begun is not None}

    low, high = rejected(0.0), rejected(0.2)
    assert high and high.items() < low.items()


def test_no_row_and_no_reply_ends_the_job(base: MLLM, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing more")
    good = recipe.read("world,size=2")
    turns = ({"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "what is it?"})
    rows = [
        good[0],
        replace(good[0], images=(tmp_path / "broken.png",)),
        replace(good[0], images=(tmp_path / "absent.png",)),
        replace(good[0], prompt="why? " * 2000),
        replace(good[0], prompt=turns),
        good[1],
    ]
    found = attempts(base, rows).at(range(6))
    assert [bool(record.failed) for record in found] == [False, True, True, True, True, False]
    assert all(word in str(record.failed) for record, word in zip(found[1:5], ("cannot be", "not found", "tokens", "turns"), strict=True))

    def moody(reply: str, example: Example) -> float:
        if "yes" in reply:
            raise ZeroDivisionError("no yes please")
        return float("inf") if len(reply) % 2 else 1.0

    def judge(replies: Sequence[str], examples: Sequence[Example]) -> list[Score]:
        return [Score(moody(*one)) for one in zip(replies, examples, strict=True)]

    asked = Attempts(base, rows, Settings(samples=4, max_new=24), judge)
    judged = [attempt for record in asked.at([0, 5]) for attempt in record.attempts]
    assert {attempt.failed for attempt in judged if "yes" in attempt.text} == {"ZeroDivisionError: no yes please"}
    assert {attempt.reward for attempt in judged} == {None, 1.0}


def test_a_system_turn_becomes_part_of_the_question(base: MLLM) -> None:
    row = recipe.read("world,size=1")[0]
    turns = ({"role": "system", "content": "Answer in one word."}, {"role": "user", "content": row.prompt})
    told, asked = replace(row, prompt=turns), replace(row, prompt=f"Answer in one word.\n\n{row.prompt}")
    (found,), (same,) = attempts(base, [told]).at([0]), attempts(base, [asked]).at([0])
    assert not found.failed and found == same
    assert question(told) == asked and question(row) == row
    spoken = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"})
    (failed,) = attempts(base, [replace(row, prompt=spoken)]).at([0])
    assert "here turns are user, assistant, user" in str(failed.failed)


def test_a_judge_that_is_out_of_order_stops_the_job_and_spoils_nothing(base: MLLM, tmp_path: Path) -> None:
    rows, settings = recipe.read("world,size=4"), Settings(reward={"name": "judge"}, chat={}, batch=2, samples=2, max_new=24, route="both")
    sleeps = set[str]()

    def judge(replies: Sequence[str], examples: Sequence[Example]) -> list[Score]:
        return [
            unjudged("asleep") if example.id in sleeps else Score(len(reply) % 2) for reply, example in zip(replies, examples, strict=True)
        ]

    asked = Attempts(base, rows, settings, judge)
    prefer(asked.at, rows, tmp_path / "plain" / "out", settings, "base")
    sleeps |= {"row 2", "row 3"}  # the second batch
    with pytest.raises(BadInput, match="could be judged: asleep; see to that and run the same command again"):
        prefer(asked.at, rows, tmp_path / "again" / "out", settings, "base")
    assert len(read_jsonl(tmp_path / "again" / "out" / "samples.jsonl")) == 3
    sleeps.clear()
    prefer(asked.at, rows, tmp_path / "again" / "out", settings, "base")
    assert hash_file(tmp_path / "again" / "out") == hash_file(tmp_path / "plain" / "out")


# ---- from data to a file of pairs


def test_pairs_are_read_as_mmpr_and_say_how_they_came_to_be(base: MLLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pairs"
    command = ["data", "prefer", "base", "world,size=20", str(out), "--route", "both", "--samples", "4", "--max-new", "24", "--json"]
    assert cli.call(command) == 0
    summary = json.loads(capsys.readouterr().out)
    source, pairs = recipe.read("world,size=20"), recipe.read(str(out))
    records = {line["row"]: line for line in read_jsonl(out / "samples.jsonl")[1:]}
    assert len(records) == 20 and len(pairs) == summary["tokens"]["all"]["pairs"] >= 12
    tokens = base.processor.tokenizer
    for pair in pairs:
        how, (chosen, rejected) = pair.meta["prefer"], pair.responses
        row = source[how["row"]]
        assert (answers.grade(chosen.text, row), answers.grade(rejected.text, row)) == (1.0, 0.0) == how["rewards"]
        assert [records[how["row"]]["attempts"][n]["text"] for n in how["attempts"]] == [chosen.text, rejected.text]
        assert how["model"] == summary["model"] and how["seed"] == 0 and how["samples"] == 4
        if how["method"] == "dropout":
            assert how["kept"] == max(1, how["tokens"][0] // 2)
            assert tokens.decode(tokens(rejected.text).input_ids[:1]) == tokens.decode(tokens(chosen.text).input_ids[:1])
        assert pair.answer == row.answer and pair.images[0].is_relative_to(out / "images")
    assert {pair.meta["prefer"]["method"] for pair in pairs} == set(BOTH)
    sides = [sum(pair.meta["prefer"]["tokens"][side] for pair in pairs) / len(pairs) for side in (0, 1)]
    assert [summary["tokens"]["all"][name] for name in ("chosen", "rejected")] == pytest.approx(sides)
    assert cli.call(["data", "doctor", str(out), "--workers", "1"]) == 0
    before, asked = hash_file(out), capsys.readouterr()
    assert cli.call(command) == 0 and hash_file(out) == before, asked  # complete: nothing is done again
    assert cli.call([*command, "--seed", "1"]) == 2 and "another seed" in capsys.readouterr().err and hash_file(out) == before


def test_each_option_of_the_verb_has_its_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A right answer earns 0.3, so that no attempt reaches the usual threshold."""
    out = tmp_path / "pairs"
    options = ["--limit", "12", "--pairs", "2", "--threshold", "0.2", "--reward", "{name: mixed, weight: 0.3}", "--temperature", "2"]
    assert cli.call(["data", "prefer", "base", "world,size=16", str(out), *options, "--max-new", "24", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert [line["row"] for line in read_jsonl(out / "samples.jsonl")[1:]] == list(range(12)) and summary["rows"] == 12
    rows = [pair.meta["prefer"] for pair in recipe.read(str(out))]
    assert rows and all(row["rewards"] == (0.3, 0.0) for row in rows)
    assert max(sum(row["row"] == n for row in rows) for n in range(12)) == 2


def test_a_reward_knows_how_long_an_attempt_is_and_whether_it_was_cut_off(base: MLLM) -> None:
    for record in attempts(base, recipe.read("world,size=3"), reward={"name": "length"}).at(range(3)):
        assert [attempt.reward for attempt in record.attempts] == [attempt.tokens / 24 for attempt in record.attempts]
    (found,) = attempts(base, recipe.read("world,size=1"), reward={"name": "finished"}, max_new=2, samples=8).at([0])
    assert {(attempt.finished, attempt.reward) for attempt in found.attempts} == {(False, 0.0)}
    (found,) = attempts(base, recipe.read("world,size=1"), reward={"name": "finished"}, max_new=48, samples=8).at([0])
    assert {(attempt.finished, attempt.reward) for attempt in found.attempts} == {(True, 1.0)}


def test_rows_of_one_picture_share_its_file_byte_for_byte(tmp_path: Path) -> None:
    picture_of(3).save(tmp_path / "one.jpg")
    picture_of(4).save(tmp_path / "two.png")
    sides = (Response("a"), Response("b", role="rejected"))
    shown = [("one.jpg",), ("one.jpg", "two.png"), ()]
    rows = [
        Example(f"{n}", tuple(tmp_path / name for name in some), "which?", sides, meta={"odd": float("nan")})
        for n, some in enumerate(shown)
    ]
    out = tmp_path / "out"
    out.mkdir()
    assert list(write(rows, out)) == [["meta.odd"]] * 3
    finish(out, "mine", 3)
    kept = [[path.read_bytes() for path in row.images if isinstance(path, Path)] for row in recipe.read(str(out))]
    assert kept == [[(tmp_path / name).read_bytes() for name in some] for some in shown] and len(list((out / "images").iterdir())) == 2


def test_wrong_use_is_said_before_a_model_is_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("precious")
    for words, options in {
        "--samples": ["--samples", "0"],
        "--reward": ["--reward", "beauty"],
        "--share": ["--share", "1"],
        "give reward_model": ["--reward", "learned"],
    }.items():
        assert cli.call(["data", "prefer", "nowhere", "world,size=2", str(tmp_path / "out"), *options]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert cli.call(["data", "prefer", "base", "world,size=2", str(tmp_path / "mine")]) == 2
    assert "exists already" in capsys.readouterr().err and (tmp_path / "mine").read_text() == "precious"


def test_an_endpoint_is_a_mapping(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for chat in ("http://a.example/v1", "{url: a}", "{url: a, model: b, kee: c}"):
        assert cli.call(["data", "prefer", "nowhere", "world,size=2", str(tmp_path), "--reward", "judge", "--chat", chat]) == 2
        said = capsys.readouterr().err
        assert said.startswith("pivot: --chat: ") and "model: NAME}'" in said and said.count("\n") == 1


def test_one_attempt_cannot_be_right_and_wrong() -> None:
    for route in (None, "correctness", "both"):
        with pytest.raises(BadInput, match="samples of 2 or more, or the route dropout"):
            Settings(samples=1, route=route)  # type: ignore[arg-type]
    assert Settings(samples=1, route="dropout").samples == 1 and Settings(samples=2).samples == 2


def unsaid(folder: Path) -> Path:
    """Questions with answers whose kind nobody says, but for the last."""
    rows = [replace(row, responses=(), truth=None, answer_kind=None, answer="2") for row in recipe.read("world,size=4")]
    assert list(write_rows([*rows[:3], replace(rows[3], answer_kind="text")], folder))
    return folder


def test_answers_of_no_kind_are_told_and_their_kind_may_be_given_for_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = unsaid(tmp_path / "data"), tmp_path / "out"
    command = ["data", "prefer", "base", str(data), str(out), "--max-new", "16", "--samples", "4"]
    said = "3 have an answer and no answer_kind, so that it judges no attempt; say of which kind it is: answer_kind in the row, or"
    assert cli.call(command) == 0
    told = capsys.readouterr()
    assert f"warning: of the first 4 rows {said}" in told.err and f"of 4 rows {said}" in told.out
    assert read_json(out / "summary.json")["answers"] == {"of no kind": 3, "checkable": 1}
    command[4] = str(tmp_path / "refused")
    assert cli.call([*command, "--route", "correctness", "--limit", "3"]) == 2
    told = capsys.readouterr()
    assert "failed (3); row 0: the row has an answer and no answer_kind, by which reward 'mixed' goes; say of which kind" in told.err
    assert not any(record["attempts"] for record in read_jsonl(Path(command[4]) / "samples.jsonl")[1:])  # nor is it asked in vain
    command[3:5] = [f"rows,{data},kind=number", str(tmp_path / "given")]
    cli.call(command)
    told = capsys.readouterr()
    assert "answer_kind" not in told.err + told.out
    methods = [record["methods"] for record in read_jsonl(Path(command[4]) / "samples.jsonl")[1:]]
    assert methods == [["correctness"]] * 4


@pytest.mark.parametrize(
    ("options", "kind", "answer", "says"),
    [
        ({}, None, "2", "answer_kind in the row"),
        ({}, None, None, "has no answer"),
        ({}, "open", "2", "kinds: {open: judge}"),
        ({}, "number", "2", None),
        ({"reward": {"name": "mixed", "kinds": {"open": {"name": "answer"}}}}, "open", "2", None),
        ({"reward": {"name": "mixed", "otherwise": {"name": "answer"}}}, None, "2", None),
        ({"reward": {"name": "digit"}}, None, "2", None),
        ({"route": "both"}, None, "2", None),
        ({"route": None}, None, "2", None),
    ],
)
def test_rows_that_no_attempt_could_pair_are_refused_before_they_are_asked(options: Any, kind: Any, answer: Any, says: str | None) -> None:
    found = Settings(**{"route": "correctness", **options}).refusal(Example("x", (), "?", answer=answer, answer_kind=kind))
    assert found is None if says is None else says in str(found)


def test_no_pair_at_all_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def ask(numbers: Sequence[int]) -> list[Record]:
        some = (Attempt("a", 1, reward=0.0), Attempt("b", 1, reward=0.2))
        return [Record(n, "", ("correctness",), some, answer="checkable") if n else Record(n, "", failed="dark") for n in numbers]

    rows, out = recipe.read("world,size=3"), tmp_path / "out"
    advice = "another threshold, .* in this folder; more samples, .* need another folder"
    with pytest.raises(BadInput, match=rf"no row gave a pair: correctness: all wrong \(2\), failed \(1\); row 0: dark; {advice}"):
        prefer(ask, rows, out, Settings(), "model")
    assert len(read_jsonl(out / "samples.jsonl")) == 4 and not (out / "meta.json").exists()
    with pytest.raises(BadInput, match=r"begun otherwise .another samples."):
        prefer(ask, rows, out, Settings(samples=9), "model")
    assert prefer(never, rows, out, Settings(threshold=0.2), "model")["rows_with_pairs"] == 2  # as was advised
    with pytest.raises(BadInput, match=r"no row gave a pair: failed .3.; row 0: dark; mend that"):
        prefer(lambda numbers: [Record(n, "", failed="dark") for n in numbers], rows, tmp_path / "dark", Settings(), "model")


# ---- other pairs of the same attempts


def never(numbers: Sequence[int]) -> list[Record]:
    raise AssertionError("attempts are there")


def graded(numbers: Sequence[int]) -> list[Record]:
    """Rows of six attempts that earn 0.0, 0.2 ... 1.0."""
    return [
        Record(n, "", ("correctness",), tuple(Attempt(f"{n} {k}", k + 1, reward=k / 5) for k in range(6)), answer="checkable")
        for n in numbers
    ]


@pytest.mark.parametrize("options", [{"pairs": 3}, {"threshold": 0.7}, {"route": "correctness"}, {"pairs": 2, "threshold": 0.3}])
def test_other_choices_make_the_pairs_of_a_fresh_folder(options: Any, tmp_path: Path) -> None:
    rows, out, fresh = recipe.read("world,size=5"), tmp_path / "one" / "out", tmp_path / "other" / "out"
    prefer(graded, rows, out, Settings(batch=2), "model")
    (out / "images" / "old.png").write_bytes(b"of a row that has no pair now")
    summary = prefer(never, rows, out, Settings(batch=2, **options), "model")
    wanted = prefer(graded, rows, fresh, Settings(batch=2, **options), "model")
    assert summary == {**wanted, "begun": {name: {"pairs": 1, "threshold": 0.5, "route": None}[name] for name in options}}
    assert wanted["begun"] == {} and summary["settings"] == {**summary["settings"], **options}
    for name in ("pairs.jsonl", "meta.json", "images"):
        assert hash_file(out / name) == hash_file(fresh / name)
    before = hash_file(out)
    prefer(never, rows, out, Settings(batch=2, **options), "model")
    assert hash_file(out) == before


def test_what_attempts_do_not_suffice_for_changes_nothing(tmp_path: Path) -> None:
    rows, out = recipe.read("world,size=2"), tmp_path / "out"

    def ask(numbers: Sequence[int]) -> list[Record]:
        attempts = [Attempt(f"a b {k}", 3, reward=k / 5) for k in range(6)]
        attempts += [Attempt(f"a c {k}", 3, "continued", begun=k, kept=1, reward=0.0) for k in (4, 5)]
        return [Record(n, "", ("dropout",), tuple(attempts), answer="checkable") for n in numbers]

    prefer(ask, rows, out, Settings(route="dropout", threshold=0.7), "model")
    before = hash_file(out)
    for options, says in {
        ("correctness", 0.7): "route correctness was not tried at 2 rows of .*; give another path",
        (None, 0.7): "route None was not tried",
        ("both", 0.7): "route both was not tried",
        ("dropout", 0.5): "threshold 0.5 wants continuations that were not tried with 0.7 at 2 rows of .*; give another path",
    }.items():
        with pytest.raises(BadInput, match=says):
            prefer(never, rows, out, Settings(route=options[0], threshold=options[1]), "model")  # type: ignore[arg-type]
        assert hash_file(out) == before
    with pytest.raises(BadInput, match="no row gave a pair"):
        prefer(never, rows, out, Settings(route="dropout", threshold=2.0), "model")
    assert hash_file(out) == before
    prefer(never, rows, out, Settings(route="dropout", threshold=0.61), "model")  # no attempt lies between
    prefer(never, rows, out, Settings(route="dropout", threshold=0.9), "model")
    assert {row.meta["prefer"]["rewards"][0] for row in recipe.read(str(out))} == {1.0}


def test_a_folder_is_completed_as_it_was_begun(tmp_path: Path) -> None:
    rows, out = recipe.read("world,size=4"), tmp_path / "out"

    def killed(numbers: Sequence[int]) -> list[Record]:
        if 2 in numbers:
            raise KeyboardInterrupt
        return graded(numbers)

    with pytest.raises(KeyboardInterrupt):
        prefer(killed, rows, out, Settings(batch=2), "model")
    for options in ({"threshold": 0.7}, {"route": "correctness"}):
        with pytest.raises(BadInput, match=r"is not complete; go on as it was begun .(threshold 0.5|route by default)."):
            prefer(graded, rows, out, Settings(batch=2, **options), "model")  # type: ignore[arg-type]
    assert prefer(graded, rows, out, Settings(batch=2, pairs=2), "model")["rows"] == 4  # which says nothing of attempts


def test_the_verb_says_that_attempts_were_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "prefer", "base", "world,size=16", str(tmp_path / "out"), "--max-new", "24", "--samples", "6"]
    assert cli.call(command) == 0 and "attempts that are kept" not in capsys.readouterr().out
    assert cli.call([*command, "--pairs", "2"]) == 0
    assert "made anew of attempts that are kept, which were begun with pairs 1" in capsys.readouterr().out


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    rows, out = recipe.read("world,size=2"), tmp_path / "out"
    prefer(graded, rows, out, Settings(), "model")
    before = hash_file(out)
    with (out / "samples.jsonl").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for options in ({}, {"pairs": 2}):
            with pytest.raises(BadInput, match=r"another process is writing to .*; wait for it"):
                prefer(graded, rows, out, Settings(**options), "model")
    assert hash_file(out) == before and prefer(graded, rows, out, Settings(), "model")["rows"] == 2


# ---- kills


def test_sigkill_before_a_write_changes_nothing(tmp_path: Path) -> None:
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")])}
    code = [sys.executable, str(here / "killed_prefer.py"), str(tmp_path)]
    done = subprocess.run(code, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = read_json(tmp_path / "found.json")
    assert sum(one["killed"][0] == -9 for one in report["found"]) > 10
    assert [(one["last"], one["hash"]) for one in report["found"]] == [(0, report["wanted"])] * len(report["found"])


def test_a_model_goes_on_to_the_same_bits(base: MLLM, tmp_path: Path) -> None:
    """With the model itself: cut off anywhere, in the middle of a batch and of a line."""
    rows = recipe.read("world,size=7")
    settings = Settings(samples=3, batch=3, max_new=24, route="both")
    asked = Attempts(base, rows, settings, Judge(settings, torch.device("cpu")))
    out = tmp_path / "out"
    prefer(asked.at, rows, out, settings, "base")
    wanted, samples = hash_file(out), (out / "samples.jsonl").read_bytes()
    dice = random.Random(0)
    for _ in range(2):
        for name in ("meta.json", "pairs.jsonl"):
            (out / name).unlink()
        (out / "samples.jsonl").write_bytes(samples[: dice.randrange(len(samples))])
        prefer(asked.at, rows, out, settings, "base")
        assert hash_file(out) == wanted
