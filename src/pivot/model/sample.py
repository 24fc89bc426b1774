"""Replies to prompts in text: greedy, or sampled by a seed. Written as rollouts are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from accelerate.utils import send_to_device

from pivot.data.collate import collate
from pivot.model.rollout import Sampling, draws
from pivot.model.score import Scorer
from pivot.records import BadInput, Example

if TYPE_CHECKING:
    from pivot.model.mllm import MLLM

WINDOW = 16  # batches that are tokenised ahead and sorted by length, so that hardly anything is padded


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
    """One reply per example, in their order: see `replies`."""
    found = replies(mllm, examples, max_new=max_new, batch=batch, temperature=temperature, top_p=top_p, seed=seed)
    return [said for [said] in found]


def replies(
    mllm: MLLM,
    examples: Sequence[Example],
    *,
    k: int = 1,
    max_new: int = 64,
    batch: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[list[str]]:
    """k replies per example, in their order; responses and answers that an example carries are not looked at.

    Temperature 0 is greedy. A sampled reply depends on the seed, on the example's id, on its number among the k, and on how often
    the example came before in this call; on nothing else in it. Replies end at the end of the assistant's turn, after `max_new`
    tokens, or where the prompt beside them fills the LLM's context. `batch` counts examples.
    """
    if temperature < 0 or not 0 < top_p <= 1 or max_new < 1 or k < 1:
        raise BadInput(f"reply: temperature {temperature}, top_p {top_p}, max_new {max_new}, k {k}; need >= 0, in (0, 1], >= 1, >= 1")
    dtype = mllm.model.dtype
    scorer, sampling, before = Scorer(mllm), Sampling(k, temperature, top_p, max_new), Counter[str]()
    texts: list[list[str]] = []
    for first in range(0, len(examples), WINDOW * batch):
        window = examples[first : first + WINDOW * batch]
        rows = [mllm.encode(replace(example, responses=())) for example in window]
        keys = []
        for example in window:
            keys.append(repr((seed, example.id, before[example.id])))
            before[example.id] += 1
        order = sorted(range(len(rows)), key=lambda n: len(rows[n].trunks[0].span))
        said: dict[int, list[list[int]]] = {}
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            given = send_to_device(collate([rows[n] for n in chosen]), mllm.model.device)
            given["images"] = {name: value.to(dtype) if value.is_floating_point() else value for name, value in given["images"].items()}
            uniforms = draws([keys[n] for n in chosen], sampling) if temperature else None
            found = scorer.sample(given, sampling, uniforms, together=False)
            said |= dict(zip(chosen, found.ids, strict=True))
        spoken = partial(mllm.processor.tokenizer.batch_decode, skip_special_tokens=True)
        texts += [spoken(said[n]) for n in range(len(rows))]
    return texts
