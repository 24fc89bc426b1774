"""Let transformers, timm and open_clip import a torchvision that was built for another torch.

torchvision's wheels on the public index are CUDA builds. Beside a CPU torch their compiled operators do not load, and then
`import torchvision` fails because it describes two of them that nobody declared; with it fails everything that imports it,
transformers' image processors included. Declaring the two is all that is missing: nothing here calls them.
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec

import torch

UNDECLARED = "operator torchvision::nms does not exist"
_declared: list[torch.library.Library] = []  # operators live as long as this object


def mend() -> bool:
    """Make `import torchvision` work if it is installed and that is what stops it. Says whether anything was declared here."""
    if _declared or find_spec("torchvision") is None:
        return bool(_declared)
    try:
        importlib.import_module("torchvision")
    except RuntimeError as failed:
        if UNDECLARED not in str(failed):
            raise
        _declare()
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        importlib.import_module("torchvision")
    return bool(_declared)


def _declare() -> None:
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
