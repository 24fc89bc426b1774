"""The chain: order, skipping, resuming, staleness, with stand-ins for the stages; then the real stages, tiny, from end to end."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from pivot import chain, recipe
from pivot.crew import Crew
from pivot.data.writing.write import write
from pivot.files import hash_file, read_json, read_jsonl, write_json, write_text
from pivot.plan import plan
from pivot.records import BadInput, Measurement
from pivot.runfolder import RunFolder
from pivot.sections import Recipe
from pivot.stages import Stage, stages
from pivot.work import Event, Work

PLAIN: dict[str, Any] = {
    "name": "small",
    "init": "tiny",
    "data": {
        "pairs": {"read": "world", "size": 8},
        "heldout": {"read": "world", "split": "test", "size": 40},
        "few": {"read": "world", "split": "test", "size": 12},
        "fewer": {"read": "world", "split": "test", "size": 8},
    },
    "arms": {
        "original": {},
        "sft": {"objective": {"name": "sft"}, "rates": {"tower": 1e-4, "projector": 1e-4, "llm": 1e-4}},
        "dpo": {"objective": {"name": "dpo"}, "rates": {"tower": 1e-4, "projector": 1e-4, "llm": 0.0}},
    },
    "post": {"batch": 4},
    "probes": {"linear": {"data": "heldout"}, "behind": {"use": "linear", "at": "projector", "data": "heldout"}},
    "bench": {"world": {"data": "few"}, "again": {"use": "world", "data": "fewer"}},
}
RATES = {"tower": 1.0, "projector": 1.0, "llm": 1.0}
POSTS = ["post-sft/seed-0", "post-dpo/seed-0"]
STEPS = ("encoder", "probe-linear", "probe-behind", "bench-world", "bench-again")
REST = [f"{what}-{arm}" for arm in ("original", "sft/seed-0", "dpo/seed-0") for what in STEPS]


def made(**changes: Any) -> Recipe:
    return recipe.validate({**PLAIN, **changes}, "here")


class Stand:
    """Stages that write one small file each and remember that they ran."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran: list[str] = []
        self.content = "one"
        self.fails: str | None = None
        for kind in ("pretrain", "align", "instruct", "post", "detach", "saliency", "probe", "bench", "report"):
            monkeypatch.setattr(Work, f"_{kind}", self.stage)
        monkeypatch.setattr(chain, "_rehearse", lambda *given: None)  # there is nothing to read; tests/test_plan.py

    @property
    def stage(self) -> Callable[[Work, Stage], list[Path]]:
        def perform(work: Work, stage: Stage) -> list[Path]:
            self.ran.append(stage.name)
            out = work.folder.path / stage.name
            write_text(out / "checkpoint", "half")
            if self.fails == stage.name:
                raise KeyboardInterrupt
            write_text(out / "out", self.content)
            return [out / "out"]

        return perform

    def run(self, folder: RunFolder, only: str | None = None, again: bool = False, **changes: Any) -> list[str]:
        """Run the recipe; returns the stages that ran."""
        self.ran.clear()
        chain.run(made(**changes), folder, lambda event: None, only, again)
        return list(self.ran)


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Stand:
    return Stand(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


# ---- the plan


def test_training_comes_first_then_each_arm_is_measured_then_the_report() -> None:
    assert [stage.name for stage in stages(made())] == [*POSTS, *REST, "report"]


def test_the_original_arm_is_measured_once_and_the_others_per_seed() -> None:
    names = [stage.name for stage in stages(made(seeds=[3, 4]))]
    assert [name for name in names if name.startswith("bench-world")] == [
        "bench-world-original",
        *(f"bench-world-{arm}/seed-{seed}" for arm in ("sft", "dpo") for seed in (3, 4)),
    ]


def test_stages_wait_for_the_one_before() -> None:
    chat = {"data": "pairs", "rates": RATES}
    pretraining = {"name": "supervised", "data": "pairs"}
    needs = {stage.name: stage.needs for stage in stages(made(pretrain=pretraining, align=chat, instruct=chat))}
    assert list(needs)[:3] == ["pretrain", "align", "instruct"]
    assert [needs[name] for name in list(needs)[:4]] == [(), ("pretrain",), ("align",), ("instruct",)]
    assert needs["encoder-original"] == ("instruct",)
    assert needs["encoder-dpo/seed-0"] == needs["bench-world-dpo/seed-0"] == ("post-dpo/seed-0",)
    assert needs["probe-linear-dpo/seed-0"] == ("encoder-dpo/seed-0",)


def test_built_from_parts_the_original_encoder_is_the_one_that_was_given() -> None:
    chat = {"data": "pairs", "rates": RATES}
    needs = {stage.name: stage.needs for stage in stages(made(init=None, encoder="hf:a/b", llm="hf:c/d", instruct=chat))}
    assert needs["encoder-original"] == () and needs["bench-world-original"] == ("instruct",)


COMPARED = {"change": {"data": "heldout"}, "look": {"use": "gradcam", "data": "few"}}


def test_what_moved_waits_for_both_encoders_and_where_losses_look_for_gradients_of_given_weights() -> None:
    planned = {stage.name: stage.needs for stage in stages(made(seeds=[3, 4], instruct={"data": "pairs", "rates": RATES}, probes=COMPARED))}
    arms = [f"{arm}/seed-{seed}" for arm in ("sft", "dpo") for seed in (3, 4)]
    assert {name: needs for name, needs in planned.items() if name.startswith("probe-change")} == {
        f"probe-change-{arm}": ("encoder-original", f"encoder-{arm}") for arm in arms
    }
    assert {name: needs for name, needs in planned.items() if "look" in name} == {
        **{f"saliency-look/{arm}": ("instruct",) for arm in ("sft", "dpo")},
        **{f"probe-look-{arm}/seed-3": (f"saliency-look/{arm}",) for arm in ("sft", "dpo")},
    }
    with pytest.raises(BadInput, match="has no arm for that"):
        stages(made(arms={"sft": PLAIN["arms"]["sft"]}, probes=COMPARED))


def test_no_gradients_of_a_row_are_asked_of_what_has_no_loss_on_one() -> None:
    rates = PLAIN["arms"]["sft"]["rates"]
    writes = {"objective": {"name": "grpo", "reward": "answer"}, "rates": rates}
    names = [stage.name for stage in stages(made(arms={**PLAIN["arms"], "grpo": writes}, probes=COMPARED))]
    assert "probe-change-grpo/seed-0" in names and not [name for name in names if "look" in name and "grpo" in name]


def test_a_recipe_without_arms_only_trains() -> None:
    chat = {"data": "pairs", "rates": RATES}
    assert [stage.name for stage in stages(made(arms={}, align=chat, instruct=chat))] == ["align", "instruct"]


# ---- running, with stand-ins


def test_finished_stages_are_skipped(stand: Stand, folder: RunFolder) -> None:
    assert stand.run(folder) == [*POSTS, *REST, "report"]
    assert stand.run(folder) == []


@pytest.mark.parametrize(
    ("more", "new"),
    [
        ({"probes": {**PLAIN["probes"], "change": {"data": "heldout"}}}, ["probe-change-sft/seed-0", "probe-change-dpo/seed-0"]),
        ({"bench": {**PLAIN["bench"], "new": {"use": "world"}}}, [f"bench-new-{arm}" for arm in ("original", "sft/seed-0", "dpo/seed-0")]),
        ({"arms": {**PLAIN["arms"], "late": {}}}, [f"{what}-late/seed-0" for what in STEPS]),
    ],
)
def test_a_finished_run_computes_what_was_added_and_reports_anew(
    stand: Stand, folder: RunFolder, more: dict[str, Any], new: list[str]
) -> None:
    stand.run(folder)
    assert stand.run(folder, **more) == [*new, "report"]
    assert stand.run(folder, **more) == []


@pytest.mark.parametrize("name", ["post-dpo/seed-0", "probe-linear-sft/seed-0"])
def test_after_an_interruption_the_rest_is_run_and_the_half_stage_keeps_its_files(stand: Stand, folder: RunFolder, name: str) -> None:
    stand.fails = name
    with pytest.raises(KeyboardInterrupt):
        stand.run(folder)
    before, stand.fails = list(stand.ran), None
    assert (folder.path / name / "checkpoint").exists() and not (folder.path / name / "out").exists()
    assert before[:-1] + stand.run(folder) == [*POSTS, *REST, "report"]


def test_a_changed_output_is_made_again_with_what_follows_from_it(stand: Stand, folder: RunFolder) -> None:
    stand.run(folder)
    (folder.path / "encoder-sft/seed-0/out").unlink()
    stand.content = "two"
    assert stand.run(folder) == ["encoder-sft/seed-0", "probe-linear-sft/seed-0", "probe-behind-sft/seed-0", "report"]


def test_what_comes_out_as_before_makes_nothing_else_stale(stand: Stand, folder: RunFolder) -> None:
    stand.run(folder)
    (folder.path / "post-sft/seed-0/out").write_text("damaged")
    assert stand.run(folder) == ["post-sft/seed-0"]


def test_any_stage_can_be_run_alone_and_again(stand: Stand, folder: RunFolder) -> None:
    assert stand.run(folder, only="post-sft/*") == ["post-sft/seed-0"]
    assert stand.run(folder, only="post-*") == ["post-dpo/seed-0"]  # as after a kill: what is finished is kept
    stand.run(folder)
    assert stand.run(folder, only="post-*") == []
    assert stand.run(folder, only="post-sft/seed-0", again=True) == ["post-sft/seed-0"]
    assert stand.run(folder, only="bench-*", again=True) == [name for name in REST if name.startswith("bench")]
    with pytest.raises(BadInput, match=r"no stage named 'post-sfd/seed-0'.*did you mean 'post-sft/seed-0'"):
        stand.run(folder, only="post-sfd/seed-0")


def test_run_again_alone_a_finished_stage_starts_afresh_and_a_half_one_goes_on(stand: Stand, folder: RunFolder) -> None:
    stand.run(folder)
    kept = folder.path / "post-sft/seed-0/kept"
    kept.touch()
    stand.fails = "post-sft/seed-0"
    with pytest.raises(KeyboardInterrupt):
        stand.run(folder, only="post-sft/seed-0", again=True)
    assert not kept.exists()
    kept.touch()
    with pytest.raises(KeyboardInterrupt):
        stand.run(folder, only="post-sft/seed-0", again=True)
    assert kept.exists()


def test_a_stage_alone_says_what_it_lacks(stand: Stand, folder: RunFolder) -> None:
    with pytest.raises(BadInput, match="stage encoder-sft/seed-0 needs post-sft/seed-0, which is not finished in"):
        stand.run(folder, only="encoder-sft/seed-0")


def test_a_folder_of_another_recipe_is_refused_before_anything_runs(stand: Stand, folder: RunFolder) -> None:
    stand.run(folder)
    with pytest.raises(BadInput, match=r"changed: post\.batch"):
        stand.run(folder, post={"batch": 2})
    assert stand.ran == []


def test_other_weights_than_the_folder_began_with_are_refused(stand: Stand, folder: RunFolder, tmp_path: Path) -> None:
    """Else finished stages would be skipped that belong to another model."""
    weights = tmp_path / "mllm" / "model.safetensors"
    write_text(weights, "one")
    init = str(weights.parent)
    assert stand.run(folder, init=init) and not stand.run(folder, init=init)
    write_text(weights, "two")
    with pytest.raises(BadInput, match=f"the weights of init '{init}' no longer match"):
        stand.run(folder, init=init)
    assert stand.ran == []


def test_a_start_that_came_to_nothing_binds_nobody(stand: Stand, folder: RunFolder, tmp_path: Path) -> None:
    weights = tmp_path / "mllm" / "model.safetensors"
    write_text(weights, "one")
    init = str(weights.parent)
    with pytest.raises(BadInput, match="not finished in"):
        stand.run(folder, only="bench-world-sft/seed-0", init=init, name="typo", post={"batch": 2})
    write_text(weights, "two")
    assert stand.run(folder, init=init)
    assert read_json(folder.manifest_file)["name"] == "small"


def test_rows_that_changed_since_the_folder_began_are_refused(stand: Stand, folder: RunFolder, tmp_path: Path) -> None:
    """Else finished stages would be skipped that read something else."""
    assert list(write(recipe.read("world,size=6"), tmp_path / "rows"))
    data = {**PLAIN["data"], "pairs": {"read": "rows", "path": str(tmp_path / "rows")}}
    assert stand.run(folder, data=data) and not stand.run(folder, data=data)
    file = tmp_path / "rows" / "data.jsonl"
    file.write_text(file.read_text().replace('"prompt": "', '"prompt": "Now, ', 1))
    with pytest.raises(BadInput, match=r"the rows of data\.pairs in .*rows no longer match those that .*run began with"):
        stand.run(folder, data=data)
    assert stand.ran == []


def test_other_processes_of_a_launch_only_train(stand: Stand, folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """They leave files and measuring to the main one, whose word on what is finished they take."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    words = iter(["finished", "to do"])
    monkeypatch.setattr(Crew, "told", lambda crew, ask: next(words))
    assert stand.run(folder) == ["post-dpo/seed-0"]
    assert not folder.manifest_file.exists() and not folder.recipe_file.exists()


def test_two_runs_in_one_folder_share_its_stages(stand: Stand, folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "LOOK", 0.05)
    with ThreadPoolExecutor(2) as threads:
        runs = [threads.submit(chain.run, made(), folder, lambda event: None) for _ in range(2)]
    assert [run.result() for run in runs] == [None, None]
    assert sorted(stand.ran) == sorted([*POSTS, *REST, "report"])  # each once
    assert stand.ran[-1] == "report" and stand.run(folder) == []


def test_a_run_does_what_it_can_and_waits_for_what_another_is_at(stand: Stand, folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "LOOK", 0.05)
    seen: list[Event] = []
    waits = threading.Event()

    def tell(event: Event) -> None:
        seen.append(event)
        if event.kind == "wait":
            waits.set()

    with ThreadPoolExecutor(1) as threads:
        with folder.claim("post-dpo/seed-0"):
            run = threads.submit(chain.run, made(), folder, tell)
            assert waits.wait(30)
            before = list(stand.ran)
        run.result()
    of_dpo = [name for name in REST if "dpo" in name]
    assert before == ["post-sft/seed-0", *(name for name in REST if name not in of_dpo)]
    assert stand.ran[len(before) :] == ["post-dpo/seed-0", *of_dpo, "report"]
    assert [event.stage for event in seen if event.kind == "wait"] == ["post-dpo/seed-0"]


def test_what_is_made_again_waits_for_who_reads_it(stand: Stand, folder: RunFolder) -> None:
    stand.run(folder)
    work, post = Work(made(), folder, lambda event: None, Crew()), [one for one in stages(made()) if one.name == "post-sft/seed-0"]
    before = len(stand.ran)
    with folder.claim("encoder-sft/seed-0"):
        assert work.go_through(post, again=True) == post
    assert len(stand.ran) == before and work.go_through(post, again=True) == []
    assert stand.ran[before:] == ["post-sft/seed-0"]


def test_a_stage_that_read_what_was_made_anew_meanwhile_is_not_finished(folder: RunFolder) -> None:
    for text in ("old", "new"):
        write_text(folder.path / "post", text)
        folder.mark("post", [folder.path / "post"])
        if text == "old":
            began = folder.versions(["post"])
    write_text(folder.path / "encoder", "of the old")
    folder.mark("encoder", [folder.path / "encoder"], began)
    assert folder.done("post") and not folder.done("encoder")
    folder.mark("encoder", [folder.path / "encoder"], folder.versions(["post"]))
    assert folder.done("encoder")


def test_a_run_by_another_recipe_is_refused_beside_one_that_has_just_begun(stand: Stand, folder: RunFolder) -> None:
    with folder.joined(lambda shared: chain._begin(made(), folder, shared)):
        with pytest.raises(BadInput, match=r"changed: post\.batch"):
            stand.run(folder, post={"batch": 2})
        assert stand.run(folder) == [*POSTS, *REST, "report"]


def test_events_tell_what_was_skipped_begun_and_done(stand: Stand, folder: RunFolder) -> None:
    seen: list[Event] = []
    stand.fails = "post-dpo/seed-0"
    with pytest.raises(KeyboardInterrupt):
        stand.run(folder)
    stand.fails = None
    chain.run(made(), folder, seen.append)
    told = [(event.kind, event.stage) for event in seen]
    assert told[:3] == [("skip", "post-sft/seed-0"), ("begin", "post-dpo/seed-0"), ("done", "post-dpo/seed-0")]
    assert told[-1] == ("done", "report")


# ---- the real stages, tiny


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIVOT_CACHE", str(folder.path.parent / "cache"))
        chain.run(made(), folder, lambda event: None)
    return folder


def test_the_run_folder_holds_what_the_design_says(finished: RunFolder) -> None:
    for arm in ("sft", "dpo"):
        assert {"ledger.json", "metrics.jsonl", "model"} <= set(os.listdir(finished.post(arm, 0)))
    for arm in ("original", "sft", "dpo"):
        encoder = {"config.json", "model.safetensors", "preprocessor_config.json", "tap.json", "parity.json"}
        assert encoder <= set(os.listdir(finished.encoder(arm)))
        assert len(read_jsonl(finished.answers_file(arm, 0, "world"))) == 12
        assert len(read_jsonl(finished.answers_file(arm, 0, "again"))) == 8
    found = {(one.arm, one.kind, one.name) for one in finished.measurements()}
    measured = [("probe", "linear"), ("probe", "behind"), ("bench", "world"), ("bench", "again")]
    assert found == {(arm, *what) for arm in ("original", "sft", "dpo") for what in measured}
    results = read_json(finished.report / "results.json")
    assert {(row["arm"], row["kind"], row["name"]) for row in results["rows"]} == found
    assert {(pair["kind"], pair["name"]) for pair in results["pairs"]} == set(measured)
    page = (finished.report / "index.html").read_text()
    assert all(name in page for _, name in measured)
    assert (finished.report / "index.html").exists() and "rows" in read_json(finished.report / "results.json")


def test_arms_read_the_same_examples_in_the_same_order(finished: RunFolder) -> None:
    hashes = {read_json(finished.post(arm, 0) / "ledger.json")["ids_sha256"] for arm in ("sft", "dpo")}
    assert {finished.manifest()["pinned"]["post ids, seed 0"]} == hashes


def test_the_encoder_that_comes_out_is_the_one_that_was_trained(finished: RunFolder) -> None:
    from pivot.encoder import Encoder
    from pivot.model import MLLM

    def weights(encoder: Encoder) -> list[torch.Tensor]:
        return [tensor for _, tensor in sorted(encoder.model.state_dict().items())]

    untouched = weights(Encoder.load(finished.encoder("original")))
    for arm in ("sft", "dpo"):
        taken = weights(Encoder.load(finished.encoder(arm)))
        inside = weights(MLLM.load(finished.post(arm, 0) / "model").detach())
        assert all(torch.equal(a, b) for a, b in zip(taken, inside, strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(taken, untouched, strict=True))


def documented(found: dict[str, Measurement]) -> None:
    """Metrics that docs/probes.md has in the table of each probe are measured, and every metric stands there."""
    asked_for = {"N-shot/...", "zero_shot/class", "spread/recall"}
    settings = ("C/", "trained/", "left_out/", "spread/", "layer/", "chance/", "last/", "biased/")
    for title, measurement in found.items():
        section = (Path(__file__).parents[1] / "docs/probes.md").read_text().split(f"## {title}")[1].split("\n## ")[0]
        rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
        named = {name for row in rows for name in re.findall("`([^`]+)`", row)} - asked_for
        known = [re.sub(r"NN$|NAME$|\.\.\.$", "", name) for name in named]
        lost = [name for name in known if not any(metric.startswith(name) for metric in measurement.metrics)]
        assert len(named) >= 4 and not lost, (title, lost)
        silent = [metric for metric in measurement.metrics if not metric.startswith((*known, *settings)) and "/" in metric]
        assert not silent, (title, silent)


def test_a_finished_run_takes_every_probe(finished: RunFolder, tmp_path: Path, own_cache: None) -> None:
    """Added to its recipe, they are all that is computed; gradients are those of the weights that both arms began with."""
    folder = RunFolder(tmp_path / "longer")
    shutil.copytree(finished.path, folder.path)
    trained = folder.manifest()["stages"]["post-dpo/seed-0"]
    probes = {
        **PLAIN["probes"],
        "segment": {"data": "heldout", "epochs": 1, "repeats": 1, "width": 8},
        "align": {"data": "heldout", "llm": "base", "k": 2, "most": 24},
        **COMPARED,
        "look": {"use": "gradcam", "data": "few", "steps": 0, "size": 4},
    }
    ran: list[str] = []
    chain.run(made(probes=probes), folder, lambda event: ran.append(event.stage) if event.kind == "begin" else None)
    assert (
        not [name for name in ran if name.startswith(("post", "encoder", "bench", "probe-linear", "probe-behind"))] and ran[-1] == "report"
    )
    assert folder.manifest()["stages"]["post-dpo/seed-0"] == trained
    found = {(one.arm, one.name): one for one in folder.measurements() if one.kind == "probe"}
    assert (
        {arm for arm, name in found if name == "segment"} == {arm for arm, name in found if name == "align"} == {"original", "sft", "dpo"}
    )
    assert {arm for arm, name in found if name in ("change", "look")} == {"sft", "dpo"}
    assert found["dpo", "segment"].shown and found["dpo", "look"].shown
    documented(
        {
            "Linear": found["dpo", "linear"],
            "Segmentation": found["dpo", "segment"],
            "Gradient maps": found["dpo", "look"],
            "Alignment": found["dpo", "align"],
            "What moved": found["dpo", "change"],
        }
    )
    begun = [read_json(folder.path / f"saliency-look/{arm}/saliency.json")["model"] for arm in ("sft", "dpo")]
    assert begun[0] == begun[1]
    page = (folder.report / "index.html").read_text()
    assert all(f"Probe: {name}" in page for name in ("segment", "align", "change", "look")) and page.count("data:image/png") >= 8


def test_the_plan_of_a_finished_run_says_so(finished: RunFolder) -> None:
    rows = plan(made(), finished).stages
    assert [row["stage"] for row in rows] == [*POSTS, *REST, "report"]
    assert {row["state"] for row in rows} == {"finished"}
    for arm in ("sft", "dpo"):
        planned, ledger = (
            next(row for row in rows if row["stage"] == f"post-{arm}/seed-0"),
            read_json(finished.post(arm, 0) / "ledger.json"),
        )
        assert (planned["examples"], planned["steps"]) == (ledger["examples"], ledger["steps"])
        spent = ledger["flops"] + (ledger["reference"] or {"flops": 0})["flops"]
        assert planned["flops"] == pytest.approx(spent, rel=1e-6)  # so few examples that the sample is all of them


def test_a_finished_run_does_nothing_the_second_time(finished: RunFolder) -> None:
    before, seen = hash_file(finished.path), []
    chain.run(made(), finished, seen.append)
    assert {event.kind for event in seen} == {"skip"} and hash_file(finished.path) == before


def test_a_source_that_gives_one_arm_other_rows_is_caught(finished: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = read_json(finished.post("dpo", 0) / "ledger.json")

    def other_rows(mllm: Any, objective: Any, examples: Any, settings: Any, folder: Path, **rest: Any) -> Any:
        write_json(folder / "ledger.json", {**ledger, "ids_sha256": "other"})
        return iter(())

    monkeypatch.setattr("pivot.train.train", other_rows)
    work = Work(made(), finished, lambda event: None, Crew())
    kept = (finished.post("dpo", 0) / "ledger.json").read_bytes()
    with pytest.raises(BadInput, match="the examples that post-dpo/seed-0 read"):
        work._post(Stage("post-dpo/seed-0", "post", (), "dpo", 0))
    (finished.post("dpo", 0) / "ledger.json").write_bytes(kept)


def test_measurements_of_one_arm_are_the_same_beside_others_or_alone(finished: RunFolder, tmp_path: Path) -> None:
    """Every arm is probed by itself, so that a killed run goes on from where it was; that must not change what is found."""
    from pivot import lookup
    from pivot.encoder import Encoder

    use = made()
    encoders = {arm: Encoder.load(finished.encoder(arm)) for arm in ("original", "sft")}
    together: list[Measurement] = list(lookup.find("probe", "linear")().run(encoders, use.examples("heldout")))
    alone = {one.arm: one.metrics for one in finished.measurements() if one.name == "linear"}
    assert {one.arm: one.metrics for one in together} == {arm: alone[arm] for arm in encoders}


# ---- real processes


def command(tmp_path: Path, out: Path, *launcher: str) -> list[str]:
    """The shell command of a run that keeps a checkpoint of every update."""
    file = tmp_path / "small.yaml"
    write_json(file, {**PLAIN, "post": {"batch": 2, "save_every": 1}})  # JSON is YAML
    return [sys.executable, *(launcher or ("-m", "pivot")), "run", str(file), f"out={out}"]


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def facts(folder: RunFolder) -> dict[str, Any]:
    """What a run found, without times and versions."""
    names = [*(f"{post}/model" for post in POSTS), "encoder-original", "encoder-sft", "encoder-dpo", "measurements", "answers"]
    return {name: hash_file(folder.path / name) for name in names}


@pytest.mark.slow
def test_killed_anywhere_a_run_ends_as_if_it_had_not_been(tmp_path: Path, own_cache: None) -> None:
    undisturbed, killed = RunFolder(tmp_path / "a"), RunFolder(tmp_path / "b")
    subprocess.run(command(tmp_path, undisturbed.path), check=True, capture_output=True)
    moments = ["post-sft/seed-0/checkpoint-2", "post-dpo/seed-0/metrics.jsonl", "encoder-original", "answers/sft-seed-0-world.partial"]
    for moment in moments:
        process = subprocess.Popen(command(tmp_path, killed.path), stdout=subprocess.DEVNULL)
        while not (killed.path / moment).exists():
            assert process.poll() is None, f"ended before {moment}"
            time.sleep(0.002)
        process.kill()
        process.wait()
    subprocess.run(command(tmp_path, killed.path), check=True, capture_output=True)
    assert facts(killed) == facts(undisturbed)
    assert not [path for path in killed.path.rglob("*") if path.name.endswith((".tmp", ".partial"))]


@pytest.mark.slow
def test_two_processes_write_one_run_folder(tmp_path: Path, own_cache: None) -> None:
    """The losses follow those of one process, each line of the log is written once, and one process speaks."""
    one, two = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two")
    subprocess.run(command(tmp_path, one.path), check=True, capture_output=True)
    flags = "--num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --multi_gpu --main_process_port 0"
    launch = ("-m", "accelerate.commands.launch", *flags.split(), "-m", "pivot")
    done = subprocess.run(command(tmp_path, two.path, *launch), check=True, capture_output=True, text=True)
    assert done.stdout.count("page: ") == 1
    for arm in ("sft", "dpo"):
        assert read_json(two.post(arm, 0) / "ledger.json")["processes"] == 2
        lines = [read_jsonl(folder.post(arm, 0) / "metrics.jsonl") for folder in (one, two)]
        assert [line["step"] for line in lines[1]] == [line["step"] for line in lines[0]]
        assert [line["loss"] for line in lines[1]] == pytest.approx([line["loss"] for line in lines[0]], abs=1e-5)
    assert [read_json(folder.manifest_file)["pinned"] for folder in (one, two)] == [read_json(one.manifest_file)["pinned"]] * 2


def test_one_process_where_several_were_asked_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate does so silently on a machine without GPUs."""
    for name in ("MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.setenv(name, "x")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(BadInput, match="add --multi_gpu"):
        Crew()
