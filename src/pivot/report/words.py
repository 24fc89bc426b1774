"""Numbers and names as a reader wants them, and the sentences that say what was found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"
THIN = "\N{NARROW NO-BREAK SPACE}"
TIMES = "\N{MULTIPLICATION SIGN}"
DIGITS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
# Metrics, by the last part of their names, that are called otherwise than they are written.
NAMES = {
    "ap": "average precision",
    "auc": "AUC",
    "cka": "CKA",
    "cknna": "CKNNA",
    "knn": "k-NN",
    "miou": "mIoU",
    "miou_pixels": "mIoU of pixels",
    "mutual_knn": "mutual k\N{NON-BREAKING HYPHEN}NN",
    "pointing": "pointing game",
    "weights": "weight change",
}
# Those that are no shares of items though they lie between 0 and 1: percent would say what they are not.
PLAIN = frozenset({"ap", "auc", "average_precision", "cka", "cknna", "cosine", "energy", "entropy", "weights"})
# What a map has by chance.
UNINFORMED = {"energy": 1.0, "auc": 0.5}
# What stands before that: the same number by other means, or of something that should not have it.
VARIANTS = {"cam": "Grad-CAM", "global": "global question", "knn": "k-NN", "norm": "gradient norm"}


def is_number(value: Any) -> bool:
    """Whether something can be shown as a number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def listed(names: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def count(value: Any) -> str:
    """How many, thousands apart."""
    if not is_number(value):
        return NONE
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:g}"


def short(value: Any) -> str:
    """The beginning of a hash."""
    return str(value)[:8] if value else NONE


def plain(value: Any, digits: int = 3) -> str:
    """A number of any size."""
    if not is_number(value):
        return NONE
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}{THIN}{TIMES}{THIN}10{str(int(exponent)).translate(DIGITS)}".replace("-", MINUS)
    return f"{value:.{digits}g}".replace("-", MINUS)


def score(value: Any, scale: float, digits: int = 1) -> str:
    """A measured value, as a percentage where `scale` is 100."""
    return f"{scale * value:.{digits}f}".replace("-", MINUS) if is_number(value) else NONE


def change(value: Any, scale: float, digits: int = 1) -> str:
    """A difference, with its sign; 0 has none."""
    if not is_number(value):
        return NONE
    text = f"{scale * value:+.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", MINUS)


def flops(value: Any) -> str:
    """Floating-point operations."""
    return f"{plain(float(value))} FLOPs" if is_number(value) else NONE


def duration(value: Any) -> str:
    """Seconds as a reader counts them."""
    if not is_number(value):
        return NONE
    seconds = float(value)
    if seconds < 100:
        return f"{seconds:.1f}{THIN}s"
    if seconds < 6000:
        return f"{seconds // 60:.0f}{THIN}min {seconds % 60:.0f}{THIN}s"
    return f"{seconds // 3600:.0f}{THIN}h {seconds % 3600 // 60:.0f}{THIN}min"


def rates(given: Any) -> str:
    """Learning rates of the parts, equal ones together."""
    if not isinstance(given, Mapping) or not given:
        return NONE
    parts: dict[str, list[str]] = {}
    for part, rate in given.items():
        parts.setdefault("frozen" if rate == 0 else plain(rate), []).append("LLM" if part == "llm" else str(part))
    if len(parts) == 1:
        return f"{next(iter(parts))} for all parts"
    return ", ".join(f"{rate} ({listed(of)})" for rate, of in parts.items())


def leaf(name: str) -> str:
    """The last part of a metric's name."""
    return name.rpartition("/")[2]


def metric(name: str) -> str:
    """The last part of a metric's name, as text."""
    return NAMES.get(leaf(name), leaf(name).replace("_", " "))


def variant(name: str) -> str:
    """What stands before the last part of a metric's name, as text; '' for nothing."""
    prefix = name.rpartition("/")[0]
    return VARIANTS.get(prefix, prefix.replace("_", " "))


def heading(text: str) -> str:
    """With a capital at its beginning, unless it is written in its own way, as mIoU and k-NN are."""
    first = text.split(" ")[0]
    return text[:1].upper() + text[1:] if first == first.lower() and "-" not in first else text


def decimals(largest: float, difference: float) -> int:
    """How many are needed for three digits of the largest value and two of the largest difference."""
    needed = [digits - 1 - math.floor(math.log10(abs(size))) for size, digits in ((largest, 3), (difference, 2)) if size]
    return min(max([1, *needed]), 6)
