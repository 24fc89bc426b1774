"""What in a detached encoder training left behind, as sentences for a reader of the folder.

They hold in every library's layout: where one names a part as transformers does, it says so. How to read the tap is `Parity.read`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pivot.encoder import reading, towers

if TYPE_CHECKING:
    from pivot.encoder.encoder import Encoder
    from pivot.encoder.tower import Member

VOID = {
    "text tower": "zero-shot use with it is void",
    "projection": "there are no embeddings to compare with text",
    "classification head": "it says no classes",
    "decoder": "it paints no pictures",
}


def stale(encoder: Encoder) -> list[str]:
    """Parts that the tap does not read, and parts that stayed in the source."""
    members = encoder.members()
    sentences = []
    for number, member in enumerate(members, 1):
        which = f"member {number}, " if len(members) > 1 else ""
        sentences += [which + what for what in _unread(member)]
    for part in encoder.left_out:
        consequence = VOID.get(part, "there is no pooler_output")
        sentences.append(f"{part}: left behind in the source and no longer matching this encoder; {consequence}")
    return sentences


def _unread(member: Member) -> list[str]:
    """What of a model lies above a tap."""
    model, tap = member.model, member.tap
    row = towers.family(model.config)
    if row.traced:  # its insides have no names that are known
        code = getattr(model.config, "module", None)  # of a tower of the user's own
        found = [f"its code: left behind in `{code}`; the folder opens only where that module can be imported"] if code else []
        idle = sum(parameter.numel() for parameter in reading.untouched(model, member.pixels, tap).values())
        if idle:
            found.append(f"{idle} of {model.num_parameters()} parameters: the tap does not depend on them; they are as before training")
        return found
    layers, below, unread = towers.num_blocks(model.config), towers.depth(model.config, tap), towers.above(model, tap)
    found = []
    if below < layers:
        which = f"block {layers}" if below == layers - 1 else f"blocks {below + 1} to {layers}"
        found.append(
            f"{which} of {layers}: above the tap, as before training; the library's own last output passes through, so read the tap"
        )
    if any(name.rpartition(".")[2] == row.norm for name in unread):
        made = "as before training and made for the last block of the whole encoder; the tap is in front of it"
        found.append(f"the final norm ({row.norm} in transformers): {made}")
    if row.layout == "packed":
        found.append(f"{row.head}: the projector of the MLLM that the tower is from; the tap does not read it, pooler_output does")
    elif any(name.rpartition(".")[2] == row.head for name in unread):
        found.append(f"the pooling head ({row.head} in transformers): as before training; what it pools does not follow the trained blocks")
    return found
