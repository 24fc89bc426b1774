"""Shared by all tests: a tiny MLLM, and examples of every shape that rows come in."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
import torch
from PIL import Image

from pivot.model import MLLM
from pivot.records import Example, Response

torch.set_num_threads(1)  # tests run side by side, and exact resume needs one order of additions


def picture_of(seed: int, pixels: int = 48) -> Image.Image:
    """A picture of coloured noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (pixels, pixels, 3), dtype=np.uint8))


@pytest.fixture(scope="session")
def shared_mllm() -> MLLM:
    """One tiny MLLM for the whole session: read it, never change it."""
    return MLLM.tiny()


@pytest.fixture
def mllm(shared_mllm: MLLM) -> MLLM:
    """A tiny MLLM of this test's own."""
    return MLLM(copy.deepcopy(shared_mllm.model), shared_mllm.processor, shared_mllm.tap)


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    return picture_of


@pytest.fixture(scope="session")
def pairs() -> list[Example]:
    """Eight preference pairs: one image, a prompt, a chosen and a rejected response of different lengths."""
    names = ("circle", "square", "star", "ring")
    return [
        Example(
            id=f"pair-{i}",
            images=(picture_of(i),),
            prompt=f"What is shape {i}?",
            responses=(
                Response(f"It is a {names[i % 4]}."),
                Response(f"A {names[(i + 1) % 4]}" + " again" * (i % 3), role="rejected", error="object made up"),
            ),
            answer=names[i % 4],
            answer_kind="text",
            task=("naming", "counting")[i % 2],
            domain=("General", "Vision-Centric")[i % 2],
        )
        for i in range(8)
    ]


@pytest.fixture(scope="session")
def odd() -> dict[str, Example]:
    """One example of each shape that a row can have, by the name of what is special about it."""
    four = tuple(Response("word " * n + "end", role="sampled") for n in (1, 3, 2, 6))
    talk = (
        {"role": "assistant", "content": "Red."},
        {"role": "user", "content": "And how many?"},
        {"role": "assistant", "content": "Two of them."},
    )
    chosen, rejected = Response("yes, it is red"), Response("no", role="rejected")
    return {
        "pair": Example("pair", (picture_of(1),), "Is it red?", (chosen, rejected)),
        "single": Example("single", (picture_of(2),), "Name it.", (chosen,)),
        "group": Example("group", (picture_of(3),), "Count to six.", four),
        "text only": Example("text only", (), "What is 2 + 3?", (Response("5"), Response("it is 6", role="rejected"))),
        "two images": Example("two images", (picture_of(4), picture_of(5)), "Are they the same?", (chosen, rejected)),
        "turns": Example("turns", (picture_of(6),), "Which colour?", (Response(talk), Response("Blue.", role="rejected"))),
        "chat prompt": Example(
            "chat prompt",
            (picture_of(7),),
            (
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hello."},
                {"role": "assistant", "content": "Hi."},
                {"role": "user", "content": "What is it?\n<image>"},
            ),
            (chosen, rejected),
        ),
        "own image": Example(
            "own image",
            (picture_of(8),),
            "Is it red?",
            (chosen, Response("yes, it is red", role="rejected", images=(picture_of(9),)), rejected),
        ),
    }
