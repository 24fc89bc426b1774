"""Template plain: a picture, its caption and a newline, to the token; whatever depends on how rows are laid out knows of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_template import blank_tokenizer, byte_tokenizer, processor
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from training import SFT, curve, fresh, run
from transformers import PreTrainedTokenizerFast

from pivot.data.collate import Row, encode
from pivot.data.speech import Span
from pivot.model import MLLM
from pivot.records import BadInput, Example, Response
from pivot.train import Settings
from pivot.train.launch import processes
from pivot.train.reference import identity

CAPTION, PATCHES = "A red ring.", 36


@pytest.fixture
def shown(picture: Any) -> Example:
    return Example("shown", (picture(1),), "Describe it briefly.\n<image>", (Response(CAPTION),))


def qwen_like(*special: str, adds_begin: bool = False) -> PreTrainedTokenizerFast:
    """No begin token, and as in Qwen's vocabulary one token for a full stop and the newline behind it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate([*letters, ".Ċ"])}, merges=[(".", "Ċ")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    names = ["<|im_start|>", "<|im_end|>", "<image>"]
    made.add_special_tokens(["<|endoftext|>", *names])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=names)


def ids(made: Any, text: str) -> list[int]:
    """What its tokenizer alone makes of some text, nothing put in front."""
    return made.tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("mask", ["clean", "llava_next"])
def test_a_qwen_row_is_the_picture_the_caption_and_a_newline(mask: Any, shown: Example) -> None:
    made = processor("", kind=qwen_like)
    row = encode(shown, made, mask, template="plain")
    image, end = made.image_token_id, made.tokenizer.convert_tokens_to_ids(".Ċ")
    assert row.trunks[0].span == Span([image] * PATCHES, [False] * PATCHES)
    assert row.branches[0] == Span([*ids(made, CAPTION[:-1]), end], [True] * len(CAPTION))
    assert row.trunks[0].places == (0,) and row.image_tokens == PATCHES


@pytest.mark.parametrize("mask", ["clean", "llava_next"])
def test_a_llama_row_begins_as_its_tokenizer_begins_texts(mask: Any, shown: Example) -> None:
    """The label mask is not asked about ChatML, which this tokenizer does not know."""
    made = processor("llama2", kind=blank_tokenizer, adds_begin=True)
    row = encode(shown, made, mask, template="plain")
    begin, newline = made.tokenizer.bos_token_id, made.tokenizer.convert_tokens_to_ids("\n")
    assert row.trunks[0].span == Span([begin, *[made.image_token_id] * PATCHES], [False] * (PATCHES + 1))
    assert row.branches[0].ids == ids(made, f"{CAPTION}\n") and row.branches[0].ids[-1] == newline
    assert all(row.branches[0].supervised) and len(row.branches[0].ids) == len("▁" + CAPTION) + 1


def test_several_pictures_stand_one_behind_the_other(picture: Any) -> None:
    made = processor("zephyr", kind=byte_tokenizer)
    row = encode(Example("two", (picture(1), picture(2)), "Which?", (Response("Both."),)), made, template="plain")
    assert row.trunks[0].span.ids == [made.tokenizer.bos_token_id, *[made.image_token_id] * 2 * PATCHES]
    assert row.trunks[0].places == (1, 1 + PATCHES)


def test_control_tokens_in_a_caption_are_text(shown: Example, picture: Any) -> None:
    made = processor("", kind=qwen_like)
    said: Row = encode(Example("forged", (picture(1),), "", (Response("<image> <|im_end|>"),)), made, template="plain")
    assert not {made.image_token_id, made.tokenizer.eos_token_id} & set(said.branches[0].ids)


TURNS = ({"role": "assistant", "content": "Red."}, {"role": "user", "content": "And?"}, {"role": "assistant", "content": "Two."})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": ()}, "row shown: template plain shows a picture and its caption, and this row has no picture"),
        ({"responses": (Response(TURNS),)}, "row shown, response 0: template plain takes one caption and no turns"),
        ({"responses": (Response(" \n"),)}, "row shown, response 0: it has no tokens"),
    ],
)
def test_what_is_no_caption_of_a_picture_is_refused(changes: dict[str, Any], message: str, shown: Example) -> None:
    with pytest.raises(BadInput, match=message):
        encode(replace(shown, **changes), processor("", kind=qwen_like), template="plain")


def test_the_limit_holds(shown: Example) -> None:
    made = processor("", kind=qwen_like)
    length = PATCHES + len(CAPTION)
    assert encode(shown, made, limit=length, template="plain").length == length
    with pytest.raises(BadInput, match=f"{length} tokens, of which {PATCHES} image and {len(CAPTION)} response; the limit is {length - 1}"):
        encode(shown, made, limit=length - 1, template="plain")


def test_training_reads_plain_rows_and_hands_on_the_chat_template(shared_mllm: MLLM, shown: Example, tmp_path: Path) -> None:
    """The first loss is the stock model's over caption and newline, and the processor that is saved still knows how to chat."""
    made: Any = shared_mllm.processor
    placeholders, caption = [made.image_token_id] * PATCHES, ids(made, f"{CAPTION}\n")
    pixels = made.image_processor(images=[shown.images[0]], return_tensors="pt")["pixel_values"]
    labels = torch.tensor([[-100] * PATCHES + caption])
    with torch.no_grad():
        loss = shared_mllm.model(input_ids=torch.tensor([placeholders + caption]), pixel_values=pixels, labels=labels).loss
    run(fresh(shared_mllm), SFT(), [shown], tmp_path, template="plain", batch=1, model=True)
    assert curve(tmp_path)[0] == pytest.approx(float(loss), rel=1e-5)
    assert MLLM.load(tmp_path / "model").processor.chat_template == made.chat_template  # type: ignore[attr-defined]


def test_what_is_computed_under_one_template_is_not_taken_for_the_other(shared_mllm: MLLM, shown: Example, tmp_path: Path) -> None:
    device = processes().device
    kinds = [identity(shared_mllm, Settings(template=template), device) for template in ("chat", "plain")]  # type: ignore[arg-type]
    assert [key for key in kinds[0] if kinds[0][key] != kinds[1][key]] == ["template"]
    run(fresh(shared_mllm), SFT(), [shown] * 4, tmp_path, save_every=1)
    with pytest.raises(BadInput, match=r"another training \(changed: .*settings\.template"):
        run(fresh(shared_mllm), SFT(), [shown] * 4, tmp_path, template="plain", epochs=2)
