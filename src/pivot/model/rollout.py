"""Replies written by a model in training: a trunk is prefilled once, and the k replies to it grow from copies of its cache.

Which token comes next is looked up: a number in [0, 1) that was drawn beforehand falls into the share of one token when the
tokens' probabilities lie end to end, in the order of the vocabulary. So replies follow from weights and draws alone: company,
number of processes and micro-batches have no say, but for rounding. No order by size is needed for that, which rounding could
turn where tokens are nearly as likely as each other.

Letters: B prompts, k replies to each, R rows that are still written, T tokens of the longest prompt, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from pivot.data.collate import Layout, Row, Stem
from pivot.data.speech import Span
from pivot.model.cache import roomy
from pivot.records import BadInput

UNITS = 1 << 40  # the likeliest token in whole units: sums of these are exact in any order, on any device, and fit 64 bits
CROWDED = 0.75  # rows are moved together when no more than this share of them is still written: moving costs about one step


@dataclass(frozen=True)
class Sampling:
    """`k` replies a prompt, of at most `max_new` tokens. Temperature 0 is greedy. `top_p`: of the likeliest tokens that together
    have this probability. `longest`: tokens that a prompt and one reply may have, if less than the LLM was made for."""

    k: Annotated[int, Field(ge=1)] = 8
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_new: Annotated[int, Field(ge=1)] = 128
    longest: int | None = None


class Sampled(NamedTuple):
    """Per example, per reply.

    `ids`: tokens up to and with the one that ends the reply, if it was reached. `logps`: (s,) their log-probabilities at the
    sampling temperature (1 if greedy), fp32, of the whole vocabulary: what `top_p` leaves out is not taken off. `finished`:
    whether the model ended the reply, and not `max_new` or the LLM's context.
    """

    ids: list[list[list[int]]]
    logps: list[list[Tensor]]
    finished: list[list[bool]]


def draws(keys: Sequence[str], sampling: Sampling) -> np.ndarray:
    """(keys, k, max_new) in [0, 1). A number follows from its key, reply and token, and not from how many others there are."""
    found = np.empty((len(keys), sampling.k, sampling.max_new))
    for row, key in enumerate(keys):
        for number in range(sampling.k):
            seed = int.from_bytes(blake2b(repr((key, number)).encode(), digest_size=16).digest(), "big")
            found[row, number] = (np.random.Philox(key=seed).random_raw(sampling.max_new) >> np.uint64(11)) * 2.0**-53
    return found


def answered(row: Row, ids: Sequence[Sequence[int]]) -> Row:
    """A row with sampled replies as its branches: every token of them is supervised, and nothing else, whatever the label mask."""
    branches = tuple(Span(list(reply), [True] * len(reply)) for reply in ids)
    trunk = row.trunks[0]
    prompt = Span(trunk.span.ids, [False] * len(trunk.span))
    return replace(row, trunks=(replace(trunk, span=prompt, responses=tuple(range(len(branches)))),), branches=branches)


@dataclass(frozen=True)
class Prompts:
    """The trunks of a batch side by side, padded on the left, so that all replies begin at one place."""

    take: Tensor  # (B, T) number of the token in the batch, 0 at padding
    real: Tensor  # (B, T) 0 at padding
    positions: Tensor  # (B, T), or (axes, B, T)
    onward: Tensor  # (B,) position of a reply's first token, along all axes alike
    lengths: tuple[int, ...]


def prompts(layout: Layout, counted: Callable[[Stem], np.ndarray]) -> Prompts:
    """The one trunk of each example. `counted`: positions (axes, T) of a trunk."""
    if len(layout.stems) != len(layout.responses):
        raise BadInput("replies are sampled to one set of pictures an example, and a response here has pictures of its own; drop it")
    pieces, where = [stem.trunk for stem in layout.stems], [counted(stem) for stem in layout.stems]
    lengths = tuple(map(len, pieces))
    take, real = np.zeros((2, len(pieces), max(lengths)), int)
    positions = np.zeros((len(where[0]), *take.shape), int)
    for row, (piece, along) in enumerate(zip(pieces, where, strict=True)):
        take[row, -len(piece) :] = np.arange(piece.start, piece.stop)
        real[row, -len(piece) :] = 1
        positions[:, row, -len(piece) :] = along
    return Prompts(
        take=torch.from_numpy(take),
        real=torch.from_numpy(real),
        positions=torch.from_numpy(positions[0] if len(positions) == 1 else positions),
        onward=torch.tensor([along.max() + 1 for along in where]),
        lengths=lengths,
    )


def choose(logps: Tensor, uniforms: Tensor, top_p: float = 1.0, never: int | None = None) -> Tensor:
    """(R, V) log-probabilities and (R,) numbers in [0, 1) -> (R,) tokens: the inverse of the cumulative distribution.

    Tokens as likely as the last one in the nucleus belong to it. `never` is left out, whatever its probability.
    """
    if never is not None:
        logps = logps.index_fill(-1, torch.tensor(never, device=logps.device), -torch.inf)
    shares = (logps.double() - logps.amax(-1, keepdim=True)).exp()
    units = (shares.nan_to_num(0) * UNITS).long()  # (R, V). What is no number is the trainer's to find, and no index out of range
    if top_p < 1:
        likely = units.sort(dim=-1, descending=True).values
        before = likely.cumsum(-1) - likely
        inside = before < top_p * units.sum(-1, keepdim=True)  # (R, V) of the sorted
        least = likely.gather(-1, (inside.sum(-1, keepdim=True) - 1).clamp(min=0))
        units = units.where(units >= least, 0)
    reached = units.cumsum(-1)
    at = (uniforms.double() * reached[:, -1]).long()
    # Of a product that rounds up to the whole, the last unit.
    return torch.searchsorted(reached, torch.minimum(at, reached[:, -1] - 1)[:, None], right=True)[:, 0]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout, and with a cache: layers that are checkpointed in training keep none. Every module gets its mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@dataclass(frozen=True)
class Writer:
    """What it takes to let an LLM go on behind some prompts."""

    llm: PreTrainedModel
    head: nn.Module
    ends: frozenset[int]  # tokens of which the first ends a reply
    placeholder: int  # of a picture: a reply shows none, and a row with this token in it could not be scored
    context: int | None  # tokens that the LLM was made for
    together: bool  # with all processes: each then takes as many steps as the one with the longest replies

    def write(self, embeds: Tensor, prompts: Prompts, ids: Sequence[str], sampling: Sampling, uniforms: np.ndarray | None) -> Sampled:
        """Replies to embedded prompts (B, T, D)."""
        device = embeds.device
        prompt = torch.arange(len(ids), device=device).repeat_interleave(sampling.k)  # of each reply
        room = torch.tensor(self._rooms(prompts.lengths, ids, sampling), device=device)[prompt]
        chances = None if uniforms is None else torch.from_numpy(uniforms).to(device).flatten(0, 1)  # (B * k, max_new)
        said = _Said(torch.arange(len(prompt), device=device), self.ends)
        cache = roomy(self.llm.config)
        states = self._step(embeds, prompts.real.to(device), prompts.positions.to(device), cache)
        if sampling.k > 1:
            cache.reorder_cache(prompt)
        logits, seen = self._logits(states)[prompt], prompts.real.to(device)[prompt]
        while True:
            logps = (logits / (sampling.temperature or 1.0)).log_softmax(-1)  # (R, V)
            new = self._next(logps, None if chances is None else chances[said.rows, said.steps], sampling)  # (R,)
            said.add(new, logps.gather(-1, new[:, None])[:, 0], room)
            count = int(said.open.sum())
            if not self._anyone(count > 0, device):
                return said.nested(sampling.k)
            if count <= CROWDED * len(new) and len(new) > 1:
                kept = said.open.nonzero()[:, 0] if count else new.new_zeros(1)  # one goes on idly where others are not done
                cache.reorder_cache(kept)
                said.keep(kept)
                seen, new = seen[kept], new[kept]
            seen = torch.cat([seen, seen.new_ones(len(seen), 1)], dim=1)
            where = prompts.onward.to(device)[prompt[said.rows]] + said.steps - 1
            if self.context is not None:  # only idle rows get there, and must not make an LLM stretch its angles for all
                where = where.clamp(max=self.context - 1)
            where = where[:, None] if prompts.positions.ndim == 2 else where[None, :, None].expand(len(prompts.positions), -1, -1)
            logits = self._logits(self._step(self.llm.get_input_embeddings()(new[:, None]), seen, where, cache))

    def _rooms(self, lengths: Sequence[int], ids: Sequence[str], sampling: Sampling) -> list[int]:
        """How many tokens each prompt leaves for a reply."""
        bounds = {"the LLM was made for": self.context, "limit leaves a row": sampling.longest}
        most, says = min(((bound, says) for says, bound in bounds.items() if bound is not None), default=(None, ""))
        for length, name in zip(lengths, ids, strict=True):
            if most is not None and length >= most:
                told = f"a prompt has {length} tokens and {says} {most}, so none is left to answer; shorten it"
                raise BadInput(f"row {name}: {told}")
        return [sampling.max_new if most is None else min(sampling.max_new, most - length) for length in lengths]

    def _step(self, embeds: Tensor, seen: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """(R, D) last states of the rows that go on by `embeds`."""
        asked: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
        return self.llm(inputs_embeds=embeds, attention_mask=seen, position_ids=positions, **asked).last_hidden_state[:, -1]

    def _logits(self, states: Tensor) -> Tensor:
        logits = self.head(states)
        return logits if logits.dtype == torch.float64 else logits.float()

    def _next(self, logps: Tensor, uniforms: Tensor | None, sampling: Sampling) -> Tensor:
        if not sampling.temperature:
            return logps.index_fill(-1, torch.tensor(self.placeholder, device=logps.device), -torch.inf).argmax(-1)
        if uniforms is None:
            raise BadInput("a temperature above 0 needs draws; give them, or temperature 0")
        return choose(logps, uniforms, sampling.top_p, self.placeholder)

    def _anyone(self, left: bool, device: torch.device) -> bool:
        """Whether a reply is still written, here or elsewhere: wrappers that gather weights in layers must be called by all."""
        if not (self.together and torch.distributed.is_available() and torch.distributed.is_initialized()):
            return left
        flag = torch.tensor(int(left), device=device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag)


class _Said:
    """What was written of N replies, of which only some still have a row."""

    def __init__(self, rows: Tensor, ends: frozenset[int]) -> None:
        self.rows, self.ends, self.steps = rows, torch.tensor(sorted(ends), device=rows.device), 0  # (R,) the reply of each row
        self.open = torch.ones_like(rows, dtype=torch.bool)  # (R,) whether it goes on
        self.lengths, self.finished = torch.zeros_like(rows), torch.zeros_like(rows, dtype=torch.bool)  # (N,)
        self.written: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, tokens: Tensor, logps: Tensor, room: Tensor) -> None:
        """One token (R,) a row. A reply ends by an end token, or where there is no more room (N,) for it."""
        self.steps += 1
        self.written.append((self.rows, tokens, logps))
        self.lengths[self.rows] += self.open.long()
        ended = self.open & torch.isin(tokens, self.ends)
        self.finished[self.rows] |= ended
        self.open = self.open & ~ended & (self.steps < room[self.rows])

    def keep(self, kept: Tensor) -> None:
        """Go on with some of the rows."""
        self.rows, self.open = self.rows[kept], self.open[kept]

    def nested(self, k: int) -> Sampled:
        """Per prompt, per reply."""
        ids = torch.zeros(len(self.lengths), self.steps, dtype=torch.long, device=self.lengths.device)
        logps = torch.zeros_like(ids, dtype=self.written[0][2].dtype)
        for step, (rows, tokens, values) in enumerate(self.written):
            ids[rows, step], logps[rows, step] = tokens, values
        replies = list(zip(ids.tolist(), logps, self.lengths.tolist(), self.finished.tolist(), strict=True))
        groups = [replies[at : at + k] for at in range(0, len(replies), k)]
        return Sampled(
            ids=[[said[:length] for said, _, length, _ in group] for group in groups],
            logps=[[values[:length].clone() for _, values, length, _ in group] for group in groups],
            finished=[[done for *_, done in group] for group in groups],
        )
