"""One item of the world: from (split, seed, index) to an example with its exact truth."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal

from PIL import Image

from pivot.records import BadInput, Example, Response
from pivot.world import chart, general, knowledge, vision
from pivot.world.describe import caption, questions
from pivot.world.dice import Dice
from pivot.world.draft import Claim, Draft
from pivot.world.render import draw, truth
from pivot.world.scene import Scene

Form = Literal["pair", "facts", "caption", "turns"]

FAMILIES: dict[str, dict[str, Callable[[Dice], Draft]]] = {
    "General": {
        "existence": general.existence,
        "attribute": general.attribute,
        "naming": general.naming,
        "joint": general.joint,
    },
    "Knowledge": {
        "arithmetic": knowledge.arithmetic,
        "ordering": knowledge.ordering,
        "odd_one": knowledge.odd_one,
        "arrows": knowledge.arrows,
    },
    "OCR & Chart": {"word": chart.word, "number": chart.number, "bars": chart.bars, "form": chart.form},
    "Vision-Centric": {
        "counting": vision.counting,
        "relation": vision.relation,
        "front": vision.front,
        "twins": vision.twins,
    },
}
DOMAINS = {task: domain for domain, tasks in FAMILIES.items() for task in tasks}
TASKS = tuple(DOMAINS)

# A scene belongs to the split that its own hash names, so two splits cannot share one, whatever their seeds.
SPLITS = {"train": (0, 1), "validation": (2,), "test": (3,)}

CUES = {"short": "be brief.", "explained": "explain."}
TURNS = 3
FACTS = 8
LOOK = "what do you see?"
DESCRIBE = "describe the picture."
CAPTION_EVERY = 4  # conversations that end with a caption; the others end with facts, since answers alone are few words to learn from


def draft(split: str, seed: int, index: int, tasks: tuple[str, ...] = TASKS) -> tuple[str, Draft]:
    """The task and the draft behind an index. Families take turns, two items each, so that twins are neighbours."""
    if split not in SPLITS:
        raise BadInput(f"no split '{split}' in the world; known: {', '.join(SPLITS)}")
    task = tasks[index // 2 % len(tasks)]
    family = FAMILIES[DOMAINS[task]][task]
    key = index // 2 if task == "twins" else index
    attempt = 0
    while True:
        made = family(Dice("world", seed, split, task, key, attempt))
        attempt += 1
        members = (made, made.twin) if made.twin else (made,)
        if all(split_of(member.scene) == split for member in members):
            break
    if made.twin and index % 2:
        made = replace(made.twin, twin=made)
    return task, made


def split_of(scene: Scene) -> str:
    """The split that a scene belongs to, by its hash."""
    bucket = int(scene.digest()[:8], 16) % 4
    return next(split for split, buckets in SPLITS.items() if bucket in buckets)


def item(split: str, seed: int, index: int, *, pixels: int = 48, tasks: tuple[str, ...] = TASKS, form: Form = "pair") -> Example:
    """The example behind an index, as a preference pair, as facts or a caption, or as a conversation of several questions."""
    task, made = draft(split, seed, index, tasks)
    dice = Dice("style", seed, split, index)
    style = "short" if dice.coin() else "explained"
    drawing = draw(made.scene, pixels)
    words = caption(made.scene)
    name = f"world-{split}-{seed}-{pixels}-{index:06d}-{task}"
    example = Example(
        id=name,
        images=(Image.fromarray(drawing.pixels),),
        prompt=ask(made.question, style),
        responses=(Response(say(made.answer, style)), *(Response(say(c, style), "rejected", error=e) for c, e in made.wrong)),
        answer=made.answer.value,
        answer_kind=made.kind,
        task=task,
        domain=DOMAINS[task],
        truth=truth(made.scene, drawing, made.region, words),
        meta={
            "style": style,
            "choices": made.choices,
            "pair": f"{name.rsplit('-', 2)[0]}-{index // 2:06d}" if made.twin else None,
            "scene": made.scene.digest(),
        },
    )
    if form == "pair":
        return example
    if form == "turns":
        return replace(example, **_conversation(made, dice))
    prompt, said = DESCRIBE, words
    if form == "facts":
        about = questions(made.scene, dice)[: FACTS - 1]
        prompt, said = LOOK, _facts([made.answer.explained, *(fact for _, _, fact in about)], dice)
    return replace(example, prompt=prompt, responses=(Response(said),), answer=None, answer_kind=None)


def ask(question: str, style: str) -> str:
    return f"{question} {CUES[style]}"


def say(claim: Claim, style: str) -> str:
    return claim.short if style == "short" else claim.explained


def _facts(sentences: Iterable[str], dice: Dice) -> str:
    """Statements about the picture, each once, in random order."""
    return " ".join(dice.shuffled(list(dict.fromkeys(sentences))))


def _conversation(made: Draft, dice: Dice) -> dict[str, Any]:
    """The main question at a random place among others about the same picture; then the whole picture in many words."""
    more = [(q, short, long) for q, short, long in questions(made.scene, dice) if q != made.question]
    asked = dice.shuffled([(made.question, made.answer.short, made.answer.explained), *more[: TURNS - 1]])
    turns: list[dict[str, str]] = []
    for question, short, explained in asked:
        style = dice.pick(tuple(CUES))
        turns.append({"role": "user", "content": ask(question, style)})
        turns.append({"role": "assistant", "content": short if style == "short" else explained})
    # Last, or the questions could be answered from it.
    rest = [fact for _, _, fact in more[TURNS - 1 :]][:FACTS]
    describe = dice.below(CAPTION_EVERY) == 0 or not rest
    turns.append({"role": "user", "content": DESCRIBE if describe else LOOK})
    turns.append({"role": "assistant", "content": caption(made.scene) if describe else _facts(rest, dice)})
    return {"prompt": turns[0]["content"], "responses": (Response(tuple(turns[1:])),)}
