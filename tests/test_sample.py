"""Replies: equal to decoding by hand without a cache, whatever else is in the call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from PIL.Image import Image

from pivot.data.collate import encode, join
from pivot.data.turns import formatting
from pivot.model import MLLM
from pivot.model.sample import reply
from pivot.records import BadInput, Example

NEW = 8
LEAN = 1.6  # towards the end token: some replies then end before NEW tokens, and some do not


@pytest.fixture(scope="module")
def talker() -> MLLM:
    """A tiny MLLM that says different things about different pictures, and ends its turns sooner or later."""
    mllm = MLLM.tiny(seed=1)
    with torch.no_grad():
        for parameter in mllm.model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    lean = torch.zeros(mllm.model.lm_head.out_features)
    lean[formatting(mllm.processor).tail[0]] = LEAN
    mllm.model.lm_head.register_forward_hook(lambda _module, _inputs, logits: logits + lean)
    return mllm


def by_hand(mllm: MLLM, example: Example, new: int = NEW) -> tuple[str, bool]:
    """Greedy by one full forward pass a token; and whether it ended the turn itself."""
    trunk = encode(replace(example, responses=()), mllm.processor).trunks[0]
    ids, end = list(trunk.span.ids), formatting(mllm.processor).tail[0]
    with torch.no_grad():
        for _ in range(new):
            logits = mllm.model(input_ids=torch.tensor([ids]), use_cache=False, **join(trunk.images)).logits[0, -1]
            ids.append(int(logits.argmax()))
            if ids[-1] == end:
                break
    said = ids[len(trunk.span.ids) :]
    return mllm.processor.tokenizer.decode(said, skip_special_tokens=True), said[-1] == end


@pytest.fixture(scope="module")
def prompts(odd: Mapping[str, Example], picture: Callable[..., Image]) -> list[Example]:
    """Every shape of prompt, and different lengths of it."""
    return [*odd.values(), *(Example(f"p{n}", (picture(20 + n),), "Why" + " so" * n + "?") for n in range(6))]


def test_greedy_equals_decoding_without_a_cache(talker: MLLM, prompts: list[Example]) -> None:
    expected = [by_hand(talker, example) for example in prompts]
    texts = [text for text, _ in expected]
    assert len(set(texts)) > len(texts) // 2, "replies must differ, or any order would pass"
    assert 0 < sum(ended for _, ended in expected) < len(expected), "some must end early and some must not"
    assert reply(talker, prompts, max_new=NEW, batch=5) == texts
    assert reply(talker, prompts, max_new=NEW, batch=64) == texts


def test_questions_without_pictures_are_answered_alone_and_among_others(talker: MLLM, prompts: list[Example]) -> None:
    bare = [replace(example, id=f"bare-{n}", images=()) for n, example in enumerate(prompts[:2])]
    expected = [by_hand(talker, example)[0] for example in [*bare, prompts[2]]]
    assert reply(talker, bare, max_new=NEW) == expected[:2]
    assert reply(talker, [*bare, prompts[2]], max_new=NEW) == expected


def test_nothing_is_computed_after_the_last_reply_has_ended(talker: MLLM, prompts: list[Example]) -> None:
    steps: list[int] = []
    end = torch.zeros(talker.model.lm_head.out_features)
    end[formatting(talker.processor).tail[0]] = 1e4

    def third_time_ends(_module: torch.nn.Module, _inputs: tuple, logits: torch.Tensor) -> torch.Tensor:
        steps.append(1)
        return logits + end if len(steps) == 3 else logits

    hook = talker.model.lm_head.register_forward_hook(third_time_ends)
    found = reply(talker, prompts, max_new=1000)
    hook.remove()
    assert len(steps) == 3
    assert not any("<|im_end|>" in text for text in found)


def test_a_checkpoints_own_sampling_defaults_have_no_say(talker: MLLM, prompts: list[Example]) -> None:
    expected, kept = reply(talker, prompts, max_new=NEW), talker.model.generation_config
    talker.model.generation_config = type(kept)(repetition_penalty=5.0, do_sample=True, temperature=9.0, eos_token_id=kept.eos_token_id)
    try:
        assert reply(talker, prompts, max_new=NEW) == expected
        assert talker.model.generation_config.repetition_penalty == 5.0
    finally:
        talker.model.generation_config = kept


def test_sampling_goes_by_its_seed_and_leaves_the_callers_alone(talker: MLLM, prompts: list[Example]) -> None:
    state = torch.random.get_rng_state()
    first, again, other = (reply(talker, prompts, max_new=NEW, temperature=1.0, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(torch.random.get_rng_state(), state)
    # Its id and its number among those of that id decide a reply, and not what else is in the call.
    doubled = reply(talker, [prompts[3], *prompts[:2], prompts[3]], max_new=NEW, batch=2, temperature=1.0, seed=1)
    assert doubled[:3] == [first[3], *first[:2]] and doubled[3] != doubled[0]
    # A vanishing nucleus and a vanishing temperature both leave the likeliest token alone.
    greedy = reply(talker, prompts, max_new=NEW)
    assert reply(talker, prompts, max_new=NEW, temperature=1.0, top_p=1e-6) == greedy
    assert reply(talker, prompts, max_new=NEW, temperature=1e-4) == greedy


def test_mode_is_kept_and_nothing_is_recorded_for_gradients(talker: MLLM, prompts: list[Example]) -> None:
    talker.model.train()
    reply(talker, prompts[:1], max_new=2)
    assert talker.model.training
    talker.model.eval()


def test_a_reply_ends_where_the_llms_context_does(talker: MLLM, prompts: list[Example], monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tokens are asked for: positions beyond those that the LLM was made for mean nothing."""
    asked = prompts[-1:]
    length = len(talker.encode(replace(asked[0], responses=())).trunks[0].span)
    monkeypatch.setattr(talker.model.config.get_text_config(), "max_position_embeddings", length + 3)
    assert reply(talker, asked, max_new=100_000) == [by_hand(talker, asked[0], 3)[0]]
    monkeypatch.setattr(talker.model.config.get_text_config(), "max_position_embeddings", length)
    with pytest.raises(BadInput, match=f"a prompt has {length} tokens and the LLM was made for {length}"):
        reply(talker, asked, max_new=1)


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_p": 0.0}, {"max_new": 0}])
def test_wrong_knobs(talker: MLLM, prompts: list[Example], wrong: dict[str, float]) -> None:
    with pytest.raises(BadInput, match="reply"):
        reply(talker, prompts, **wrong)  # type: ignore[arg-type]
