"""The report of a verification: every figure, of one bundle and of several, and what a bundle could not draw."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qwen_image_engine.export.thresholds import TEACHER_FORCED, Threshold
from qwen_image_engine.export.verify.free_running import DrawnCase, FreeRunning
from qwen_image_engine.export.verify.judge import PictureScores
from qwen_image_engine.export.verify.layers import Layer, Layers
from qwen_image_engine.export.verify.limits import Limit
from qwen_image_engine.export.verify.options import command
from qwen_image_engine.export.verify.parity import verify
from qwen_image_engine.export.verify.recording import Case
from qwen_image_engine.export.verify.result import RecordedCase, Row, Verification, Verifications
from qwen_image_engine.reference.lora.file import LoraFile
from qwen_image_engine.reference.shapes.judge.evaluate import Score
from qwen_image_engine.runtime.images.png import png_bytes
from qwen_image_engine.runtime.tools.report.folder import write_report
from tests.support.chromium import BROWSER
from tests.support.differences import planted
from tests.support.report_page import check_in_browser, check_page

ATTACK = '"><script>alert(1)</script>'


def verification(bundle: str, error: float) -> Verification:
    steps = tuple(planted(error * factor, 1 - error, 2 * error) for factor in (1.0, 0.5, 2.25))
    sigmas = (1.0, 0.75, 0.25)
    rows = (
        Row("prefix", "one", steps[:1], Threshold(0.01, f"a reason {ATTACK}")),
        Row("step", "one", steps, Threshold(0.01, "another", cosine=0.9876, over="mean"), sigmas),
        Row(TEACHER_FORCED, "one", steps, Threshold(0.02, "a third", over="mean"), sigmas),
    )
    grey = png_bytes(np.full((32, 64, 4), 128, np.uint8))
    black = png_bytes(np.zeros((32, 64, 4), np.uint8))
    layers = (Layer("blocks.0", (planted(3.25e-4, 0.5, 0.125),), 0.1), Layer("blocks.1", steps[:1], 7.5))
    return Verification(
        bundle=bundle,
        target="cpu",
        precision="int8",
        engine="onnxruntime",
        engine_version="1.32",
        checkpoint=ATTACK,
        config_sha256="0" * 64,
        weights_sha256="1" * 64,
        files=19,
        cases=(RecordedCase("one", ATTACK, 64, 32, 7, 2, 3),),
        rows=rows,
        limits=(Limit("step", 0.5), Limit("prefix", 1e-9)),
        free_running=(FreeRunning("one", (0.75, 0.25, 0.0), (error, math.inf, math.inf), 0.125, (1e-3, 2e-3, 0.0)),),
        layers=Layers("step", (("one", 1.0),), layers, ("to_v",)),
        judged=(PictureScores("two shapes", Score(8, 7, {}, {f"a fault {ATTACK}": 1}), Score(8, 8, {}, {})),),
        pictures=(
            DrawnCase(
                "one", grey, black if math.isfinite(error) else None, "" if math.isfinite(error) else "not finite"
            ),
        ),
    )


def check_figures(text: str, bundle: Verification) -> None:
    for row in bundle.rows:
        for figure in (
            f"{row.judged.relative_l2:.1e}",
            f"{row.threshold.relative_l2:.0e}",
            f"{row.judged.cosine:.9f}",
            f"{row.judged.values['max_abs']:.1e}",
            row.threshold.reason,
        ):
            assert figure in text
        if row.component == TEACHER_FORCED:
            for sigma, run in zip(row.sigmas, row.runs, strict=True):
                assert f"{sigma:.4f} {run.relative_l2:.2e}" in text
    for item in bundle.free_running:
        for sigma, own, control in zip(item.sigmas, item.engine, item.control, strict=True):
            assert f"{sigma:.4f} {own:.2e} {control:.2e} {item.perturbation:.1e}" in text
    for layer in bundle.layers.layers if bundle.layers else ():
        assert f"{layer.name} {layer.worst.relative_l2:.1e}" in text
    for limit in bundle.limits:
        assert f"{limit.row} {bundle.judged_error(limit.row):.1e} {limit.relative_l2:g}" in text


def test_every_figure_stands_in_the_page(tmp_path: Path) -> None:
    bundle = verification("bundle", 0.0042)
    environment = {"began": "", "machine": {"cpu": "a processor"}, "versions": {"numpy": "2.4.1"}}
    result = Verifications((bundle,), "qwen-image verify bundle --layers", environment)
    page = check_page(write_report(result, tmp_path / "report"))
    check_figures(page.text, bundle)
    assert "✗ Every row is within its threshold; 1 of 2 limits of --fail-on are broken" in page.text
    assert "two shapes 8 100.0% (8) 87.5% (7)" in page.text
    assert f"a fault {ATTACK} 1" in page.text
    assert "The error grows most at blocks.1, 7.5 times" in page.text
    # Grey half clear on white is 191, on black 64; black and clear is the ground itself.
    assert "difference: largest 64, mean 64 of 255" in page.text
    for text in (f"one 64x32 3 7 2 {ATTACK}", "a processor", "2.4.1", result.command, "0" * 64, "1" * 64):
        assert text in page.text


def test_several_bundles_have_a_column_each(tmp_path: Path) -> None:
    bundles = verification("a/first", 1e-7), verification("b/second", math.inf)
    page = check_page(write_report(Verifications(bundles), tmp_path / "report"))
    for bundle in bundles:
        check_figures(page.text, bundle)
    assert "component request first (cpu int8) second (cpu int8)" in page.text
    assert "prefix one ✓ 1.0e-07 ✗ inf" in page.text
    assert "onnxruntime, int8: no picture, not finite" in page.text
    same = check_page(write_report(Verifications((bundles[0], verification("b/first", 1e-6))), tmp_path / "report"))
    assert "a/first (cpu int8) b/first (cpu int8)" in same.text


@pytest.mark.process
@pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH")
def test_in_a_browser(tmp_path: Path) -> None:
    names = ("a-folder-with-a-name-that-does-not-fit-a-phone-" * 3, "b/second")
    result = Verifications(tuple(verification(name, 0.001) for name in names), "qwen-image verify " + "x" * 300)
    check_in_browser(write_report(result, tmp_path / "report"), tmp_path)


def test_pictures_of_both(exported: Callable[..., Path], tmp_path: Path) -> None:
    folder = shutil.copytree(exported(), tmp_path / "bundle")
    result = verify([folder], cases=[Case("quick", ATTACK, 64, 32)], pictures=True)
    (drawn,) = result.bundles[0].pictures
    assert drawn.engine is not None
    page = check_page(write_report(result, tmp_path / "report"))
    assert ATTACK in page.text
    assert "difference: largest" in page.text
    assert f"qwen-image verify {folder} --engine onnxruntime" in page.text
    assert result.environment["machine"]["cpu"] in page.text


def test_the_command_that_asks_for_the_same() -> None:
    line = command(
        [Path("a b")],
        "checkpoint",
        {
            "loras": [LoraFile(Path("x.safetensors"), 0.5)],
            "threads": 2,
            "limits": [Limit("step", 0.01)],
            "layers": True,
            "judge": 5,
        },
    )
    assert line == (
        "qwen-image verify 'a b' -m checkpoint --lora x.safetensors:0.5 --engine onnxruntime --threads 2 "
        "--fail-on step=0.01 --layers --judge 5"
    )
