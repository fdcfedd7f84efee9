"""Instructions for an edit, in English and Chinese, in several phrasings."""

import numpy as np

from qwen_image_engine.reference.shapes.scenes.edits import Edit
from qwen_image_engine.reference.shapes.scenes.prompts import LANGUAGES, at, zh
from qwen_image_engine.reference.shapes.scenes.scene import Item

_ENGLISH = {
    "recolour": ("Make {item} {colour}.", "Change the colour of {item} to {colour}.", "Paint {item} {colour}"),
    "move": ("Move {item} {place}.", "Shift {item} {place}", "{item} goes {place}, the rest stays."),
    "remove": ("Remove {item}.", "Take {item} away", "Delete {item}, keep everything else."),
    "cut": ("Remove the background.", "Make the background transparent", "Cut out the shapes, transparent background."),
    "word": ('Write "{word}" {place}.', 'Add the word "{word}" {place}', '{place}: the word "{word}"'),
    "combine": (
        "Add {added} of image 2 to image 1.", "Put {added} from image 2 into image 1",
        "Image 1 with {added} from image 2",
    ),
}  # fmt: skip
_CHINESE = {
    "recolour": ("把{item}变成{colour}", "{item}改为{colour}。"),
    "move": ("把{item}移到{place}", "{item}移动到{place}。"),
    "remove": ("去掉{item}", "删除{item}。"),
    "cut": ("去掉背景", "背景变成透明。"),
    "word": ("在{place}写“{word}”", "{place}写着“{word}”。"),
    "combine": ("把图2的{added}加到图1", "图1加上图2的{added}。"),
}
_NAMES = {
    "recolour": ("colour shape place", "shape place"),
    "move": ("colour shape place",),
    "remove": ("colour shape place", "shape place", "colour place", "place"),
}


def write_instruction(edit: Edit, rng: np.random.Generator, language: str | None = None) -> str:
    """Return a random phrasing of an edit; `language` is "en" or "zh", random by default.

    An item is named by its place and by the attributes that the result still shows: all if it is moved or added, at
    least the shape if it is recoloured. A removed item may be named by any of its attributes.
    """
    if language is None:
        language = str(rng.choice(LANGUAGES, p=(0.6, 0.4)))
    english = language == "en"
    result, words = edit.result.scene, {}
    if edit.kind in ("recolour", "move", "remove"):
        name = _english_name if english else _chinese_name
        words["item"] = name(edit.item, str(rng.choice(_NAMES[edit.kind])))
    if edit.kind == "recolour":
        colour = result.items[edit.index].colour
        words["colour"] = colour if english else zh(colour)
    if edit.kind in ("move", "word"):
        place = edit.places[-1]
        words["place"] = (f"to the {place}" if edit.kind == "move" else at(place)) if english else zh(place)
    if edit.kind == "word":
        words["word"] = str(result.word)
    if edit.kind == "combine":
        name = _english_name if english else _chinese_name
        words["added"] = (" and " if english else "和").join(
            name(item, "colour shape place") for item in edit.references[1].scene.items
        )
    phrasing = str(rng.choice((_ENGLISH if english else _CHINESE)[edit.kind]))
    text = phrasing.format(**words)
    return text[0].upper() + text[1:]


def _english_name(item: Item, name: str) -> str:
    colour = f"{item.colour} " if "colour" in name else ""
    shape = item.shape if "shape" in name else "shape"
    return f"the {colour}{shape}" + (f" {at(item.place)}" if "place" in name else "")


def _chinese_name(item: Item, name: str) -> str:
    place = f"{zh(item.place)}的" if "place" in name else ""
    colour = f"{zh(item.colour)}" if "colour" in name else ""
    return place + colour + (zh(item.shape) if "shape" in name else "图形")
