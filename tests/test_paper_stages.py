"""The paper's stages as recipes: every file says what PROTOCOLS says, and runs from end to end on stand-ins for weights and data.

Files are found by looking, so that a new one is tested too. They follow one another as a user would have them: the model that
stage align leaves is the `init` of instruct, and so on, in each folder of recipes and with each label mask.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import published
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from pivot import cli, recipe
from pivot.data.speech import LabelMask
from pivot.encoder import Encoder
from pivot.files import read_json
from pivot.model import MLLM
from pivot.model.template import BASE
from pivot.records import BadInput
from pivot.sections import Recipe

HOME = "paper/stages/"
FILES = [name for name in recipe.shipped() if name.startswith(HOME)]
BEFORE = {"instruct": "align", "post": "instruct"}  # whose model a stage begins with
STAGES = ("align", "instruct", "post")

# What all files share: PROTOCOLS 1.4, 2.1, 2.3.
COMMON = {"batch": 256, "weight_decay": 0.0, "clip": 1.0, "precision": "bf16", "limit": 2048, "too_long": "cut", "checkpointing": True}
ALIGN = {"rates": (0, 1e-3, 0), "epochs": 1, "schedule": "cosine", "warmup": 0.03, "template": "plain"}
INSTRUCT = {"rates": (2e-6, 1e-5, 1e-5), "epochs": 1, "schedule": "cosine", "warmup": 0.03, "template": "chat"}
SFT = {"rates": (5e-6,) * 3, "epochs": 3, "schedule": "cosine", "warmup": 0.03, "template": "chat"}
DPO = {"rates": (1e-6,) * 3, "epochs": 3, "schedule": "linear", "warmup": 0.1, "template": "chat"}
GROUPED = {"drop_last": True, "group_by": "modality"}
SHUFFLED = {"drop_last": False, "group_by": "none"}
# PROTOCOLS 2.2: LLaVA-NeXT's scripts as the paper overrides them. 2.3: as released.
TABLE: dict[str, dict[str, Any]] = {
    "align": {**ALIGN, "label_mask": "clean"},
    "instruct": {**INSTRUCT, "label_mask": "clean"},
    "post-sft": {**SFT, "label_mask": "clean"},
    "post-dpo": {**DPO, "label_mask": "clean"},
    "released/align": {**ALIGN, "label_mask": "llava_next"},
    "released/instruct": {**INSTRUCT, **GROUPED, "label_mask": "llava_next"},
    "released/post-sft": {**SFT, **GROUPED, "label_mask": "llava_next"},
    "released/post-dpo": {**DPO, **GROUPED, "label_mask": "llava_next", "schedule": "cosine", "warmup": 0.03},
}


def written(name: str) -> dict[str, Any]:
    return yaml.safe_load((recipe.SHIPPED / f"{name}.yaml").read_text())


def kind(name: str) -> str:
    """Which stage a file is of."""
    (found,) = (stage for stage in STAGES if stage in written(name))
    return found


def opened(name: str, *changes: str) -> Recipe:
    """A file with what it leaves open filled in."""
    plain = written(name)
    init = ["init=tiny"] if "init" in plain else []
    return recipe.load(name, [*init, *(f"{data}=world,size=8" for data in plain["data"]), *changes])


@pytest.mark.parametrize("name", FILES)
def test_a_file_says_what_the_protocol_says(name: str) -> None:
    told, stage = opened(name), kind(name)
    section = getattr(told, stage)
    arm = next(iter(told.arms.values()), None)
    rates = (arm or section).rates
    said = {**section.settings, "rates": (rates.tower, rates.projector, rates.llm)}
    wanted = {**COMMON, **SHUFFLED, **TABLE[name.removeprefix(HOME)]}
    assert {key: said[key] for key in wanted} == wanted
    assert told.seeds == (42,)
    if stage == "align":
        assert (told.encoder, told.llm) == ("hf:google/siglip2-so400m-patch16-384", "hf:Qwen/Qwen2.5-1.5B-Instruct")
        assert told.build is None, "the tap, the size and the template are the parts' own"
    if stage == "post":
        assert arm and arm.objective and list(told.arms) == [arm.objective["name"]]
    if "dpo" in told.arms:
        papers = {"kind": "sigmoid", "beta": 0.1, "label_smoothing": 0.0, "alpha": 1.0, "gamma": 0.0}
        off = {"mean": False, "differ": 1.0, "image": 0.0, "anchor": 0.0}
        assert arm and arm.objective == {"name": "dpo", **papers, **off}


def test_every_file_is_in_the_table_and_no_two_write_into_one_folder() -> None:
    assert {name.removeprefix(HOME) for name in FILES} == set(TABLE)
    assert len({written(name)["name"] for name in FILES}) == len(FILES)


@pytest.mark.parametrize("name", FILES)
def test_what_a_file_leaves_open_is_asked_for_by_name(name: str) -> None:
    plain = written(name)
    blank = [*(["init"] if "init" in plain else []), *plain["data"]]
    with pytest.raises(BadInput, match=f"leaves {', '.join(blank)} to you: .*as in: pivot run {name} "):
        recipe.load(name)
    if "init" in plain:
        with pytest.raises(BadInput, match="leaves init to you"):
            recipe.load(name, ["encoder=hf:a/b", *(f"{data}=world" for data in plain["data"])])
        parts = ["encoder=hf:a/b", "llm=hf:c/d", *(f"{data}=world" for data in plain["data"])]
        assert recipe.load(name, parts).init is None, "parts can stand for an MLLM"


@pytest.mark.parametrize("name", FILES)
def test_a_files_command_is_its_own_and_gives_what_is_left_open(name: str) -> None:
    first, *_ = (recipe.SHIPPED / f"{name}.yaml").read_text().splitlines()
    plain, given = written(name), {part.partition("=")[0] for part in first.split()[4:]}
    assert first.split()[1:4] == ["pivot", "run", name]
    assert given == {*(["init"] if "init" in plain else []), *plain["data"]}


@pytest.mark.parametrize("name", [name for name in FILES if kind(name) == "post"])
def test_a_files_command_finds_what_the_command_beside_it_takes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As written, but for names of weights and how many rows there are; a released file leaves the pairs to the one beside it."""
    monkeypatch.chdir(tmp_path)
    published.mmpr(tmp_path)
    (taken,) = re.findall(r"`pivot (data filter [^`]*)`", (recipe.SHIPPED / f"{name.replace('released/', '')}.yaml").read_text())
    said = [str(BASE) if word.startswith("hf:") else word for word in taken.split()]
    assert cli.call([*said, "--size", "5"]) == 0, capsys.readouterr().err
    first, *_ = (recipe.SHIPPED / f"{name}.yaml").read_text().splitlines()
    (pairs,) = (part for part in first.split() if part.startswith("pairs="))
    assert f"read it as: {pairs.removeprefix('pairs=')}\n" in capsys.readouterr().out
    assert cli.call(["run", name, "init=tiny", pairs, "--plan", "--json"]) == 0, capsys.readouterr().err
    assert 5 in {stage["examples"] for stage in json.loads(capsys.readouterr().out)["stages"]}


# ---- end to end


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A tiny encoder and a tiny LLM as folders, as changes of a recipe."""
    home = tmp_path_factory.mktemp("parts")
    Encoder.tiny("siglip", pixels=48).save(home / "encoder")
    config = MLLM.tiny().model.config.text_config
    with torch.random.fork_rng():
        torch.manual_seed(1)
        AutoModelForCausalLM.from_config(config).save_pretrained(home / "llm")
    AutoTokenizer.from_pretrained(BASE).save_pretrained(home / "llm")
    return [f"encoder={home / 'encoder'}", f"llm={home / 'llm'}"]


def model_of(home: Path, name: str) -> Path:
    """Where the run of a file leaves its model."""
    told, stage = written(name), kind(name)
    arms = [f"post-{arm}/seed-{told['seeds'][0]}" for arm in told.get("arms", {})]
    return home / told["name"] / (arms[0] if stage == "post" else stage) / "model"


def masked() -> list[Any]:
    """Each folder of recipes with each label mask; those that its files do not say are slow."""
    said: dict[str, set[str]] = {}
    for name in FILES:
        said.setdefault(name.rpartition("/")[0], set()).add(TABLE[name.removeprefix(HOME)]["label_mask"])
    cases = [(folder, mask) for folder in sorted(said) for mask in get_args(LabelMask)]
    return [pytest.param(folder, mask, marks=[] if mask in said[folder] else pytest.mark.slow) for folder, mask in cases]


@pytest.mark.parametrize(("folder", "mask"), masked())
def test_the_stages_run_one_after_the_other(
    folder: str, mask: str, parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two updates each, through the command line; each trains what it should, and hands on a model that the next one takes."""
    monkeypatch.setenv("PIVOT_CACHE", str(tmp_path / "cache"))
    own = sorted((name for name in FILES if name.rpartition("/")[0] == folder), key=lambda name: STAGES.index(kind(name)))
    left = {kind(name): model_of(tmp_path, name) for name in own}
    for name in own:
        plain, stage = written(name), kind(name)
        init = [f"init={left[BEFORE[stage]]}"] if "init" in plain else parts
        rows = [f"{data}=world,size=8" for data in plain["data"]]
        small = [f"{stage}.label_mask={mask}", f"{stage}.batch=4", f"{stage}.micro=2", f"{stage}.epochs=1"]
        out = tmp_path / plain["name"]
        assert cli.call(["run", name, *init, *rows, *small, f"out={out}"]) == 0, capsys.readouterr().err
        ledger = read_json(model_of(tmp_path, name).parent / "ledger.json")
        assert (ledger["steps"], ledger["seed"], ledger["settings"]["label_mask"]) == (2, 42, mask)
        assert (ledger["settings"]["template"] == "plain") == (stage == "align")
        assert [part for part, rate in ledger["rates"].items() if rate] == (["projector"] if stage == "align" else [*ledger["rates"]])
        for arm in plain.get("arms", {}):
            encoder = Encoder.load(out / f"encoder-{arm}" / "seed-42")
            assert encoder.tap.layer == -2 and not encoder.tap.norm
