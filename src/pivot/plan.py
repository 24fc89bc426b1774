"""What a run would take, said before it runs: stages, examples, steps, tokens, parameters, FLOPs, memory and GPU-hours.

No weights and no GPU are needed: the model is its config and its tokenizer, the data is read as the stages will read it. Validations,
probes and benches are not in the FLOPs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from pivot import lookup
from pivot.knobs import nearest
from pivot.records import BadInput
from pivot.rehearsal import READ, Reading, Rehearsal, Teaching
from pivot.runfolder import RunFolder
from pivot.sections import Recipe, knobs
from pivot.stages import Stage, stages

if TYPE_CHECKING:
    from pivot.model.lora import Adapters
    from pivot.model.memory import Memory
    from pivot.train import Rates

# Dense operations a second at full clock: bf16 on tensor cores, fp32 without TF32, which PyTorch leaves off. From the makers' data
# sheets: NVIDIA A100 80GB SXM, H100 SXM and PCIe, H200 SXM, L40S (there with sparsity: halved), GeForce RTX 4090 (Ada whitepaper).
PEAKS = {
    "a100": (312e12, 19.5e12),
    "h100": (989e12, 67e12),
    "h100-pcie": (756e12, 51e12),
    "h200": (989e12, 67e12),
    "l40s": (362e12, 91.6e12),
    "rtx4090": (165e12, 82.6e12),
}


@dataclass(frozen=True)
class Machine:
    """What it would run on, and which share of the peak it would reach. 40 % is what well-fed trainers of dense models report."""

    gpus: int = 1
    gpu: str = "h100"
    utilisation: float = 0.4

    def __post_init__(self) -> None:
        if self.gpu not in PEAKS:
            raise BadInput(f"--gpu: no figures of '{self.gpu}'; {nearest(self.gpu, PEAKS)}")
        if self.gpus < 1 or not 0 < self.utilisation <= 1:
            raise BadInput(f"--gpus {self.gpus}, --utilisation {self.utilisation}: give at least one GPU, and a share above 0 up to 1")

    def hours(self, flops: float, precision: str) -> float:
        """GPU-hours, all GPUs together."""
        return flops / PEAKS[self.gpu][precision == "fp32"] / self.utilisation / 3600


@dataclass(frozen=True)
class Plan:
    """`stages`: a row for each, in order; a value is None where it is not known. `parts`: parameters of the model's."""

    stages: list[dict[str, Any]]
    parts: dict[str, int]
    machine: Machine = field(default_factory=Machine)


def plan(recipe: Recipe, folder: RunFolder, machine: Machine | None = None) -> Plan:
    """What each stage of a recipe would take, finished or not. Wrong paths and fields, of whichever stage, are a `BadInput`."""
    sizes = Sizes(recipe, machine or Machine())
    rows = []
    for stage in stages(recipe):
        finished = folder.done(stage.name)
        try:
            row = sizes.row(stage)
        except BadInput:
            if not finished:
                raise
            row = {}  # what it read may be gone since
        rows.append({"stage": stage.name, "state": "finished" if finished else "to do", **EMPTY, **row})
    return Plan(rows, sizes.parts if rows else {}, sizes.machine)


COUNTED = ("examples", "steps", "image_tokens", "text_tokens", "written_tokens", "parameters", "flops", "gpu_hours", "memory")
EMPTY: dict[str, Any] = dict.fromkeys((*COUNTED, "error", "too_long", "cut"))


class Sizes:
    """Rows of a plan, of one recipe on one machine."""

    def __init__(self, recipe: Recipe, machine: Machine) -> None:
        self.recipe, self.machine = recipe, machine
        self.rehearsal = Rehearsal(recipe, READ)
        self._memory: dict[Any, tuple[Memory, Memory]] = {}

    @cached_property
    def parts(self) -> dict[str, int]:
        """Parameters of the tower, the projector and the LLM."""
        return {name: sum(p.numel() for p in part.parameters()) for name, part in self.rehearsal.mllm.parts().items()}

    def row(self, stage: Stage) -> dict[str, Any]:
        """What is known of one stage."""
        if stage.kind in ("align", "instruct", "post"):
            return self._training(Teaching.of(self.recipe, stage))
        if stage.kind == "pretrain" and self.recipe.pretrain:
            examples, _ = self.rehearsal.examples(self.recipe.pretrain["data"])
            return {"examples": examples, "steps": examples // self.recipe.pretrain["batch"], "parameters": self.parts["tower"]}
        use = self.recipe.used(stage.kind, stage.entry)
        if use.get("data"):
            return {"examples": self.rehearsal.examples(use["data"])[0]}
        if stage.kind != "bench":
            return {}
        return {"examples": len(lookup.find("bench", use["use"])(**knobs(use)).examples())}  # its own items

    def _training(self, teaching: Teaching) -> dict[str, Any]:
        """With the model as it would train."""
        from pivot.train import Rates
        from pivot.train.parts import adapt, freeze

        mllm, rates = self.rehearsal.mllm, Rates(**teaching.rates)
        freeze(mllm, rates)
        adapters = adapt(mllm, rates, teaching.settings)
        try:
            return self._taught(teaching, rates, adapters)
        finally:
            if adapters:
                adapters.remove(mllm.model)

    def _taught(self, teaching: Teaching, rates: Rates, adapters: Adapters | None) -> dict[str, Any]:
        """Tokens and FLOPs are those of all epochs, and with a reference of computing it once: nothing of it may be cached yet.

        Replies that the model writes itself are taken to be as long as they may be.
        """
        from pivot.model.flops import row_flops
        from pivot.train.ledger import models

        mllm, settings, objective = self.rehearsal.mllm, teaching.settings, teaching.made
        reading = self.rehearsal.reading(teaching)
        if teaching.section.validation:
            self.rehearsal.reading(teaching, teaching.section.validation)
        steps = settings.steps(reading.examples)
        reads = settings.epochs * min(reading.examples, steps // settings.epochs * settings.batch)  # rows, in all epochs
        options: dict[str, Any] = {"backend": settings.backend, "adapters": adapters}
        training: dict[str, Any] = {**options, "trained": rates.trained(), "checkpointing": settings.checkpointing}
        costs = [row_flops(mllm.model.config, row, **training) for row in reading.rows]
        once = [row_flops(mllm.model.config, row, **options, backward=False) for row in reading.rows]
        ahead = objective.needs_sums and settings.batch > settings.micro * self.machine.gpus  # then rows are scored once more
        # Written by the model itself, each row is sampled, and scored as often as the objective asks for.
        before = (
            reads * (1 + models(objective) * objective.needs_old + objective.needs_reference)
            if objective.online
            else reading.examples * objective.needs_reference + reads * ahead
        )
        flops = mean(costs) * reads * objective.passes * models(objective) + mean(once) * before
        return {
            "examples": reading.examples,
            "steps": steps * objective.passes,
            "image_tokens": round(mean(row.image_tokens for row in reading.rows) * reads * objective.passes),
            "text_tokens": round(mean(row.text_tokens for row in reading.rows) * reads * objective.passes),
            "written_tokens": reads * objective.k * objective.max_new if objective.online else 0,
            "parameters": sum(weight.numel() for weight in mllm.model.parameters() if weight.requires_grad),
            "flops": flops,
            "error": _error(costs) if len(reading.rows) < reading.examples else 0.0,
            "too_long": sum(row.length > settings.limit for row in reading.rows) / len(reading.rows) if settings.limit else 0.0,
            "cut": sum(row.cut for row in reading.rows) / len(reading.rows),
            "gpu_hours": self.machine.hours(flops, settings.precision),
            "memory": self._held(teaching, reading, adapters),
        }

    def _held(self, teaching: Teaching, reading: Reading, adapters: Adapters | None) -> dict[str, Any]:
        """Bytes on each GPU, with checkpointing as the recipe has it and otherwise."""
        from pivot.model.memory import largest, memory

        settings, model = teaching.settings, self.rehearsal.mllm.model
        micro = min(settings.micro, -(-settings.batch // self.machine.gpus))
        batch = largest(reading.rows, micro, model.config, settings.backend, settings.packing)
        trained = tuple(part for part, rate in teaching.rates.items() if rate)
        key = (trained, adapters, settings.precision, batch.rows, batch.tokens, batch.supervised, batch.segment is None)
        if key not in self._memory:
            self._memory[key] = memory(model, batch, settings.precision, self.machine.gpus, adapters)
        without, with_ = (self._beside(held, teaching.made) for held in self._memory[key])
        chosen, other = (with_, without) if settings.checkpointing else (without, with_)
        return {
            **asdict(chosen),
            "total": chosen.total,
            "checkpointing": settings.checkpointing,
            "otherwise": other.total,
            "micro": micro,
            "longest": max(row.length for row in reading.rows),
        }

    def _beside(self, held: Memory, objective: Any) -> Memory:
        """With a critic of its own, which is as large as the policy, and with the first weights of what trains, if these are kept."""
        from pivot.train.ledger import models

        times, kept = models(objective), held.optimizer // 2 if objective.online and objective.needs_reference else 0
        return replace(
            held,
            weights=held.weights * times + kept,
            gradients=held.gradients * times,
            optimizer=held.optimizer * times,
            activations=None if held.activations is None else held.activations * times,
        )


def _error(costs: Sequence[float]) -> float:
    """One standard error of a mean, as a share of it."""
    return stdev(costs) / len(costs) ** 0.5 / mean(costs) if len(costs) > 1 else float("nan")


def facts(made: Plan) -> Mapping[str, Any]:
    """A plan as plain values."""
    bf16, fp32 = PEAKS[made.machine.gpu]
    return {"stages": made.stages, "parts": made.parts, "machine": {**asdict(made.machine), "peak_flops": {"bf16": bf16, "fp32": fp32}}}
