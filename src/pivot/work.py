"""Stages being run: what each kind does with the files of a run folder. Between stages nothing is kept but these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pivot import lookup
from pivot.beginning import given, initial, steady
from pivot.crew import Crew
from pivot.files import discard, read_json
from pivot.provenance import of_arm
from pivot.records import BadInput, CheckFailed
from pivot.runfolder import ORIGINAL, RunFolder
from pivot.sections import Post, Rates, Recipe, knobs
from pivot.stages import TRAINING, Stage, stages

if TYPE_CHECKING:
    import torch

    from pivot.encoder import Encoder
    from pivot.model import MLLM
    from pivot.objective._contract import Objective


@dataclass(frozen=True)
class Event:
    """What happened, for whoever shows it."""

    kind: Literal["begin", "progress", "done", "skip", "wait"]  # wait: for another run that is at a stage
    stage: str
    facts: Mapping[str, Any] = field(default_factory=dict)


Tell = Callable[[Event], None]
State = Literal["finished", "elsewhere", "to do"]  # of a stage


@dataclass(frozen=True)
class Work:
    """A recipe being run in a folder: one method a kind of stage, which returns the paths that it made."""

    recipe: Recipe
    folder: RunFolder
    tell: Tell
    crew: Crew

    def go_through(self, left: Sequence[Stage], again: bool) -> list[Stage]:
        """Run what is to be run and no other run is at; returns the rest."""
        rest = list[Stage]()
        for stage in left:
            with ExitStack() as held:
                look = partial(self._state, stage, {other.name for other in rest}, held, again)
                state = self.crew.told(look) if stage.kind in TRAINING else look()
                if state == "elsewhere":
                    rest.append(stage)
                elif state == "finished" and not again:
                    self.tell(Event("skip", stage.name, self.folder.facts(stage.name)))
                else:
                    self.perform(stage, afresh=state == "finished")
        return rest

    def _state(self, stage: Stage, elsewhere: Set[str], held: ExitStack, again: bool) -> State:
        """Whether a stage is finished, or in the hands of another run, by itself or by what it waits for; if not, it is claimed.

        What is to be made again waits for those who are reading it.
        """
        if not held.enter_context(self.folder.claim(stage.name)):
            return "elsewhere"
        if again and any(self.folder.claimed(other.name) for other in stages(self.recipe) if stage.name in other.needs):
            return "elsewhere"
        # A recipe that has more now than when the report was written has more to report.
        if self.folder.done(stage.name) and self.folder.read_by(stage.name) >= set(stage.needs):
            return "finished"
        return "elsewhere" if any(need in elsewhere or self.folder.claimed(need) for need in stage.needs) else "to do"

    def perform(self, stage: Stage, afresh: bool) -> None:
        """Run one stage and mark it. `afresh` throws away what a finished one made; else a killed one goes on."""
        look = {need: partial(self.folder.done, need) for need in stage.needs}
        needs = {need: self.crew.told(done) if stage.kind in TRAINING else done() for need, done in look.items()}
        missing = next((need for need, done in needs.items() if not done), None)
        if missing and stage.kind != "report":  # a report shows what is there
            raise BadInput(f"stage {stage.name} needs {missing}, which is not finished in {self.folder.path}; run that first")
        if afresh and stage.kind in (*TRAINING, "saliency") and self.crew.main:
            discard(self.folder.path / stage.name)
        if afresh and stage.kind in TRAINING:
            self.crew.wait()  # the others must not find a checkpoint that is about to go
        self.tell(Event("begin", stage.name))
        read = self.folder.versions([need for need, done in needs.items() if done]) if self.crew.main else {}
        made = getattr(self, f"_{stage.kind}")(stage)
        if self.crew.main:
            self.folder.mark(stage.name, made, read)
        self.tell(Event("done", stage.name, {"made": [str(path) for path in made]}))

    def _progress(self, stage: Stage) -> Callable[[int, int], None]:
        return lambda done, total: self.tell(Event("progress", stage.name, {"done": done, "total": total}))

    # -- what trains

    def entering(self, kind: str) -> MLLM:
        """The MLLM as it enters a stage: as the one before left it, else the recipe's own."""
        before = [name for name in TRAINING[: TRAINING.index(kind)] if getattr(self.recipe, name)]
        if before:
            from pivot.model import MLLM

            return MLLM.load(self.folder.path / before[-1] / "model")
        return initial(self.recipe)

    def _pretrain(self, stage: Stage) -> list[Path]:
        from pivot.pretrain.loop import pretrain

        assert self.recipe.pretrain
        knobs = {key: value for key, value in self.recipe.pretrain.items() if key not in ("name", "data")}
        folder = self.folder.path / stage.name
        if self.crew.main:  # tiny towers only: one process is enough, the others meet it at the next stage
            objective = lookup.find("pretrain", self.recipe.pretrain["name"])(**knobs)
            examples = self.recipe.examples(self.recipe.pretrain["data"])
            mllm = self.entering(stage.kind)
            steady(mllm.model)
            for line in pretrain(mllm, objective, examples, folder, seed=self.recipe.seeds[0]):
                self.tell(Event("progress", stage.name, {**line, "done": line["step"], "total": line["steps"]}))
        return [folder / "model", folder / "ledger.json", folder / "metrics.jsonl"]

    def _align(self, stage: Stage) -> list[Path]:
        assert self.recipe.align
        return self._train(stage, self.recipe.align, {"name": "sft"}, self.recipe.align.rates)

    def _instruct(self, stage: Stage) -> list[Path]:
        assert self.recipe.instruct
        return self._train(stage, self.recipe.instruct, {"name": "sft"}, self.recipe.instruct.rates)

    def _post(self, stage: Stage) -> list[Path]:
        arm = self.recipe.arms[stage.arm]
        assert self.recipe.post and arm.objective and arm.rates
        return self._train(stage, self.recipe.post, arm.objective, arm.rates)

    def _train(self, stage: Stage, section: Post, objective: Mapping[str, Any], rates: Rates) -> list[Path]:
        from pivot.train import Rates, Settings, train

        folder = self.folder.path / stage.name
        mllm = self.entering(stage.kind)
        steady(mllm.model)
        for line in train(
            mllm,
            _objective(objective),
            self.recipe.examples(section.data),
            Settings(**section.settings, seed=stage.seed),
            folder,
            rates=Rates(**rates.model_dump()),
            validation=self.recipe.examples(section.validation) if section.validation else None,
            stage=stage.kind,
            arm=stage.arm,
        ):
            self.tell(Event("progress", stage.name, line))
        ledger = folder / "ledger.json"
        if self.crew.main:
            # Arms are matched by construction; a source that dropped or reordered rows for one arm alone is caught here.
            read = f"the examples that {stage.name} read, and their order,"
            self.folder.pin(f"{stage.kind} ids, seed {stage.seed}", read_json(ledger)["ids_sha256"], read)
        return [folder / "model", ledger, folder / "metrics.jsonl"]

    # -- what measures

    def _detach(self, stage: Stage) -> list[Path]:
        from pivot.encoder.export import export

        folder = self.folder.encoder(stage.arm, stage.seed)
        mllm = None if stage.arm == ORIGINAL else self._trained(stage)
        encoder = mllm.detach() if mllm else self._original()
        known = of_arm(self.recipe, stage.arm, stage.seed, mllm.dequantised if mllm else None)
        parity = export(encoder, folder, provenance=known)
        if not parity.holds and parity.device == "cpu" and parity.dtype == "float32":
            raise CheckFailed(f"{folder}: features differ from those in the MLLM by {parity.difference:.2g}; see parity.json there")
        return [folder]

    def _original(self) -> Encoder:
        """The encoder before any LLM of this recipe touched it."""
        if self.recipe.init:
            return self.entering("post").detach()
        return self.entering("align").detach() if self.recipe.pretrain else given(self.recipe)

    def _trained(self, stage: Stage) -> MLLM:
        """The MLLM of an arm: after stage post, or as it would enter it."""
        from pivot.model import MLLM

        if self.recipe.arms[stage.arm].objective:
            return MLLM.load(self.folder.post(stage.arm, stage.seed) / "model")
        return self.entering("post")

    def _saliency(self, stage: Stage) -> list[Path]:
        from pivot.train import Settings
        from pivot.train.saliency import How, write

        use, arm = self.recipe.probes[stage.entry], self.recipe.arms[stage.arm]
        assert self.recipe.post and arm.objective
        probe = lookup.find("probe", use["use"])(**knobs(use))
        mllm = self.entering("post").to(_device())
        steady(mllm.model)
        folder = self.folder.path / stage.name
        objective = _objective(arm.objective)
        examples, settings = self.recipe.examples(use["data"]), Settings(**self.recipe.post.settings)
        for done, total in write(mllm, objective, examples, folder, How(**probe.gradients), arm=stage.arm, settings=settings):
            self.tell(Event("progress", stage.name, {"done": done, "total": total}))
        return [folder]

    def _probe(self, stage: Stage) -> list[Path]:
        from pivot.encoder import Encoder

        use = self.recipe.probes[stage.entry]
        probe = lookup.find("probe", use["use"])(**knobs(use))
        if probe.READS == "gradients":
            found = list(probe.measured({stage.arm: self.folder.path / f"saliency-{stage.entry}" / stage.arm}))
        else:
            arms = [ORIGINAL, stage.arm] if probe.READS == "original" else [stage.arm]
            places = {arm: self.folder.encoder(arm, stage.seed) for arm in arms}
            encoders = {arm: Encoder.load(place).to(_device()) for arm, place in places.items()}
            steady(encoders[stage.arm].model)
            on = self.recipe.examples(use["on"]) if use["on"] else None
            found = list(probe.run(encoders, self.recipe.examples(use["data"]), on))
        # Named as in the recipe, where names are unique: the same probe may be used twice.
        names = [stage.entry if len(found) == 1 else f"{stage.entry}-{one.name}" for one in found]
        kept = [replace(one, name=name, arm=stage.arm, seed=stage.seed) for one, name in zip(found, names, strict=True)]
        return [self.folder.write_measurement(one) for one in kept]

    def _bench(self, stage: Stage) -> list[Path]:
        from pivot.bench import run as ask

        use = self.recipe.bench[stage.entry]
        mllm = self._trained(stage).to(_device())
        steady(mllm.model)
        answers = self.folder.answers_file(stage.arm, stage.seed, stage.entry)
        benchmark = lookup.find("bench", use["use"])(**knobs(use))
        found = ask.run(
            benchmark,
            ask.speaking(mllm, benchmark),
            answers,
            examples=self.recipe.examples(use["data"]) if use["data"] else None,
            arm=stage.arm,
            seed=stage.seed,
            fingerprint=ask.identity(mllm, benchmark),
            progress=self._progress(stage),
        )
        return [self.folder.write_measurement(replace(found, name=stage.entry)), answers]

    def _report(self, stage: Stage) -> list[Path]:
        from pivot.report import page

        return [page.write(self.folder)]


def _objective(given: Mapping[str, Any]) -> Objective:
    """An arm's objective."""
    made: Objective = lookup.find("objective", given["name"])(**{key: value for key, value in given.items() if key != "name"})
    return made


def _device() -> torch.device:
    from pivot.train.launch import processes

    return processes().device
