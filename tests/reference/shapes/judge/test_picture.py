import numpy as np
import pytest

from qwen_image_engine.reference.shapes.judge.evaluate import judge_quality
from qwen_image_engine.reference.shapes.judge.picture import judge
from qwen_image_engine.reference.shapes.scenes.draw import draw
from qwen_image_engine.reference.shapes.scenes.scene import TRANSPARENT, Item, Scene

SCENE = Scene((Item("circle", "red", "top left"), Item("square", "blue", "center")), "white")


@pytest.mark.slow
def test_the_judge_accepts_own_drawings_and_refuses_swapped_ones() -> None:
    accepted = judge_quality(120)
    assert accepted.pop("own") >= 0.99
    assert set(accepted) == {"shape", "colour", "place", "ground"}
    assert max(accepted.values()) <= 0.05


def test_faults_name_the_place_and_what_was_found() -> None:
    rng = np.random.default_rng(0)
    recoloured = Scene((SCENE.items[0], Item("square", "green", "center")), "white")
    assert judge(draw(recoloured, 128, 128, rng), SCENE).faults == ("center: green, not blue",)
    reshaped = Scene((SCENE.items[0], Item("triangle", "blue", "center")), "white")
    assert "center: looks like a triangle" in judge(draw(reshaped, 192, 128, rng), SCENE).faults[0]
    extra = Scene((*SCENE.items, Item("cross", "green", "bottom")), "white")
    assert judge(draw(extra, 128, 160, rng), SCENE).faults[0].startswith("bottom: ")


def test_an_opaque_white_ground_is_not_a_transparent_one() -> None:
    rng = np.random.default_rng(0)
    clear = Scene(SCENE.items, TRANSPARENT)
    assert judge(draw(clear, 128, 128, rng), clear).fulfilled
    assert not judge(draw(SCENE, 128, 128, rng), clear).fulfilled
    assert not judge(draw(clear, 128, 128, rng), SCENE).fulfilled


def test_an_empty_picture_and_noise_are_refused() -> None:
    blank = np.full((128, 128, 4), 255, np.uint8)
    assert len(judge(blank, SCENE).faults) == 2
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 4)).astype(np.uint8)
    assert not judge(noise, SCENE).fulfilled
