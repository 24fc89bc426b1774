"""Whether rows fit into so many tokens, or what a cut leaves of them, without opening their pictures.

Most rows are far from any limit. Of tokenizers that work on bytes no token is empty, so a row with fewer bytes than there is room for
tokens fits; only the others are tokenised.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pivot.data.doctor.checks import Fault
from pivot.data.speech import LabelMask, Span, Style, spoken
from pivot.data.turns import formatting, listed, render
from pivot.data.vision import counts
from pivot.records import Example

if TYPE_CHECKING:
    from transformers import ProcessorMixin

    from pivot.data.collate import TooLong

Sizes = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Limit:
    """So many tokens for trunk and branch, as a processor makes them for training with this label mask and template."""

    processor: ProcessorMixin
    tokens: int
    label_mask: LabelMask = "clean"
    template: Style = "chat"
    too_long: TooLong = "refuse"

    def faults(self, example: Example, sizes: Mapping[int | None, Sizes]) -> Iterator[Fault]:
        """What training has against a row, with this limit and what it does with longer rows. Arguments as of `over`."""
        measured = self._measured(example, sizes)
        for which, (trunk, branch) in measured.items():
            if trunk + len(branch) <= self.tokens:
                continue
            if not any(branch.supervised[: max(self.tokens - trunk, 0)]):
                yield Fault("long-prompt", f"{trunk:,} tokens without a response, {self.tokens:,} fit")
            elif self.too_long == "refuse" and which is not None:
                code = "long-rejected" if example.responses[which].role == "rejected" else "long-chosen"
                yield Fault(code, f"{trunk + len(branch):,} tokens, {self.tokens:,} fit")
        if self.too_long == "cut":
            yield from self._merged(example, measured)

    def over(self, example: Example, sizes: Mapping[int | None, Sizes]) -> dict[int | None, int]:
        """Tokens of each response that does not fit with its trunk, by number; None stands for a prompt without responses.

        `sizes`: of the example's pictures (None), and of those that a response has of its own (its number). What cannot be tokenised
        is a `BadInput`, what the image processor refuses a `ValueError`.
        """
        tokens = {which: trunk + len(branch) for which, (trunk, branch) in self._measured(example, sizes).items()}
        return {which: count for which, count in tokens.items() if count > self.tokens}

    def _measured(self, example: Example, sizes: Mapping[int | None, Sizes]) -> dict[int | None, tuple[int, Span]]:
        """Tokens of the trunk, and the branch, for each response. Nothing of a row that is sure to fit."""
        pictures = {own: sum(counts(self.processor, those)) if those else 0 for own, those in sizes.items()}
        refused = self.template == "plain" and not all(pictures.values())  # perhaps: it takes nothing without a picture
        if not refused and self._surely(example, max(pictures.values(), default=0)):
            return {}
        found = dict[int | None, tuple[int, Span]]()
        trunks, branches = spoken(example, self.processor, self.label_mask, self.template)
        for trunk in trunks:
            own = trunk.responses[0] if len(trunk.responses) == 1 and trunk.responses[0] in pictures else None
            bare = len(trunk.span) - len(trunk.images) + pictures[own]
            found.update({number: (bare, branches[number]) for number in trunk.responses})
            if not example.responses:
                found[None] = bare, Span()
        return found

    def _merged(self, example: Example, measured: Mapping[int | None, tuple[int, Span]]) -> Iterator[Fault]:
        """A rejected response that the limit leaves nothing of but what it leaves of a chosen one: the pair trains on nothing."""
        shared = [which for which in measured if which is not None and example.responses[which].images is None]
        for rejected in (which for which in shared if example.responses[which].role == "rejected"):
            for chosen in (which for which in shared if example.responses[which].role == "chosen"):
                (trunk, one), (_, other) = measured[chosen], measured[rejected]
                room = max(self.tokens - trunk, 0)
                if room and one.ids[:room] == other.ids[:room] and one.ids != other.ids:
                    yield Fault("same-after-cut", f"responses {chosen} and {rejected}: their first {room:,} tokens, and no more fit")

    def _surely(self, example: Example, pictures: int) -> bool:
        """Whether bytes alone prove that all fits. Texts of several turns are left to the tokenizer."""
        said = [response.text for response in example.responses]
        if not self._bytewise or not all(isinstance(text, str) and text.strip() for text in said):
            return False
        form = formatting(self.processor)
        longest = max((self._bytes(str(text)) for text in said), default=0)
        if self.template == "plain":
            return len(form.opens) + pictures + longest + self._bytes("\n") <= self.tokens
        prompt = listed(example, len(example.images), self.processor)
        asked = self._bytes(render(self.processor, prompt, generation=True))
        around = self._bytes(form.lead + form.trail) + len(form.opens) + len(form.tail) + len(form.closing)
        return asked + around + pictures + longest <= self.tokens

    def _bytes(self, text: str) -> int:
        return len(text.encode(errors="replace")) * self._growth

    @cached_property
    def control(self) -> re.Pattern[str]:
        """Finds tokens that must not come from data."""
        return re.compile("|".join(map(re.escape, formatting(self.processor).control)) or "(?!)")

    @cached_property
    def _backend(self) -> Any:
        return json.loads(self.processor.tokenizer.backend_tokenizer.to_str())

    @cached_property
    def _bytewise(self) -> bool:
        """Byte-level BPE: its tokens are runs of the bytes of a text, and nothing is put between them."""
        if not getattr(self.processor.tokenizer, "is_fast", False):
            return False
        steps = self._backend["pre_tokenizer"] or {}
        levels = [step for step in steps.get("pretokenizers", [steps]) if step.get("type") == "ByteLevel"]
        return self._backend["model"].get("type") == "BPE" and bool(levels) and not any(step["add_prefix_space"] for step in levels)

    @cached_property
    def _growth(self) -> int:
        """How many bytes a byte may become before it is cut into tokens. NFC makes up to three of one (Unicode, UAX 15)."""
        kinds = set(re.findall(r"'type': '(\w+)'", str(self._backend["normalizer"])))
        return 1 if not kinds else 3 if kinds == {"NFC"} else 1 << 30
