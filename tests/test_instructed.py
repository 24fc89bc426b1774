"""Rows with an instruction that they do not have themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from pivot.data.instructed import read
from pivot.data.talk import turns_of
from pivot.data.world import read as world
from pivot.files import write_jsonl
from pivot.model import MLLM
from pivot.records import BadInput

OF = "world,split=test,size=6"


def test_every_prompt_says_it_and_nothing_else_changes() -> None:
    own, told = world(split="test", size=6), read(of=OF, system="Think.", after="Be brief.")
    for n in range(6):
        assert told[n].prompt == (
            {"role": "system", "content": "Think."},
            {"role": "user", "content": f"{turns_of(own[n].prompt, 'user')[-1]['content']}\nBe brief."},
        )
        same = ("id", "responses", "answer", "answer_kind", "images", "meta")
        assert all(getattr(told[n], key) == getattr(own[n], key) for key in same)
    assert read(of=OF, after="Be brief.")[0].prompt == f"{own[0].prompt}\nBe brief.", "a question alone stays text"
    assert read(of=OF)[0].prompt == own[0].prompt


def test_what_a_row_says_of_its_own_gives_way_and_the_last_question_is_the_one(tmp_path: Path) -> None:
    said = [("system", "Old."), ("user", "First?"), ("assistant", "Yes."), ("user", "Second?")]
    prompt = [{"role": role, "content": content} for role, content in said]
    write_jsonl(tmp_path / "data.jsonl", [{"id": "a", "prompt": prompt}, {"id": "b", "prompt": prompt[:1]}])
    told = read(of=f"rows,{tmp_path}", system="New.", after="Be brief.")
    assert [turn["content"] for turn in turns_of(told[0].prompt, "user")] == ["New.", "First?", "Yes.", "Second?\nBe brief."]
    with pytest.raises(BadInput, match="row b asks nothing"):
        told[1]


def test_the_model_reads_it(shared_mllm: MLLM) -> None:
    tokenizer = shared_mllm.processor.tokenizer  # type: ignore[attr-defined]
    row = shared_mllm.encode(read(of=OF, system="be brief", after="what colour is it?")[0])
    text = tokenizer.decode(list(row.trunks[0].span.ids))
    assert text.index("be brief") < text.index("what colour is it?")


def test_what_is_told_is_part_of_what_the_data_are() -> None:
    marks = {read(of=OF, system=system, after=after).fingerprint() for system in (None, "a") for after in (None, "a", "b")}
    assert len(marks) == 6
    with pytest.raises(BadInput, match="of names no rows; give the data"):
        read()
