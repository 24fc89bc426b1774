"""What a causal LLM makes of plain captions: every layer's hidden state, the mean over a caption's own tokens, kept in the feature cache.

No chat template, no prompt: the tokens are those that the tokenizer makes of the text alone, its own opening token included. Layers
are counted as transformers does: 0 the embeddings, the last after the final norm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from pivot.encoder.features import kept
from pivot.files import hash_tensors
from pivot.model import MLLM
from pivot.model import llm as llms
from pivot.model.families import context
from pivot.model.mllm import holds_mllm
from pivot.progress import tell
from pivot.records import BadInput

if TYPE_CHECKING:  # transformers itself may be imported only behind pivot.encoder, which mends a torchvision that is not whole
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PASSING = {"transformers_version", "_name_or_path", "architectures", "pivot_source", "dtype", "torch_dtype"}  # of a config: no part of it


def read(name: str, captions: Sequence[str], *, dtype: str, device: torch.device, batch: int) -> np.ndarray:
    """(N, L, D) of an LLM by name, or of the one in an MLLM: memory-mapped float32, from the cache where they are in it."""
    body, tokenizer = opened(name, dtype)
    body.to(device).eval()  # type: ignore[arg-type]
    ids = [tokenizer(caption)["input_ids"] for caption in captions]
    longest, limit = max(map(len, ids)), context(body.config)
    if limit is not None and longest > limit:
        where = captions[[len(one) for one in ids].index(longest)][:40]
        raise BadInput(f"caption '{where}...' has {longest} tokens, and LLM {name} takes {limit}; shorten it, drop it or take another LLM")
    told = {key: value for key, value in body.config.to_dict().items() if key not in PASSING}
    facts = ["texts", hash_tensors(body.state_dict()), str(sorted(told.items())), dtype, ids, device.type]

    def rows() -> Iterator[np.ndarray]:
        for start in range(0, len(ids), batch):
            yield means(body, ids[start : start + batch]).cpu().numpy()
            tell("layers of captions", min(start + batch, len(ids)), len(ids))

    return kept(facts, len(ids), rows)


def opened(name: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """An LLM without its head, and its tokenizer: of an MLLM, of a folder, of the Hub or of a GGUF file."""
    if holds_mllm(name):
        mllm = MLLM.load(name, dtype=dtype)
        body: Any = mllm.parts()["llm"]
        return body.model, cast("Any", mllm.processor).tokenizer
    llm, tokenizer = llms.load(name, dtype, to_read=True)
    return cast("Any", llm.base_model), tokenizer


@torch.no_grad()
def means(body: PreTrainedModel, ids: Sequence[Sequence[int]]) -> torch.Tensor:
    """(B, L, D): of each text's tokens, layer by layer. Texts of other lengths beside it make no difference."""
    lengths = torch.tensor([max(1, len(one)) for one in ids])
    tokens = torch.zeros(len(ids), int(lengths.max()), dtype=torch.long)
    valid = (torch.arange(tokens.shape[1]) < lengths[:, None]).to(body.device)
    for row, one in zip(tokens, ids, strict=True):
        row[: len(one)] = torch.tensor(one)
    states = body(input_ids=tokens.to(body.device), attention_mask=valid.long(), use_cache=False, output_hidden_states=True).hidden_states
    share = (valid / lengths.to(body.device)[:, None])[:, :, None]  # float32, and so is what half precision is multiplied with
    return torch.stack([(state * share).sum(dim=1) for state in states], dim=1)
