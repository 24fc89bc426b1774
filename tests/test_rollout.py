"""Rollouts: what the sampler says of its own tokens is what the scorer says, and what it writes follows from weights and draws."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import picture_of
from torch import Tensor

from pivot.data.collate import collate, encode, join
from pivot.data.turns import formatting
from pivot.model import MLLM, Scorer, cache, rollout
from pivot.model.families import FAMILIES
from pivot.model.flops import flops
from pivot.model.languages import LANGUAGES, ROW_BY_ROW
from pivot.model.rollout import Sampled, Sampling, answered, choose, draws
from pivot.records import BadInput, Example

scoring = importlib.import_module("pivot.model.score")
NAMES = [*(row.name for row in (*LANGUAGES, *ROW_BY_ROW)), *(row.model_type for row in FAMILIES if row.model_type != "llava")]
LEAN = 1.4  # towards the end token: some replies then end by themselves, and some do not
WARM = Sampling(k=3, temperature=0.8, top_p=0.9, max_new=7)
GREEDY = Sampling(k=1, temperature=0.0, max_new=7)
PROMPTS = [
    Example("one", (picture_of(1),), "Is it red?"),
    Example("none", (), "What is 2 + 3? Think well, and only then say it."),
    Example("two", (picture_of(4), picture_of(5, 60)), "Same?"),
]


def lively(name: str = "qwen2", scale: float = 3.0) -> MLLM:
    """A tiny MLLM for which every token it attends to matters, and which ends some of its replies."""
    own = name in [row.model_type for row in FAMILIES]
    mllm = MLLM.tiny(family=name) if own else MLLM.tiny(llm=name)
    with torch.no_grad():
        for parameter in mllm.model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    lean = torch.zeros(mllm.model.lm_head.out_features)
    lean[formatting(mllm.processor).tail[0]] = LEAN * scale
    mllm.model.lm_head.register_forward_hook(lambda _module, _inputs, logits: logits + lean.to(logits.dtype))
    return mllm


@pytest.fixture(scope="module")
def mllm() -> MLLM:
    """Read it, never change it."""
    return lively()


def asked(mllm: MLLM, examples: Sequence[Example]) -> dict[str, Any]:
    return collate([mllm.encode(replace(example, responses=())) for example in examples])


def sampled(mllm: MLLM, examples: Sequence[Example] = PROMPTS, sampling: Sampling = WARM) -> Sampled:
    return Scorer(mllm)(asked(mllm, examples), sampling=sampling, draws=draws([example.id for example in examples], sampling))


def scored(mllm: MLLM, found: Sampled, examples: Sequence[Example] = PROMPTS, backend: str = "shared", temperature: float = 0.8) -> Any:
    rows = [answered(mllm.encode(example), ids) for example, ids in zip(examples, found.ids, strict=True)]
    with torch.no_grad():
        return Scorer(mllm, backend)(collate(rows), temperature=temperature).logps  # type: ignore[arg-type]


def differences(a: Sequence[Sequence[Tensor]], b: Sequence[Sequence[Tensor]]) -> Tensor:
    return torch.cat([(x - y).abs() for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True)])


# ---- log-probabilities


@pytest.mark.parametrize("name", NAMES)
def test_sampled_tokens_have_the_scorers_log_probabilities(name: str) -> None:
    """Of every family, padded beside longer prompts; and alone a prompt gets the same replies."""
    mllm = lively(name)
    found = sampled(mllm)
    assert len({tuple(ids) for example in found.ids for ids in example}) > 4, "replies must differ, or any order would pass"
    for backend in ("shared", "repeat"):
        assert differences(found.logps, scored(mllm, found, backend=backend)).max() < 1e-4
    for number, example in enumerate(PROMPTS):
        alone = sampled(mllm, [example])
        assert (alone.ids[0], alone.finished[0]) == (found.ids[number], found.finished[number])
        assert differences(alone.logps, [found.logps[number]]).max() < 1e-4


def test_at_temperature_one_and_greedily_they_are_those_of_plain_scoring(mllm: MLLM) -> None:
    for sampling in (Sampling(k=2, top_p=0.5, max_new=5), replace(GREEDY, k=2)):
        found = sampled(mllm, sampling=sampling)
        assert differences(found.logps, scored(mllm, found, temperature=1.0)).max() < 1e-4


def test_the_scorer_divides_logits_by_the_temperature(mllm: MLLM, odd: Mapping[str, Example]) -> None:
    row = encode(odd["single"], mllm.processor)
    trunk, branch = row.trunks[0], row.branches[0]
    ids = torch.tensor([trunk.span.ids + branch.ids])
    with torch.no_grad():
        logits = mllm.model(input_ids=ids, **join(trunk.images)).logits[0, len(trunk.span) - 1 : -1]
        expected = (logits / 0.3).log_softmax(-1).gather(1, torch.tensor(branch.ids)[:, None])[:, 0]
        torch.testing.assert_close(Scorer(mllm)(collate([row]), temperature=0.3).logps[0][0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("source", ["tiny", "base"])
def test_in_half_precision_they_stay_close(mllm: MLLM, source: str) -> None:
    model, sampling = mllm if source == "tiny" else MLLM.load("base"), Sampling(k=4, max_new=24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = sampled(model, sampling=sampling)
        assert 0 < differences(found.logps, scored(model, found, temperature=1.0)).mean() <= 0.02
    assert found.logps[0][0].dtype == torch.float32


def one_further(*given: Any) -> rollout.Prompts:
    made = rollout.prompts(*given)
    return replace(made, onward=made.onward + 1)


def padding_is_seen(*given: Any) -> rollout.Prompts:
    made = rollout.prompts(*given)
    return replace(made, real=torch.ones_like(made.real), positions=torch.arange(made.take.shape[1]).expand_as(made.take))


@pytest.mark.parametrize("fault", [one_further, padding_is_seen])
def test_parity_sees_planted_faults(mllm: MLLM, monkeypatch: pytest.MonkeyPatch, fault: Any) -> None:
    monkeypatch.setattr(scoring, "prompts", fault)
    found = sampled(mllm)
    monkeypatch.undo()
    assert differences(found.logps, scored(mllm, found)).max() > 1e-3


# ---- which tokens


def test_greedy_replies_are_those_of_stock_generate(mllm: MLLM) -> None:
    found, end = sampled(mllm, sampling=replace(GREEDY, k=2)), formatting(mllm.processor).tail[0]
    for example, replies in zip(PROMPTS, found.ids, strict=True):
        trunk = mllm.encode(example).trunks[0]
        told = {"input_ids": torch.tensor([trunk.span.ids]), **join(trunk.images)}
        made = mllm.model.generate(**told, max_new_tokens=7, do_sample=False, eos_token_id=end, pad_token_id=end)
        assert replies == [made[0, len(trunk.span) :].tolist()] * 2


def test_a_draw_falls_into_the_share_of_a_token() -> None:
    shares = torch.tensor([0.1, 0.0, 0.4, 0.2, 0.3])
    at = torch.tensor([0.0, 0.0999, 0.1001, 0.4999, 0.5001, 0.6999, 0.7001, 1 - 2**-53], dtype=torch.float64)
    logps = shares.log().expand(len(at), -1)
    assert choose(logps, at).tolist() == [0, 0, 2, 2, 3, 3, 4, 4]
    # 0.4 and 0.3 are the fewest that reach a half, and lie end to end from there on.
    assert choose(logps, at, top_p=0.5).tolist() == [2, 2, 2, 2, 2, 4, 4, 4]
    assert choose(logps, at, top_p=1e-9).tolist() == [2] * len(at)
    assert choose(logps, at, never=2).tolist() == [0, 0, 0, 3, 4, 4, 4, 4]
    assert choose(torch.full((1, 3), torch.nan), at[-1:], top_p=0.5).tolist() == [0]
    assert choose(torch.tensor([[-0.5, -torch.inf]]).expand(2, -1), torch.tensor([0.0, 1.0])).tolist() == [0, 0]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.8), (1.0, 0.6)])
def test_tokens_come_as_often_as_the_distribution_says(mllm: MLLM, temperature: float, top_p: float) -> None:
    """Pearson's statistic of 1500 first tokens, held to its 99.9th percentile: 6 tokens have a chance, so at most 5 degrees."""
    few = torch.full((mllm.model.lm_head.out_features,), -1e4)
    few[torch.tensor([5, 9, 50, 300, 301, 400])] = torch.tensor([0.0, 0.5, 1.0, 1.2, 2.0, -0.4])
    hook = mllm.model.lm_head.register_forward_hook(lambda _module, _inputs, logits: logits * 0 + few)
    found = sampled(mllm, PROMPTS[:1], Sampling(1500, temperature, top_p, 1))
    hook.remove()
    shares = np.exp(few.double().numpy() / temperature)
    shares /= shares.sum()
    order = np.argsort(-shares)
    inside = order[: np.searchsorted(np.cumsum(shares[order]), top_p) + 1]
    exact = {int(token): shares[token] / shares[inside].sum() for token in inside if shares[token] > 1e-6}
    seen = Counter(ids[0] for ids in found.ids[0])
    assert seen.keys() == exact.keys() and len(exact) == (6 if top_p == 1 else 4 if top_p == 0.8 else 2)
    assert sum((seen[token] - 1500 * share) ** 2 / (1500 * share) for token, share in exact.items()) < 20.5


def test_draws_follow_from_key_reply_and_token_alone() -> None:
    wide = draws(["a", "b"], Sampling(k=4, max_new=50))
    assert np.array_equal(draws(["b"], Sampling(k=2, max_new=9))[0], wide[1, :2, :9])
    assert len(np.unique(wide)) == wide.size and wide.min() >= 0 and wide.max() < 1
    assert abs(draws([str(n) for n in range(50)], Sampling(k=4, max_new=50)).mean() - 0.5) < 4 * 12**-0.5 / 100
    assert wide[0, 0, :2].tolist() == [0.9576215994304631, 0.5303142588429915], "they must be the same on every machine"


def test_replies_end_with_the_end_token_or_where_there_is_no_room(mllm: MLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    end = formatting(mllm.processor).tail[0]
    lengths = [len(mllm.encode(example).trunks[0].span) for example in PROMPTS]
    longest = max(lengths)
    wide, rooms = sampled(mllm), [min(7, longest + 2 - length) for length in lengths]
    monkeypatch.setattr(mllm.model.config.get_text_config(), "max_position_embeddings", longest + 2)
    for found, most in ((wide, [7] * 3), (sampled(mllm), rooms)):
        flat = [(*reply, room) for *example, room in zip(*found, most, strict=True) for reply in zip(*example, strict=True)]
        assert 0 < sum(done for *_, done, _ in flat) < len(flat), "some must end early and some must not"
        for ids, logps, done, room in flat:
            assert (ids[-1] == end) == done and end not in ids[:-1] and len(logps) == len(ids)
            assert len(ids) == room if not done else len(ids) <= room
    cut = [[ids[:room] for ids in example] for example, room in zip(wide.ids, rooms, strict=True)]
    assert sampled(mllm).ids == cut != wide.ids
    monkeypatch.setattr(mllm.model.config.get_text_config(), "max_position_embeddings", longest)
    with pytest.raises(BadInput, match=f"row .*: a prompt has {longest} tokens and the LLM was made for {longest}"):
        sampled(mllm)


def test_a_row_may_be_no_longer_than_it_is_told(mllm: MLLM) -> None:
    lengths = [len(mllm.encode(example).trunks[0].span) for example in PROMPTS]
    longest = max(lengths)
    told = sampled(mllm, sampling=replace(WARM, longest=longest + 2)).ids
    assert (
        told
        == [[ids[: longest + 2 - length] for ids in example] for example, length in zip(sampled(mllm).ids, lengths, strict=True)]
        != sampled(mllm).ids
    )
    with pytest.raises(BadInput, match=f"row .*: a prompt has {longest} tokens and limit leaves a row {longest}, so none"):
        sampled(mllm, sampling=replace(WARM, longest=longest))


@pytest.mark.parametrize("stops", [int, list])
def test_a_reply_ends_at_the_first_of_all_stop_tokens(mllm: MLLM, monkeypatch: pytest.MonkeyPatch, stops: Any) -> None:
    before, end = sampled(mllm), formatting(mllm.processor).tail[0]
    ordinary = before.ids[0][0][0]
    assert ordinary != end
    monkeypatch.setattr(mllm.model.generation_config, "eos_token_id", ordinary if stops is int else [end, ordinary])
    found = sampled(mllm)
    for old, new, finished in zip(before.ids, found.ids, found.finished, strict=True):
        for was, ids, done in zip(old, new, finished, strict=True):
            at = next((place for place, token in enumerate(was) if token in (end, ordinary)), len(was) - 1)
            assert ids == was[: at + 1] and done == (ids[-1] in (end, ordinary))
    assert found.ids[0][0] == [ordinary] and found.finished[0][0]


def test_the_tokenizers_own_end_ends_a_reply(mllm: MLLM) -> None:
    (ordinary, *_), end, tokenizer = sampled(mllm).ids[0][0], formatting(mllm.processor).tail[0], mllm.processor.tokenizer
    before = tokenizer.eos_token
    try:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ordinary)
        assert tokenizer.eos_token_id == ordinary != end == formatting(mllm.processor).tail[0]
        assert sampled(mllm).ids[0][0] == [ordinary]
    finally:
        tokenizer.eos_token = before


def test_the_placeholder_of_pictures_is_never_written(mllm: MLLM) -> None:
    wanted = torch.zeros(mllm.model.lm_head.out_features)
    wanted[mllm.model.config.image_token_id] = 100.0
    hook = mllm.model.lm_head.register_forward_hook(lambda _module, _inputs, logits: logits + wanted)
    for sampling in (WARM, GREEDY):
        assert all(mllm.model.config.image_token_id not in ids for example in sampled(mllm, sampling=sampling).ids for ids in example)
    hook.remove()


def test_replies_become_the_rows_that_data_would_give(mllm: MLLM, odd: Mapping[str, Example]) -> None:
    whole = mllm.encode(odd["group"])
    made = answered(mllm.encode(replace(odd["group"], responses=())), [branch.ids for branch in whole.branches])
    assert (made.branches, made.trunks[0].responses, made.trunks[0].span) == (whole.branches, (0, 1, 2, 3), whole.trunks[0].span)


# ---- what is computed


def test_a_trunk_is_prefilled_once_and_rows_that_ended_are_left_out(mllm: MLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: dict[str, list[tuple[int, ...]]] = {"tower": [], "llm": [], "head": []}
    parts = {"tower": mllm.model.model.vision_tower, "llm": mllm.model.model.language_model, "head": mllm.model.lm_head}

    def note(name: str) -> Any:
        return lambda _module, args, kwargs: shapes[name].append(tuple((args or [kwargs["inputs_embeds"]])[0].shape[:-1]))

    hooks = [part.register_forward_pre_hook(note(name), with_kwargs=True) for name, part in parts.items()]
    sampling = replace(WARM, max_new=20)
    found = sampled(mllm, sampling=sampling)
    for hook in hooks:
        hook.remove()
    width = max(len(mllm.encode(example).trunks[0].span) for example in PROMPTS)
    assert len(shapes["tower"]) == 1 and shapes["llm"][0] == (3, width)
    rows = [shape[0] for shape in shapes["llm"][1:]]
    assert all(shape[1] == 1 for shape in shapes["llm"][1:]) and rows == sorted(rows, reverse=True)
    assert rows[0] > rows[-1], "some must have been left out"
    assert shapes["head"] == [(3,), *((count,) for count in rows)]
    assert len(shapes["head"]) == max(len(ids) for example in found.ids for ids in example)
    monkeypatch.setattr(rollout, "CROWDED", 0.0)
    assert sampled(mllm, sampling=sampling).ids == found.ids
    monkeypatch.setattr(cache, "AHEAD", 3)  # then it is copied several times
    assert sampled(mllm, sampling=sampling).ids == found.ids


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable")
def test_modes_and_gradients_are_left_alone(mllm: MLLM) -> None:
    expected = sampled(mllm)
    trained = lively()
    trained.model.train()
    trained.model.model.vision_tower.eval()
    trained.model.gradient_checkpointing_enable({"use_reentrant": False})
    found = sampled(trained)
    assert found.ids == expected.ids and not found.logps[0][0].requires_grad
    assert trained.model.training and trained.model.lm_head.training and not trained.model.model.vision_tower.training


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A launch in which another process writes eleven tokens."""
    told: list[int] = []

    def all_reduce(flag: Tensor, _op: Any) -> None:
        told.append(int(flag))
        flag.fill_(max(int(flag), len(told) < 11))

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    yield told


def test_every_process_takes_as_many_steps_as_the_longest(mllm: MLLM, others: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    hook = mllm.model.lm_head.register_forward_pre_hook(lambda _module, args: steps.append(len(args[0])))
    sampling = replace(WARM, max_new=12, temperature=1e-3)
    monkeypatch.setattr(mllm.model.config.get_text_config(), "max_position_embeddings", len(mllm.encode(PROMPTS[0]).trunks[0].span) + 4)
    found = sampled(mllm, PROMPTS[:1], sampling)
    hook.remove()
    assert others[-1] == 0 and len(others) == len(steps) == 11 and steps[-1] == 1
    monkeypatch.undo()
    assert max(map(len, found.ids[0])) <= 4 and found.ids[0] == [ids[:4] for ids in sampled(mllm, PROMPTS[:1], sampling).ids[0]]


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[tuple[Any, Any]]:
    """benchmarks/score.py and benchmarks/rollout.py."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    try:
        yield importlib.import_module("score"), importlib.import_module("rollout")
    finally:
        del sys.path[0], sys.modules["score"], sys.modules["rollout"]


def test_scoring_eight_replies_to_a_shared_trunk_costs_under_half(benchmarks: tuple[Any, Any]) -> None:
    """Of 120 tokens to 196 of a picture and 60 of a prompt, in Qwen2.5-1.5B with SigLIP2-So. Smaller LLMs gain less: their attention,
    which is as wide as the whole row is long, weighs more beside their weights. The formula is what torch counts, on a smaller one."""
    score, rollouts = benchmarks
    shape: Any = ([(14, 14)], rollouts.IMAGE + rollouts.PROMPT, [rollouts.STEP.max_new] * rollouts.STEP.k)
    assert shape[1:] == (256, [120] * 8)
    true = score.build("true", "meta", torch.float32, rollouts.PIXELS).model.config
    assert flops(true, *shape, "shared") <= 0.45 * flops(true, *shape, "repeat")
    small = score.build("tiny", "meta", torch.float32, rollouts.PIXELS).model.config
    assert rollouts.counted("tiny", "shared", score.build) == flops(small, *shape, "shared")


@pytest.mark.slow
def test_the_benchmarks_step_runs(benchmarks: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    score, rollouts = benchmarks
    monkeypatch.setattr(rollouts, "STEP", Sampling(k=2, max_new=3))
    mllm = score.build("tiny", "cpu", torch.float32, rollouts.PIXELS)
    scorer = Scorer(mllm)
    rows = rollouts.generate(scorer, [rollouts.prompt(mllm, number) for number in range(2)])
    assert [[len(branch) for branch in row.branches] for row in rows] == [[3, 3]] * 2
    rollouts.learn(scorer, rows)
    assert mllm.model.model.multi_modal_projector.linear_1.weight.grad.abs().max() > 0


# ---- what cannot be asked


def test_what_cannot_be_sampled_is_refused(mllm: MLLM, odd: Mapping[str, Example]) -> None:
    with pytest.raises(BadInput, match="pictures of its own"):
        Scorer(mllm)(collate([mllm.encode(odd["own image"])]), sampling=GREEDY)
    with pytest.raises(BadInput, match="needs draws"):
        Scorer(mllm)(asked(mllm, PROMPTS), sampling=WARM)
