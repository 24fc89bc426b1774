"""Benchmarks: scores from planted replies, pairs, the answers file, and a kill in the middle."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import pytest
from PIL import Image

from pivot.bench import run as asking
from pivot.bench.run import identity, keep, measure, run, speaking
from pivot.bench.world import Benchmark
from pivot.data import world
from pivot.files import append_jsonl, read_jsonl, write_jsonl
from pivot.lookup import find
from pivot.model import MLLM
from pivot.model.sample import reply
from pivot.pictures import picture
from pivot.records import BadInput, Example
from pivot.runfolder import RunFolder


@dataclass
class Script:
    """Plays replies back by item id, counts what it was asked, and dies where told."""

    replies: dict[str, str]
    asked: int = 0
    dies_after: int = 10**9

    def __call__(self, examples: Sequence[Example]) -> list[str]:
        if self.asked + len(examples) > self.dies_after:
            raise KeyboardInterrupt
        self.asked += len(examples)
        return [self.replies[e.id] for e in examples]


@pytest.fixture(scope="module")
def items() -> list[Example]:
    return list(world.read(split="test", size=64, seed=5))


def truths(items: Sequence[Example]) -> dict[str, str]:
    return {e.id: str(e.responses[0].text) for e in items}


def test_the_world_is_found_by_name_and_has_items_of_its_own() -> None:
    benchmark = find("bench", "world")()
    own = benchmark.examples()
    assert len(own) == 640 and {own[i].task for i in range(32)} == {own[i].task for i in range(32, 64)}
    assert len({own[i].task for i in range(32)}) == 16


def test_scores_are_those_of_planted_replies(items: list[Example], tmp_path: Path) -> None:
    """All right is 1 everywhere. One wrong item costs its task, its domain and the mean exactly its share."""
    found = run(Benchmark(), Script(truths(items)), tmp_path / "a.jsonl", examples=items, arm="dpo", seed=3)
    assert set(found.metrics.values()) == {1.0}
    assert (found.kind, found.name, found.arm, found.seed, found.n) == ("bench", "world", "dpo", 3, 62)  # 60 items and 2 pairs
    wrong = next(e for e in items if e.task == "counting")
    found = run(Benchmark(), Script(truths(items) | {wrong.id: "nine hundred"}), tmp_path / "b.jsonl", examples=items)
    units = len(found.items["tasks/counting"])
    assert found.items["tasks/counting"][wrong.id] == 0 and units == 4
    assert found.metrics["tasks/counting"] == 1 - 1 / units
    assert found.metrics["domains/Vision-Centric"] == pytest.approx(1 - 1 / units / 4)
    assert found.metrics["mean"] == pytest.approx(1 - 1 / units / 16)
    assert found.metrics["domains/General"] == 1


def test_metrics_follow_from_items_through_parts(items: list[Example], tmp_path: Path) -> None:
    """What a report resamples gives back what the measurement states: leaves are means of items, the others of their parts."""
    dice = random.Random(0)
    replies = {e.id: str(dice.choice(e.responses).text) for e in items}
    found = run(Benchmark(), Script(replies), tmp_path / "a.jsonl", examples=items)
    assert set(found.metrics) == set(found.items) | set(found.parts) and len(found.items) == 16
    assert list(found.parts["mean"]) == ["domains/General", "domains/Knowledge", "domains/OCR & Chart", "domains/Vision-Centric"]
    for leaf, units in found.items.items():
        assert found.metrics[leaf] == pytest.approx(sum(units.values()) / len(units))
    for whole, parts in found.parts.items():
        assert len(parts) == 4 and found.metrics[whole] == pytest.approx(sum(found.metrics[p] for p in parts) / 4)
    assert 0 < found.metrics["mean"] < 1


def test_a_pair_is_right_only_as_a_whole() -> None:
    def row(name: str, pair: str | None, grade: float) -> dict[str, object]:
        return {"id": name, "task": "twins", "domain": "Vision-Centric", "pair": pair, "grade": grade}

    rows = [row("a", "p", 1), row("b", "p", 1), row("c", "q", 1), row("d", "q", 0), row("e", None, 1), row("alone", "r", 1)]
    found = measure(rows, "world")
    assert found.items["tasks/twins"] == {"p": 1, "q": 0, "e": 1}
    assert found.n == 3 and "pair" in found.unit
    # A model that says the same whatever it sees gets half of the twins right and no pair.
    blind = [row(f"{pair}{side}", pair, float(side == 0)) for pair in "xyz" for side in (0, 1)]
    assert measure(blind, "world").metrics["tasks/twins"] == 0


def test_small_domains_and_tasks_weigh_as_much_as_large_ones() -> None:
    grades = {("A", "a"): [1, 1, 1, 1], ("B", "b"): [1, 0], ("B", "c"): [0]}
    rows = [
        {"id": f"{task}{n}", "task": task, "domain": domain, "pair": None, "grade": float(grade)}
        for (domain, task), given in grades.items()
        for n, grade in enumerate(given)
    ]
    assert measure(rows, "world").metrics == {
        "tasks/a": 1,
        "tasks/b": 0.5,
        "tasks/c": 0,
        "domains/A": 1,
        "domains/B": 0.25,
        "mean": 0.625,
    }


def test_the_answers_file_holds_what_scoring_needs(items: list[Example], tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    replies = truths(items) | {items[0].id: "<script>alert(1)</script>\n\u2028 ?"}
    found = run(Benchmark(), Script(replies), folder.answers_file("sft", 0, "world"), examples=items, arm="sft", fingerprint="f")
    rows = read_jsonl(folder.answers_file("sft", 0, "world"))
    assert [r["id"] for r in rows] == [e.id for e in items]
    assert rows[0] | {"image": "", "images_sha256": ""} == {
        "id": items[0].id,
        "task": "existence",
        "domain": "General",
        "pair": None,
        "prompt": items[0].prompt,
        "reply": replies[items[0].id],
        "parsed": None,
        "answer": items[0].answer,
        "grade": 0.0,
        "image": "",
        "images_sha256": "",
    }
    assert measure(rows, "world", arm="sft", fingerprint="f") == found
    folder.write_measurement(found)
    (read_back,) = folder.measurements()
    assert (read_back.metrics, read_back.items) == (found.metrics, found.items)
    assert {k: list(v) for k, v in read_back.parts.items()} == {k: list(v) for k, v in found.parts.items()}
    assert sorted(p.name for p in tmp_path.glob("answers/*")) == ["images", "sft-seed-0-world.jsonl"]


def test_pictures_of_every_task_are_kept(items: list[Example], tmp_path: Path) -> None:
    rows = [replace(items[0], id="odd/../name é"), *items[1:]]
    run(Benchmark(), Script({e.id: "" for e in rows}), tmp_path / "a.jsonl", examples=rows)
    by_id = {e.id: e for e in rows}
    shown = [r for r in read_jsonl(tmp_path / "a.jsonl") if "image" in r]
    assert {r["task"] for r in shown} == {e.task for e in items} and len(shown) == 32
    assert sum(r["task"] == "twins" and r["pair"] == shown[-1]["pair"] for r in shown) == 2
    for row in shown:
        with Image.open(tmp_path / row["image"]) as kept:
            assert kept.format == "PNG" and kept.tobytes() == by_id[row["id"]].images[0].tobytes()  # type: ignore[union-attr]
    assert {p.parent.name for p in tmp_path.rglob("*.png")} == {"images"}


def test_the_model_sees_picture_and_prompt_only(items: list[Example], tmp_path: Path) -> None:
    seen: list[Example] = []

    def watch(examples: Sequence[Example]) -> list[str]:
        seen.extend(examples)
        return [""] * len(examples)

    done: list[tuple[int, int]] = []
    run(Benchmark(), watch, tmp_path / "a.jsonl", examples=items, batch=24, progress=lambda *at: done.append(at))
    assert done == [(24, 64), (48, 64), (64, 64)]
    for bare, full in zip(seen, items, strict=True):
        assert (bare.id, bare.prompt, len(bare.images)) == (full.id, full.prompt, 1)
        assert (bare.answer, bare.responses, bare.truth, dict(bare.meta)) == (None, (), None, {})


def test_a_killed_run_goes_on_and_ends_the_same(items: list[Example], tmp_path: Path) -> None:
    file, whole = tmp_path / "a.jsonl", tmp_path / "whole" / "a.jsonl"
    want = run(Benchmark(), Script(truths(items)), whole, examples=items, batch=10, fingerprint="w1")
    with pytest.raises(KeyboardInterrupt):
        run(Benchmark(), Script(truths(items), dies_after=35), file, examples=items, batch=10, fingerprint="w1")
    assert not file.exists()
    # The kill tore a line and left part of a batch behind.
    append_jsonl(file.with_suffix(".partial"), {"id": items[30].id, "prompt": items[30].prompt, "reply": "torn batch"})
    with file.with_suffix(".partial").open("a") as torn:
        torn.write('{"id": "wor')
    again = Script(truths(items))
    assert run(Benchmark(), again, file, examples=items, batch=10, fingerprint="w1") == want
    assert again.asked == 34 and file.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("change", ["fingerprint", "no fingerprint", "batch", "items", "picture in memory", "picture on disk"])
def test_what_was_answered_otherwise_is_asked_again(items: list[Example], tmp_path: Path, change: str) -> None:
    file, items = tmp_path / "a.jsonl", items[:24]
    if change == "picture on disk":
        picture(items[0].images[0]).save(tmp_path / "seen.png")
        items[0] = replace(items[0], images=(tmp_path / "seen.png",))
    mark = "" if change == "no fingerprint" else "w1"
    with pytest.raises(KeyboardInterrupt):
        run(Benchmark(), Script(dict.fromkeys(truths(items), "stale"), dies_after=20), file, examples=items, batch=10, fingerprint=mark)
    asked = [replace(items[0], prompt="another question?"), *items[1:]] if change == "items" else items
    if change == "picture in memory":
        asked = [replace(items[0], images=items[1].images), *items[1:]]
    if change == "picture on disk":
        picture(items[1].images[0]).save(tmp_path / "seen.png")
    again = Script(truths(items))
    options = {
        "fingerprint": {"batch": 10, "fingerprint": "w2"},
        "no fingerprint": {"batch": 10},
        "batch": {"batch": 8, "fingerprint": "w1"},
    }
    run(Benchmark(), again, file, examples=asked, **options.get(change, {"batch": 10, "fingerprint": "w1"}))  # type: ignore[arg-type]
    assert again.asked == 24
    assert "stale" not in file.read_text()


def test_answers_are_kept_for_the_same_model_and_questions_and_never_overwritten(
    items: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mllm: MLLM
) -> None:
    """Asked again by the same name: the same replies are graded again, without asking; others stay where they are."""
    folder, asked, script = RunFolder(tmp_path), items[:8], Script(truths(items))
    monkeypatch.setattr(asking, "speaking", lambda *_: script)
    first = keep(Benchmark(), mllm, folder, "mine", asked)
    assert script.asked == 8 and first.metrics["mean"] == 1
    answers, before = folder.answers_file("mine", 0, "world"), folder.answers_file("mine", 0, "world").read_bytes()
    assert keep(Benchmark(), mllm, folder, "mine", asked) == first
    assert script.asked == 8 and answers.read_bytes() == before
    regraded = [replace(asked[0], answer="none of this"), *asked[1:]]
    assert keep(Benchmark(), mllm, folder, "mine", regraded).metrics["mean"] < 1 and script.asked == 8

    before = answers.read_bytes()
    for other in (asked[:6], [*asked[:7], items[8]], [replace(asked[0], images=asked[1].images), *asked[1:]]):
        with pytest.raises(BadInput, match=r"mine-seed-0-world\.jsonl holds answers to other questions; give another --arm"):
            keep(Benchmark(), mllm, folder, "mine", other)
    next(mllm.parts()["projector"].parameters()).data.add_(1)
    with pytest.raises(BadInput, match="holds answers of another model, or of what 'mine' was before"):
        keep(Benchmark(), mllm, folder, "mine", asked)
    assert answers.read_bytes() == before and script.asked == 8
    keep(Benchmark(), mllm, folder, "other", asked)
    assert script.asked == 16 and {one.arm for one in folder.measurements()} == {"mine", "other"}


def test_a_kill_between_answers_and_measurement_leaves_no_answers_without_a_maker(
    items: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mllm: MLLM
) -> None:
    folder, asked, script = RunFolder(tmp_path), items[:8], Script(truths(items))
    monkeypatch.setattr(asking, "speaking", lambda *_: script)
    answers, measured = folder.answers_file("mine", 0, "world"), folder.measurement_file("mine", 0, "bench", "world")

    def killed(file: Path, rows: Sequence[object]) -> None:
        if file == answers:
            raise KeyboardInterrupt
        write_jsonl(file, rows)

    with monkeypatch.context() as patched:
        patched.setattr(asking, "write_jsonl", killed)
        with pytest.raises(KeyboardInterrupt):
            keep(Benchmark(), mllm, folder, "mine", asked)
    assert measured.exists() and not answers.exists()
    other = MLLM(copy.deepcopy(mllm.model), mllm.processor, mllm.tap)
    next(other.parts()["projector"].parameters()).data.add_(1)
    with pytest.raises(BadInput, match="is of another model, or of what 'mine' was before"):
        keep(Benchmark(), other, folder, "mine", asked)
    found = keep(Benchmark(), mllm, folder, "mine", asked)
    assert script.asked == 8 and found.metrics["mean"] == 1, "the same model goes on from what it said"

    before = answers.read_bytes()
    measured.unlink()
    for model in (mllm, other):
        with pytest.raises(BadInput, match=r"mine-seed-0-world\.jsonl holds answers of a model that no measurement names; give another"):
            keep(Benchmark(), model, folder, "mine", asked)
    assert answers.read_bytes() == before


def test_whatever_decides_replies_is_in_a_models_identity(mllm: MLLM, items: list[Example]) -> None:
    mllm = MLLM(mllm.model, copy.deepcopy(mllm.processor), mllm.tap)
    seen = [identity(mllm)]
    reply(mllm, items[:2], max_new=2)  # pads: what a call leaves behind does not count
    assert identity(mllm) == seen[0]
    mllm.processor.image_processor.image_mean = [0.4, 0.5, 0.5]
    seen.append(identity(mllm))
    mllm.processor.chat_template += " "
    seen.append(identity(mllm))
    mllm.processor.tokenizer.add_tokens(["new"])
    seen.append(identity(mllm))
    mllm.model.config.vision_feature_layer = -1
    seen.append(identity(mllm))
    next(mllm.model.parameters()).data.add_(1)
    seen.append(identity(mllm))
    with mock.patch.object(MLLM, "code", ["of a tower of the user's own"]):
        seen.append(identity(mllm))
    assert len(set(seen)) == 7


def test_bad_data_is_named(items: list[Example], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no items"):
        run(Benchmark(), Script({}), tmp_path / "a.jsonl", examples=[])
    with pytest.raises(BadInput, match=f"{items[1].id} more than once"):
        run(Benchmark(), Script(truths(items)), tmp_path / "a.jsonl", examples=[*items, items[1]])
    lone = [next(e for e in items if e.meta["pair"])]
    with pytest.raises(BadInput, match="half of a pair"):
        run(Benchmark(), Script(truths(lone)), tmp_path / "a.jsonl", examples=lone)
    assert not (tmp_path / "a.jsonl").exists()
    with pytest.raises(ValueError, match="shorter"):
        run(Benchmark(), lambda examples: ["one"], tmp_path / "a.jsonl", examples=items)


def test_a_model_answers_by_itself(items: list[Example], tmp_path: Path) -> None:
    """With random weights it says nothing sensible, but the same each time, and every reply is kept and graded by the rules."""
    mllm = MLLM.tiny()
    asked = items[:6]
    first = run(Benchmark(), speaking(mllm), tmp_path / "a.jsonl", examples=asked, batch=4)
    assert first == run(Benchmark(), speaking(mllm), tmp_path / "b.jsonl", examples=asked, batch=4)
    rows = read_jsonl(tmp_path / "a.jsonl")
    assert [r["id"] for r in rows] == [e.id for e in asked] and any(r["reply"] for r in rows)
    assert [r["grade"] for r in rows] == [Benchmark().grade(r["reply"], e) for r, e in zip(rows, asked, strict=True)]


def test_a_bench_with_a_temperature_draws_its_replies(items: list[Example], tmp_path: Path) -> None:
    """By the item alone: whatever else is asked beside it. They are another model's answers to whoever looks for kept ones."""
    mllm, asked, warm = MLLM.tiny(), items[:6], Benchmark(temperature=1.0)
    for name, benchmark, batch in (("cold", Benchmark(), 6), ("warm", warm, 6), ("cut", warm, 2)):
        run(benchmark, speaking(mllm, benchmark), tmp_path / f"{name}.jsonl", examples=asked, batch=batch)
    said = {name: [row["reply"] for row in read_jsonl(tmp_path / f"{name}.jsonl")] for name in ("cold", "warm", "cut")}
    assert said["warm"] == said["cut"] != said["cold"]
    keep(warm, mllm, RunFolder(tmp_path / "run"), "mine", asked)
    assert [row["reply"] for row in read_jsonl(RunFolder(tmp_path / "run").answers_file("mine", 0, "world"))] == said["warm"]
    assert identity(mllm, warm) != identity(mllm) == identity(mllm, Benchmark())


def test_an_item_drawn_k_times_scores_the_mean_of_its_draws(items: list[Example], tmp_path: Path) -> None:
    """The first draw is the one that a bench of one draw takes; how items are cut into batches has no say."""
    mllm, asked = MLLM.tiny(), items[:6]
    for name, k, batch in (("one", 1, 6), ("three", 3, 6), ("cut", 3, 2)):
        benchmark = Benchmark(temperature=1.0, k=k)
        run(benchmark, speaking(mllm, benchmark), tmp_path / f"{name}.jsonl", examples=asked, batch=batch)
    one, three, cut = (read_jsonl(tmp_path / f"{name}.jsonl") for name in ("one", "three", "cut"))
    assert [(row["id"], row["draw"]) for row in three] == [(e.id, draw) for e in asked for draw in range(3)] and "draw" not in one[0]
    assert [row["reply"] for row in three if row["draw"] == 0] == [row["reply"] for row in one]
    assert [row["reply"] for row in three] == [row["reply"] for row in cut]
    assert all(len({row["reply"] for row in three if row["id"] == e.id}) == 3 for e in asked)

    right, draws = truths(items), iter(range(10**6))

    def speak(given: Sequence[Example]) -> list[str]:
        return [right[e.id] if next(draws) % 4 else "nothing" for e in given]

    found = run(Benchmark(1.0, k=4), speak, tmp_path / "a.jsonl", examples=items)
    assert {value for of_task in found.items.values() for value in of_task.values()} == {0.75} and found.n == 62
    assert found.metrics["mean"] == 0.75 and measure(read_jsonl(tmp_path / "a.jsonl"), "world") == found


def test_twins_are_right_in_the_draws_in_which_both_are() -> None:
    grades = {"a": [1, 1, 0, 0], "b": [1, 0, 1, 0]}
    rows = [
        {"id": side, "task": "twins", "domain": "V", "pair": "p", "draw": draw, "grade": grade}
        for side, given in grades.items()
        for draw, grade in enumerate(given)
    ]
    assert measure(rows, "world").items == {"tasks/twins": {"p": 0.25}}
    with pytest.raises(BadInput, match="half of a pair"):
        measure(rows[:4], "world")
    with pytest.raises(BadInput, match="item a more than once"):
        measure([*rows, rows[0]], "world")


def test_a_killed_bench_of_several_draws_goes_on_and_finished_ones_are_played_back(items: list[Example], tmp_path: Path) -> None:
    mllm, asked, warm = MLLM.tiny(), items[:6], Benchmark(temperature=1.0, k=2)
    whole = run(warm, speaking(mllm, warm), tmp_path / "whole.jsonl", examples=asked, batch=2)
    script, calls = speaking(mllm, warm), iter(range(10))

    def dies(given: Sequence[Example]) -> Sequence[str]:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return script(given)

    with pytest.raises(KeyboardInterrupt):
        run(warm, dies, tmp_path / "killed.jsonl", examples=asked, batch=2, fingerprint="f")
    rest = Script({row["id"]: "asked again" for row in read_jsonl(tmp_path / "whole.jsonl")})

    def last(given: Sequence[Example]) -> Sequence[str]:
        rest(given)
        return script(given)

    found = run(warm, last, tmp_path / "killed.jsonl", examples=asked, batch=2, fingerprint="f")
    assert rest.asked == 4 and found == replace(whole, fingerprint="f")
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    folder = RunFolder(tmp_path / "run")
    kept = keep(warm, mllm, folder, "mine", asked)
    with mock.patch("pivot.model.sample.replies", side_effect=AssertionError("asked again")):
        assert keep(warm, mllm, folder, "mine", asked) == kept
    with pytest.raises(BadInput, match="answers to other questions"):
        keep(Benchmark(temperature=1.0), mllm, folder, "mine", asked)


def test_several_equal_replies_are_refused() -> None:
    with pytest.raises(BadInput, match="temperature 0 is the same reply 3 times"):
        Benchmark(k=3)
