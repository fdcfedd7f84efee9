"""The twins of the small real checkpoint, on a calibration of a picture a size, within the thresholds of verify."""

from pathlib import Path

import pytest

from qwen_image_engine.calibration.observe.calibrate import calibrate
from qwen_image_engine.export.bundle.bundle import export_bundle
from qwen_image_engine.export.verify.parity import verify_bundle
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from tests.support.paths import ROOT

SIZES = ((128, 128), (192, 192), (256, 256), (192, 128), (128, 192))


@pytest.fixture(scope="module")
def shapes() -> Checkpoint:
    return Checkpoint.open(ROOT / "reference" / "shapes" / "checkpoint")


@pytest.fixture(scope="module")
def calibration(shapes: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibration") / "shapes"
    prompts = (ROOT / "benchmarks" / "prompts.txt").read_text(encoding="utf-8").splitlines()
    calibrate(shapes, folder, prompts[: len(SIZES)], steps=8, sizes=SIZES)
    return folder


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_a_twin_passes_verify(shapes: Checkpoint, calibration: Path, tmp_path: Path, precision: str) -> None:
    options = {"target": "tensorrt-twin", "precision": precision, "calibration": calibration}
    export_bundle(shapes, tmp_path / "twin", without=["vision"], **options)
    result = verify_bundle(tmp_path / "twin")
    assert result.passed, [row for row in result.rows if not row.passed]
