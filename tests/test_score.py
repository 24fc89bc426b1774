"""The scorer: `shared` against `repeat`, and both against a loop over plain calls of the stock model."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pivot.data.collate import collate, encode, join
from pivot.model import MLLM, Scorer, score
from pivot.model import branches as branches_module
from pivot.model.languages import LANGUAGES
from pivot.records import BadInput, Example, Response

scoring = importlib.import_module("pivot.model.score")  # by name: as an attribute of the package, `score` is the function
Groups = dict[str, Tensor]


def lively(encoder: str = "siglip", llm: str = "qwen2", dtype: str = "float64") -> MLLM:
    """A tiny MLLM whose weights are large enough that every token it attends to matters for what it says."""
    mllm = MLLM.tiny(encoder, llm).to(dtype=dtype)
    with torch.no_grad():
        for parameter in mllm.model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return mllm


def step(mllm: MLLM, examples: Sequence[Example], backend: str, **options: Any) -> tuple[Tensor, Groups]:
    """A loss in which every response weighs differently, and its gradients by parameter."""
    mllm.model.zero_grad()
    return measured(mllm, score(mllm, examples, backend, grad=True, **options))


def measured(mllm: MLLM, logps: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Groups]:
    flat = [response.sum() for example in logps for response in example]
    loss = sum((weight + 1) * value / len(flat) for weight, value in enumerate(flat))
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in mllm.model.named_parameters() if p.grad is not None}


def distance(mllm: MLLM, a: tuple[Tensor, Groups], b: tuple[Tensor, Groups]) -> float:
    """Largest relative difference of loss and gradients. Gradients are compared against the largest of their part: those of
    attention key biases are zero by theory, so that entry by entry one would compare noise with noise."""
    assert a[1].keys() == b[1].keys()
    found = [abs((a[0] - b[0]) / b[0]).item()]
    prefixes = {"tower": "model.vision_tower", "projector": "model.multi_modal_projector", "llm": "model.language_model"}
    for part, prefix in prefixes.items():
        names = [name for name in a[1] if name.startswith(prefix)]
        largest = max(b[1][name].abs().max() for name in names)
        assert largest > 0, f"{part} has no gradient: the comparison would be empty"
        found.append(max(((a[1][name] - b[1][name]).abs().max() / largest).item() for name in names))
    return max(found)


@contextmanager
def exact_norms(mllm: MLLM) -> Iterator[None]:
    """RMSNorm in the dtype of its input: transformers computes it in fp32, a floor of 1e-8 under every fp64 comparison."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    norms = {type(module) for module in mllm.model.modules() if type(module).__name__.endswith("RMSNorm")}
    kept = {norm: norm.forward for norm in norms}
    assert norms
    for norm in norms:
        norm.forward = forward
    try:
        yield
    finally:
        for norm, old in kept.items():
            norm.forward = old


def naive(mllm: MLLM, example: Example, number: int) -> Tensor:
    """One response's log-probabilities by one call of the stock model: no batch, no padding, no mask, no code of the scorer."""
    row = encode(replace(example, responses=(example.responses[number],)), mllm.processor)
    trunk, branch = row.trunks[0], row.branches[0]
    ids = torch.tensor([trunk.span.ids + branch.ids])
    logits = mllm.model(input_ids=ids, **join(trunk.images)).logits[0, :-1]
    logps = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return logps[[len(trunk.span) + at - 1 for at, supervised in enumerate(branch.supervised) if supervised]]


@pytest.mark.parametrize("backend", ["shared", "repeat"])
def test_every_shape_equals_plain_calls(odd: Mapping[str, Example], backend: str) -> None:
    """Values and gradients: here the two backends do not vouch for one another."""
    mllm, examples = lively(), list(odd.values())
    with exact_norms(mllm):
        expected = [[naive(mllm, example, n) for n in range(len(example.responses))] for example in examples]
        for example, found, wanted in zip(examples, score(mllm, examples, backend), expected, strict=True):
            torch.testing.assert_close(found, [one.detach() for one in wanted], msg=lambda m, example=example: f"{example.id}: {m}")
        by_hand = measured(mllm, expected)
        assert distance(mllm, step(mllm, examples, backend), by_hand) <= 1e-12


@pytest.mark.parametrize(
    ("encoder", "llm", "dtype", "exact", "limit"),
    [
        ("siglip", "qwen2", "float64", False, 1e-7),
        ("siglip", "qwen2", "float64", True, 1e-12),
        ("siglip", "qwen2", "float32", False, 1e-4),
        ("clip", "llama", "float64", True, 1e-12),
        ("vit", "llama", "float32", False, 1e-4),
        ("dinov2", "qwen2", "float64", False, 1e-7),
        *[("siglip", row.model_type, "float64", False, 1e-7) for row in LANGUAGES],
    ],
)
def test_shared_equals_repeat(odd: Mapping[str, Example], encoder: str, llm: str, dtype: str, exact: bool, limit: float) -> None:
    mllm, examples = lively(encoder, llm, dtype), list(odd.values())
    with exact_norms(mllm) if exact else nullcontext():
        assert distance(mllm, step(mllm, examples, "shared"), step(mllm, examples, "repeat")) <= limit


@pytest.mark.parametrize("name", ["single", "pair", "group", "text only", "two images", "turns", "chat prompt", "own image"])
def test_each_shape_alone_is_at_parity(odd: Mapping[str, Example], name: str) -> None:
    mllm, examples = lively(), [odd[name]]
    if name == "text only":  # then the tower's gradient is zero, and there is nothing to divide by
        examples.append(odd["pair"])
    with exact_norms(mllm):
        assert distance(mllm, step(mllm, examples, "shared"), step(mllm, examples, "repeat")) <= 1e-12


def test_llava_next_counts_the_trunk_in_every_branch(odd: Mapping[str, Example]) -> None:
    mllm, examples = lively(), list(odd.values())
    with exact_norms(mllm):
        both = [step(mllm, examples, backend, label_mask="llava_next") for backend in ("shared", "repeat")]
        assert distance(mllm, *both) <= 1e-12


def test_eager_attention_is_at_parity(odd: Mapping[str, Example]) -> None:
    mllm, examples = lively(), list(odd.values())
    mllm.model.set_attn_implementation("eager")
    with exact_norms(mllm):
        # eager's softmax is fp32 in any model
        assert distance(mllm, step(mllm, examples, "shared"), step(mllm, examples, "repeat")) <= 1e-6


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable")
def test_activation_checkpointing_changes_nothing(odd: Mapping[str, Example]) -> None:
    mllm, examples = lively(), [odd["pair"], odd["text only"]]
    mllm.model.train()
    plain = step(mllm, examples, "shared")
    mllm.model.gradient_checkpointing_enable({"use_reentrant": False})
    assert distance(mllm, step(mllm, examples, "shared"), plain) <= 1e-13


# ---- planted faults: each must be seen by the comparison above


def without_separation(segment: Tensor) -> Tensor:
    past = torch.ones(segment.shape[1], segment.shape[1], dtype=torch.bool).tril()
    return past.expand(len(segment), 1, -1, -1)


def from_its_neighbour(layout: Any, backend: str, counted: Any) -> Any:
    placement = branches_module.place(layout, backend, counted)
    second = placement.segment.flatten() == 2
    start = int(second.nonzero()[0, 0])
    read = placement.read.clone()
    read[placement.counts[0][0]] = start - 1
    return replace(placement, read=read)


def running_on(layout: Any, backend: str, counted: Any) -> Any:
    placement = branches_module.place(layout, backend, counted)
    return replace(placement, positions=torch.arange(placement.take.shape[1]).expand_as(placement.take))


@pytest.mark.parametrize(("name", "fault"), [("branch_mask", without_separation), ("place", from_its_neighbour), ("place", running_on)])
def test_parity_sees_planted_faults(
    odd: Mapping[str, Example], monkeypatch: pytest.MonkeyPatch, name: str, fault: Callable[..., Any]
) -> None:
    mllm, examples = lively(), [odd["pair"]]
    right = step(mllm, examples, "repeat")
    assert distance(mllm, step(mllm, examples, "shared"), right) < 1e-6
    monkeypatch.setattr(scoring, name, fault)
    assert distance(mllm, step(mllm, examples, "shared"), right) > 1e-3


# ---- the module's own promises


def test_hidden_states_predict_the_tokens(odd: Mapping[str, Example]) -> None:
    mllm, examples = lively(), list(odd.values())
    shared, repeat = (score(mllm, examples, backend, hidden=True) for backend in ("shared", "repeat"))
    for example, logps, hidden, again in zip(examples, shared.logps, shared.hidden, repeat.hidden, strict=True):
        for n, (values, states, other) in enumerate(zip(logps, hidden, again, strict=True)):
            assert states.shape == (len(values) + 1, mllm.model.config.text_config.hidden_size)
            torch.testing.assert_close(states, other, rtol=1e-6, atol=1e-6)
            branch = encode(example, mllm.processor).branches[n]
            ids = torch.tensor(branch.ids)[torch.tensor(branch.supervised)]
            predicted = mllm.model.lm_head(states[:-1]).log_softmax(-1).gather(1, ids[:, None])[:, 0]
            torch.testing.assert_close(predicted, values)


def test_one_response_takes_the_plain_causal_path(odd: Mapping[str, Example], monkeypatch: pytest.MonkeyPatch) -> None:
    mllm = lively()
    monkeypatch.setattr(scoring, "branch_mask", lambda segment: pytest.fail("a mask was built"))
    seen: list[Any] = []
    hook = mllm.model.model.language_model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    score(mllm, [odd["single"], replace(odd["pair"], responses=odd["pair"].responses[:1])])
    hook.remove()
    assert [kwargs.get("attention_mask") for kwargs in seen] == [None]


def test_only_response_positions_go_through_the_head(odd: Mapping[str, Example]) -> None:
    mllm, seen = lively(), []
    mllm.model.lm_head.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    logps = score(mllm, [odd["group"]])
    assert seen == [sum(map(len, logps[0]))]


def test_the_tower_runs_once_per_image_in_shared_and_once_per_response_in_repeat(odd: Mapping[str, Example]) -> None:
    mllm, seen = lively(), []
    mllm.model.model.vision_tower.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    for backend in ("shared", "repeat"):
        score(mllm, [odd["group"], odd["two images"], odd["own image"], odd["text only"]], backend)
    assert seen == [1 + 2 + 2, 4 + 4 + 3]


def test_a_batch_without_images_gives_the_tower_zero_gradients(odd: Mapping[str, Example]) -> None:
    mllm = lively()
    _, gradients = step(mllm, [odd["text only"]], "shared")
    tower = [value for name, value in gradients.items() if name.startswith("model.multi_modal_projector")]
    assert tower and all((value == 0).all() for value in tower)
    assert "model.vision_tower.embeddings.patch_embedding.weight" in gradients
    with torch.no_grad():
        expected = naive(mllm, odd["text only"], 0)
    torch.testing.assert_close(score(mllm, [odd["text only"]])[0][0], expected, rtol=1e-6, atol=1e-6)


def test_scores_do_not_depend_on_the_company(odd: Mapping[str, Example]) -> None:
    mllm, examples = lively(), list(odd.values())
    together, alone = score(mllm, examples, batch=len(examples)), [score(mllm, [example])[0] for example in examples]
    for a, b in zip(together, alone, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)


def test_autocast_stays_close(odd: Mapping[str, Example]) -> None:
    mllm, examples = lively(dtype="float32"), list(odd.values())
    plain = score(mllm, examples)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = score(mllm, examples)
    for a, b in zip(plain, cast, strict=True):
        torch.testing.assert_close(b, a, rtol=0.05, atol=0.05)
        assert all(one.dtype == torch.float32 for one in b)


def test_log_probabilities_are_full_precision(odd: Mapping[str, Example]) -> None:
    assert score(MLLM.tiny().to(dtype="bfloat16"), [odd["pair"]])[0][0].dtype == torch.float32
    assert score(MLLM.tiny().to(dtype="float64"), [odd["pair"]])[0][0].dtype == torch.float64


def test_batches_survive_what_moves_them(odd: Mapping[str, Example]) -> None:
    from accelerate.utils import send_to_device
    from torch.distributed.utils import _recursive_to

    mllm = lively()
    batch = collate([encode(odd[name], mllm.processor) for name in ("pair", "own image")])
    for moved in (send_to_device(batch, torch.device("cpu")), _recursive_to(batch, torch.device("cpu"), False)[0]):
        assert moved["layout"] is batch["layout"]
        torch.testing.assert_close(Scorer(mllm)(moved).logps, Scorer(mllm)(batch).logps)


def test_what_cannot_be_branched_falls_back_to_repeat(odd: Mapping[str, Example]) -> None:
    mllm = MLLM.tiny(llm="mistral-windowed")
    scorer = Scorer(mllm)
    assert (scorer.backend, scorer.fallback) == ("repeat", "its attention has a window of 8 tokens")
    assert Scorer(mllm, "repeat").fallback is None
    for shared, repeat in zip(score(mllm, [odd["pair"]]), score(mllm, [odd["pair"]], "repeat"), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(shared, repeat, strict=True))


def test_unknown_backend() -> None:
    with pytest.raises(BadInput, match="known: shared, repeat"):
        Scorer(MLLM.tiny(), "packed")  # type: ignore[arg-type]


def test_responses_may_be_absent(odd: Mapping[str, Example]) -> None:
    mllm = MLLM.tiny()
    logps = score(mllm, [replace(odd["pair"], responses=()), odd["pair"]])
    assert [len(found) for found in logps] == [0, 2]
    with pytest.raises(BadInput, match=r"nothing to score.*pair"):
        score(mllm, [replace(odd["pair"], responses=())])
    assert score(mllm, [replace(odd["pair"], responses=(Response("yes"),))])[0][0].shape == (
        len(mllm.processor.tokenizer("yes").input_ids) + 1,
    )
