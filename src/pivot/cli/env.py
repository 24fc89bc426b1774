"""The verb for bug reports."""

from __future__ import annotations

import os

from pivot.cli.app import Json, app, show


@app.command()
def env(json: Json = False) -> None:
    """Versions and devices, for bug reports."""
    import platform
    from importlib.metadata import version

    import torch

    import pivot
    from pivot.files import cache_folder

    packages = ("torch", "transformers", "accelerate", "numpy", "scikit-learn", "safetensors", "pydantic")
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    facts = {
        "pivot": pivot.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: version(name) for name in packages},
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "cache": str(cache_folder()),
    }
    show(facts, json, text="\n".join(f"{name:<14} {value}" for name, value in facts.items()))
