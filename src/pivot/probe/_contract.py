"""What every probe is: frozen weights in, measurements out, one per encoder, all of them on the same items.

A module of this folder exports a dataclass `Probe`, whose fields are its knobs. What computes is imported where it does: recipes read
the knobs without torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from pivot.files import hash_json
from pivot.records import Example, Measurement

if TYPE_CHECKING:
    import numpy as np

    from pivot.encoder import Encoder
    from pivot.records import Picture

Reads = Literal["encoder", "original", "gradients"]
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True, kw_only=True)
class Instrument:
    """What all of them take. `READS` says what a run hands to `run`: an arm's encoder; the original one first and then the arm's;
    or files of gradients, which stage saliency wrote (then there is no encoder, and data are not asked for either).

    `MAIN` are the headline metrics. `TESTS`: whether a set of its own may be given to measure on (`on`), so that all of the data train.
    """

    MAIN: ClassVar[tuple[str, ...]] = ()
    READS: ClassVar[Reads] = "encoder"
    TESTS: ClassVar[bool] = False

    at: Literal["encoder", "projector"] = "encoder"
    precision: Literal["fp32", "bf16"] = "fp32"  # of the encoder; what is made of its features is not
    batch: Annotated[int, Field(ge=1)] = 64
    seed: Annotated[int, Field(ge=0)] = 0  # of splits and of heads

    def run(self, encoders: Mapping[str, Encoder], data: Sequence[Example], on: Sequence[Example] | None = None) -> Iterator[Measurement]:
        """One measurement per encoder; `arm` is the encoder's key, and items have the same names in all of them."""
        raise NotImplementedError

    def features(self, encoder: Encoder, images: Sequence[Picture], keep: Literal["pooled", "tokens", "regions"], **how: Any) -> np.ndarray:
        """An encoder's features, memory-mapped and float32, from the cache where they are in it; all of them finite."""
        from pivot.encoder.features import cached

        return cached(self.prepared(encoder), images, keep, at=self.at, batch=self.batch, **how)

    def prepared(self, encoder: Encoder) -> Encoder:
        """The encoder at the precision that is asked for."""
        return encoder.cast(DTYPES[self.precision])

    def of(self, *measured: Any) -> str:
        """A hash of what is measured besides the encoder and how: by all knobs but `batch`, which changes no more than rounding."""
        return hash_json([measured, {name: value for name, value in asdict(self).items() if name != "batch"}])

    @property
    def place(self) -> str:
        """Behind a measurement's name: where features were read, if not at the tap."""
        return "" if self.at == "encoder" else f"-{self.at}"
