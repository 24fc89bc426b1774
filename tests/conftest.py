"""Shared by all tests: a tiny MLLM, and examples of every shape that rows come in."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
import torch
from PIL import Image

from pivot import plan
from pivot.model import MLLM
from pivot.model.memory import Memory
from pivot.records import Example, Response

CHROMIUM = """
    --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --disable-dev-shm-usage
"""
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


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """For plans of which something else is tested: memory takes half a second a stage."""
    monkeypatch.setattr("pivot.model.memory.memory", lambda *_: (Memory(*[123 * 2**30] * 5), Memory(*[123 * 2**30] * 5)))


@pytest.fixture
def few_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """For plans whose lengths need not be near."""
    monkeypatch.setattr(plan, "READ", 20)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Debian's or anybody's Chromium with its driver; skips where there is none, unless the environment demands it."""
    chromium = next((place for name in ("chromium", "chromium-browser", "google-chrome") if (place := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        missing = f"no {'Chromium' if not chromium else 'chromedriver'} is installed"
        if os.environ.get("PIVOT_REQUIRE_BROWSER") == "1":
            pytest.fail(f"PIVOT_REQUIRE_BROWSER=1, but {missing}")
        pytest.skip(missing)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for option in (*CHROMIUM.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()
