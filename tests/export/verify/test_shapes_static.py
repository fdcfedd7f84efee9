"""The twins of the small real checkpoint, on a calibration of a picture a size, within the thresholds of verify."""

import pytest

from qwen_image_engine.calibration.observe.calibrate import calibrate
from qwen_image_engine.export.bundle.bundle import export_bundle
from qwen_image_engine.export.verify.parity import verify_bundle
from qwen_image_engine.export.verify.recording import default_cases
from qwen_image_engine.export.verify.result import Verification
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.runtime.text.tokenizer import load_tokenizer
from tests.support.paths import ROOT, SHAPES

SIZES = ((128, 128), (192, 192), (256, 256), (192, 128), (128, 192))


CASES = {"fp8": ("chinese", "long"), "int8": ("english", "chinese")}
"""By precision, two of the cases that verify has by itself: each case is run, and one in both."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Verification]:
    """By precision."""
    shapes, folder = Checkpoint.open(SHAPES), tmp_path_factory.mktemp("twins")
    found = {}
    prompts = (ROOT / "benchmarks" / "prompts.txt").read_text(encoding="utf-8").splitlines()
    calibrate(shapes, folder / "calibration", prompts[: len(SIZES)], steps=4, sizes=SIZES)
    for precision, names in CASES.items():
        options = {"target": "tensorrt-twin", "precision": precision, "calibration": folder / "calibration"}
        export_bundle(shapes, folder / precision, without=["vision"], **options)
        every = default_cases(load_tokenizer(folder / precision), references=False)
        cases = [case for case in every if case.name in names]
        found[precision] = verify_bundle(folder / precision, cases=cases)
    return found


@pytest.mark.parametrize("precision", CASES)
def test_a_twin_passes_verify(results: dict[str, Verification], precision: str) -> None:
    result = results[precision]
    assert result.precision == precision
    assert [case.name for case in result.cases] == [*CASES[precision]]
    assert result.passed, [row for row in result.rows if not row.passed]
