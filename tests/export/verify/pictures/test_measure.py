"""`verify --pictures`: a bundle's pictures beside the solution, and what is refused before anything runs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.export.verify.pictures import Setting, verify_pictures
from qwen_image_engine.export.verify.pictures.draw import Guidance, pictures, solve
from qwen_image_engine.export.verify.pictures.measure import PictureOptions
from qwen_image_engine.export.verify.pictures.result import PictureComparison
from qwen_image_engine.export.verify.pictures.tables import tables
from qwen_image_engine.export.verify.recording import Case
from qwen_image_engine.reference.pipeline import reference_pipeline
from qwen_image_engine.runtime.bundle.manifest import read_manifest
from qwen_image_engine.runtime.cli.main import main
from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.system.progress import ProgressBar
from qwen_image_engine.runtime.tools.report.folder import write_report
from tests.support.paths import ROOT
from tests.support.report_page import check_page

SHAPES = ROOT / "reference" / "shapes" / "checkpoint"
PATCHES = Image.fromarray(np.random.default_rng(3).integers(0, 256, (64, 64, 4)).astype(np.uint8))
CASES = (Case("plain", "a red circle", 64, 32), Case("edited", "make it <blue>", 32, 64, references=(PATCHES,)))
QUICK: PictureOptions = {
    "settings": (Setting("ab2", 3), Setting("heun", 3)),
    "solution": Setting("heun", 8),
    "cases": CASES,
}


@pytest.fixture(scope="module")
def measured(exported: Callable[..., Path]) -> PictureComparison:
    return verify_pictures([exported()], pictures=True, **QUICK)


def test_every_setting_has_euler_with_as_many_evaluations(measured: PictureComparison) -> None:
    (bundle,) = measured.bundles
    rows = list(bundle.rows(measured.cases))
    assert [(row.kind, str(row.found.setting), row.found.asked) for row in rows] == [
        (kind, setting, asked)
        for kind in ("prompts", "edits")
        for setting, asked in (("euler 3", False), ("euler 5", False), ("ab2 3", True), ("heun 3", True))
    ]
    by_setting = {(row.kind, str(row.found.setting)): row for row in rows}
    for kind in ("prompts", "edits"):
        assert by_setting[kind, "ab2 3"].baseline == by_setting[kind, "euler 3"].figures
        assert by_setting[kind, "heun 3"].baseline == by_setting[kind, "euler 5"].figures
    for row in measured.to_json()["bundles"][0]["rows"]:
        assert row["evaluations"] == row["baseline"]["steps"]
        assert row["gain_db"] == pytest.approx(row["figures"]["psnr_rgb"] - row["baseline"]["figures"]["psnr_rgb"])


def test_the_solution_itself_is_no_distance_away(exported: Callable[..., Path]) -> None:
    """An fp32 bundle with the solution's own setting: rounding alone, in causal and in bidirectional attention."""
    for attention in (None, "bidirectional"):
        own = Setting("unipc", 4, "karras")
        found = verify_pictures([exported(attention=attention)], settings=[own], solution=own, cases=CASES)
        for row in found.bundles[0].rows(CASES):
            assert row.figures is not None
            assert (row.figures.latents < 1e-4) == (row.found.setting == own)


def test_guidance_changes_the_solution_too(measured: PictureComparison, exported: Callable[..., Path]) -> None:
    found = verify_pictures([exported()], pictures=True, guidance=3.0, **QUICK)
    assert (found.guidance, found.negative_prompt) == (3.0, "")
    assert found.solutions["plain"] != measured.solutions["plain"]
    assert "guidance 3" in next(tables(found))


def test_a_bundle_without_edits_has_no_row_of_them(exported: Callable[..., Path]) -> None:
    found = verify_pictures([exported(without=("vision",))], **{**QUICK, "settings": [Setting("euler", 2)]})
    assert [row.kind for row in found.bundles[0].rows(found.cases)] == ["prompts"]


def test_the_page_holds_pictures_and_curves(measured: PictureComparison, tmp_path: Path) -> None:
    page = check_page(write_report(measured, tmp_path / "report"))
    labels = [item["aria-label"] for item in page.named("svg")]
    for kind in ("prompts", "edits"):
        for measure in ("RMS of colours", "FLIP", "latents"):
            assert f"{measure}, {kind}" in labels
    images = [item for item in page.named("img") if (item.get("alt") or "").endswith(("the solution", "3", "5"))]
    assert len(images) == 2 * (3 + 4)  # a row for each solver begins with the solution
    assert [item["alt"] for item in images[:3]] == ["plain, the solution", "plain, euler 3", "plain, euler 5"]
    for row in measured.bundles[0].rows(measured.cases):
        assert row.figures is not None
        for own in row.own:
            assert own.distance is not None
            assert f"{own.distance.psnr_rgb:.1f} dB, FLIP {own.distance.flip:.4f}" in page.text
    assert "make it <blue>" in page.text
    assert measured.command in page.text


def test_the_command(
    exported: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Callable[..., str]
) -> None:
    bundle, prompts = exported(), tmp_path / "prompts.txt"
    before = read_manifest(bundle)
    prompts.write_text("a blue square\n", encoding="utf-8")
    flags = ["--solver", "ab2,heun", "-s", "2", "3", "--size", "32x32", "--solution", "6", "--prompts", str(prompts)]
    assert main(["verify", str(bundle), "--pictures", *flags, "--output", str(tmp_path / "a.json")]) == 0
    shutil.copyfile(tmp_path / "a.json", tmp_path / "b.json")
    out = capsys.readouterr().out
    assert "solution: heun, 6 steps (11 evaluations)" in out
    assert "Euler as many" in out
    document = json.loads((tmp_path / "a.json").read_text())
    assert (document["format"], document["schema"], document["passed"]) == ("qwen-image-pictures", 1, True)
    assert [case["prompt"] for case in document["cases"]] == ["a blue square"]
    assert read_manifest(bundle) == before  # the manifest keeps the parity of components alone
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--all"]) == 0
    assert "prompts, heun 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--solver", "ab2"], "--solver needs --pictures"),
        (["-s", "8"], "--steps needs --pictures"),
        (["-n", ""], "--negative-prompt needs --pictures"),
        (["--pictures", "--layers"], "--layers compares components"),
        (["--pictures", "--fail-on", "step=1"], "--fail-on compares components"),
        (["--pictures", "--solver", "ab2,rk4"], "solver 'rk4' is unknown, expected one of euler, ab2"),
        (["--pictures", "-s", "1"], "1 step asked for"),
        (["--pictures", "--sigmas", "0.5,0.7"], "expected numbers that fall"),
        (["--pictures", "--size", "100x64"], "100x64"),
        (["--pictures", "--guidance", "0.5"], "guidance is 0.5"),
        (["--pictures", "-n", "grey"], "a negative prompt needs guidance above 1"),
        (["--pictures", "--judge", "4"], "is not `shapes`"),
    ],
)
def test_refused_before_anything_runs(
    exported: Callable[..., Path],
    fails: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    message: str,
) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise AssertionError("the reference was loaded")

    monkeypatch.setattr("qwen_image_engine.export.verify.pictures.measure.reference_pipeline", run)
    assert message in fails(2, "verify", exported(), *flags)


def test_requests_of_one_name_are_refused(exported: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="the same name"):
        verify_pictures([exported()], **{**QUICK, "cases": (CASES[0], CASES[0])})


def test_a_picture_that_cannot_be_drawn_is_a_finding(
    exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn = QwenImage.generate

    def generate(pipeline: QwenImage, request: Any, **options: Any) -> Any:
        if pipeline.origin.engine != "reference" and request.inputs.solver.name == "ab2":
            raise QwenImageError("step 2 of 3: the velocity is not finite")
        return drawn(pipeline, request, **options)

    monkeypatch.setattr(QwenImage, "generate", generate)
    found = verify_pictures([exported()], pictures=True, **QUICK)
    assert not found.passed
    assert "✗ ab2 3, plain: no picture, step 2 of 3: the velocity is not finite" in list(tables(found))
    page = check_page(write_report(found, tmp_path / "report"))
    assert "ab2 3: no picture, step 2 of 3" in page.text
    rows = {row["solver"]: row for row in found.to_json()["bundles"][0]["rows"]}
    assert (rows["ab2"]["figures"], rows["ab2"]["gain_db"]) == (None, None)
    assert rows["heun"]["figures"] is not None


def test_ab2_is_nearer_than_euler_on_shapes() -> None:
    """The checkpoint that was trained, at 14 evaluations: more than half the error is gone."""
    case, guidance = (Case("one", "a red circle on the left on a pink background", 96, 96),), Guidance()
    with reference_pipeline(SHAPES) as pipeline, ProgressBar("", 0) as bar:
        solution = solve(pipeline, case, Setting("heun", 30), guidance, bar)
        ab2, euler = (
            next(pictures(pipeline, case, Setting(solver, 14), guidance, solution, keep=False)).distance
            for solver in ("ab2", "euler")
        )
    assert ab2 is not None
    assert euler is not None
    assert ab2.psnr_rgb > euler.psnr_rgb + 6
    assert ab2.flip < euler.flip
