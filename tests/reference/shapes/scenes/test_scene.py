import numpy as np

from qwen_image_engine.reference.shapes.scenes.prompts import write_prompt
from qwen_image_engine.reference.shapes.scenes.scene import (
    GROUNDS,
    TRANSPARENT,
    Item,
    Scene,
    is_held_out,
    random_scene,
    split_scene,
    swaps,
)

SCENE = Scene((Item("circle", "red", "top left"), Item("square", "orange", "center")), "sky blue", "CAT", "bottom")


def test_scenes_hold_one_to_three_items_at_places_of_their_own() -> None:
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng) for _ in range(500)]
    assert {len(s.items) for s in scenes} == {1, 2, 3}
    assert {s.ground for s in scenes} == {*GROUNDS, TRANSPARENT}
    assert 50 < sum(s.word is not None for s in scenes) < 150
    for scene in scenes:
        places = [i.place for i in scene.items] + ([scene.word_place] if scene.word_place else [])
        assert len(set(places)) == len(places)
        assert all(i.colour != scene.ground for i in scene.items)


def test_held_out_scenes_are_a_tenth_and_do_not_depend_on_the_order() -> None:
    rng = np.random.default_rng(1)
    share = np.mean([is_held_out(random_scene(rng)) for _ in range(3000)])
    assert 0.08 < share < 0.12
    reordered = Scene(SCENE.items[::-1], SCENE.ground, SCENE.word, SCENE.word_place)
    assert is_held_out(reordered) == is_held_out(SCENE)
    assert is_held_out(split_scene(rng, held_out=True, count=2))


def test_swaps_change_one_attribute_each() -> None:
    changed = dict(swaps(SCENE, np.random.default_rng(2)))
    assert set(changed) == {"shape", "colour", "place", "ground"}
    for attribute in ("shape", "colour", "place"):
        pairs = [(a, b) for a, b in zip(SCENE.items, changed[attribute].items, strict=True) if a != b]
        assert len(pairs) == 1
        before, after = pairs[0]
        assert {k for k in vars(before) if getattr(before, k) != getattr(after, k)} == {attribute}
    assert changed["ground"].items == SCENE.items
    assert changed["ground"].ground != SCENE.ground


def test_prompts_state_the_whole_scene_in_both_languages() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        english = write_prompt(SCENE, rng, "en")
        for fact in ("a red circle at the top left", "an orange square in the center", '"CAT"', "sky blue background"):
            assert fact in english
        chinese = write_prompt(SCENE, rng, "zh")
        for fact in ("红色", "圆形", "左上角", "橙色", "正方形", "中间", "CAT", "天蓝色背景"):
            assert fact in chinese
