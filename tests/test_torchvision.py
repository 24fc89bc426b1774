"""torchvision beside another torch: it imports, and pictures are processed the same whether it is there or not."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

from pivot.encoder.torchvision import mend
from pivot.model import MLLM


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")
def test_torchvision_imports_once_pivots_encoders_have() -> None:
    code = "from pivot.encoder import torchvision as shim; import torchvision; print(torchvision.__version__)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0 and run.stdout.strip(), run.stderr


def test_a_second_call_declares_nothing_twice() -> None:
    assert mend() == mend()


def test_processors_are_those_over_pillow_whatever_is_installed() -> None:
    for mllm in (MLLM.load("base"), MLLM.tiny("clip")):
        assert type(mllm.processor.image_processor).__name__.endswith("Pil")
