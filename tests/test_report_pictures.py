"""What a report shows of probes besides scores: pictures, drift block by block, numbers on scales of their own, a sentence for each."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_probes
import fake_run
import pytest

from pivot.files import read_json, write_json, write_text
from pivot.records import Measurement
from pivot.report import collect, depth, maps, page, panels, pictures, terms, words
from pivot.report.scores import Scores
from pivot.runfolder import RunFolder

PROBES = tuple(fake_probes.MAKERS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """One run folder to look at; tests that change it take `run`."""
    return fake_run.make(tmp_path_factory.mktemp("seeing") / "demo", size=12, probes=PROBES)


@pytest.fixture
def run(made: RunFolder, tmp_path: Path) -> RunFolder:
    """A run folder of its own, of the trained arms' probes alone. Without item values nothing is drawn by lot, which takes the time."""
    folder = RunFolder(tmp_path / "demo")
    folder.note(name="demo")
    write_text(folder.recipe_file, made.recipe_file.read_text())
    for one in made.measurements():
        if one.kind == "probe" and one.arm != "original":
            folder.write_measurement(replace(one, items={}))
    return folder


@pytest.fixture(scope="module")
def found(made: RunFolder) -> dict[str, Any]:
    return collect.collect(made)


@pytest.fixture(scope="module")
def view(found: dict[str, Any]) -> dict[str, Any]:
    return page.view(found)


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    facts = read_json(file)
    change(facts)
    write_json(file, facts)


def scores(view: dict[str, Any], name: str) -> Scores:
    return next(one for one in view["measured"] if one.shape["name"] == name)


def section(view: dict[str, Any], name: str, what: str) -> Any:
    """What stands under `what` for a measurement."""
    return next(of for of, one in zip(view[what], view["measured"], strict=True) if one.shape["name"] == name)


# ---- pictures


def test_each_item_has_its_picture_once_and_a_cell_for_each_arm(view: dict[str, Any], made: RunFolder) -> None:
    for name, arms, before in (("segment", ["original", "sft", "dpo"], 2), ("gradcam", ["sft", "dpo"], 1)):
        items = section(view, name, "seen")["items"]
        stored = next(one for one in made.measurements() if (one.name, one.arm) == (name, "sft"))
        assert [item["id"] for item in items] == [one.id for one in stored.shown]
        for item in items:
            assert [cell["arm"] for cell in item["cells"]] == [None] * before + arms
            drawn = "".join(cell["svg"] for cell in item["cells"])
            (kept,) = re.findall(r'<image id="([\w-]+)"', drawn)
            assert drawn.count(f'<use href="#{kept}">') == len(item["cells"]) - 1
    assert section(view, "linear", "seen") is None


def test_what_is_said_of_the_item_stands_once_and_of_an_arm_with_the_arm(view: dict[str, Any], made: RunFolder) -> None:
    item = section(view, "gradcam", "seen")["items"][0]
    stored = {one.arm: one.shown[0].says.split("\n") for one in made.measurements() if one.name == "gradcam"}
    classes = section(view, "segment", "seen")["items"][0]
    assert classes["says"] == "" and all("truth has them" in cell["caption"] for cell in classes["cells"][2:])
    assert item["says"] == stored["sft"][0] == stored["dpo"][0]
    assert {cell["arm"]: cell["caption"] for cell in item["cells"][1:]} == {arm: said[1] for arm, said in stored.items()}


def area(path: str) -> int:
    """Patches in a path of rectangles one patch high."""
    return sum(int(wide) for wide in re.findall(r"h(\d+)v1", path))


def test_patches_are_drawn_in_their_classes_colours_and_no_patch_twice(view: dict[str, Any], made: RunFolder) -> None:
    stored = {one.arm: one.shown for one in made.measurements() if one.name == "segment"}
    seen = section(view, "segment", "seen")
    colour = {one["name"]: re.search(r'fill="(#\w+)"', one["swatch"])[1] for one in seen["legend"] if one["swatch"]}  # type: ignore[index]
    assert len(set(colour.values())) == len(colour) > 3
    for place, item in enumerate(seen["items"]):
        for cell in item["cells"][2:]:
            one = stored[cell["arm"]][place]
            values = [value for row in one.found for value in row]
            drawn = dict(re.findall(r'<path d="([^"]+)" fill="(#\w+)"', cell["svg"]))
            told = {fill: area(path) for path, fill in drawn.items()}
            assert told == {colour[one.names[str(int(value))]]: values.count(value) for value in set(values) if value}


def test_one_class_has_one_colour_in_all_of_a_page() -> None:
    few, many = maps.colours([0, 1, 5, 24]), maps.colours([0, 7, *range(100, 122), 150])
    assert few.keys() == {1, 5, 24} and few[5] == maps.colours([5])[5]
    assert len(many) == 24 == len(set(many.values()))
    assert maps.colours([-1, 0]) == {}


def test_more_of_a_share_is_lighter_and_every_patch_is_drawn() -> None:
    grid = [[0.0, 0.05, 0.5], [0.95, 1.0, 0.31]]
    facts = {"id": "a", "picture": {"uri": "data:,", "width": 30, "height": 20}, "says": [], "said": {"sft": []}, "names": {}}
    cells = maps.item({**facts, "truth": [[0.0, 0.0, 0.0]] * 2, "found": {"sft": grid}}, "p", {})["cells"]
    steps = {fill: area(path) for path, fill in re.findall(r'<path d="([^"]+)" fill="(#\w+)"', cells[1]["svg"])}
    assert steps == {maps.HEAT[0]: 2, maps.HEAT[3]: 1, maps.HEAT[5]: 1, maps.HEAT[9]: 2}
    light = [sum(int(fill[at : at + 2], 16) * weight for at, weight in ((1, 0.30), (3, 0.59), (5, 0.11))) for fill in maps.HEAT]
    assert light == sorted(light)
    assert 'viewBox="0 0 100 66.67"' in cells[1]["svg"] and 'transform="scale(33.333 33.333)"' in cells[1]["svg"]
    assert cells[0]["caption"] == "image" and "outline" not in cells[1]["svg"]


def test_the_outline_goes_around_the_region_and_around_nothing_else() -> None:
    facts = {"id": "a", "picture": {"uri": "data:,", "width": 9, "height": 9}, "says": [], "said": {"sft": []}, "names": {}}

    def edges(truth: list[list[float]]) -> int:
        cell = maps.item({**facts, "truth": truth, "found": {"sft": [[0.0]]}}, "p", {})["cells"][0]
        return cell["svg"].count("M") // 2  # once light, once dark

    assert edges([[0.0, 0.0, 0.0], [0.0, 0.2, 1.0], [0.0, 0.0, 0.19]]) == 6
    assert edges([[1.0, 0.0, 0.0], [0.0, 0.0, 0.3], [0.0, 0.0, 0.0]]) == 8, "also the small one of two things"
    assert edges([[0.0, 0.1, 0.0], [0.0, 0.15, 0.15], [0.0, 0.0, 0.0]]) == 6  # none by a fifth: those that it fills most
    assert edges([[0.0] * 3] * 3) == 0


HOSTILE = [
    "javascript:alert(1)",
    "https://example.org/x.png",
    "data:text/html;base64,PHNjcmlwdD4=",
    "data:image/svg+xml;base64,PHN2Zz48L3N2Zz4=",
    'data:image/png;base64,AAAA" onload="alert(1)',
    "data:image/png;base64,AAAA\n",
    "data:image/png;base64," + "A" * pictures.HEAVIEST,
    "data:image/png;base64,=",
    None,
]


@pytest.mark.parametrize("picture", HOSTILE)
def test_only_pictures_within_the_file_are_let_through(run: RunFolder, picture: Any) -> None:
    file = run.measurement_file("dpo", 0, "probe", "gradcam")
    edit(file, lambda facts: facts["shown"][0].update(picture=picture))
    again = collect.collect(run)
    (fault,) = again["left_out"]
    assert fault["file"] == file.relative_to(run.path).as_posix() and "is no PNG or JPEG" in fault["why"]
    assert any(row["arm"] == "dpo" and row["name"] == "gradcam" for row in again["rows"])  # its numbers stand
    cells = section(page.view(again), "gradcam", "seen")["items"][0]["cells"]
    assert [cell["svg"] is None for cell in cells] == [False, False, True]  # a dash for the arm that lacks it
    assert picture is None or picture not in page.render(again)


@pytest.mark.parametrize("content", [b"<svg onload=alert(1)>", b"\x89PNG\r\n\x1a\n<script>", b""])
def test_what_only_calls_itself_a_picture_is_left_out_and_the_rest_is_encoded_anew(run: RunFolder, content: bytes) -> None:
    for arm in ("sft", "dpo"):
        uri = f"data:image/png;base64,{base64.b64encode(content or b'x').decode()}"
        edit(run.measurement_file(arm, 0, "probe", "gradcam"), lambda facts, uri=uri: facts["shown"][0].update(picture=uri))
    again = collect.collect(run)
    (fault,) = again["left_out"]
    assert fault["file"] == "measurements/sft-seed-0-probe-gradcam.json" and "image cannot be read" in fault["why"]
    items = section(page.view(again), "gradcam", "seen")["items"]
    assert len(items) == fake_probes.SHOWN - 1
    assert base64.b64encode(content or b"x").decode() not in "".join(cell["svg"] for item in items for cell in item["cells"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"found": [[0.1, 0.2], [0.3]]}, "rows of unlike length"),
        ({"found": []}, "no rows of patches"),
        ({"found": [[]]}, "no rows of patches"),
        ({"found": [[0.1, None]]}, "no number"),
        ({"found": [[0.1, "<b>"]]}, "no number"),
        ({"found": [[0.1, 1.5]]}, "no share from 0 to 1"),
        ({"found": [[0.0] * (pictures.FINEST + 1)]}, "patches, more than"),
        ({"found": [[0.5]], "names": {"0": "sky"}}, "no class number"),
        ({"names": {"<b>": "sky"}}, "names that are no texts"),
        ({"says": 3}, "names that are no texts"),
        ({"onload": "alert(1)"}, "none that this version knows"),
    ],
)
def test_maps_that_cannot_be_drawn_are_named_and_left_out(run: RunFolder, change: dict[str, Any], says: str) -> None:
    file = run.measurement_file("sft", 0, "probe", "gradcam")
    edit(file, lambda facts: facts["shown"][1].update(change))
    again = collect.collect(run)
    (fault,) = again["left_out"]
    assert fault["file"] == file.relative_to(run.path).as_posix() and says in fault["why"]
    assert "<b>" not in page.render(again)


@pytest.mark.parametrize("grid", [[[0.0, 1.0]] * 3, [[0.5]], [[0.25] * 40] * 3])
def test_maps_of_any_shape_are_drawn(run: RunFolder, grid: list[list[float]]) -> None:
    edit(run.measurement_file("sft", 0, "probe", "gradcam"), lambda facts: facts["shown"][0].update(found=grid))
    again = collect.collect(run)
    cell = section(page.view(again), "gradcam", "seen")["items"][0]["cells"][1]
    patches = sum(area(path) for path, _ in re.findall(r'<path d="([^"]+)" fill="(#\w+)"', cell["svg"]))
    assert again["left_out"] == [] and patches == len(grid) * len(grid[0])


def test_of_several_seeds_the_first_ones_pictures_are_shown(run: RunFolder) -> None:
    (first,) = [one for one in run.measurements() if (one.arm, one.name) == ("sft", "segment")]
    run.write_measurement(replace(first, seed=3, shown=tuple(replace(one, id=f"{one.id} again") for one in first.shown)))
    shown = next(one for one in collect.collect(run)["pictures"] if one["name"] == "segment")
    assert shown["several"] and [item["id"] for item in shown["items"]] == [one.id for one in first.shown]


# ---- block by block


def test_metrics_of_blocks_become_panels_and_no_lines(view: dict[str, Any]) -> None:
    change = scores(view, "change")
    assert [(one.name, one.part) for one in change.layered] == [
        *((name, "") for name in ("weights", "cka", "cosine")),
        *(("weights", part) for part in fake_probes.PARTS),
    ]
    named = {line.metric for line in [*change.lines, *change.unsure]} | set(change.others)
    assert named == {"weights", "cka", "cosine"} and change.headline == "weights"
    assert [line["label"] for line in change.table()["lines"]] == ["cosine", "weight change", "CKA"]
    shown = section(view, "change", "depths")
    assert [one["caption"] for one in shown["figures"]] == ["Weight change", "CKA", "Cosine", *["Weight change"] * 3]
    assert [line["label"] for line in shown["lines"]] == ["embeddings", *(f"block {number}" for number in range(fake_probes.BLOCKS))]
    assert section(view, "linear", "depths") is None


def test_a_curve_lies_where_its_values_are_and_names_its_blocks() -> None:
    rows = [
        {"arm": arm, "seed": seed, "metric": f"drift/{place}", "value": value * scale}
        for arm, scale in (("a", 1.0), ("b", 2.0))
        for seed, value in ((0, 1.0), (1, 3.0), (None, 2.0))
        for place in ("embeddings", "block-00", "block-01", "projector")
    ]
    (one,) = depth.quantities([row["metric"] for row in rows[:4]])
    assert one.places == {-1: "emb.", 0: "0", 1: "1", 2: "proj."}
    drawn = depth.panels([one], rows, {"a": 1, "b": 2})[0]["svg"]
    paths = re.findall(r'class="curve tone-(\d)( faint)?"><path d="M([^"]+)"|<path d="M([^"]+)"', drawn)
    assert len(paths) == 6
    heights = sorted({float(point.split(",")[1]) for path in re.findall(r'<path d="M([^"]+)"', drawn) for point in path.split("L")})
    six, four, three, two, one_high = heights[0], heights[1], heights[2], heights[3], heights[4]
    assert six - four == pytest.approx(four - two, abs=0.11) and two - one_high == pytest.approx(three - two, abs=0.11)
    assert "emb." in drawn and "proj." in drawn and ">block 1</tspan>" in drawn and ">a: 2</tspan>" in drawn
    assert ">a: 1<" not in drawn  # seeds are drawn, and only their mean is read out
    assert [line["values"] for line in depth.table([one], rows, ["a", "b"])] == [["2", "4"]] * 4


@pytest.mark.parametrize("metrics", [["mean", "tasks/block"], ["weights/embeddings", "weights/projector"], ["block-01"], ["a/block-x"]])
def test_other_metrics_are_not_taken_for_blocks(metrics: list[str]) -> None:
    assert depth.quantities(metrics) == []


def test_values_that_are_no_numbers_leave_gaps_and_no_broken_figure(run: RunFolder) -> None:
    def spoil(facts: dict[str, Any]) -> None:
        facts["metrics"].update({name: None for name in facts["metrics"] if name.startswith("cka/")})

    for arm in ("sft", "dpo"):
        edit(run.measurement_file(arm, 0, "probe", "change"), spoil)
    again = collect.collect(run)
    assert [one["caption"] for one in section(page.view(again), "change", "depths")["figures"][:2]] == ["Weight change", "Cosine"]
    assert not re.search(r"\bnan\b", page.render(again), re.IGNORECASE)


# ---- measurements without any interval


def test_measurements_without_any_interval_are_reported_all_the_same(run: RunFolder) -> None:
    again = collect.collect(run)
    table = page.view(again)["glances"][0][1]
    assert len(table["lines"]) == 5 and all(line["values"]["dpo"]["interval"] == "" for line in table["lines"])
    assert "Values without intervals" in page.render(again)


# ---- scales


def test_shares_are_in_percent_and_the_rest_as_it_is(view: dict[str, Any]) -> None:
    gradcam = scores(view, "gradcam")
    assert gradcam.scale("pointing").factor == gradcam.scale("cam/pointing").factor == 100
    assert {gradcam.scale(name).factor for name in ("energy", "cam/energy", "auc", "ap", "entropy")} == {1}
    lines = {line["label"]: line["values"]["dpo"]["text"] for line in gradcam.table()["lines"]}
    metrics = {row["metric"]: row["value"] for row in gradcam.rows if row["arm"] == "dpo"}
    assert lines["pointing game, %"] == f"{100 * metrics['pointing']:.1f}"
    assert lines["energy"] == f"{metrics['energy']:.2f}" and lines["AUC"] == f"{metrics['auc']:.3f}"
    assert scores(view, "linear").percent and scores(view, "world").percent and not gradcam.percent
    drawn = {panel.caption: [line.label for line in panel.lines] for panel in panels.panels(gradcam)}
    assert drawn["Energy"] == ["energy", "Grad-CAM", "global question", "elsewhere"] and len(drawn) == 5


def test_what_has_parts_is_on_one_scale_with_them() -> None:
    metrics = {"mean": 300.4, "ocr": 600.0, "chart": 0.8}
    items = {name: {"a": metrics[name], "b": metrics[name]} for name in ("ocr", "chart")}
    one = Measurement("bench", "old", metrics, 2, items=items, parts={"mean": ["ocr", "chart"]}, arm="x")
    rows = collect._rows([one], "x")
    shape = {"run": "r", "kind": "bench", "name": "old", "metrics": list(metrics), "parts": one.parts, "unit": "item", "n": 2}
    plain = Scores(shape, rows, [], {"x": 0}, frozenset())
    assert [plain.scale(name).factor for name in metrics] == [1, 1, 1]
    assert plain.told(plain.row("x", "mean")) and plain.told(plain.row("x", "mean"))["text"] == "300.4"  # type: ignore[index]


def test_a_difference_too_small_for_its_decimals_is_not_called_zero(view: dict[str, Any]) -> None:
    change = scores(view, "change")
    pair = {**change.pairs[0], "metric": "weights", "low": None, "high": None}
    told = [change.told({**pair, "difference": value}, "difference") for value in (4.1e-9, -4.1e-9, 0.0)]
    assert [one and one["text"].replace(words.THIN, " ") for one in told] == ["+4.1 × 10⁻⁹", "−4.1 × 10⁻⁹", "0.00000"]


@pytest.mark.parametrize(
    ("largest", "difference", "digits"), [(1.31, 0.2, 2), (0.73, 0.05, 3), (0.9991, 0.0012, 4), (1534.0, 90.0, 1), (0, 0, 1)]
)
def test_decimals_show_three_digits_of_a_value_and_two_of_a_difference(largest: float, difference: float, digits: int) -> None:
    assert words.decimals(largest, difference) == digits


def test_baselines_are_marks_and_no_lines(view: dict[str, Any]) -> None:
    align, segment, gradcam = (scores(view, name) for name in ("align", "segment", "gradcam"))
    assert align.baseline("mutual_knn") == (0.03, "captions of other pictures") and align.baseline("last/mutual_knn") == (0.02, "chance")
    assert segment.baseline("recall") == (0.07, "always answering the most frequent class") and segment.baseline("precision") is None
    assert gradcam.baseline("global/energy") == (1.0, "chance") and gradcam.baseline("entropy") is None
    for one in (align, segment, gradcam):
        told = [*(line.metric for line in one.lines), *(line.metric for line in one.unsure), *one.others]
        assert not any(re.match("chance|majority|permuted", metric) for metric in told)
        marks = sum(one.baseline(line.metric) is not None for line in one.lines)
        assert sum(str(figure["svg"]).count('class="reference"') for figure in panels.scored(one)) == marks > 1


# ---- sentences and terms


def test_one_seed_gets_differences_and_no_verdict(view: dict[str, Any]) -> None:
    (findings,) = view["outcome"]["findings"]
    told = dict(findings)
    assert list(told) == [
        "linear probe",
        "segment probe, recall",
        "gradcam probe, energy",
        "align probe, mutual k‑NN",
        "change probe, weight change",
    ]
    assert all(said.startswith("dpo − sft is ") for said in told.values())
    assert not re.search(r"\b(above|below|better|worse|wins?|beats?|shows|original −)\b", " ".join(told.values()))


def test_several_seeds_get_a_verdict_where_there_is_an_interval_and_a_count_where_there_is_none(tmp_path: Path) -> None:
    skill = {"original": 0.4, "sft": 0.45, "dpo": 0.7}
    run = fake_run.make(tmp_path / "demo", seeds=(0, 1, 2, 3), size=1, skill=skill, probes=("gradcam", "change"))
    for one in run.measurements():
        if one.kind == "bench":
            run.measurement_file(one.arm, one.seed, "bench", one.name).unlink()
        if one.name == "change":
            run.write_measurement(replace(one, items={}))
    outcome = page.view(collect.collect(run))["outcome"]
    told = dict(outcome["findings"][0])
    assert outcome["leads"][0][1].startswith("Over 4 seeds, dpo is above sft on the linear probe: +")
    assert "without an interval; above 0 in 4 of them" in told["change probe, weight change"]
    assert "measured once, so no verdict" in told["gradcam probe, energy"]  # all seeds begin with the same weights
    edit(run.post("dpo", 2) / "ledger.json", lambda ledger: ledger.update(examples=3))
    again = page.view(collect.collect(run))["outcome"]
    assert not re.search("above|below|shows", f"{again['leads'][0][1]} {dict(again['findings'][0])}")


def test_measurements_come_in_the_recipes_order(found: dict[str, Any]) -> None:
    assert [one["name"] for one in found["measured"]] == ["world", "linear", *PROBES]


def test_measurements_alone_come_as_docs_have_them_and_of_arms_nothing_is_claimed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "out")
    for name in ("align", "change", "gradcam-projector", "linear", "segment", "linear-projector", "other"):
        for arm in ("original", "b"):
            folder.write_measurement(Measurement("probe", name, {"mean": 0.5}, 10, arm=arm))
    view = page.view(collect.collect(folder))
    assert [one["name"] for one in collect.collect(folder)["measured"]] == [
        *("linear", "linear-projector", "segment", "gradcam-projector", "align", "change", "other")
    ]
    assert [arm["what"] for arm in view["arm_lines"]] == ["not known: measured by itself, without a recipe or a ledger"] * 2
    folder.recipe_file.write_text("arms: {b: {}}")
    said = {arm["name"]: arm["what"] for arm in page.view(collect.collect(folder))["arm_lines"]}
    assert said["original"] == "as it enters stage post: not trained further"


def test_only_terms_that_occur_are_explained() -> None:
    assert [term for term, _ in terms.objectives({"grpo", "sft"})] == ["grpo"]
    said = dict(terms.metrics({"cam/energy", "miou_pixels", "knn/class", "4-shot/class"}))
    assert list(said) == ["k-NN classifier", "few-shot", "mIoU", "energy", "Grad-CAM"]
    assert list(terms.metrics({"mean", "tasks/attribute"})) == []
