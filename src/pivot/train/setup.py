"""What surrounds the updates: made before the first, put back after a kill, written after the last."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object, set_seed

from pivot.data.lazy import fingerprint
from pivot.data.lengths import Lengths, lengths
from pivot.files import hash_json, hash_tensors, whole_folder
from pivot.model import MLLM, Scorer
from pivot.model.critic import HEAD, Critic, critic, save_head
from pivot.model.lora import Adapters
from pivot.objective._contract import Objective
from pivot.objective._online import Online
from pivot.plain import differences
from pivot.records import BadInput, Example
from pivot.train.anchor import Anchor
from pivot.train.checkpoint import Checkpoints
from pivot.train.feed import Ahead, Data
from pivot.train.judge import Judge
from pivot.train.launch import accelerator as launched
from pivot.train.ledger import objective_facts
from pivot.train.parts import Proof, Rates, adapt, freeze, groups
from pivot.train.reference import identity, row_key
from pivot.train.settings import Settings
from pivot.train.state import Rollout, Setup, Spent, State
from pivot.train.watch import Watch

FREE = ("micro", "report_to", "save_every", "workers")  # settings that a resumed run may change


def build(
    mllm: MLLM,
    objective: Objective,
    examples: Sequence[Example],
    validation: Sequence[Example] | None,
    settings: Settings,
    rates: Rates,
    folder: Path,
) -> tuple[Setup, dict[str, Any]]:
    """Everything that training needs, and what its reference depends on, taken before any update."""
    check_style(objective, settings)
    crew = launched(settings, folder)
    told = identity(mllm.to(dtype="float32"), settings, crew.device)
    set_seed(settings.seed + crew.process_index)
    _wake(mllm, settings.checkpointing)
    mark = fingerprint(examples)
    learner = _learner(mllm, objective, settings)
    judge = Judge(objective, crew.device) if isinstance(objective, Online) else None
    judges = _judges(learner, objective, judge)
    adapters = _free(learner, rates, settings)
    chosen, full = groups(mllm, rates, settings.weight_decay)
    beside = learner.own() if isinstance(learner, Critic) else {}
    if beside:
        chosen.append({"params": list(beside.values()), "lr": objective.head_rate, "weight_decay": 0.0})
        full.append(objective.head_rate)
    scorer, optimizer = crew.prepare(learner, torch.optim.AdamW(chosen))
    setup = Setup(
        mllm=mllm,
        objective=objective,
        settings=settings,
        rates=rates,
        steps=settings.steps(len(examples)) * objective.passes,
        accelerator=crew,
        scorer=scorer,
        optimizer=optimizer,
        full=full,
        adapters=adapters,
        proof=Proof(mllm, rates, crew, learner.own() if isinstance(learner, Critic) else {}),  # FSDP2 has put others in their places
        watch=Watch(settings.spike),
        data=Data(objective.source(examples)),
        lengths=_lengths(crew, examples, mark) if settings.group_by != "none" else None,
        heldout=None if validation is None else Data(objective.source(validation)),
        checkpoints=Checkpoints(folder, crew),
        ahead=Ahead(settings.workers),
        anchor=Anchor(_trained(mllm), scorer) if objective.online and objective.needs_reference else None,
        judge=judge,
        begun={
            "model": {key: hash_json(value) for key, value in told.items() if key not in ("device", "versions")},
            "launch": "sharded" if crew.distributed_type == DistributedType.FSDP else "whole",
            "objective": objective_facts(objective),
            "judges": judges,
            "rates": asdict(rates),
            "examples": len(examples),
            "data": mark,
            "rows": _rows(objective.source(examples)),
            "settings": settings.model_dump(mode="json", exclude=set(FREE)),
        },
    )
    return setup, told


def check_style(objective: Objective, settings: Settings) -> None:
    """Refuse what cannot be asked of replies that the model writes itself: they are in chat, and supervised token by token."""
    for name, only in (("template", "chat"), ("label_mask", "clean")):
        given = getattr(settings, name)
        if objective.online and given != only:
            called = type(objective).__module__.rpartition(".")[2]
            told = f"learns from replies that the model writes itself, so {name} {given} is none for it"
            raise BadInput(f"objective {called} {told}; use {only}")


def _learner(mllm: MLLM, objective: Objective, settings: Settings) -> Scorer | Critic:
    """What goes through `prepare`: the scorer, with a head beside it if the objective asks for one."""
    scorer = Scorer(mllm, settings.backend, settings.packing)
    if objective.head == "none":
        return scorer
    return critic(mllm, scorer, objective.head, getattr(objective, "critic_from", None)).to(mllm.model.device)


def _judges(learner: Scorer | Critic, objective: Objective, judge: Judge | None) -> dict[str, str]:
    """Hashes of the models that an objective names by folder, where others may stand by tomorrow. Before anything is trained."""
    found = {"reward_model": judge.learned.identity} if judge and judge.learned else {}
    if getattr(objective, "critic_from", None) and isinstance(learner, Critic) and learner.beside:
        found["critic_from"] = hash_json([learner.beside.mllm.hashes(), hash_tensors(learner.head.state_dict())])
    return found


def _free(learner: Scorer | Critic, rates: Rates, settings: Settings) -> Adapters | None:
    """Let the policy, and a critic of its own beside it, train as rates and settings say; each with its own adapters."""
    scorer, beside = (learner.scorer, learner.beside) if isinstance(learner, Critic) else (learner, None)
    for one in filter(None, (beside, scorer)):
        freeze(one.mllm, rates)
        adapters = adapt(one.mllm, rates, settings)
    for unread in (beside, scorer if isinstance(learner, Critic) and learner.kind == "only" else None):
        if unread is not None and not unread.config.get_text_config().tie_word_embeddings:
            unread.part("head").requires_grad_(False)  # no log-probability is asked of it
    return adapters


def _trained(mllm: MLLM) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in mllm.model.named_parameters() if parameter.requires_grad}


def _lengths(crew: Accelerator, examples: Sequence[Example], mark: str) -> Lengths:
    """How long rows are, with all responses that they have: so that all objectives read them in one order."""
    with crew.main_process_first():  # the others find them cached
        return lengths(examples, mark)


def _rows(examples: Sequence[Example]) -> str:
    """A hash of what rows say and show. Of 64 spread evenly: what all of them say is in the fingerprint, pictures take time."""
    sampled = min(len(examples), 64)
    return hash_json([row_key(examples[i * len(examples) // sampled]) for i in range(sampled)])


def _wake(mllm: MLLM, checkpointing: bool) -> None:
    """Evaluation mode throughout: with dropout, policy and reference would differ before the first update.

    Checkpointing is asked for by layer, and only of layers that believe to be in training; what lies in them does not.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    mllm.model.eval()
    if checkpointing:
        names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")  # transformers changes it from the second to the first
        next(getattr(mllm.model, name) for name in names if hasattr(mllm.model, name))()
        for module in mllm.model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.training = True


def resume(setup: Setup) -> State:
    """Go on from the newest intact checkpoint, if there is one; the log goes back to where that was taken.

    One of another training is a `BadInput` that names what changed.
    """
    checkpoints = setup.checkpoints
    found = checkpoints.newest()
    if found is None:
        checkpoints.restore_metrics(None)
        return State(objective=setup.objective.init())
    stored = checkpoints.state(found)
    began = {key: value for key, value in setup.begun.items() if key in stored["begun"]}  # older versions noted less, or micro as well
    before = {**stored["begun"], "settings": {**Settings().model_dump(mode="json"), **stored["begun"]["settings"]}}
    changed = [key for key in differences(before, began) if key not in {f"settings.{name}" for name in FREE}]
    if changed:
        raise BadInput(
            f"{checkpoints.folder} holds checkpoints of another training (changed: {', '.join(changed)}); give this one another folder"
        )
    best = tuple(stored["best"]) if stored["best"] else None
    checkpoints.restore(found)
    checkpoints.prune({found, best[0]} if best else {found})
    for line in checkpoints.restore_metrics(found):
        if line["kind"] == "train":
            setup.watch.see(line)
    setup.proof.squares = stored["proof"].to(setup.accelerator.device)
    return State(
        step=found,
        objective=stored["objective"],
        spent=Spent(**stored["spent"]),
        witnessed=stored.get("witnessed", found),
        rollout=Rollout(**stored["rollout"]) if stored.get("rollout") else None,
        best=best,
        alarms=stored["alarms"],
    )


def save(setup: Setup, state: State) -> None:
    """Write a checkpoint. It and the best validated one stay, older ones go."""
    best = list(state.best) if state.best else None
    held = {**asdict(state), "best": best, "proof": setup.proof.squares.cpu(), "begun": dict(setup.begun)}
    setup.checkpoints.save(state.step, held, keep={state.best[0]} if state.best else set())


def save_model(setup: Setup, folder: Path) -> None:
    """Write the MLLM whole, with its adapters in its weights. What is spread over processes is gathered in the main one."""
    from transformers import AutoModelForImageTextToText

    mllm, crew = setup.mllm, setup.accelerator
    spread = crew.distributed_type == DistributedType.FSDP
    weights = {name.removeprefix("scorer."): value for name, value in crew.get_state_dict(setup.scorer).items()} if spread else {}
    if setup.adapters and not spread:
        setup.adapters.merge(mllm.model)
    if crew.is_main_process:
        if spread:
            with torch.device("meta"):
                shell = AutoModelForImageTextToText.from_config(mllm.model.config)
            own = {name.removeprefix("model."): tensor for name, tensor in weights.items() if name.startswith("model.")}
            own = setup.adapters.merged(own) if setup.adapters else own
            shell.load_state_dict(own, assign=True)
            shell.tie_weights()
            shell.generation_config = mllm.model.generation_config
            mllm = MLLM(shell, mllm.processor, mllm.tap)
        with whole_folder(folder) as unfinished:
            mllm.save(unfinished)
            if setup.objective.head == "only":
                save_head(unfinished, {name: weights[f"head.{name}"] for name in HEAD} if spread else _head(setup.scorer))
    crew.wait_for_everyone()


def _head(scorer: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a critic's head, through whatever a launcher has wrapped around it."""
    found = {
        name.rpartition(".")[2]: weight for name, weight in scorer.named_parameters() if re.search(r"(^|\.)head\.(weight|bias)$", name)
    }
    return {name: found[name].detach() for name in HEAD}


def summed(shares: Mapping[str, float]) -> dict[str, float]:
    """Shares of all processes added up. One that had no rows of its own adds nothing."""
    everywhere: list[Mapping[str, float]] = gather_object([dict(shares)])
    return {name: sum(one.get(name, 0.0) for one in everywhere) for name in next(filter(None, everywhere), {})}
