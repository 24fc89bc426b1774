"""Replies to prompts: greedy or sampled, by the stock model's own `generate` with its key-value cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from pivot.data.collate import Row, join
from pivot.data.turns import formatting
from pivot.model.families import context
from pivot.records import BadInput, Example

if TYPE_CHECKING:
    from pivot.model.mllm import MLLM

WINDOW = 16  # batches that are tokenised ahead and sorted by length, so that hardly anything is padded


@torch.no_grad()
def reply(
    mllm: MLLM,
    examples: Sequence[Example],
    *,
    max_new: int = 64,
    batch: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[str]:
    """One reply per example, in their order; responses and answers that an example carries are not looked at.

    Temperature 0 is greedy. A sampled reply depends on the seed and on what else is in the call. Replies end at the end of the
    assistant's turn, after `max_new` tokens, or where the longest prompt beside them fills the LLM's context.
    """
    if temperature < 0 or not 0 < top_p <= 1 or max_new < 1:
        raise BadInput(f"reply: temperature {temperature}, top_p {top_p}, max_new {max_new}; need >= 0, in (0, 1], >= 1")
    device, training = mllm.model.device, mllm.model.training
    replies: list[str] = []
    mllm.model.eval()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            for first in range(0, len(examples), WINDOW * batch):
                rows = [mllm.encode(replace(e, responses=())) for e in examples[first : first + WINDOW * batch]]
                order = sorted(range(len(rows)), key=lambda n: len(rows[n].trunks[0].span))
                said: dict[int, str] = {}
                for start in range(0, len(order), batch):
                    chosen = order[start : start + batch]
                    said |= zip(chosen, _generate(mllm, [rows[n] for n in chosen], max_new, temperature, top_p), strict=True)
                replies += [said[n] for n in range(len(rows))]
    finally:
        mllm.model.train(training)
    return replies


def _generate(mllm: MLLM, rows: Sequence[Row], max_new: int, temperature: float, top_p: float) -> list[str]:
    model: Any = mllm.model
    tokenizer, end = mllm.processor.tokenizer, formatting(mllm.processor).tail[0]
    prompts = [row.trunks[0].span.ids for row in rows]
    width = max(map(len, prompts))
    longest = context(model.config)
    if longest is not None and width >= longest:
        raise BadInput(f"reply: a prompt has {width} tokens and the LLM was made for {longest}, so none is left to answer; shorten it")
    room = max_new if longest is None else min(max_new, longest - width)
    pad = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])  # left: all replies begin side by side
    seen = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    images = join([image for row in rows for image in row.trunks[0].images])
    told = mllm.family.asked(images, ids == model.config.image_token_id) if images else {}
    sampling: dict[str, Any] = (
        {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0} if temperature else {"do_sample": False}
    )
    how = GenerationConfig(max_new_tokens=room, eos_token_id=end, pad_token_id=pad, **sampling)
    # In place of the checkpoint's own, from which `generate` would fill in what is left open: a repetition penalty, for one.
    kept, model.generation_config = model.generation_config, how
    try:
        made = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=seen.to(model.device),
            **{name: value.to(model.device, model.dtype if value.is_floating_point() else None) for name, value in told.items()},
        )
    finally:
        model.generation_config = kept
    return tokenizer.batch_decode(made[:, width:], skip_special_tokens=True)
