"""The main job as its user runs it: parts of one's own from folders, pairs from a folder, one command, a better encoder's folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from pivot import cli
from pivot.data.world import read
from pivot.data.writing.write import write
from pivot.encoder import Encoder
from pivot.files import read_json
from pivot.model import MLLM
from pivot.model.mllm import BASE

SMALL = [
    "build.pixels=64",
    "build.layer=-1",
    "align.batch=4",
    "instruct.batch=4",
    "post.batch=4",
    "post.epochs=1",
    "heldout=world,split=test,size=48,pixels=64",
    "bench={}",
    "instruct.checkpointing=false",
    "post.checkpointing=false",
]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the finished run."""
    place = tmp_path_factory.mktemp("job")
    Encoder.tiny("siglip").save(place / "eyes")
    AutoModelForCausalLM.from_config(MLLM.tiny(llm="llama").model.config.text_config).save_pretrained(place / "words")
    AutoTokenizer.from_pretrained(BASE).save_pretrained(place / "words")
    assert list(write(read(size=8), place / "pairs"))
    given = [f"encoder={place / 'eyes'}", f"llm={place / 'words'}", f"pairs={place / 'pairs'}"]
    assert cli.call(["run", "pivot", *given, f"out={place / 'run'}", *SMALL]) == 0
    return place


def test_each_arm_leaves_an_encoder_in_its_own_format(job: Path) -> None:
    for arm in ("original", "sft/seed-0", "dpo/seed-0"):
        folder = job / "run" / f"encoder-{arm}"
        assert AutoModel.from_pretrained(folder).config.image_size == 64
        encoder = Encoder.load(folder)
        assert encoder.grid == (8, 8) and encoder.tap.layer == -1
        assert read_json(folder / "parity.json")["difference"] == 0


def test_the_arms_moved_apart(job: Path) -> None:
    prints = {arm: Encoder.load(job / "run" / f"encoder-{arm}").fingerprint() for arm in ("original", "sft/seed-0", "dpo/seed-0")}
    assert len(set(prints.values())) == 3


def test_the_card_names_the_parents(job: Path) -> None:
    text = (job / "run" / "encoder-dpo" / "seed-0" / "README.md").read_text(encoding="utf-8")
    assert str(job / "eyes") in text and str(job / "words") in text and "dpo (beta 0.1" in text


def test_the_mllm_opens_in_plain_transformers(job: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(job / "run" / "post-dpo" / "seed-0" / "model")
    assert model.config.image_seq_length == 64 and model.config.vision_feature_layer == -1


def test_the_page_is_there(job: Path) -> None:
    assert (job / "run" / "report" / "index.html").stat().st_size > 10_000
