"""Log-probabilities of k responses under one trunk: the one question that every objective asks.

`shared` runs the tower once per image and the LLM once per trunk, over `[trunk | branch 1 | ... | branch k]`, with a mask
that keeps branches apart and positions that restart at the end of the trunk. `repeat`, one full row per response, is the
oracle and what other trainers do. Rows with a single branch take the plain causal path in both, or are packed: `packed.py`.

Letters: R rows, T tokens, D width, V vocabulary, S supervised tokens, N tokens of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args, overload

import torch
from accelerate.utils import send_to_device
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from pivot.data.collate import Layout, collate
from pivot.data.speech import LabelMask
from pivot.data.turns import formatting
from pivot.data.vision import inputs_of
from pivot.model import languages
from pivot.model.branches import PADDING, Backend, Placement, branch_mask, place
from pivot.model.families import context, counted, family
from pivot.model.packed import pack, switch_on
from pivot.model.rollout import Sampled, Sampling, Writer, evaluating, prompts
from pivot.records import BadInput, Example

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

    from pivot.model.mllm import MLLM


class Scores(NamedTuple):
    """Per example, per response. A named tuple, so that wrappers (DDP, FSDP2, autocast) find the tensors in it.

    `logps`: (s,) log-probabilities of the s supervised tokens, in order, fp32 (fp64 from an fp64 model). With the label mask
    `llava_next` the trunk's supervised tokens come first, in every branch: computed once, counted k times, as in full rows.
    `hidden`: (s + 1, D) last hidden states: the s states that predict those tokens (where a critic reads), then the state at
    the response's last token (where a reward head reads). None unless asked for. `values`: (s + 1,) what a `Critic` makes of them.
    """

    logps: list[list[Tensor]]
    hidden: list[list[Tensor]] | None = None
    values: list[list[Tensor]] | None = None


class Scorer(nn.Module):
    """The module to give to `accelerator.prepare`: its forward is all of scoring, so every wrapper's hooks see it."""

    def __init__(self, mllm: MLLM, backend: Backend = "shared", packing: bool = False) -> None:
        super().__init__()
        if backend not in get_args(Backend):
            raise BadInput(f"no scorer backend '{backend}'; known: {', '.join(get_args(Backend))}")
        self.mllm, self.model, self.processor = mllm, mllm.model, mllm.processor
        # `fallback`: why it is not the backend that was asked for, if it is not.
        self.backend, self.fallback = languages.backend(mllm.model.config.get_text_config(), backend)
        self.family = family(mllm.model.config)
        self.packing = packing and languages.against_packing(mllm.model.config.get_text_config()) is None
        if self.packing:
            switch_on(cast("PreTrainedModel", self.part("llm")))
        # Where FSDP cuts by default; it stumbles over names of modules that this model was built without, such as a pooling head.
        present = {type(module).__name__ for module in mllm.model.modules()}
        self._no_split_modules = sorted(present & set(mllm.model._no_split_modules or ()))

    @property
    def config(self) -> Any:
        """The MLLM's config; launchers look for it on the module that they wrap."""
        return self.model.config

    def tie_weights(self) -> None:
        """Tie input and output embeddings again, after a launcher has moved the weights."""
        self.model.tie_weights()

    def part(self, name: Literal["tower", "projector", "llm", "head"]) -> nn.Module:
        return self.model.get_submodule(getattr(self.family, name))

    def forward(
        self,
        batch: Mapping[str, Any],
        hidden: bool = False,
        logps: bool = True,
        temperature: float = 1.0,
        sampling: Sampling | None = None,
        draws: np.ndarray | None = None,
    ) -> Scores | Sampled:
        """Score a batch of `data.collate.collate`, as the model speaks at a temperature; with `sampling`, `sample` replies to it.

        Without `logps` the LM head is left out, and they are empty.
        """
        if sampling is not None:
            return self.sample(batch, sampling, draws)
        tokens = batch["tokens"]  # (N,)
        placement = place(batch["layout"], self.backend, counted(self.config, batch["layout"]))
        if self.packing and len(placement.take) > 1 and not placement.branched:
            placement = pack(placement)
        if not len(placement.take):
            raise BadInput(f"nothing to score: no example of the batch {', '.join(batch['id'][:3])} ... has a response; give each one")
        states = self._states(tokens, batch["images"], batch["layout"], placement).flatten(0, 1)  # (R * T, D)
        read = states[placement.read.to(tokens.device)]  # (S, D): only these go through the LM head
        found = Scores([[read.new_zeros(0) for _ in example] for example in placement.counts])
        if logps:
            found = Scores(_nest(self._logps(read, tokens[placement.target.to(tokens.device)], temperature), placement.counts))
        if not hidden:
            return found
        last = _nest(states[placement.last.to(tokens.device)], [[1] * len(counts) for counts in placement.counts])
        nested = _nest(read, placement.counts)
        return found._replace(hidden=[[torch.cat(pair) for pair in zip(*pairs, strict=True)] for pairs in zip(nested, last, strict=True)])

    def _logps(self, states: Tensor, targets: Tensor, temperature: float) -> Tensor:
        """(S,) log-probability of each target (S,), given the state before it (S, D)."""
        logits = self.part("head")(states)  # (S, V)
        if logits.dtype != torch.float64:
            logits = logits.float()
        if temperature != 1:
            logits = logits / temperature
        return -F.cross_entropy(logits, targets, reduction="none")

    @torch.no_grad()
    def sample(self, batch: Mapping[str, Any], sampling: Sampling, draws: np.ndarray | None = None, together: bool = True) -> Sampled:
        """Replies to the prompts of a batch, one trunk an example; responses that lie in it are not looked at.

        `draws` (examples, k, max_new) decide them: see `rollout.draws`. `together`: all processes of a launch sample at once.
        """
        layout: Layout = batch["layout"]
        asked = prompts(layout, counted(self.config, layout))
        llm = cast("PreTrainedModel", self.part("llm"))
        writer = Writer(llm, self.part("head"), self._ends(), self.config.image_token_id, context(self.config), together)
        with evaluating(self):
            ids = batch["tokens"][asked.take.to(batch["tokens"].device)]  # (B, T)
            embeds = self._embeds(ids, asked.real.to(ids.device) > 0, list(range(len(layout.images))), batch["images"], layout)
            return writer.write(embeds, asked, batch["id"], sampling, draws)

    def _ends(self) -> frozenset[int]:
        """What ends a reply: the end of the template's turn, the tokenizer's end, and what the MLLM's own generation stops at."""
        own = getattr(self.model, "generation_config", None)
        stops = getattr(own, "eos_token_id", None)
        stops = [] if stops is None else stops if isinstance(stops, list) else [stops]
        found = [formatting(self.processor).tail[0], self.processor.tokenizer.eos_token_id, *stops]  # type: ignore[attr-defined]
        return frozenset(int(one) for one in found if one is not None)

    def _states(self, tokens: Tensor, images: Mapping[str, Tensor], layout: Layout, placement: Placement) -> Tensor:
        """The LLM's last hidden states (R, T, D)."""
        segment = placement.segment.to(tokens.device)
        ids = tokens[placement.take.to(tokens.device)]  # (R, T)
        llm = cast("PreTrainedModel", self.part("llm"))
        embeds = self._embeds(ids, segment != PADDING, placement.images, images, layout)
        positions = placement.positions.to(tokens.device)
        if placement.lengths:
            # Attention is told where rows end. A mask of four axes is handed on as it is; without one, transformers would make (N, N).
            mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=embeds.device)
            packed: dict[str, Any] = {"attention_mask": mask, "row_lengths": placement.lengths}
            return llm(inputs_embeds=embeds, position_ids=positions, use_cache=False, **packed).last_hidden_state
        if not placement.branched:  # padding is on the right: nothing that counts can see it
            where = {"position_ids": positions} if positions.ndim == 3 else {}  # along one axis the LLM counts by itself
            return llm(inputs_embeds=embeds, use_cache=False, **where).last_hidden_state
        mask = branch_mask(segment)
        if llm.config._attn_implementation == "eager":  # eager adds the mask; a boolean one would add 0 and 1, silently
            mask = torch.zeros(mask.shape, dtype=embeds.dtype, device=mask.device).masked_fill(~mask, torch.finfo(embeds.dtype).min)
        # Without the mask, transformers takes restarted positions for packed sequences and cuts branches off their trunk.
        return llm(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state

    def _embeds(self, ids: Tensor, real: Tensor, order: list[int], images: Mapping[str, Tensor], layout: Layout) -> Tensor:
        """(R, T, D) of tokens (R, T) that are not padding, and of images by number, in the order in which the rows need them."""
        embeds = cast("PreTrainedModel", self.part("llm")).get_input_embeddings()(ids)
        if order:
            at_image = (ids == self.config.image_token_id) & real
            features = self._features(images, layout, order)  # (P, D)
            return embeds.masked_scatter(at_image[..., None], features.to(embeds.dtype))
        if torch.is_grad_enabled() or (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return embeds + self._blank().to(embeds.dtype)
        return embeds

    def _features(self, images: Mapping[str, Tensor], layout: Layout, order: list[int]) -> Tensor:
        """(P, D) of images by number."""
        if order != list(range(len(layout.images))):
            pixels = images["pixel_values"].split([image.entries for image in layout.images])
            told = {name: value[order] for name, value in images.items() if name != "pixel_values"}
            images = {"pixel_values": torch.cat([pixels[image] for image in order]), **told}
        features = self.family.features(self.model, images)
        room = sum(layout.images[image].tokens for image in order)
        if len(features) != room:  # else features would go to places of others, or be left out, silently
            raise BadInput(
                f"the processor leaves room for {room} image tokens where the model has {len(features)}; give the MLLM its own processor"
            )
        return features

    def _blank(self) -> Tensor:
        """Zero, by way of tower and projector: a process without images must still take part in every gradient exchange."""
        weight = next(self.part("projector").parameters())
        blank = inputs_of(self.processor, [Image.new("RGB", (32, 32))])[0]
        features = self.family.features(self.model, {name: value.to(weight.device) for name, value in blank.items()})
        return features[:0].sum()  # of nothing: cannot become NaN


def _nest(flat: Tensor, counts: Sequence[Sequence[int]]) -> list[list[Tensor]]:
    """(S, ...) into per example, per response. Copies: FSDP2 hangs its hooks on outputs, and loses them on views."""
    parts = iter(flat.split([count for example in counts for count in example]))
    return [[next(parts).clone() for _ in example] for example in counts]


@overload
def score(
    mllm: MLLM,
    examples: Sequence[Example],
    backend: Backend = ...,
    hidden: Literal[False] = ...,
    grad: bool = ...,
    label_mask: LabelMask = ...,
    batch: int = ...,
) -> list[list[Tensor]]: ...
@overload
def score(
    mllm: MLLM,
    examples: Sequence[Example],
    backend: Backend = ...,
    *,
    hidden: Literal[True],
    grad: bool = ...,
    label_mask: LabelMask = ...,
    batch: int = ...,
) -> Scores: ...
def score(
    mllm: MLLM,
    examples: Sequence[Example],
    backend: Backend = "shared",
    hidden: bool = False,
    grad: bool = False,
    label_mask: LabelMask = "clean",
    batch: int = 8,
) -> list[list[Tensor]] | Scores:
    """Token log-probabilities per example, per response; with `hidden`, the `Scores` that hold the hidden states as well."""
    scorer = Scorer(mllm, backend)
    device = next(mllm.model.parameters()).device
    logps: list[list[Tensor]] = []
    states: list[list[Tensor]] = []
    with torch.set_grad_enabled(grad):
        for first in range(0, len(examples), batch):
            rows = [mllm.encode(example, label_mask) for example in examples[first : first + batch]]
            found = scorer(send_to_device(collate(rows), device), hidden=hidden)
            logps += found.logps
            states += found.hidden or []
    return Scores(logps, states) if hidden else logps
