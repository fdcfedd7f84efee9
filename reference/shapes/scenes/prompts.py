"""Prompts for a scene, in English and Chinese, in several phrasings."""

import numpy as np

from qwen_image_engine.reference.shapes.scenes.scene import TRANSPARENT, Item, Scene

LANGUAGES = ("en", "zh")

_ZH = {
    "circle": "圆形", "square": "正方形", "triangle": "三角形", "cross": "十字",
    "red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色",
    "blue": "蓝色", "purple": "紫色", "white": "白色", "black": "黑色",
    "grey": "灰色", "pink": "粉色", "sky blue": "天蓝色", TRANSPARENT: "透明",
    "top left": "左上角", "top": "上方", "top right": "右上角", "left": "左边", "center": "中间", "right": "右边",
    "bottom left": "左下角", "bottom": "下方", "bottom right": "右下角",
}  # fmt: skip
CHINESE_WORDS = (*_ZH.values(), "有一个", "一个", "的", "在", "写着", "背景", "，", "。", "“", "”")
_AT = {"center": "in the center", "left": "on the left", "right": "on the right"}


def write_prompt(scene: Scene, rng: np.random.Generator, language: str | None = None) -> str:
    """Return a random phrasing of a scene; `language` is "en" or "zh", random by default."""
    if language is None:
        language = str(rng.choice(LANGUAGES, p=(0.6, 0.4)))
    form = int(rng.integers(3))
    items = [scene.items[i] for i in rng.permutation(len(scene.items))]
    return _english(scene, items, form) if language == "en" else _chinese(scene, items, form)


def _english(scene: Scene, items: list[Item], form: int) -> str:
    parts = [f"{_a(i.colour)} {i.shape} {at(i.place)}" for i in items]
    if scene.word is not None and scene.word_place is not None:
        parts.append(f'the word "{scene.word}" {at(scene.word_place)}')
    listed = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    ground = f"a {scene.ground} background"
    if form == 0:
        return f"{listed} on {ground}"
    if form == 1:
        return f"On {ground}: {listed}."
    return f"{', '.join(parts)}, {scene.ground} background"


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def at(place: str) -> str:
    """Return the English phrase for a place, with its preposition."""
    return _AT.get(place, f"at the {place}")


def zh(name: str) -> str:
    """Return the Chinese name of a shape, colour, ground or place."""
    return _ZH[name]


def _chinese(scene: Scene, items: list[Item], form: int) -> str:
    if form == 0:
        parts = [f"{_ZH[i.place]}有一个{_ZH[i.colour]}的{_ZH[i.shape]}" for i in items]
    else:
        parts = [f"一个{_ZH[i.colour]}{_ZH[i.shape]}在{_ZH[i.place]}" for i in items]
    if scene.word is not None and scene.word_place is not None:
        parts.append(f"{_ZH[scene.word_place]}写着“{scene.word}”")
    listed, ground = "，".join(parts), f"{_ZH[scene.ground]}背景"
    return f"{ground}，{listed}。" if form == 1 else f"{listed}，{ground}"
