"""Going on after a kill: to the same bits, from complete checkpoints alone, and never into another training."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import pytest
import torch
from torch import Tensor
from training import ALL, DPO, SFT, SHORT, Event, curve, fresh, run, same, weights

from pivot.files import read_json, read_jsonl
from pivot.model import MLLM
from pivot.objective._contract import Logps, Metrics, Objective, Picked
from pivot.records import BadInput, Example, Response
from pivot.train import Rates, Settings, checkpoint, setup, train
from pivot.train.checkpoint import Checkpoints


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "cache"))


def killed(folder: Path, **task: Any) -> dict[str, Any]:
    """What `killed.py` reports: a run left alone, and runs that were killed and went on."""
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1"}
    code = [sys.executable, str(here / "killed.py"), json.dumps({"root": str(folder), "times": 0, "twice": False, "settings": {}, **task})]
    done = subprocess.run(code, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return read_json(folder / "found.json")


def check_kills(report: Mapping[str, Any]) -> None:
    wanted = report["wanted"]
    assert wanted["steps"] == ["eval 0", "train 1", "train 2", "eval 2", "train 3", "train 4", "eval 4"]
    for found in report["found"]:
        assert found["status"] == 0, found["name"]
        for part in ("steps", "weights", "records", "files"):
            assert found[part] == wanted[part], f"{found['name']}: {part}"


def test_sigkill_at_any_write_changes_nothing(tmp_path: Path) -> None:
    """In the plain order in the slow set; here rows are also grouped, so that their lengths are cached before a kill or after."""
    report = killed(tmp_path, objective="dpo", writes=2, settings={"group_by": "modality"})
    check_kills(report)
    assert [found["killed"][0] for found in report["found"]] == [-9] * 3


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "twice"), [("dpo", False), ("dpo", True), ("sft", False)])
def test_sigkill_at_every_moment_changes_nothing(tmp_path: Path, objective: str, twice: bool) -> None:
    report = killed(tmp_path, objective=objective, writes=15 if twice else 40, times=10, twice=twice)
    check_kills(report)
    assert sum(found["killed"][0] == -9 for found in report["found"]) > (15 if twice else 40)


# ---- in this process: left after any event


@dataclass(frozen=True)
class Dicey(Objective):
    """Draws random numbers and keeps a state, as objectives with running means do."""

    k: ClassVar[int] = 1
    needs_sums: ClassVar[bool] = True

    def source(self, examples: Sequence[Example]) -> Sequence[Example]:
        return Picked(examples, ("chosen",))

    def init(self) -> dict[str, Any]:
        return {"seen": 0, "mean": 0.0}

    def sums(self, logps: Logps, batch: Mapping[str, Any]) -> Tensor:
        return torch.stack([torch.stack([row[0].detach().sum(), torch.ones(())]) for row in logps]).sum(dim=0)

    def advance(self, state: dict[str, Any], sums: Tensor) -> dict[str, Any]:
        total, number = sums.tolist()
        seen = state["seen"] + number
        return {"seen": seen, "mean": state["mean"] + (total - number * state["mean"]) / seen}

    def loss(self, logps: Logps, batch: Mapping[str, Any], state: dict[str, Any]) -> tuple[Tensor, Metrics]:
        loss = -torch.stack([row[0].sum() * torch.rand(()) for row in logps]).sum() / batch["counts"].examples
        mean = torch.tensor(state["mean"] * len(logps) / batch["counts"].examples)
        return loss * (1 + state["mean"] / 100), {"mean": mean}


def left_after(number: int, mllm: MLLM, objective: Any, examples: Sequence[Example], folder: Path, **settings: Any) -> list[Event]:
    """The first events of a run that is then left, as by Ctrl-C."""
    events = []
    running = train(fresh(mllm), objective, examples, Settings(**{**SHORT, **settings}), folder, rates=ALL)
    for event in running:
        events.append(event)
        if len(events) == number:
            break
    running.close()  # type: ignore[attr-defined]
    return events


def test_random_numbers_and_the_objectives_state_go_on(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    whole = fresh(shared_mllm)
    wanted = run(whole, Dicey(), pairs, tmp_path / "whole", epochs=2, save_every=1)
    for number in (3, 6):
        folder = tmp_path / str(number)
        left_after(number, shared_mllm, Dicey(), pairs, folder, epochs=2, save_every=1)
        torch.manual_seed(number)
        torch.rand(number)
        mllm = fresh(shared_mllm)
        run(mllm, Dicey(), pairs, folder, epochs=2, save_every=1)
        assert same(weights(mllm), weights(whole)) and curve(folder) == curve(tmp_path / "whole")
        assert curve(folder, metric="mean") == curve(tmp_path / "whole", metric="mean")
    assert len(wanted) == 9


def test_a_resume_does_no_update_twice(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    left_after(8, shared_mllm, SFT(), pairs, tmp_path, epochs=4, save_every=3)
    assert [line["step"] for line in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6, 7][: len(curve(tmp_path))]
    events = run(fresh(shared_mllm), SFT(), pairs, tmp_path, epochs=4, save_every=3)
    assert [event["step"] for event in events if event["kind"] == "train"] == [7, 8]
    assert [line["step"] for line in read_jsonl(tmp_path / "metrics.jsonl")] == list(range(1, 9))
    facts = read_json(tmp_path / "ledger.json")
    assert facts["seconds"] == pytest.approx(sum(line["seconds"] for line in read_jsonl(tmp_path / "metrics.jsonl")))
    once = run(fresh(shared_mllm), SFT(), pairs, tmp_path / "once", epochs=4)
    other = read_json(tmp_path / "once" / "ledger.json")
    assert once and {k: other[k] for k in ("image_tokens", "text_tokens", "flops", "ids_sha256", "parts")} == {
        k: facts[k] for k in ("image_tokens", "text_tokens", "flops", "ids_sha256", "parts")
    }


def test_a_finished_run_is_finished_again_without_an_update(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    mllm, again = fresh(shared_mllm), fresh(shared_mllm)
    run(mllm, SFT(), pairs, tmp_path)
    events = run(again, SFT(), pairs, tmp_path)
    assert [event["kind"] for event in events] == ["done"] and same(weights(mllm), weights(again))


# ---- checkpoints


def tampered(folder: Path, how: str) -> None:
    if how == "no mark":
        (folder / checkpoint.MARK).unlink()
    elif how == "missing":
        (folder / "optimizer.bin").unlink()
    elif how == "cut":
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
    elif how == "changed":
        file = folder / checkpoint.STATE
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(bytes(data))
    elif how == "empty mark":
        (folder / checkpoint.MARK).write_text("")
    elif how == "empty":
        for file in folder.iterdir():
            file.unlink()


@pytest.fixture(scope="module")
def trained(shared_mllm: MLLM, pairs: list[Example], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A finished run whose older checkpoint was kept, to fall back on, and its weights."""
    folder, mllm = tmp_path_factory.mktemp("trained"), fresh(shared_mllm)
    with mock.patch.object(checkpoint, "_remove"):
        run(mllm, SFT(), pairs, folder, epochs=2, save_every=2)
    return folder, weights(mllm)


@pytest.mark.parametrize("how", ["no mark", "missing", "cut", "changed", "empty mark", "empty"])
def test_a_checkpoint_that_is_not_whole_is_passed_over(
    shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, how: str, trained: tuple[Path, dict[str, Tensor]]
) -> None:
    shutil.copytree(trained[0], tmp_path / "run")
    tampered(tmp_path / "run" / "checkpoint-4", how)
    mllm = fresh(shared_mllm)
    events = run(mllm, SFT(), pairs, tmp_path / "run", epochs=2, save_every=2)
    assert [event["step"] for event in events if event["kind"] == "train"] == [3, 4]
    assert same(weights(mllm), trained[1]) and len(curve(tmp_path / "run")) == 4


def test_older_checkpoints_go(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    seen = []
    for event in train(fresh(shared_mllm), SFT(), pairs, Settings(**SHORT, epochs=2, save_every=1), tmp_path, rates=ALL):
        if event["kind"] == "checkpoint":
            seen.append([path.name for path in tmp_path.glob("*checkpoint*")])
    assert seen == [[f"checkpoint-{n}"] for n in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"objective": DPO()}, "objective.name"),
        ({"settings": {"warmup": 0.5}}, "settings.warmup"),
        ({"rates": replace(ALL, tower=1e-4)}, "rates.tower"),
        ({"rows": 7}, "examples"),
        ({"edit": "something else"}, "rows"),
        ({"model": 1}, "model.weights"),
    ],
)
def test_another_training_in_the_same_folder_is_refused(
    shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    left_after(2, shared_mllm, SFT(), pairs, tmp_path, save_every=1)
    mllm = MLLM.tiny(seed=change.get("model", 0))
    rates: Rates = change.get("rates", ALL)
    rows = pairs[: change.get("rows", 8)]
    if "edit" in change:
        rows = [*pairs[:3], replace(pairs[3], responses=(Response(change["edit"]), *pairs[3].responses[1:])), *pairs[4:]]
    with pytest.raises(BadInput, match=rf"another training \(changed: .*{named}"):
        run(
            mllm,
            change.get("objective", SFT()),
            rows,
            tmp_path,
            rates=rates,
            save_every=1,
            **change.get("settings", {}),
        )
    run(fresh(shared_mllm), SFT(), pairs, tmp_path, save_every=5)  # how often to save is no part of what is trained


def test_any_row_that_was_edited_is_noticed(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    """Of hundreds of rows one; those that are looked at with their pictures are 64."""
    rows = [replace(pairs[n % 8], id=f"row-{n}") for n in range(300)]
    left_after(2, shared_mllm, SFT(), rows, tmp_path, save_every=1)
    rows[151] = replace(rows[151], prompt="something else")
    with pytest.raises(BadInput, match=r"another training \(changed: data\)"):
        run(fresh(shared_mllm), SFT(), rows, tmp_path, save_every=1)


def test_after_running_out_of_memory_smaller_pieces_go_on(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    left_after(2, shared_mllm, SFT(), pairs, tmp_path, save_every=1)
    events = run(fresh(shared_mllm), SFT(), pairs, tmp_path, save_every=1, micro=1)
    assert [event["step"] for event in events if event["kind"] == "train"] == [2]


def test_a_checkpoint_from_before_a_fact_was_noted_is_gone_on_with(shared_mllm: MLLM, pairs: list[Example], tmp_path: Path) -> None:
    with mock.patch.object(setup, "fingerprint", side_effect=lambda examples: "other"):
        left_after(2, shared_mllm, SFT(), pairs, tmp_path, save_every=1)
    stored = Checkpoints.state

    def older(self: Checkpoints, step: int) -> dict[str, Any]:
        state = stored(self, step)
        begun = {key: value for key, value in state["begun"].items() if key != "data"}
        settings = {key: value for key, value in begun["settings"].items() if key not in ("group_by", "drop_last", "packing")}
        return {**state, "begun": {**begun, "settings": {**settings, "micro": 2}}}

    with mock.patch.object(Checkpoints, "state", older):
        with pytest.raises(BadInput, match=r"changed: settings.drop_last\)"):  # what it did not note was not there
            run(fresh(shared_mllm), SFT(), pairs, tmp_path, save_every=1, drop_last=True)
        assert run(fresh(shared_mllm), SFT(), pairs, tmp_path, save_every=1)


def test_a_full_disk_leaves_what_was_there(
    shared_mllm: MLLM, pairs: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_after(2, shared_mllm, SFT(), pairs, tmp_path, save_every=1)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.torch, "save", full)
        with pytest.raises(BadInput, match=r"disk full while writing .*checkpoint-2"):
            run(fresh(shared_mllm), SFT(), pairs, tmp_path, save_every=1)
    assert [path.name for path in tmp_path.glob("*checkpoint*")] == ["checkpoint-1"]
    assert len(run(fresh(shared_mllm), SFT(), pairs, tmp_path, save_every=1)) == 3
