"""Ask an MLLM a benchmark's questions, keep every reply, and measure.

Scores are unweighted means on the way up: of a task's units, of a domain's tasks, of the domains. A unit is an item; items that
share `meta["pair"]` are one unit, right only if all of its members are. A unit that is answered several times scores the mean of
its draws, and the rows of the answers file say which draw each is. What this module keeps of an item is enough to measure again
without a model: `measure` reads the answers file's lines and nothing else.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Protocol

from pivot.files import append_jsonl, hash_json, read_json, read_jsonl, to_json, write_bytes, write_jsonl
from pivot.pictures import fingerprint as looks
from pivot.pictures import picture
from pivot.records import BadInput, Example, Measurement, Turn
from pivot.runfolder import RunFolder

if TYPE_CHECKING:
    from pivot.model.mllm import MLLM

Replier = Callable[[Sequence[Example]], Sequence[str]]  # an item that is drawn k times comes k times in a row
Progress = Callable[[int, int], None]
Row = dict[str, Any]

SHOWN = 2  # pictures kept a task: two, so that a pair of twins is seen whole
LONGEST = 48  # tokens a reply; the world's longest explained answer takes half of them


class Benchmark(Protocol):
    """What a module of this folder exports. One that has a `temperature` above 0 is answered by sampling, `k` times an item."""

    def examples(self) -> Sequence[Example]:
        """The items, each with an answer."""

    def prompt(self, example: Example) -> str | Sequence[Turn]:
        """What the model is asked."""

    def parse(self, reply: str, example: Example) -> str | None:
        """What the reply was understood to answer; None if nothing."""

    def grade(self, reply: str, example: Example) -> float:
        """0 to 1."""


def speaking(mllm: MLLM, benchmark: Benchmark | None = None) -> Replier:
    """The model's own answers: greedy, or sampled by the item's id, with the same draws for every model."""
    from pivot.model.sample import replies  # here, so that measuring kept answers again needs no torch

    warmth, k = temperature(benchmark), times(benchmark)

    def speak(examples: Sequence[Example]) -> list[str]:
        asked = examples[::k]
        said = replies(mllm, asked, k=k, max_new=LONGEST, batch=len(asked), temperature=warmth)
        return [one for of_item in said for one in of_item]

    return speak


def identity(mllm: MLLM, benchmark: Benchmark | None = None) -> str:
    """A hash of all that decides replies besides the question and its pictures: weights, config, tokens, template, processor."""
    passing = {"transformers_version", "_name_or_path", "architectures"}
    config = {key: str(value) for key, value in mllm.model.config.to_dict().items() if key not in passing}
    processor, backend = mllm.processor, getattr(mllm.processor.tokenizer, "backend_tokenizer", None)
    tokenizer = json.loads(backend.to_str()) if backend else processor.tokenizer.get_vocab()
    kept = {key: value for key, value in tokenizer.items() if key not in ("padding", "truncation")}  # left behind by earlier calls
    seeing = {key: str(value) for key, value in processor.to_dict().items()}
    sampled = [warmth] if (warmth := temperature(benchmark)) else []
    return hash_json([mllm.hashes(), config, kept, processor.chat_template, seeing, LONGEST, *mllm.code, *sampled])


def temperature(benchmark: Benchmark | None) -> float:
    """How items are answered: 0 for the likeliest words."""
    return float(getattr(benchmark, "temperature", 0.0))


def times(benchmark: Benchmark | None) -> int:
    """How often each item is answered."""
    return int(getattr(benchmark, "k", 1))


def run(
    benchmark: Benchmark,
    reply: Replier,
    file: Path,
    *,
    examples: Sequence[Example] | None = None,
    arm: str = "",
    seed: int = 0,
    batch: int = 32,
    fingerprint: str = "",
    progress: Progress | None = None,
    note: Callable[[Measurement], object] | None = None,
) -> Measurement:
    """Ask, write the answers file and pictures of some items beside it (`images/`), and return the measurement.

    `examples` replace the benchmark's own. `reply` gets picture and prompt only, never the answer. With a `fingerprint` (`identity`, of
    whatever else decides the replies) a killed run goes on from its last whole batch; batches stay as they were, so the answers are the
    same as without the kill. What is asked otherwise since, or of another picture, is asked again. `note` gets the measurement
    before the answers file is written: who notes it there knows of every answers file whose replies they are.
    """
    items = benchmark.examples() if examples is None else examples
    name = type(benchmark).__module__.rpartition(".")[2]
    if not len(items):
        raise BadInput(f"benchmark {name} has no items; give data with at least one")
    rows: list[Row] = []
    shown: dict[str, dict[str, str]] = {}  # by task, by item: the picture's place
    for asked, kept in _answered(benchmark, reply, items, file.with_suffix(".partial"), {"fingerprint": fingerprint, "batch": batch}):
        for example, said in zip(asked, kept, strict=True):
            row = _row(benchmark, example, said, name)
            pictures = shown.setdefault(row["task"], {})
            if example.images and example.id not in pictures and len(pictures) < SHOWN:
                pictures[example.id] = _keep_picture(example, file.parent)
            if example.id in pictures:
                row["image"] = pictures[example.id]
            rows.append(row)
        if progress:
            progress(len(rows) // times(benchmark), len(items))
    found = measure(rows, name, arm=arm, seed=seed, fingerprint=fingerprint)
    if note:
        note(found)
    write_jsonl(file, rows)
    file.with_suffix(".partial").unlink(missing_ok=True)
    return found


def keep(
    benchmark: Benchmark, mllm: MLLM, folder: RunFolder, arm: str, examples: Sequence[Example], progress: Progress | None = None
) -> Measurement:
    """Ask, and keep answers and measurement in a folder under the arm's name.

    What the same model was asked there before is graded anew, not asked. Answers of another model or to other questions are a
    `BadInput`: they are not overwritten.
    """
    name, mark = type(benchmark).__module__.rpartition(".")[2], identity(mllm, benchmark)
    file, reply = folder.answers_file(arm, 0, name), speaking(mllm, benchmark)
    measured = folder.measurement_file(arm, 0, "bench", name)
    # The measurement is written first and names the model: answers without one, or a measurement of another, are someone else's.
    known = measured.exists() and read_json(measured).get("fingerprint") == mark
    if file.exists():
        kept = _replay(benchmark, examples, file) if known else None
        if kept is None:
            whose = f"of another model, or of what '{arm}' was before" if measured.exists() else "of a model that no measurement names"
            raise BadInput(f"{file} holds answers {'to other questions' if known else whose}; give another --arm or --out, or remove it")
        reply = kept
    elif measured.exists() and not known:
        raise BadInput(f"{measured} is of another model, or of what '{arm}' was before; give another --arm or --out, or remove it")
    return run(benchmark, reply, file, examples=examples, arm=arm, fingerprint=mark, progress=progress, note=folder.write_measurement)


def _answered(
    benchmark: Benchmark, reply: Replier, items: Sequence[Example], partial: Path, header: Mapping[str, Any]
) -> Iterator[tuple[Sequence[Example], Sequence[Row]]]:
    """Batches with what `partial` keeps of each item, from there as far as it holds the same questions, then asked and kept there."""
    batch, k = header["batch"], times(benchmark)
    kept = read_jsonl(partial)
    kept = kept[1:] if header["fingerprint"] and kept and kept[0] == header else []
    write_jsonl(partial, [header, *kept])
    for start in range(0, len(items), batch):
        asked = [example for example in items[start : start + batch] for _ in range(k)]
        bare = [Example(example.id, example.images, benchmark.prompt(example)) for example in asked]
        questions = _questions(benchmark, asked)
        before = kept[start * k : (start + batch) * k]
        # A batch that the kill cut short differs as well.
        if before and not _same(questions, before):
            write_jsonl(partial, [header, *kept[: start * k]])
            before = kept = []
        if not before:
            before = [{**question, "reply": said} for question, said in zip(questions, reply(bare), strict=True)]
            append_jsonl(partial, *before)
        yield asked, before


def _questions(benchmark: Benchmark, asked: Sequence[Example]) -> list[Row]:
    """What items ask: replies to them hold for as long as this is the same. Draws are counted where there are several."""
    k = times(benchmark)
    looked = {}  # pictures by item: a fingerprint reads every pixel
    for example in asked[::k]:
        looked[example.id] = {"id": example.id, "prompt": benchmark.prompt(example), "images_sha256": looks(example.images)}
    return [{**looked[example.id], **({"draw": n % k} if k > 1 else {})} for n, example in enumerate(asked)]


def _same(questions: Sequence[Row], kept: Sequence[Mapping[str, Any]]) -> bool:
    """Whether these very questions were answered. Compared as JSON, which knows no tuples."""
    asks = ("id", "prompt", "images_sha256", "draw")
    return to_json(questions) == to_json([{key: row[key] for key in asks if key in row} for row in kept])


def _replay(benchmark: Benchmark, items: Sequence[Example], file: Path) -> Replier | None:
    """The replies that a finished answers file keeps, played back to be graded anew; None if it holds not just these items'."""
    kept, k = read_jsonl(file), times(benchmark)
    if len(kept) != len(items) * k or not _same(_questions(benchmark, [item for item in items for _ in range(k)]), kept):
        return None
    said: dict[str, list[str]] = {}
    for row in kept:
        said.setdefault(row["id"], []).append(row["reply"])
    return lambda examples: [one for example in examples[::k] for one in said[example.id]]


def _row(benchmark: Benchmark, example: Example, kept: Row, name: str) -> Row:
    """One line of the answers file."""
    reply = kept["reply"]
    asked = {key: value for key, value in kept.items() if key not in ("id", "reply")}
    return {
        "id": example.id,
        "task": example.task or name,
        "domain": example.domain or name,
        "pair": example.meta.get("pair"),
        **asked,
        "reply": reply,
        "parsed": benchmark.parse(reply, example),
        "answer": example.answer,
        "grade": benchmark.grade(reply, example),
    }


def _keep_picture(example: Example, folder: Path) -> str:
    """Write an item's first picture as PNG; its path as the answers file names it."""
    place = f"images/{re.sub(r'[^A-Za-z0-9._-]', '_', example.id)}.png"
    png = io.BytesIO()
    picture(example.images[0]).save(png, "PNG")
    write_bytes(folder / place, png.getvalue())
    return place


def measure(rows: Sequence[Mapping[str, Any]], name: str, *, arm: str = "", seed: int = 0, fingerprint: str = "") -> Measurement:
    """Scores per task and domain and their mean from the lines of an answers file. A twin whose partner was not asked is left out."""
    twice = [key for key, count in Counter((row["id"], row.get("draw", 0)) for row in rows).items() if count > 1]
    if twice:
        raise BadInput(f"benchmark {name} has item {twice[0][0]} more than once; give every item an id of its own")
    asked: dict[str, set[str]] = {}
    for row in rows:
        asked.setdefault(row["pair"], set()).add(row["id"])
    units: dict[str, dict[str, dict[int, float]]] = {}  # by task, by unit, by draw
    domains: dict[str, list[str]] = {}
    for row in rows:
        if row["pair"] and len(asked[row["pair"]]) == 1:
            continue
        task, draw = f"tasks/{row['task']}", row.get("draw", 0)
        draws = units.setdefault(task, {}).setdefault(row["pair"] or row["id"], {})
        draws[draw] = min(draws.get(draw, 1.0), row["grade"])
        tasks = domains.setdefault(f"domains/{row['domain']}", [])
        if task not in tasks:
            tasks.append(task)
    items = {task: {unit: fmean(draws.values()) for unit, draws in of_task.items()} for task, of_task in units.items()}
    if not items:
        raise BadInput(f"benchmark {name} has nothing to score: every item is half of a pair; give both halves")
    metrics = {task: fmean(units.values()) for task, units in items.items()}
    metrics |= {domain: fmean(metrics[task] for task in tasks) for domain, tasks in sorted(domains.items())}
    metrics["mean"] = fmean(metrics[domain] for domain in domains)
    return Measurement(
        kind="bench",
        name=name,
        metrics=metrics,
        n=sum(map(len, items.values())),
        unit="item, a pair of twins as one" if len(asked) > (None in asked) else "item",
        arm=arm,
        seed=seed,
        fingerprint=fingerprint,
        items=items,
        parts={**domains, "mean": sorted(domains)},
    )
