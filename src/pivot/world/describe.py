"""Say what is in a scene: a caption that names everything, and more questions about the same picture.

Both are for teaching only (stages align and instruct); what is measured are the task families. Neither names a texture or
an orientation.
"""

from __future__ import annotations

from collections import Counter
from itertools import permutations

from pivot.world.dice import Dice
from pivot.world.draft import article, place_words
from pivot.world.scene import Arrow, Bar, Glyph, Panel, Scene, Shape, place

Asked = tuple[str, str, str]  # question, short answer, explained answer


def caption(scene: Scene) -> str:
    """Everything that can be named, in reading order."""
    said = [f"{article(s.colour)} {s.kind} {place_words(place(s.x, s.y))}" for s in _in_order(scene)]
    bars = sorted((item for item in scene.items if isinstance(item, Bar)), key=lambda bar: bar.x)
    said += [f"{article(bar.colour)} bar of height {bar.value}" for bar in bars]
    texts = lines(scene)
    said += [f"{text} {place_words(place(x, y))}" for text, x, y in texts] if not bars else []
    arrows = [item.label for item in scene.items if isinstance(item, Arrow) and item.label]
    said += [f"an arrow from {label[0]} to {label[2]}" for label in sorted(arrows)]
    return ", ".join(said) + "."


def lines(scene: Scene) -> list[tuple[str, int, int]]:
    """Written texts with their centres: glyphs of one height that stand less than a glyph and a half apart are one text."""
    found: list[list[Glyph]] = []
    for glyph in (item for item in scene.items if isinstance(item, Glyph)):
        last = found[-1][-1] if found else None
        if last and last.y == glyph.y and last.dot == glyph.dot and 0 < glyph.x - last.x <= 6 * glyph.dot:
            found[-1].append(glyph)
        else:
            found.append([glyph])
    return [("".join(g.letter for g in run), sum(g.x for g in run) // len(run), run[0].y) for run in found]


def questions(scene: Scene, dice: Dice) -> list[Asked]:
    """More questions that this scene can answer, in random order."""
    asked: list[Asked] = []
    if scene.shapes:
        asked += _about_shapes(scene, dice)
    bars = [item for item in scene.items if isinstance(item, Bar)]
    asked += [(f"how high is the {b.colour} bar?", str(b.value), f"the {b.colour} bar is {b.value} steps high.") for b in bars]
    if bars:
        top = max(bars, key=lambda bar: bar.value)
        if sum(bar.value == top.value for bar in bars) == 1:
            asked.append(("what colour is the highest bar?", top.colour, f"the {top.colour} bar is the highest."))
    asked += _about_text(scene)
    return dice.shuffled(asked)


def _in_order(scene: Scene) -> list[Shape]:
    return sorted(scene.shapes, key=lambda s: (s.y * 3 // 384, s.x * 3 // 384, s.x, s.y))


def _about_shapes(scene: Scene, dice: Dice) -> list[Asked]:
    shapes = scene.shapes
    kinds, colours = Counter(s.kind for s in shapes), Counter(s.colour for s in shapes)
    places = Counter(place(s.x, s.y) for s in shapes)
    asked: list[Asked] = []
    for s in shapes:
        where = place(s.x, s.y)
        if places[where] == 1:
            asked.append(
                (f"what is {place_words(where)}?", f"{s.colour} {s.kind}", f"{article(s.colour)} {s.kind} is {place_words(where)}.")
            )
        if kinds[s.kind] == 1:
            asked.append((f"what colour is the {s.kind}?", s.colour, f"the {s.kind} is {s.colour}."))
            asked.append((f"where is the {s.kind}?", where, f"the {s.kind} is {place_words(where)}."))
        if colours[s.colour] == 1:
            asked.append((f"what is the {s.colour} shape?", s.kind, f"the {s.colour} shape is a {s.kind}."))
    plural = {kind: "crosses" if kind == "cross" else f"{kind}s" for kind in kinds}
    asked += [(f"how many {plural[k]} are there?", str(n), f"the number of {plural[k]} is {n}.") for k, n in kinds.items()]
    asked += [(f"how many {c} shapes are there?", str(n), f"the number of {c} shapes is {n}.") for c, n in colours.items()]
    pairs = [(a, b) for a, b in permutations(shapes, 2) if kinds[a.kind] == kinds[b.kind] == 1]
    for a, b in dice.some(pairs, min(2, len(pairs))):
        side = _side(a, b)
        if side:
            words = {"left": "left of", "right": "right of"}.get(side, side)
            asked.append((f"where is the {a.kind}, seen from the {b.kind}?", side, f"the {a.kind} is {words} the {b.kind}."))
    return asked


def _side(a: Shape, b: Shape) -> str | None:
    """The side of b on which a lies, if it is not a diagonal."""
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) > 3 * abs(dy):
        return "left" if dx < 0 else "right"
    if abs(dy) > 3 * abs(dx):
        return "above" if dy < 0 else "below"
    return None


def _about_text(scene: Scene) -> list[Asked]:
    texts = lines(scene)
    arrows = [item for item in scene.items if isinstance(item, Arrow) and item.label]
    asked: list[Asked] = []
    for arrow in arrows:
        a, b = arrow.label[0], arrow.label[2]
        asked.append((f"start at {a} and follow one arrow. where are you?", b, f"from {a} you reach {b}."))
    panels = {(item.x, item.y): item.colour for item in scene.items if isinstance(item, Panel)}
    for text, x, y in texts:
        where = place_words(place(x, y))
        if arrows:
            asked.append((f"which letter is {where}?", text, f"the letter {text} is {where}."))
        elif len(text) == 1 and text.isdigit():
            asked.append((f"which number is {where}?", text, f"the number {text} is {where}."))
        elif panels.get((x, y)) == "white":
            label = next(t for t, _, other in texts if other == y and len(t) == 1)
            asked.append((f"what stands in field {label}?", text, f"field {label} says {text}."))
        elif len(text) == 3:
            asked += [(f"which character is in position {i + 1}?", c, f"position {i + 1} holds {c}.") for i, c in enumerate(text)]
    return asked
