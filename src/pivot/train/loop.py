"""Training. `_update` is the algorithm; `train` is what goes on around it.

for each batch of (seed, epoch, step):
    for each micro-batch: score its responses, ask the objective for its share of the loss, propagate that back
    clip, look whether all is well, and take a step at the pace of the schedule
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object, send_to_device
from torch import Tensor

from pivot.files import append_jsonl, hash_json, read_json, write_json
from pivot.model import MLLM
from pivot.model.languages import against_packing, backend
from pivot.model.score import Scores
from pivot.objective._contract import Counts, Objective
from pivot.objective._online import TAUGHT
from pivot.records import BadInput, CheckFailed, Example
from pivot.train.checkpoint import METRICS
from pivot.train.feed import Micro, Portion, count
from pivot.train.ledger import cost, entries
from pivot.train.parts import WITNESSED, Rates
from pivot.train.reference import Reference, check_start, compute
from pivot.train.rollouts import portions
from pivot.train.scoring import Scored, advance, detached, looked_at, nothing, own_losses, validate
from pivot.train.settings import Settings
from pivot.train.setup import build, resume, save, save_model, summed
from pivot.train.state import Setup, State

REFERENCE, LEDGER = "reference.json", "ledger.json"
Event = dict[str, Any]
Metrics = dict[str, float]


def _update(setup: Setup, state: State, micros: Sequence[Micro], counts: Counts) -> Metrics:
    """One update. Every loss is a share of the whole batch's, so shares add up, however many processes and micro-batches."""
    crew, objective, shares, seen = setup.accelerator, setup.objective, dict[str, Tensor](), list[Scored]()
    foreseen = objective.needs_sums and len(micros) > 1
    if foreseen:
        advance(setup, state, looked_at(setup, micros, counts))
    for number, micro in enumerate(micros):
        batch = send_to_device(micro.batch(counts), crew.device)
        with nullcontext() if number == len(micros) - 1 else crew.no_sync(setup.scorer):
            scores = setup.scorer(batch, **setup.scoring)
            batch["values"] = scores.values
            if objective.needs_sums and not foreseen:
                advance(setup, state, [] if micro.filler else [(scores.logps, batch)])
            if micro.filler:
                loss = nothing(scores)
            else:
                loss, parts = objective.loss(scores.logps, batch, state.objective)
                for name, value in {"loss": loss.detach(), **parts}.items():
                    shares[name] = shares.get(name, 0) + value
                seen.append((micro, Scores(*map(detached, scores))))
                if state.step == 0 and objective.needs_reference:
                    check_start(objective.margins(scores.logps, batch), batch["id"], setup.settings.precision)
            crew.backward(loss * crew.num_processes)  # wrappers take the mean over processes, shares want the sum
    metrics = summed({name: float(value) for name, value in shares.items()})
    if state.witnessed < WITNESSED:
        setup.proof.see()
    norm = _number(crew.clip_grad_norm_(setup.scorer.parameters(), setup.settings.clip or torch.inf))
    setup.watch.check(state.step, metrics["loss"], norm, lambda: own_losses(setup, state, seen))
    pace = setup.settings.pace(state.step, setup.steps)
    for group, rate in zip(setup.optimizer.param_groups, setup.full, strict=True):
        group["lr"] = rate * pace
    setup.optimizer.step()
    setup.optimizer.zero_grad()
    state.step += 1
    # Replies that all earn the same teach the policy nothing, and prove nothing of it; a critic has a gradient even then.
    state.witnessed += not objective.online or (norm > 0 and metrics[TAUGHT] > 0)
    rates = {**asdict(setup.rates), **({} if objective.head == "none" else {"critic": objective.head_rate})}
    return {**metrics, "grad_norm": norm, **{f"lr/{part}": rate * pace for part, rate in rates.items()}}


def _prove(setup: Setup, state: State) -> None:
    """Stop unless every part did what its rate says, and something was learned at all."""
    if not state.witnessed:
        raise CheckFailed(
            f"in {state.step} updates the replies to each prompt all earned the same, so nothing was learned: "
            "look at the rewards in metrics.jsonl; prompts may be too hard or too easy, or the reward may not read such replies"
        )
    setup.proof.check()


def _number(value: Tensor) -> float:
    return float(value.full_tensor() if hasattr(value, "full_tensor") else value)


def train(
    mllm: MLLM,
    objective: Objective,
    examples: Sequence[Example],
    settings: Settings,
    folder: Path | str,
    *,
    rates: Rates,
    validation: Sequence[Example] | None = None,
    stage: str = "post",
    arm: str = "",
) -> Iterator[Event]:
    """Train an MLLM in place; yields what happens: dicts with `kind`, `done`, `total` and what there is to say.

    Writes metrics.jsonl, checkpoints, and at the end model/ and ledger.json into `folder`. A run that was killed goes on from
    its newest checkpoint, to the same bits on a CPU; `mllm` must then be the one that it began with, as the reference and the
    proof that parts moved need those weights. They are trained in fp32 and without dropout. Under FSDP2 the trained weights are
    in model/ alone.
    """
    if not len(examples) or (validation is not None and not len(validation)):
        raise BadInput("no examples to train or to validate on; check the path and the filters of the data")
    if not settings.steps(len(examples)):
        raise BadInput(f"drop_last leaves no update: {len(examples)} examples fill no batch of {settings.batch}; make batch smaller")
    folder = Path(folder)
    setup, told = build(mllm, objective, examples, validation, settings, rates, folder)
    with closing(setup.ahead):
        yield from ({"kind": "note", "done": 0, "total": setup.steps, "message": message} for message in _refused(setup))
        if objective.needs_reference and not objective.online:
            yield from _references(setup, told, folder)
        state = resume(setup)
        if settings.report_to:
            config = {"stage": stage, "arm": arm, **settings.model_dump(mode="json")}
            setup.accelerator.init_trackers("pivot", config={key: str(value) for key, value in config.items()})
        if setup.heldout and not state.step:
            yield _tell(setup, state, folder, "eval", time.perf_counter(), validate(setup, state, setup.heldout))
        yield from _updates(setup, state, folder)
        mllm.model.eval()  # layers that were awake for checkpointing would ignore a cache
        if settings.keep == "best" and state.best and state.best[0] != state.step:
            setup.checkpoints.restore(state.best[0])
        setup.proof.check_frozen()
        save_model(setup, folder / "model")
        facts = entries(setup, state, stage, arm, read_json(folder / REFERENCE) if (folder / REFERENCE).exists() else None)
        if setup.accelerator.is_main_process:
            write_json(folder / LEDGER, facts)
        for tracker in setup.accelerator.trackers:  # end_training would take the process group away from the next stage, too
            tracker.finish()
        setup.accelerator.wait_for_everyone()
        yield {"kind": "done", "done": setup.steps, "total": setup.steps}


def _refused(setup: Setup) -> Iterator[str]:
    """What was asked for and the LLM does not allow, and what is done in its place."""
    llm, settings = setup.mllm.model.config.get_text_config(), setup.settings
    _, reason = backend(llm, settings.backend)
    if reason:
        yield f"responses are scored by backend repeat, since the LLM does not allow {settings.backend}: {reason}"
    if settings.packing and setup.objective.k == 1 and (reason := against_packing(llm)):
        yield f"rows are padded, since the LLM does not allow packing: {reason}"


def _references(setup: Setup, told: Mapping[str, Any], folder: Path) -> Iterator[Event]:
    """Give the data its reference, and keep what that cost: a resumed run finds it cached."""
    for data in filter(None, (setup.data, setup.heldout)):
        for found in compute(setup, data.examples, told):
            if isinstance(found, Reference):
                data.reference = found.row
                if data is setup.data and setup.accelerator.is_main_process:
                    _keep_facts(folder / REFERENCE, {"of": hash_json(told), **found.facts()})
            else:
                yield {"kind": "reference", "done": found, "total": len(data.examples)}
    setup.accelerator.wait_for_everyone()


def _keep_facts(file: Path, facts: Mapping[str, Any]) -> None:
    """Note what a reference cost, unless it was this very one that was noted."""
    if not file.exists() or read_json(file).get("of") != facts["of"]:
        write_json(file, facts)


def _updates(setup: Setup, state: State, folder: Path) -> Iterator[Event]:
    """All updates that are left, with what is due after each."""
    settings = setup.settings
    began = time.perf_counter()
    ahead = portions(setup, state) if setup.objective.online else setup.portions(setup.data, setup.batches(state.step))
    for portion in ahead:
        counts, told = _account(setup, state, portion, time.perf_counter() - began)
        metrics = _update(setup, state, portion.micros, counts)
        metrics["epoch"] = state.step * settings.epochs / setup.steps
        metrics |= told
        metrics["num_tokens"] = state.spent.image_tokens + state.spent.text_tokens
        event = _tell(setup, state, folder, "train", began, metrics)
        if state.witnessed == WITNESSED or (state.step == setup.steps and state.witnessed < WITNESSED):
            _prove(setup, state)
        alarms = setup.watch.see(event)
        state.alarms += alarms
        yield event
        yield from ({"kind": "alarm", "done": state.step, "total": setup.steps, "message": alarm} for alarm in alarms)
        due = state.step == setup.steps or state.step % settings.save_every == 0
        if setup.heldout and (state.step == setup.steps or (settings.eval_every and state.step % settings.eval_every == 0)):
            event = _tell(setup, state, folder, "eval", time.perf_counter(), validate(setup, state, setup.heldout))
            if state.best is None or event["loss"] < state.best[1]:
                state.best, due = (state.step, event["loss"]), True
            yield event
        if due:
            save(setup, state)
            yield {"kind": "checkpoint", "done": state.step, "total": setup.steps}
        began = time.perf_counter()


def _account(setup: Setup, state: State, portion: Portion, waited: float) -> tuple[Counts, Metrics]:
    """Count what all processes took of a batch, for the losses and for the ledger; for the log, rows that were cut and seconds waited."""
    k = setup.objective.k
    own = (
        [f"{row.id} {row.asks}" for row in portion.rows],
        count(portion.rows, k),
        cost(setup, portion),
        sum(row.cut for row in portion.rows),
        waited - portion.seconds,
    )
    told = gather_object([own])
    names = [""] * sum(len(ids) for ids, *_ in told)
    for process, (ids, _, (images, text, flops), *_) in enumerate(told):
        names[process :: len(told)] = ids  # as order.share dealt them
        state.spent.image_tokens += images
        state.spent.text_tokens += text
        state.spent.flops += flops
    counts = reduce(add, (counts for _, counts, *_ in told))
    if not portion.again:
        state.spent.read(names)
        state.spent.written_tokens += sum(counts.tokens) * setup.objective.online
    longest = max(waited for *_, waited in told)  # the others wait for that process
    state.spent.waiting += longest
    cut = sum(cut for *_, cut, _ in told)
    state.spent.cut_rows += cut
    return counts, {"waiting": longest, "cut_rows": cut, **portion.metrics}


def _tell(setup: Setup, state: State, folder: Path, kind: str, began: float, metrics: Metrics) -> Event:
    """Write one line of the log; returns it as an event."""
    seconds = time.perf_counter() - began
    state.spent.seconds += seconds
    line = {"step": state.step, "kind": kind, **metrics, "seconds": seconds}
    if setup.accelerator.is_main_process:
        append_jsonl(folder / METRICS, line)
    setup.accelerator.log({f"{kind}/{name}": value for name, value in metrics.items()}, step=state.step)
    return {**line, "done": state.step, "total": setup.steps}
