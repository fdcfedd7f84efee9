"""The twins of the small real checkpoint, on a calibration of a picture a size, within the thresholds of verify."""

import pytest

from qwen_image_engine.calibration.observe.calibrate import calibrate
from qwen_image_engine.export.bundle.bundle import export_bundle
from qwen_image_engine.export.verify.parity import verify
from qwen_image_engine.export.verify.result import Verification
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from tests.support.paths import ROOT, SHAPES

SIZES = ((128, 128), (192, 192), (256, 256), (192, 128), (128, 192))


PRECISIONS = ("fp8", "int8")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Verification]:
    """By precision; the reference runs once for both."""
    shapes, folder = Checkpoint.open(SHAPES), tmp_path_factory.mktemp("twins")
    prompts = (ROOT / "benchmarks" / "prompts.txt").read_text(encoding="utf-8").splitlines()
    calibrate(shapes, folder / "calibration", prompts[: len(SIZES)], steps=8, sizes=SIZES)
    for precision in PRECISIONS:
        options = {"target": "tensorrt-twin", "precision": precision, "calibration": folder / "calibration"}
        export_bundle(shapes, folder / precision, without=["vision"], **options)
    found = verify([folder / precision for precision in PRECISIONS]).bundles
    return dict(zip(PRECISIONS, found, strict=True))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_twin_passes_verify(results: dict[str, Verification], precision: str) -> None:
    result = results[precision]
    assert result.precision == precision
    assert result.passed, [row for row in result.rows if not row.passed]
