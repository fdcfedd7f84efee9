"""Edits of a picture: the drawings of the reference images and of the result, and the cells that may change.

The rest of the result equals the first reference image pixel for pixel: an item keeps its size and its place in its
cell.
"""

import zlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.reference.shapes.scenes.draw import Spread, cell, draw_spread
from qwen_image_engine.reference.shapes.scenes.scene import (
    COLOURS,
    GROUNDS,
    PLACES,
    TRANSPARENT,
    WORDS,
    Item,
    Scene,
    is_held_out,
    random_scene,
)

KINDS = ("recolour", "move", "remove", "cut", "word", "combine")
"""Kinds of edit. `remove` takes a shape away and leaves the ground, or nothing if the ground is transparent. `cut`
takes the ground away."""


@dataclass(frozen=True)
class Drawing:
    """A scene and the spread of each of its items."""

    scene: Scene
    spreads: tuple[Spread, ...]

    def draw(self, width: int, height: int) -> NDArray[np.uint8]:
        """Draw the picture, (height, width, 4) uint8, straight alpha."""
        return draw_spread(self.scene, self.spreads, width, height)


@dataclass(frozen=True)
class Edit:
    """An edit of one picture, or a combination of two.

    Attributes:
        kind: Name from `KINDS`.
        references: Drawings of the reference images: one, or two to combine. The result is the first, changed.
        result: Drawing of the edited picture.
        index: Index, in the first reference image, of the item that is recoloured, moved or removed; 0 for the other
            kinds.
        places: Cells that may change; empty for `cut`, which changes the ground.

    """

    kind: str
    references: tuple[Drawing, ...]
    result: Drawing
    index: int
    places: tuple[str, ...]

    @property
    def item(self) -> Item:
        """The item that is recoloured, moved or removed."""
        return self.references[0].scene.items[self.index]

    def changed(self, width: int, height: int) -> NDArray[np.bool_]:
        """Return the mask of pixels that may change, (height, width): the cells, and tips one pixel outside them."""
        mask: NDArray[np.bool_] = (self.references[0].draw(width, height) != self.result.draw(width, height)).any(-1)
        for place in self.places:
            mask[cell(place, width, height)] = True
        return mask


def random_edit(rng: np.random.Generator, kind: str) -> Edit:
    """Choose a random edit of one kind, of a random scene."""
    match kind:
        case "recolour":
            before = _drawing(rng, 1)
            index = _pick(before, rng)
            item, ground = before.scene.items[index], before.scene.ground
            colour = str(rng.choice([c for c in COLOURS if c not in (item.colour, ground)]))
            result = _changed(before, index, replace(item, colour=colour))
            return Edit(kind, (before,), result, index, (item.place,))
        case "move":
            before = _drawing(rng, 1)
            index = _pick(before, rng)
            item = before.scene.items[index]
            place = str(rng.choice(_free(before.scene)))
            result = _changed(before, index, replace(item, place=place))
            return Edit(kind, (before,), result, index, (item.place, place))
        case "remove":
            before = _drawing(rng, 2)
            if rng.random() < 0.4:  # transparent more often than other grounds: that is what leaves a hole
                before = Drawing(replace(before.scene, ground=TRANSPARENT), before.spreads)
            index = _pick(before, rng)
            return Edit(kind, (before,), _without(before, index), index, (before.scene.items[index].place,))
        case "cut":
            before = _drawing(rng, 1, opaque=True, word=False)
            return Edit(kind, (before,), Drawing(replace(before.scene, ground=TRANSPARENT), before.spreads), 0, ())
        case "word":
            before = _drawing(rng, 1, word=False)
            place = str(rng.choice(_free(before.scene)))
            scene = replace(before.scene, word=str(rng.choice(WORDS)), word_place=place)
            return Edit(kind, (before,), Drawing(scene, before.spreads), 0, (place,))
        case "combine":
            return _combination(rng)
        case _:
            raise ValueError(f"edit {kind!r}, expected one of {KINDS}")


def other_edit(edit: Edit, rng: np.random.Generator) -> Edit:
    """Return an edit of the same kind and reference images that a judge must reject.

    It has another colour, place or item, or another place of the word.
    """
    first, scene, result = edit.references[0], edit.references[0].scene, edit.result
    match edit.kind:
        case "recolour":
            unlike = (edit.item.colour, result.scene.items[edit.index].colour, scene.ground)
            colour = str(rng.choice([c for c in COLOURS if c not in unlike]))
            return replace(edit, result=_changed(first, edit.index, replace(edit.item, colour=colour)))
        case "move":
            place = str(rng.choice([p for p in _free(scene) if p != edit.places[1]]))
            changed = _changed(first, edit.index, replace(edit.item, place=place))
            return replace(edit, result=changed, places=(edit.item.place, place))
        case "remove":
            index = (edit.index + 1) % len(scene.items)
            return replace(edit, result=_without(first, index), index=index, places=(scene.items[index].place,))
        case "cut":
            ground = str(rng.choice([g for g in GROUNDS if g != scene.ground]))
            return replace(edit, result=Drawing(replace(scene, ground=ground), first.spreads))
        case "word":
            place = str(rng.choice([p for p in _free(scene) if p != edit.places[0]]))
            return replace(
                edit, result=Drawing(replace(result.scene, word_place=place), result.spreads), places=(place,)
            )
        case _:
            return replace(edit, result=edit.references[1])


def is_edit_held_out(edit: Edit) -> bool:
    """Return whether the edit is in the tenth that training never sees. Item order and spread do not count."""
    scenes = [*(drawing.scene for drawing in edit.references), edit.result.scene]
    return zlib.crc32("||".join([edit.kind, *map(_facts, scenes)]).encode()) % 10 == 0


def split_edit(rng: np.random.Generator, kind: str, *, held_out: bool) -> Edit:
    """Return a random edit of the held-out part, or of the training part, in which no scene is held out either."""
    while True:
        edit = random_edit(rng, kind)
        if held_out and is_edit_held_out(edit):
            return edit
        if not held_out and not is_edit_held_out(edit):
            scenes = [*(drawing.scene for drawing in edit.references), edit.result.scene]
            if not any(map(is_held_out, scenes)):
                return edit


def _combination(rng: np.random.Generator) -> Edit:
    while True:
        first = _drawing(rng, 1, most=2)
        taken = {i.place for i in first.scene.items} | {first.scene.word_place}
        second = _drawing(rng, 1, most=3 - len(first.scene.items), word=False)
        added = second.scene.items
        if all(i.place not in taken and i.colour != first.scene.ground for i in added):
            break
    scene = replace(first.scene, items=(*first.scene.items, *added))
    result = Drawing(scene, (*first.spreads, *second.spreads))
    return Edit("combine", (first, second), result, 0, tuple(i.place for i in added))


def _drawing(
    rng: np.random.Generator, fewest: int, most: int = 3, *, opaque: bool = False, word: bool = True
) -> Drawing:
    count = int(rng.integers(fewest, most + 1))
    while True:
        scene = random_scene(rng, count)
        if not (opaque and scene.ground == TRANSPARENT):
            break
    if not word:
        scene = replace(scene, word=None, word_place=None)
    return Drawing(scene, tuple(Spread.random(rng) for _ in scene.items))


def _pick(drawing: Drawing, rng: np.random.Generator) -> int:
    return int(rng.integers(len(drawing.scene.items)))


def _free(scene: Scene) -> list[str]:
    taken = {i.place for i in scene.items} | {scene.word_place}
    return [place for place in PLACES if place not in taken]


def _changed(drawing: Drawing, index: int, item: Item) -> Drawing:
    items = drawing.scene.items
    return Drawing(replace(drawing.scene, items=(*items[:index], item, *items[index + 1 :])), drawing.spreads)


def _without(drawing: Drawing, index: int) -> Drawing:
    items, spreads = drawing.scene.items, drawing.spreads
    return Drawing(
        replace(drawing.scene, items=items[:index] + items[index + 1 :]), spreads[:index] + spreads[index + 1 :]
    )


def _facts(scene: Scene) -> str:
    facts = sorted(f"{i.shape}/{i.colour}/{i.place}" for i in scene.items)
    return "|".join([*facts, scene.ground, f"{scene.word}/{scene.word_place}"])
