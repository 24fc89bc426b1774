"""The card of a detached encoder: where it comes from, what in it is stale, and nothing that is not known."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from pivot import provenance, recipe
from pivot.encoder import Encoder
from pivot.encoder.card import OPENED, Provenance, card
from pivot.encoder.export import export
from pivot.encoder.stale import stale
from pivot.files import write_json
from pivot.runfolder import RunFolder
from pivot.sections import Recipe

RATES = {"tower": 1e-6, "projector": 1e-6, "llm": 0.0}
PLAIN: dict[str, Any] = {
    "name": "small",
    "encoder": "hf:a/eyes",
    "llm": "hf:c/words",
    "data": {"pairs": {"read": "world", "size": 8}, "talk": {"read": "world", "size": 9}},
    "instruct": {"data": "talk", "rates": RATES},
    "arms": {"original": {}, "dpo": {"objective": {"name": "dpo", "beta": 0.2}, "rates": RATES}},
    "post": {"batch": 4, "epochs": 2},
}


def made(**changes: Any) -> Recipe:
    return recipe.validate({**PLAIN, **changes}, "here")


def written(to: str = "hf", **known: Any) -> str:
    encoder = Encoder.tiny("clip")
    parity = dataclasses.replace(PARITY, stale=tuple(stale(encoder)))
    return card("eyes", "clip", to, encoder.tap, parity, Provenance(**known))


@pytest.fixture(scope="module", autouse=True)
def parity(tmp_path_factory: pytest.TempPathFactory) -> None:
    global PARITY
    PARITY = export(Encoder.tiny("clip"), tmp_path_factory.mktemp("card") / "out")


def test_an_arms_encoder_names_parents_data_and_training() -> None:
    known = provenance.of_arm(made(), "dpo", 1)
    assert (known.encoder, known.llm, known.mllm) == ("hf:a/eyes", "hf:c/words", None)
    assert set(known.data) == {"pairs", "talk"} and "size 9" in known.data["talk"]
    assert len(known.training) == 2 and known.training[0].startswith("instruct: sft on `talk`")
    assert "dpo (beta 0.2" in known.training[1] and "2 epochs of batches of 4" in known.training[1] and "llm frozen" in known.training[1]
    assert "seed 1" in known.training[1] and known.title == "small: dpo, seed 1"


def test_the_original_encoder_of_parts_has_no_llm_and_no_training() -> None:
    known = provenance.of_arm(made(), "original", 0)
    assert known.encoder == "hf:a/eyes" and known.llm is None and not known.training and not known.data
    assert provenance.of_arm(made(init="base", encoder=None, llm=None), "original", 0).mllm == "base"


def test_an_mllm_in_a_run_folder_knows_its_recipe_and_another_only_its_name(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    recipe.freeze(made(), folder)
    write_json(folder.manifest_file, {"name": "small", "versions": {}, "stages": {}, "pinned": {}})
    known = provenance.of_model(str(folder.post("dpo", 3) / "model"))
    assert known.llm == "hf:c/words" and "seed 3" in known.training[-1]
    assert provenance.of_model(str(folder.path / "instruct" / "model")).training[0].startswith("instruct")
    assert provenance.of_model("hf:some/llava") == Provenance(mllm="hf:some/llava")


@pytest.mark.parametrize("stage", ["align", "instruct", "pretrain"])
def test_an_mllm_of_an_early_stage_claims_no_later_one(stage: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    arm = {"objective": {"name": "dpo", "beta": 0.2}, "rates": RATES}
    recipe.freeze(made(align={"data": "pairs", "rates": RATES}, arms={"original": {}, stage: arm}), folder)  # an arm of its name
    write_json(folder.manifest_file, {"name": "small", "versions": {}, "stages": {}, "pinned": {}})
    known = provenance.of_model(str(folder.path / stage / "model"))
    done = {"pretrain": [], "align": ["align"], "instruct": ["align", "instruct"]}[stage]
    assert [said.partition(":")[0] for said in known.training] == done
    assert set(known.data) == {"pretrain": set(), "align": {"pairs"}, "instruct": {"pairs", "talk"}}[stage]
    assert known.llm == "hf:c/words" and known.title == f"small: {stage}"
    elsewhere = str(folder.path / "copies" / "model")
    assert provenance.of_model(elsewhere) == Provenance(mllm=elsewhere), "nobody knows which stage that is"


def test_the_metadata_is_yaml_and_claims_no_licence() -> None:
    text = written(encoder="hf:a/eyes", llm="hf:c/words", licences={"hf:a/eyes": "apache-2.0"}, data={"pairs": "read world"})
    head = yaml.safe_load(text.split("---")[1])
    assert head["license"] == "other" and head["base_model"] == ["a/eyes", "c/words"] and head["library_name"] == "transformers"
    assert "`hf:a/eyes`: apache-2.0" in text and "`hf:c/words`: not known here" in text and "data `pairs`: not known here" in text


def test_what_is_stale_is_said_and_unknown_parents_are_not_made_up() -> None:
    text = written()
    assert "block 3 of 3: above the tap" in text and "post_layernorm" in text
    assert "Not recorded." in text and "parents that were not recorded" in text


@pytest.mark.parametrize("to", OPENED)
def test_each_library_is_shown_its_own_way_in(to: str) -> None:
    assert OPENED[to] in written(to)


def test_the_way_in_that_the_card_shows_gives_the_features(tmp_path: Path) -> None:
    encoder = Encoder.tiny("clip")
    export(encoder, tmp_path / "out")
    shown = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    code = shown.split("```python\n")[1].split("```")[0]
    from pivot.encoder.export import noise

    image = next(iter(noise(encoder.grid)))
    names: dict[str, Any] = {"FOLDER": str(tmp_path / "out"), "image": image}
    exec(code, names)
    assert (names["features"] - encoder.features([image]).tokens).abs().max() < 1e-6


TOWER = """
import torch
from transformers import ViTImageProcessorPil


class Tower(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 8, 8)

    def forward(self, pixels):
        return [self.first(pixels)]

    @classmethod
    def open(cls, name):
        return {}, cls().state_dict(), ViTImageProcessorPil(size={"height": 48, "width": 48})
"""


def test_code_that_a_tower_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "card_lab").mkdir()
    (tmp_path / "card_lab" / "tower.py").write_text(TOWER)
    monkeypatch.syspath_prepend(tmp_path)
    for number, encoder in enumerate(
        [Encoder.load("card_lab.tower:x"), Encoder.join([Encoder.tiny("clip"), Encoder.load("card_lab.tower:x")])]
    ):
        export(encoder, tmp_path / f"out-{number}")
        shown = (tmp_path / f"out-{number}" / "README.md").read_text(encoding="utf-8")
        assert "left behind in `card_lab.tower`; the folder opens only where that module" in shown
    export(Encoder.tiny("pivot_tower"), tmp_path / "plain")
    assert "opens only where" not in (tmp_path / "plain" / "README.md").read_text(encoding="utf-8")
