"""A small calibration of the small checkpoint."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.paths import SHAPES
from tests.support.shared import SharedFolders
from tests.support.small_calibration import PROMPTS, SETTINGS


@pytest.fixture(scope="session")
def shapes() -> Path:
    """The folder of the checkpoint `shapes`; read-only."""
    return SHAPES


@pytest.fixture(scope="session")
def calibrated(shapes: Path, shared: SharedFolders) -> Path:
    """The folder of a calibration of `shapes` on `PROMPTS` with `SETTINGS`; read-only."""
    from qwen_image_engine.calibration.observe.calibrate import calibrate

    return shared(lambda folder: calibrate(shapes, folder, PROMPTS, **SETTINGS), "calibration", "shapes")


@pytest.fixture
def begin(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`begin(output, steps)`: a calibration that is interrupted after so many steps of all its trajectories."""
    from qwen_image_engine.calibration.observe.calibrate import SAMPLING, calibrate

    def interrupted(output: Path, steps: int) -> None:
        def progress(stage: str, done: int, total: int) -> None:
            if stage == SAMPLING and done == steps:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            calibrate(shapes, output, PROMPTS, **SETTINGS, progress=progress)

    return interrupted
