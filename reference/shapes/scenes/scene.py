"""Scenes of `shapes`: one to three coloured shapes at places of a 3x3 grid, a ground, perhaps a word."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

RGB = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS: dict[str, RGB] = {
    "red": (220, 35, 40),
    "orange": (245, 130, 25),
    "yellow": (250, 215, 40),
    "green": (40, 165, 60),
    "blue": (35, 75, 225),
    "purple": (150, 50, 190),
    "white": (250, 250, 250),
    "black": (20, 20, 20),
}
GROUNDS: dict[str, RGB] = {
    "white": (250, 250, 250),
    "black": (20, 20, 20),
    "grey": (140, 140, 140),
    "pink": (245, 160, 190),
    "sky blue": (140, 205, 245),
}
TRANSPARENT = "transparent"
# Row and column of the grid.
PLACES: dict[str, tuple[int, int]] = {
    "top left": (0, 0),
    "top": (0, 1),
    "top right": (0, 2),
    "left": (1, 0),
    "center": (1, 1),
    "right": (1, 2),
    "bottom left": (2, 0),
    "bottom": (2, 1),
    "bottom right": (2, 2),
}
WORDS = ("HI", "OK", "GO", "YES", "NO", "CAT", "SUN", "ART")


@dataclass(frozen=True)
class Item:
    """A coloured shape at a place of the grid."""

    shape: str
    colour: str
    place: str


@dataclass(frozen=True)
class Scene:
    """The scene that a prompt states. `word` is at `word_place`; both are None for pictures without a word."""

    items: tuple[Item, ...]
    ground: str
    word: str | None = None
    word_place: str | None = None


def is_held_out(scene: Scene) -> bool:
    """Return whether the scene is in the tenth that training never sees. The order of items does not count."""
    facts = sorted(f"{i.shape}/{i.colour}/{i.place}" for i in scene.items)
    key = "|".join([*facts, scene.ground, f"{scene.word}/{scene.word_place}"])
    return zlib.crc32(key.encode()) % 10 == 0


def split_scene(rng: np.random.Generator, *, held_out: bool, count: int | None = None) -> Scene:
    """Return a random scene of the training part, or of the held-out part."""
    while True:
        scene = random_scene(rng, count)
        if is_held_out(scene) == held_out:
            return scene


def random_scene(rng: np.random.Generator, count: int | None = None) -> Scene:
    """Choose a random scene with `count` items (1 to 3, random by default).

    No two items are at one place, and no item has the colour of the ground.
    """
    if count is None:
        count = int(rng.choice(3, p=(0.35, 0.35, 0.3))) + 1
    ground = TRANSPARENT if rng.random() < 0.2 else str(rng.choice(list(GROUNDS)))
    places = rng.permutation(list(PLACES))
    colours = [c for c in COLOURS if c != ground]
    items = tuple(Item(str(rng.choice(SHAPES)), str(rng.choice(colours)), str(place)) for place in places[:count])
    if rng.random() < 0.2:
        return Scene(items, ground, str(rng.choice(WORDS)), str(places[count]))
    return Scene(items, ground)


def swaps(scene: Scene, rng: np.random.Generator) -> Iterator[tuple[str, Scene]]:
    """Yield scenes that a judge must reject: one for each changed attribute of a random item, one with another ground.

    Each comes with the name of the changed attribute.
    """
    index = int(rng.integers(len(scene.items)))
    item = scene.items[index]
    taken = {i.place for i in scene.items} | {scene.word_place}
    choices = {
        "shape": [s for s in SHAPES if s != item.shape],
        "colour": [c for c in COLOURS if c not in (item.colour, scene.ground)],
        "place": [p for p in PLACES if p not in taken],
    }
    for attribute, values in choices.items():
        changed = replace(item, **{attribute: str(rng.choice(values))})
        yield attribute, replace(scene, items=(*scene.items[:index], changed, *scene.items[index + 1 :]))
    colours = {i.colour for i in scene.items}
    grounds = [g for g in (*GROUNDS, TRANSPARENT) if g != scene.ground and g not in colours]
    yield "ground", replace(scene, ground=str(rng.choice(grounds)))
