"""A process whose forks make pairs, then others of the same attempts, end by SIGKILL before every third of their writes, and go on.

No torch.

What is said to a row tells which rows were asked about together: batches that came otherwise after a kill would show.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kills import die, forked, writes

from pivot import recipe
from pivot.files import hash_file
from pivot.train.pairing import Attempt, Record
from pivot.train.prefer import prefer
from pivot.train.wanted import Settings

SETTINGS = Settings(pairs=2, batch=3)
ANEW = Settings(pairs=1, batch=3, threshold=0.7)  # of the same attempts
ROWS = recipe.read("world,size=7")


def ask(numbers: Sequence[int]) -> list[Record]:
    found = []
    for number in numbers:
        dice = random.Random(number)
        attempts = [
            Attempt(f"{n} with {list(numbers)}", dice.randrange(1, 9), reward=float(n % 2) if number else 1.0)
            for n in range(dice.randrange(2, 7))
        ]
        found.append(Record(number, ROWS[number].id, ("correctness",), tuple(attempts), answer="checkable"))
    return found


def work(folder: Path, act: Callable[[int], Any]) -> Callable[[], None]:
    def body() -> None:
        writes(folder, act)
        for settings in (SETTINGS, ANEW):
            prefer(ask, ROWS, folder, settings, "model")

    return body


def main(root: Path) -> None:
    plain, folder, found = root / "plain" / "pairs", root / "killed" / "pairs", []
    assert forked(work(plain, lambda number: (root / "count").write_text(str(number)))) == 0
    total, dice = int((root / "count").read_text()), random.Random(0)
    for moment in range(1, total + 1, 3):
        shutil.rmtree(folder, ignore_errors=True)
        again = dice.randrange(1, total)
        ends = [forked(work(folder, lambda now, at=at: die() if now == at else None)) for at in (moment, again)]
        samples = folder / "samples.jsonl"
        if moment % 2 == 0 and samples.exists() and not (folder / "meta.json").exists():  # as if the kill had torn a line
            with samples.open("r+b") as file:
                file.truncate(dice.randrange(samples.stat().st_size + 1))
        found.append({"killed": ends, "last": forked(work(folder, lambda _: None)), "hash": hash_file(folder)})
    (root / "found.json").write_text(json.dumps({"wanted": hash_file(plain), "found": found}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
