import numpy as np
import pytest

from qwen_image_engine.reference.shapes.judge.edit import judge_edit, kept_share
from qwen_image_engine.reference.shapes.judge.evaluate import edit_judge_quality
from qwen_image_engine.reference.shapes.scenes.edits import KINDS, random_edit


@pytest.mark.slow
def test_the_judge_accepts_own_edits_and_refuses_none_and_others() -> None:
    accepted = edit_judge_quality(45)
    assert accepted.pop("own") >= 0.99
    assert set(accepted) == {"unedited", "another"}
    assert max(accepted.values()) <= 0.02


def test_what_was_left_alone_is_counted_outside_the_edit() -> None:
    rng = np.random.default_rng(0)
    for kind in KINDS:
        edit = random_edit(rng, kind)
        reference, result = edit.references[0].draw(128, 128), edit.result.draw(128, 128)
        assert judge_edit(result, edit, reference).kept > 0.999
        noisy = result.copy()
        noisy[..., 0] = np.where(noisy[..., 0] > 127, noisy[..., 0] - 9, noisy[..., 0] + 9)
        shows = ~edit.changed(128, 128) & (reference[..., 3] > 0)
        assert not shows.any() or kept_share(noisy, reference, shows) == 0


def test_colour_does_not_count_where_the_reference_is_clear_and_alpha_does() -> None:
    reference = np.zeros((4, 4, 4), np.uint8)
    coloured, everywhere = reference.copy(), np.ones((4, 4), np.bool_)
    coloured[..., :3] = 200
    assert kept_share(coloured, reference, everywhere) == 1
    coloured[..., 3] = 9
    assert kept_share(coloured, reference, everywhere) == 0


def test_a_word_must_have_its_ink() -> None:
    rng = np.random.default_rng(1)
    edit = random_edit(rng, "word")
    reference, result = edit.references[0].draw(128, 128), edit.result.draw(128, 128)
    assert judge_edit(result, edit, reference).fulfilled
    assert f"ink of the word {edit.result.scene.word}" in judge_edit(reference, edit, reference).faults[0]
    filled = result.copy()
    filled[edit.changed(128, 128)] = result[edit.changed(128, 128)][result[edit.changed(128, 128)].sum(-1).argmin()]
    assert not judge_edit(filled, edit, reference).fulfilled
