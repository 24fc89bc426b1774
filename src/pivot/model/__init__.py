"""The MLLM, and how its responses are scored and sampled."""

# Eager on purpose: a lazy `score` would be shadowed by the module of that name once anything imports it.
import pivot.encoder  # noqa: F401  (first: it makes torchvision importable, which transformers needs)
from pivot.model.mllm import MLLM
from pivot.model.score import Scorer, Scores, score

__all__ = ["MLLM", "Scorer", "Scores", "score"]
