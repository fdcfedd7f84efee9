"""A small calibration of the small checkpoint."""

import io
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from tests.support.paths import SHAPES
from tests.support.shared import SharedFolders
from tests.support.small_calibration import FLAGS, PROMPTS, RECIPE, SETTINGS


@pytest.fixture(scope="session")
def shapes() -> Path:
    """The folder of the checkpoint `shapes`; read-only."""
    return SHAPES


@pytest.fixture(scope="session")
def calibrated(shapes: Path, shared: SharedFolders) -> Path:
    """The folder of a calibration of `shapes` on `PROMPTS` with `SETTINGS`; read-only."""
    from qwen_image_engine.calibration.observe.calibrate import calibrate

    return shared(lambda folder: calibrate(shapes, folder, PROMPTS, **SETTINGS), "calibration", "shapes")


@pytest.fixture(scope="session")
def analysed_in_int8(calibrated: Path, shared: SharedFolders) -> Path:
    """What the verb leaves of `calibrated` with a recipe in int8 for TensorRT; read-only.

    `prompts.txt`, `calibration` with the file of every linear alone, and `document.json`, which it printed.
    """

    def analyse(folder: Path) -> None:
        from qwen_image_engine.calibration.sensitivity.partial import PartialSensitivity
        from qwen_image_engine.runtime.cli.main import main

        prompts, output = folder / "prompts.txt", shutil.copytree(calibrated, folder / "calibration")
        prompts.write_text("\n".join(PROMPTS), encoding="utf-8")
        arguments = ["calibrate", "-m", str(SHAPES), str(output), "--prompts", str(prompts), *FLAGS, *RECIPE, "--json"]
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
            patch.setattr(PartialSensitivity, "remove", lambda self: None)
            assert main(arguments) == 0
        (folder / "document.json").write_text(printed.getvalue(), encoding="utf-8")

    return shared(analyse, "analysed", "shapes", *RECIPE)


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
