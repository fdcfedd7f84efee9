import numpy as np
import pytest

from qwen_image_engine.reference.shapes.scenes.edits import KINDS, is_edit_held_out, random_edit, split_edit
from qwen_image_engine.reference.shapes.scenes.instructions import write_instruction
from qwen_image_engine.reference.shapes.scenes.scene import COLOURS, TRANSPARENT, is_held_out


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_edit_does_not_name_stays_pixel_for_pixel(kind: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        edit = random_edit(rng, kind)
        before, after = (drawing.draw(192, 128).astype(int) for drawing in (edit.references[0], edit.result))
        differs, changed = (before != after).any(-1), edit.changed(192, 128)
        assert differs[changed].any()
        assert not differs[~changed].any()
        if kind != "cut":
            # Two cells of nine at most, or what two items cover, and the tips of triangles.
            assert changed.mean() < 0.25
        assert all(item.colour != edit.result.scene.ground for item in edit.result.scene.items)
        assert len(edit.result.scene.items) <= 3


def test_a_removed_shape_leaves_nothing_on_a_transparent_ground_and_a_cut_one_leaves_the_shapes() -> None:
    rng = np.random.default_rng(1)
    removals = [random_edit(rng, "remove") for _ in range(40)]
    clear = [edit for edit in removals if edit.result.scene.ground == TRANSPARENT]
    assert 10 < len(clear) < 40
    for edit in clear:
        assert not edit.result.draw(128, 128)[edit.changed(128, 128)][:, 3].any()
    cut = random_edit(rng, "cut").result
    assert cut.scene.ground == TRANSPARENT
    assert cut.draw(128, 128)[..., 3].min() == 0


def test_a_tenth_of_the_edits_is_held_out_and_training_sees_no_held_out_scene() -> None:
    rng = np.random.default_rng(2)
    assert 0.07 < np.mean([is_edit_held_out(random_edit(rng, KINDS[i % 6])) for i in range(1200)]) < 0.13
    for kind in KINDS:
        assert is_edit_held_out(split_edit(rng, kind, held_out=True))
        edit = split_edit(rng, kind, held_out=False)
        assert not is_edit_held_out(edit)
        assert not any(is_held_out(drawing.scene) for drawing in (*edit.references, edit.result))


def test_instructions_name_what_changes_so_that_nothing_else_fits() -> None:
    rng = np.random.default_rng(3)
    for _ in range(60):
        edit = random_edit(rng, "recolour")
        english = write_instruction(edit, rng, "en")
        assert edit.result.scene.items[edit.index].colour in english
        named = [
            item
            for item in edit.references[0].scene.items
            if (f" {item.shape}" in english or " shape" in english)
            and (item.place in english or not any(f" {p.place}" in english for p in edit.references[0].scene.items))
            and (
                f"{item.colour} {item.shape}" in english
                or f"{item.colour} shape" in english
                or not any(f"{c} {noun}" in english for c in COLOURS for noun in (item.shape, "shape"))
            )
        ]
        assert edit.item in named
    combine = random_edit(rng, "combine")
    assert "mage 2" in write_instruction(combine, rng, "en")
    assert "图2" in write_instruction(combine, rng, "zh")
    word = random_edit(rng, "word")
    assert f'"{word.result.scene.word}"' in write_instruction(word, rng, "en")
