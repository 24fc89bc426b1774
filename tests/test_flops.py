"""FLOPs: the formula against torch's counter, and `shared` against `repeat` at the size of the paper's models.

The big ones are counted on the meta device: shapes flow through the real code, forward and backward, and nothing is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import pytest
import torch
from accelerate.utils import send_to_device
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlavaConfig, LlavaForConditionalGeneration, Qwen2Config, SiglipVisionConfig
from transformers import masking_utils as masks

from pivot.data.collate import Row, Trunk, collate
from pivot.data.speech import Span
from pivot.data.vision import Sight
from pivot.encoder import towers
from pivot.model import MLLM, Scorer
from pivot.model.branches import Backend
from pivot.model.flops import PARTS, flops, row_flops
from pivot.records import Tap

IMAGE, PROMPT, RESPONSES = 576, 80, (150, 150)


def row(config: LlavaConfig, images: int, prompt: int, responses: Sequence[int]) -> Row:
    trunk, branches = Span(), [Span() for _ in responses]
    trunk.add([config.image_token_id] * (images * config.image_seq_length), False)
    trunk.add([0] * prompt, False)
    for branch, length in zip(branches, responses, strict=True):
        branch.add([0] * length, True)
    size = config.vision_config.image_size
    seen = Sight({"pixel_values": torch.zeros(1, 3, size, size)}, config.image_seq_length)
    places = tuple(n * config.image_seq_length for n in range(images))
    return Row("row", (Trunk(trunk, (seen,) * images, places, tuple(range(len(responses)))),), tuple(branches))


def counted(model: LlavaForConditionalGeneration, example: Row, backend: Backend, backward: bool = True) -> int:
    batch = collate([example])
    batch = send_to_device(batch, model.device)
    scorer = Scorer(MLLM(model, None, Tap(model.config.vision_feature_layer)), backend)  # type: ignore[arg-type]
    # The counter knows no CPU attention kernel, so attention is spelt out as the two products that it is.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.set_grad_enabled(backward):
        logps = scorer(batch).logps
        if backward:
            sum(response.sum() for of_example in logps for response in of_example).backward()
    return counter.get_total_flops()


@pytest.fixture(autouse=True)
def no_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers looks into the positions of a plain row to see whether it is packed, which needs values."""
    monkeypatch.setattr(masks, "find_packed_sequence_indices", lambda positions: None)


def paper(depth: float = 1.0) -> LlavaForConditionalGeneration:
    """Qwen2.5-1.5B behind SigLIP2-So/16 at 384 pixels, without weights; `depth` of both parts' layers."""
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=round(27 * depth),
            num_attention_heads=16,
            image_size=384,
            patch_size=16,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(
            vocab_size=151_936,
            hidden_size=1536,
            intermediate_size=8960,
            num_hidden_layers=round(28 * depth),
            num_attention_heads=12,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        ),
        image_token_index=151_665,
        image_seq_length=IMAGE,
        vision_feature_select_strategy="full",
        vision_feature_layer=-2,
    )
    with torch.device("meta"):
        return LlavaForConditionalGeneration(config)


@pytest.mark.parametrize("depth", [1 / 4, pytest.param(1.0, marks=pytest.mark.slow)])
def test_a_policy_step_at_the_papers_size_costs_at_most_0_62_of_repeat(depth: float) -> None:
    """In the shallow one the LM head, which both backends pay alike, weighs four times as much: it is the harder case."""
    model = paper(depth)
    example = row(model.config, 1, PROMPT, RESPONSES)
    found = {backend: counted(model, example, backend) for backend in ("shared", "repeat")}
    for backend, count in found.items():
        assert row_flops(model.config, example, backend) == pytest.approx(count, rel=0.03)
    assert found["shared"] / found["repeat"] <= 0.62


# The others are like one of these in what the formula counts.
UNLIKE = ("siglip", "clip", "dinov2_with_registers", "dinov3_vit")
CASES = list(zip([family.name for family in towers.FAMILIES], cycle(["qwen2", "llama", "qwen3"]), strict=False))


@pytest.mark.parametrize(("encoder", "llm"), [case if case[0] in UNLIKE else pytest.param(*case, marks=pytest.mark.slow) for case in CASES])
def test_the_formula_fits_every_family(encoder: str, llm: str) -> None:
    model = MLLM.tiny(encoder, llm).model
    for backend in ("shared", "repeat"):
        for images, responses in ((1, (9, 4)), (2, (3, 5, 8, 2)), (1, (6,))):
            example = row(model.config, images, 11, responses)
            expected = counted(model, example, backend, backward=False)
            assert row_flops(model.config, example, backend, backward=False) == pytest.approx(expected, rel=0.03)
            assert row_flops(model.config, example, backend) == pytest.approx(counted(model, example, backend), rel=0.03)
    assert flops(model.config, [(6, 6)], 47, ()) == 0


@pytest.mark.parametrize("trained", [("tower",), ("projector",), ("llm",), ("tower", "projector"), ("projector", "llm")])
def test_frozen_parts_cost_no_gradients(trained: tuple[str, ...]) -> None:
    mllm = MLLM.tiny()
    for name, part in mllm.parts().items():
        part.requires_grad_(name in trained)
    for parameter in towers.idle_parameters(mllm.parts()["tower"], mllm.tap).values():
        parameter.requires_grad_(False)
    example = row(mllm.model.config, 1, 11, (9, 4))
    found = row_flops(mllm.model.config, example, trained=trained)
    assert found == pytest.approx(counted(mllm.model, example, "shared"), rel=0.03)
    assert found < row_flops(mllm.model.config, example, trained=PARTS)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable")
def test_checkpointing_computes_activations_again() -> None:
    model = MLLM.tiny().model
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    example = row(model.config, 1, 11, (9, 4))
    assert row_flops(model.config, example, checkpointing=True) == pytest.approx(counted(model, example, "shared"), rel=0.03)
