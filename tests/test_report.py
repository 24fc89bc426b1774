"""What a report says of a run folder: numbers, pairs, matching, what is left out, and that data never become markup."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import fake_probes
import fake_run
import pytest
import yaml
from markupsafe import escape
from PIL import Image

from pivot import markup
from pivot.files import read_json, read_jsonl, write_json, write_jsonl
from pivot.records import BadInput, Measurement
from pivot.report import collect, figures, items, page, words
from pivot.report.figures import Dot, Row, Series
from pivot.report.matching import matching
from pivot.runfolder import RunFolder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """One run folder to look at; tests that change it take `run`."""
    return fake_run.make(tmp_path_factory.mktemp("run") / "demo")


@pytest.fixture
def run(made: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of its own."""
    return RunFolder(Path(shutil.copytree(made.path, tmp_path / "demo")))


@pytest.fixture(scope="module")
def found(made: RunFolder) -> dict[str, Any]:
    return collect.collect(made)


@pytest.fixture(scope="module")
def html(found: dict[str, Any]) -> str:
    return page.render(found)


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON file in place."""
    facts = read_json(file)
    change(facts)
    write_json(file, facts)


def only(rows: list[dict[str, Any]], **said: Any) -> dict[str, Any]:
    (row,) = [row for row in rows if all(row[key] == value for key, value in said.items())]
    return row


# ---- rows and pairs


def test_every_stored_metric_is_a_row(made: RunFolder, found: dict[str, Any]) -> None:
    measured = made.measurements()
    assert len(found["rows"]) == sum(len(one.metrics) for one in measured)
    for one in measured:
        for metric, value in one.metrics.items():
            row = only(found["rows"], arm=one.arm, seed=one.seed, kind=one.kind, name=one.name, metric=metric)
            assert row["value"] == pytest.approx(value)
            assert (row["low"] is None) == metric.startswith("C/")
            assert row["low"] is None or row["low"] <= row["value"] <= row["high"]


def test_every_pair_of_arms_is_compared_later_minus_earlier(found: dict[str, Any]) -> None:
    pairs = {(pair["a"], pair["b"]) for pair in found["pairs"]}
    assert pairs == {("sft", "original"), ("dpo", "original"), ("dpo", "sft")}
    for pair in found["pairs"]:
        a, b = (only(found["rows"], arm=pair[key], kind=pair["kind"], metric=pair["metric"]) for key in "ab")
        assert pair["difference"] == pytest.approx(a["value"] - b["value"])
        assert pair["verdict"] is None  # one seed


def test_results_hold_rows_pairs_and_arms_and_appear_whole(run: RunFolder) -> None:
    written = page.write(run)
    assert written == run.report / "index.html"
    results = read_json(run.report / "results.json")
    assert {"rows", "pairs", "arms"} <= results.keys()
    assert {"arm", "seed", "kind", "name", "metric", "value", "low", "high", "n"} <= results["rows"][0].keys()
    assert results["arms"]["dpo"]["ledgers"][0]["steps"] == fake_run.STEPS
    assert sorted(file.name for file in run.report.iterdir()) == ["index.html", "results.json"]
    elsewhere = page.write([run.path], run.path / "other")
    assert elsewhere.read_bytes() == written.read_bytes()


def test_two_copies_of_one_arm_show_no_difference_at_all(run: RunFolder) -> None:
    for one in [one for one in run.measurements() if one.arm == "sft"]:
        run.write_measurement(Measurement(**{**asdict(one), "arm": "copy"}))
    pairs = [pair for pair in collect.collect(run)["pairs"] if (pair["a"], pair["b"]) == ("copy", "sft") and pair["low"] is not None]
    assert len(pairs) > 30
    assert all((pair["difference"], pair["low"], pair["high"]) == (0, 0, 0) for pair in pairs)


def test_arms_that_were_not_measured_alike_are_not_compared_and_it_is_said(run: RunFolder) -> None:
    names = {one.name for one in run.measurements()}
    for one in run.measurements():
        of = "other" if one.arm == "dpo" else "some"
        run.write_measurement(replace(one, of=of))
    found = collect.collect(run)
    assert {(pair["a"], pair["b"]) for pair in found["pairs"]} == {("sft", "original")}
    assert {(one["a"], one["b"], one["name"]) for one in found["apart"]} == {("dpo", b, n) for b in ("original", "sft") for n in names}
    text = page.render(found)
    said = "Not compared, as they were measured on other items or with other settings: original and dpo; sft and dpo."
    assert text.count(said) == len(names)
    for file in run.path.glob("measurements/original-*"):
        file.unlink()
    (lead,) = page.view(collect.collect(run))["outcome"]["leads"]
    assert lead[1].endswith("with other settings: sft and dpo.") and "no other arm" not in lead[1]


# ---- seeds


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    skill = {"original": 0.4, "sft": 0.6, "dpo": 0.62}
    return collect.collect(fake_run.make(tmp_path_factory.mktemp("seeds") / "demo", seeds=(0, 1, 2), skill=skill, size=64))


def test_several_seeds_have_a_row_each_and_one_for_their_mean(seeds: dict[str, Any]) -> None:
    rows = {row["seed"]: row for row in seeds["rows"] if (row["arm"], row["kind"], row["metric"]) == ("dpo", "bench", "mean")}
    assert rows.keys() == {0, 1, 2, None}
    assert rows[None]["value"] == pytest.approx(sum(rows[seed]["value"] for seed in range(3)) / 3)
    assert seeds["arms"]["original"]["seeds"] == [] and seeds["arms"]["dpo"]["seeds"] == [0, 1, 2]


def test_the_original_stands_beside_every_seed(seeds: dict[str, Any]) -> None:
    pair = only(seeds["pairs"], a="sft", b="original", kind="bench", metric="mean")
    assert pair["seeds"] == 3 and pair["verdict"] == "higher"


def test_one_seed_is_called_one_seed_and_several_give_a_verdict(found: dict[str, Any], seeds: dict[str, Any]) -> None:
    one, several = page.view(found)["outcome"], page.view(seeds)["outcome"]
    assert one["badges"] == ["one seed, no verdict"] and one["leads"][0][1].startswith("One seed, so no verdict.")
    assert not re.search(r"\b(above|below|better|worse|wins?|beats?|shows)\b", one["leads"][0][1])
    assert several["badges"] == ["3 seeds"] and several["leads"][0][1].startswith("Over 3 seeds")


# ---- matching


def test_matched_arms_are_said_to_be_matched_and_where_they_differ(found: dict[str, Any]) -> None:
    (judged,) = found["matching"]
    assert judged["matched"] is True and judged["faults"] == []
    assert judged["same"] == ["sft and dpo read the same 1,280 examples in the same order (ids 00ababab), once, in 40 steps of 32."]
    told = " ".join(judged["differ"])
    assert "sft 5 × 10⁻⁵" in told.replace(words.THIN, " ") and "the chosen response alone" in told
    assert "Text tokens: dpo 2.00 times what sft took." in told and "FLOPs: dpo 1.35 times what sft took." in told
    assert "Reference log-probabilities" in told and "device" not in told and "precision" not in told


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("ids_sha256", "ff" * 32, "The arms differ in examples or their order: sft 00ababab and dpo ffffffff (seed 0)."),
        ("steps", 41, "The arms differ in steps: sft 40 and dpo 41 (seed 0)."),
        ("examples", 1000, "The arms differ in number of examples: sft 1,280 and dpo 1,000 (seed 0)."),
        ("batch", None, "The ledger of dpo does not say its batch size (seed 0)."),
    ],
)
def test_arms_that_are_not_matched_are_called_that(run: RunFolder, key: str, value: Any, says: str) -> None:
    edit(run.post("dpo", 0) / "ledger.json", lambda ledger: ledger.update({key: value}))
    found = collect.collect(run)
    assert found["matching"][0]["matched"] is False and found["matching"][0]["faults"] == [says]
    assert page.view(found)["outcome"]["badges"] == ["not matched, no verdict"]
    assert says in page.render(found)


def test_equal_ledgers_differ_in_nothing() -> None:
    one = {"arm": "a", "seed": 0, "ids_sha256": "x", "examples": 8, "epochs": 2, "batch": 4, "steps": 4, "flops": 1e9, "device": "cpu"}
    judged = matching([one, {**one, "arm": "b"}])
    assert judged["matched"] and judged["differ"] == [] and "2 times" in judged["same"][0]
    assert matching([one])["matched"] is None
    assert "They differ in device: a cpu and b cuda." in matching([one, {**one, "arm": "b", "device": "cuda"}])["differ"]
    settings = [{"label_mask": "clean", "keep": "best", "seed": 0}, {"label_mask": "llava_next", "keep": "best", "seed": 0}]
    told = matching([{**one, "settings": settings[0], "best": [3, 0.1]}, {**one, "arm": "b", "settings": settings[1], "best": [4, 0.2]}])
    assert "Settings differ: label mask (a clean and b llava_next)." in told["differ"]
    assert "The weights are those with the lowest held-out loss: a from step 3 and b from step 4." in told["differ"]


def test_what_differs_in_later_seeds_and_seeds_that_are_missing_are_told() -> None:
    one = {"arm": "a", "ids_sha256": "x", "examples": 8, "epochs": 2, "batch": 4, "steps": 4, "flops": 1e9, "device": "cpu"}
    runs = [{**one, "arm": arm, "seed": seed} for seed in (0, 1, 2) for arm in "ab"]
    assert matching(runs)["differ"] == []
    runs[3]["device"] = "cuda"
    assert matching(runs)["differ"] == ["With seed 1: They differ in device: a cpu and b cuda."]
    both = [{**run, "device": "cuda"} if run["arm"] == "b" else run for run in runs]
    assert matching(both)["differ"] == ["They differ in device: a cpu and b cuda."]  # once
    assert matching(runs[:5])["differ"][1:] == ["Not all arms have all seeds; missing: b 2."]


def test_arms_that_write_their_own_responses_are_matched_by_their_rows_and_differ_in_what_they_write(tmp_path: Path) -> None:
    """ppo goes through each batch twice, so it takes twice as many updates over the same rows."""
    run = fake_run.make(tmp_path / "demo", arms=("original", "sft", "dpo", "grpo", "ppo"), size=8)
    found = collect.collect(run)
    (judged,) = found["matching"]
    assert judged["matched"] is True and "in 40 steps of 32" in judged["same"][0]
    assert judged["differ"][1:3] == [
        "Of each example sft learns from the chosen response alone; dpo learns from the chosen and the rejected response; "
        "grpo and ppo learn from its prompt and 4 replies that the model writes itself.",
        "By design ppo takes 2 updates from each batch, the others one: steps are counted once through the rows.",
    ]
    assert "Tokens of replies that the model wrote itself, which FLOPs and time include: grpo 7,680 and ppo 7,680." in judged["differ"]
    view = page.view(found)
    shown = {line["label"]: line["cells"] for of in ("must", "may") for line in view["compared"][0][of]}
    assert shown["steps"] == ["40"] * 4 and shown["updates from each batch"] == ["1", "1", "1", "2"]
    assert shown["tokens it wrote itself"] == ["0", "0", "7,680", "7,680"]
    edit(run.post("ppo", 0) / "ledger.json", lambda ledger: ledger.update(passes=1))
    assert collect.collect(run)["matching"][0]["faults"] == ["The arms differ in steps: sft 40, dpo 40, grpo 40 and ppo 80 (seed 0)."]


def test_of_an_arm_that_writes_its_own_responses_the_reward_is_drawn_and_not_the_loss(tmp_path: Path) -> None:
    """Its loss hovers around zero, and held out it is the reward with another sign."""
    view = page.view(collect.collect(fake_run.make(tmp_path / "demo", arms=("original", "dpo", "grpo"), size=8)))
    drawn = [(one["caption"], one["means"]) for one in view["curve_figures"]]
    assert [means for caption, means in drawn if caption == "Loss"] == ["of dpo"]
    assert "Reward" in dict(drawn) and "grpo" in next(one["svg"] for one in view["curve_figures"] if one["caption"] == "Reward")
    held = {line["where"]: dict(zip(view["held"], line["cells"], strict=True)) for line in view["heldout"]}
    assert held["grpo, seed 0"]["loss"] == words.NONE == held["dpo, seed 0"]["reward"]
    assert held["grpo, seed 0"]["reward"] != words.NONE != held["dpo, seed 0"]["loss"]


@pytest.mark.parametrize(
    ("tried", "says"),
    [
        ({}, ["Learning rates differ, and the recipe says of no arm among which its own was chosen (tried)."]),
        ({"sft": [1e-6, 1e-5, 5e-5, 1e-4], "dpo": [1e-4, 1e-6, 1e-5, 5e-5]}, []),
        (
            {"sft": [1e-5, 5e-5, 1e-4], "dpo": [5e-6, 1e-5, 5e-5]},
            [
                "Learning rates were chosen among 3 for sft and 3 for dpo, not the same ones: "
                "the arms were searched as long, but not in the same places."
            ],
        ),
        (
            {"sft": [1e-5, 5e-5, 1e-4], "dpo": [1e-5]},
            ["Learning rates were chosen among 3 for sft and 1 for dpo: the arms were not searched alike."],
        ),
        (
            {"sft": [1e-5, 5e-5, 1e-4]},
            [
                "Learning rates were chosen among 3 for sft; of dpo the recipe does not say: "
                "whether the arms were searched alike is not known."
            ],
        ),
        (
            {"sft": [1e-5, 5e-5], "dpo": [1e-5, 5e-6]},
            [
                "Learning rates were chosen among 2 for sft and 2 for dpo, not the same ones: "
                "the arms were searched as long, but not in the same places.",
                "The rate of sft is the largest of those tried (1 × 10⁻⁵, 5 × 10⁻⁵): a better one may lie beyond.",
                "The rate of dpo is the largest of those tried (5 × 10⁻⁶, 1 × 10⁻⁵): a better one may lie beyond.",
            ],
        ),
    ],
)
def test_a_search_that_was_not_the_same_for_all_arms_is_warned_of(run: RunFolder, tried: dict[str, list[float]], says: list[str]) -> None:
    """In the recipe once; then in results.json, beside the verdict and where the arms are compared."""
    plain = yaml.safe_load(run.recipe_file.read_text())
    for arm, rates in tried.items():
        plain["arms"][arm]["tried"] = rates
    run.recipe_file.write_text(yaml.safe_dump(plain, sort_keys=False))
    found = collect.collect(run)
    told = found["matching"][0]["searches"] + found["matching"][0]["edges"]
    assert [fact.replace(words.THIN, " ") for fact in told] == says
    assert {arm: of["tried"] for arm, of in found["arms"].items()} == {"original": None, "sft": tried.get("sft"), "dpo": tried.get("dpo")}
    notes = page.view(found)["outcome"]["notes"]
    assert ("searched alike" in notes[0]) == bool(found["matching"][0]["searches"])
    assert all(str(escape(fact)) in page.render(found) for fact in told)


def test_of_an_item_that_was_drawn_several_times_one_draw_is_shown_and_all_are_counted(run: RunFolder) -> None:
    """As `bench` writes them: a row a draw, under one id."""
    before = {one["id"] for one in collect.collect(run)["items"]}
    for arm in ("original", "sft", "dpo"):
        for file in run.path.glob(f"answers/{arm}-seed-*.jsonl"):
            rows = [{**row, "draw": draw, "reply": f"{row['reply']} {draw}"} for row in read_jsonl(file) for draw in range(3)]
            write_jsonl(file, rows)
    found = collect.collect(run)
    ids = [one["id"] for one in found["items"]]
    assert len(ids) == len(set(ids)) == len(before) and all(
        reply["reply"].endswith(" 0") for one in found["items"] for reply in one["replies"]
    )
    each = {(one["bench"], one["n"]) for one in found["changes"]}
    items_of = {row["name"]: row["n"] for row in found["rows"] if row["kind"] == "bench"}
    assert all(n >= 3 * items_of[bench] for bench, n in each) and each
    edit_last(run, "dpo", {"draw": [1]})
    assert [fault["why"].split(";")[0] for fault in collect.collect(run)["left_out"]] == ["a line's draw is no whole number"]


def edit_last(run: RunFolder, arm: str, facts: dict[str, Any]) -> None:
    """Change the last line of an arm's first answers file."""
    file = sorted(run.path.glob(f"answers/{arm}-seed-*.jsonl"))[0]
    *rows, last = read_jsonl(file)
    write_jsonl(file, [*rows, {**last, **facts}])


# ---- what is broken


def test_broken_files_are_named_and_left_out_and_the_rest_is_reported(run: RunFolder) -> None:
    spoiled = {
        "measurements/dpo-seed-0-probe-linear.json": '{"arm": "dpo", "seed"',
        "measurements/zero.json": "[]",
        "measurements/odd.json": json.dumps({**read_json(run.measurement_file("sft", 0, "bench", "world")), "metrics": {"mean": "high"}}),
        "measurements/twice.json": run.measurement_file("sft", 0, "bench", "world").read_text(),
        "post-dpo/seed-0/metrics.jsonl": '{"step": 1}\n{"step": \n{"step": 3}\n',
        "post-sft/seed-0/ledger.json": "null",
        "encoder-sft/seed-0/parity.json": "",
        "answers/dpo-seed-0-world.jsonl": '{"reply": "no id"}\n',
        "recipe.yaml": "arms: [\n",
    }
    for name, text in spoiled.items():
        (run.path / name).write_text(text)
    (run.path / "measurements/.dpo-seed-0-bench-x.json.123.tmp").write_text("{")  # what a killed writer leaves is no file
    found = collect.collect(run)
    assert {fault["file"] for fault in found["left_out"]} == spoiled.keys()
    assert str(run.path) not in json.dumps(found["left_out"])
    assert only(found["rows"], arm="dpo", kind="bench", metric="mean") and only(found["rows"], arm="sft", kind="probe", metric="mean")
    assert found["arms"]["sft"]["trained"] and found["matching"][0]["matched"] is None
    text = page.render(found)
    assert all(f"<code>{name}</code>" in text for name in spoiled)


def test_a_torn_last_line_is_no_broken_file(run: RunFolder) -> None:
    with (run.post("dpo", 0) / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "ki')
    assert collect.collect(run)["left_out"] == []


@pytest.mark.parametrize(("key", "value"), [("versions", "2.13"), ("alarms", "many"), ("settings", [1]), ("rates", 1e-5)])
def test_a_ledger_of_another_kind_is_left_out(run: RunFolder, key: str, value: Any) -> None:
    edit(run.post("sft", 0) / "ledger.json", lambda ledger: ledger.update({key: value}))
    assert [fault["why"].split(";")[0] for fault in collect.collect(run)["left_out"]] == [f"is no ledger, its '{key}' is of another kind"]


@pytest.mark.parametrize("gone", [["post-*"], ["measurements"], ["answers", "encoder-*", "recipe.yaml"], ["measurements/dpo*", "post-dpo"]])
def test_an_unfinished_run_is_reported_as_far_as_it_got(run: RunFolder, gone: list[str]) -> None:
    for place in [place for pattern in gone for place in run.path.glob(pattern)]:
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    assert read_html(page.write(run).read_text(encoding="utf-8")).tags["section"] >= 3


def test_nothing_at_all_is_bad_input(tmp_path: Path, run: RunFolder) -> None:
    with pytest.raises(BadInput, match="no such run folder"):
        page.write(tmp_path / "none")
    with pytest.raises(BadInput, match=r"no manifest\.json"):
        page.write(tmp_path)
    empty = RunFolder(tmp_path / "empty")
    empty.note(name="empty")
    with pytest.raises(BadInput, match="nothing to report") as raised:
        page.write([empty])
    assert "\n" not in str(raised.value) and not empty.report.exists()


def test_a_metric_that_is_no_number_is_shown_as_none(run: RunFolder) -> None:
    file = run.measurement_file("dpo", 0, "probe", "linear")
    edit(file, lambda facts: facts["metrics"].update({"C/kind": None, "mean": None}))
    text = page.render(collect.collect(run))
    assert not re.search(r"\bnan\b", text, re.IGNORECASE) and read_json(page.write(run).with_name("results.json"))


# ---- several runs


def test_arms_of_several_runs_keep_their_runs_name(made: RunFolder, tmp_path: Path) -> None:
    other = fake_run.make(tmp_path / "other", arms=("original", "dpo"), name="demo")
    found = collect.collect([made.path, other])
    assert list(found["arms"]) == ["demo 1: original", "demo 1: sft", "demo 1: dpo", "demo 2: original", "demo 2: dpo"]
    pair = only(found["pairs"], a="demo 2: dpo", b="demo 1: dpo", kind="bench", metric="mean")
    assert (pair["difference"], pair["low"], pair["high"]) == (0, 0, 0)  # the fake draws the same replies for the same arm
    leads = page.view(found)["outcome"]["leads"]
    assert [run for run, _ in leads] == ["demo 1", "demo 2"] and "dpo − sft" in leads[0][1] and "dpo − original" in leads[1][1]
    assert len(found["matching"]) == 2 and read_html(page.render(found)).tags["svg"] > 30


# ---- replies


def test_items_on_which_arms_disagree_come_first(found: dict[str, Any], made: RunFolder) -> None:
    gallery = found["items"]
    disagree = [len({reply["grade"] for reply in item["replies"]}) > 1 for item in gallery]
    assert len(gallery) == items.SHOWN and any(disagree) and disagree == sorted(disagree, reverse=True)
    assert [reply["arm"] for reply in gallery[0]["replies"]] == ["original", "sft", "dpo"]
    rows = {row["id"]: row for row in read_jsonl(made.answers_file("dpo", 0, "world"))}
    for item in gallery:
        row = rows[item["id"]]
        shown = item["replies"][2]
        assert (item["prompt"], item["answer"]) == (row["prompt"], row["answer"]) and (shown["reply"], shown["grade"]) == (
            row["reply"],
            row["grade"],
        )


def test_changed_replies_are_counted_over_all_items(found: dict[str, Any], made: RunFolder) -> None:
    a, b = ({row["id"]: row for row in read_jsonl(made.answers_file(arm, 0, "world"))} for arm in ("dpo", "sft"))
    counted = only(found["changes"], a="dpo", b="sft")
    assert counted["n"] == len(a)
    assert counted["differ"] == sum(a[item]["reply"] != b[item]["reply"] for item in a) > 0
    assert counted["gained"] == sum(a[item]["grade"] > b[item]["grade"] for item in a)
    assert counted["lost"] == sum(a[item]["grade"] < b[item]["grade"] for item in a)


def test_a_picture_outside_the_answers_is_not_shown(run: RunFolder) -> None:
    Image.new("RGB", (4, 4)).save(run.path / "secret.png")
    for arm in ("original", "sft", "dpo"):
        file = run.answers_file(arm, 0, "world")
        rows = read_jsonl(file)
        write_jsonl(file, [{**row, "image": ("../secret.png", str(run.path / "secret.png"))[place % 2]} for place, row in enumerate(rows)])
    assert collect.collect(run)["items"] == []


def test_a_broken_picture_is_named_and_a_large_one_made_small(run: RunFolder, found: dict[str, Any]) -> None:
    first, *others = (run.path / "answers/images" / f"{item['id']}.png" for item in found["items"])
    first.write_bytes(b"no picture")
    for file in others:
        Image.new("RGB", (900, 600), "teal").save(file)
    again = collect.collect(run)
    assert [fault["file"] for fault in again["left_out"]] == [first.relative_to(run.path).as_posix()]
    shown = [item["image"] for item in again["items"] if item["id"] in {file.stem for file in others}]
    assert len(shown) == items.SHOWN - 1
    for image in shown:
        decoded = Image.open(io.BytesIO(base64.b64decode(image["uri"].partition(",")[2])))
        assert decoded.size == (image["width"], image["height"]) == (320, 213)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("<image>\nwhat?", "what?"),
        (None, ""),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "user: a\nassistant: b"),
        ("x" * 700, "x" * 600 + " ... (100 more characters)"),
    ],
)
def test_prompts_and_replies_become_text(said: Any, shown: str) -> None:
    assert items.clipped(said) == shown


# ---- the page as a document


class Document(HTMLParser):
    """Counts tags, keeps attributes and text, and insists that every tag is closed in its place."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.attributes: list[tuple[str, str, str | None]] = []
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing, inside {self.open[-3:]}"

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read_html(text: str) -> Document:
    document = Document()
    document.feed(text)
    document.close()
    assert document.open == []
    return document


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with everything that there is."""
    run = fake_run.make(tmp_path_factory.mktemp("whole") / "demo", size=24, probes=tuple(fake_probes.MAKERS))
    return page.render(collect.collect(run))


def test_the_page_asks_for_nothing_from_outside(whole: str) -> None:
    document = read_html(whole)
    assert not document.tags.keys() & {"script", "link", "iframe", "object", "embed", "base", "form"}
    asking = ("src", "href", "xlink:href", "srcset", "style", "action")
    sources = [(tag, value or "") for tag, name, value in document.attributes if name in asking]
    assert all(value.startswith("data:image/png;base64," if tag in ("img", "image") else "#") for tag, value in sources)
    assert {tag for tag, _ in sources} == {"img", "image", "use", "a"}
    assert not re.search(r"url\(|@import|https?:", whole)
    assert {value for _, name, value in document.attributes if name == "id"} >= {value[1:] for _, value in sources if value[0] == "#"}


def test_data_cannot_become_markup(whole: str, tmp_path: Path) -> None:
    """The poisoned page has no tag and no kind of attribute that the honest page lacks, and shows the poison as text."""
    honest = read_html(whole)
    written = page.write(fake_run.evil(tmp_path / "evil")).read_text(encoding="utf-8")
    document = read_html(written)
    assert document.tags.keys() <= honest.tags.keys()
    kinds = {(tag, name) for tag, name, _ in honest.attributes}
    assert {(tag, name) for tag, name, _ in document.attributes} <= kinds
    text = "".join(document.text)
    shown = fake_run.EVIL.translate(dict.fromkeys((0, 0x202E, 0xD800), "\ufffd"))
    assert "{{ 7*7 }}" in shown and text.count(shown) > 50
    assert all(arm in text for arm in fake_run.EVIL_ARMS)
    assert not markup.UNFIT.search(written)
    titles = [value for _, name, value in document.attributes if name in ("aria-label", "alt") and value]
    assert any("onerror" in title for title in titles)


def test_the_page_says_what_it_must(found: dict[str, Any], html: str) -> None:
    text = " ".join("".join(read_html(html).text).split())
    for said in [
        "One seed, so no verdict",
        "dpo − sft",
        "twins",
        "OCR & Chart",
        "prototype",
        "hidden_states[-2]",
        "block 6 of 6",
        "recipe.yaml",
    ]:
        assert said in text, said
    for arm in ("original", "sft", "dpo"):
        value = only(found["rows"], arm=arm, kind="bench", metric="mean")["value"]
        assert f"{100 * value:.1f}" in text


# ---- figures


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 14.9), (0.913, 0.917), (1e-7, 4e-7), (0, 12345), (52, 52.4), (-1, -0.2)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    at = figures.ticks(low, high)
    assert 2 <= len(at) <= 6 and low - 1e-12 <= min(at) and max(at) <= high + 1e-12
    (step,) = {f"{b - a:.6e}" for a, b in itertools.pairwise(at)}
    assert re.fullmatch(r"[125]\.0+e.*", step)
    assert len(set(figures.tick_names(at).values())) == len(at)


def test_dots_lie_where_their_values_are() -> None:
    row = Row("task", [Dot(25.0, 0.0, 50.0, 0, "a"), Dot(75.0, 50.0, 100.0, 0, "b")])
    drawn = figures.dots([row], 0, 100, "scores")
    places = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', drawn)]
    (a1, a2), (b1, b2) = re.findall(r'class="hit"></rect><line x1="([\d.]+)" y1="[\d.]+" x2="([\d.]+)"', drawn)
    assert places == pytest.approx([(float(a1) + float(a2)) / 2, (float(b1) + float(b2)) / 2], abs=0.02)
    assert a2 == b1 and float(b2) - float(a1) == pytest.approx(2 * (places[1] - places[0]), abs=0.02)


def test_an_interval_beyond_the_axis_ends_at_its_edge() -> None:
    drawn = figures.dots([Row("x", [Dot(5.0, -100.0, 300.0, 1, "")])], 0, 10, "")
    assert all(0 <= float(x) <= figures.WIDTH for x in re.findall(r'\bx[12]?="(-?[\d.]+)"', drawn))


def test_a_thinned_curve_keeps_its_mean_and_a_short_one_itself() -> None:
    points = [(float(x), float(x * x % 17)) for x in range(960)]
    thin = figures.thinned(points, 160)
    assert len(thin) == 160 and sum(y for _, y in thin) / 160 == pytest.approx(sum(y for _, y in points) / 960)
    assert figures.thinned(points[:100], 160) == points[:100]


def test_curves_stay_in_their_frame_and_name_every_value() -> None:
    drawn = figures.curves([Series("a", [(s, s / 10) for s in range(11)], 1, end="a"), Series("b", [(5.0, 0.2)], 2)], "curve")
    paths = re.findall(r'<path d="M([^"]+)"', drawn)
    places = [tuple(map(float, point.split(","))) for path in paths for point in path.split("L")]
    assert all(0 <= x <= figures.WIDTH and 0 <= y <= 200 for x, y in places)
    assert ">step 5</tspan>" in drawn and ">a: 0.5</tspan>" in drawn and ">b: 0.2</tspan>" in drawn
    assert "no values" in figures.curves([Series("a", [], 1)], "none")


def test_figures_escape_what_they_are_given() -> None:
    poison = '"><script>x</script>'
    row = Row(poison, [Dot(1.0, 0.0, 2.0, 3, poison)], note=poison, reference=(1.0, poison))
    drawn = [figures.dots([row], 0, 2, poison), figures.curves([Series(poison, [(0.0, 1.0), (1.0, 2.0)], 0, end=poison)], poison, poison)]
    for one in drawn:
        assert "<script" not in one and "&lt;script&gt;" in one and read_html(one).tags["svg"] == 1


# ---- words


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (words.listed(["a", "b", "c"]), "a, b and c"),
        (words.count(1280), "1,280"),
        (words.plain(5e-5), "5 × 10⁻⁵"),
        (words.plain(-0.25), "−0.25"),
        (words.plain(0), "0"),
        (words.plain(float("nan")), "–"),
        (words.plain("x"), "–"),
        (words.change(0.032, 100), "+3.2"),
        (words.change(-0.0001, 100), "0.0"),
        (words.score(None, 100), "–"),
        (words.duration(75.04), "75.0 s"),
        (words.duration(754), "12 min 34 s"),
        (words.duration(7500), "2 h 5 min"),
        (words.rates({"tower": 0, "projector": 1e-3, "llm": 1e-3}), "frozen (tower), 0.001 (projector and LLM)"),
        (words.metric("tasks/odd_one"), "odd one"),
    ],
)
def test_words(made: str, said: str) -> None:
    assert made.replace(words.THIN, " ") == said
