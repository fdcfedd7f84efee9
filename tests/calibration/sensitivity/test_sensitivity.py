"""Sensitivity of the small checkpoint: errors, sums, files, and a recipe that an export reads."""

import json
import math
import shutil
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from qwen_image_engine.calibration.observe.calibrate import calibrate
from qwen_image_engine.calibration.observe.record import RECORD, TENSORS, Calibration
from qwen_image_engine.calibration.rules.quantisation import FP8_STATIC, Quantisation
from qwen_image_engine.calibration.rules.recipe_file import QuantisationRecipe
from qwen_image_engine.calibration.sensitivity import analysis
from qwen_image_engine.calibration.sensitivity.analysis import Analysis, analyse
from qwen_image_engine.calibration.sensitivity.partial import PartialSensitivity
from qwen_image_engine.calibration.sensitivity.sensitivity import GROUPS, judged
from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from tests.support.small_calibration import PROMPTS, SETTINGS

STEPS, LINEARS = SETTINGS["steps"], 49
PARTIAL = "sensitivity-tensorrt-fp8.partial.json"


def run(shapes: Path, calibrated: Path, folder: Path, **options: object) -> tuple[Analysis, list[tuple[str, int, int]]]:
    """An analysis with the calls of its progress; a measurement in `folder` goes on."""
    checkpoint = Checkpoint.open(shapes)
    calls: list[tuple[str, int, int]] = []
    folder.mkdir(exist_ok=True)
    found = analyse(
        checkpoint,
        Calibration.open(calibrated, checkpoint),
        folder,
        PROMPTS,
        progress=lambda *call: calls.append(call),
        **options,  # type: ignore[arg-type]
    )
    return found, calls


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for the file of every linear alone, as `analysed` has measured it before it ends."""
    return tmp_path_factory.mktemp("measured")


@pytest.fixture(scope="module")
def analysed(
    shapes: Path, calibrated: Path, measured: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Analysis, list[tuple[str, int, int]]]:
    """FP8 for TensorRT, and a recipe for a third of its error."""
    folder = tmp_path_factory.mktemp("analysed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartialSensitivity, "remove", lambda self: self.path.rename(measured / PARTIAL))
        return run(shapes, calibrated, folder, target_error=0.02)


@pytest.fixture
def nearly(analysed: tuple[Analysis, list[tuple[str, int, int]]], measured: Path, tmp_path: Path) -> Path:
    """A folder in which nothing but all linears together and the search are left to be measured."""
    folder = tmp_path / "nearly"
    folder.mkdir()
    shutil.copyfile(measured / PARTIAL, folder / PARTIAL)
    return folder


def test_errors(analysed: tuple[Analysis, list[tuple[str, int, int]]], shapes: Path) -> None:
    sensitivity = analysed[0].sensitivity
    assert len(sensitivity.alone) == LINEARS
    assert sensitivity.blocks == tuple(range(Checkpoint.open(shapes).transformer.num_layers))
    for errors in (*sensitivity.alone.values(), sensitivity.together):
        assert [len(picture) for picture in errors] == [STEPS, STEPS]
        assert all(0 < error < 0.2 for picture in errors for error in picture)
    assert [picture.prompt for picture in sensitivity.pictures] == list(PROMPTS)
    assert [picture.size for picture in sensitivity.pictures] == SETTINGS["sizes"]
    assert all(picture.sigmas[0] == 1 for picture in sensitivity.pictures)
    # Errors of separate linears are nearly independent.
    assert 0.6 < judged(sensitivity.together) / judged(sensitivity.summed(sensitivity.alone)) < 1.6


def test_summaries(analysed: tuple[Analysis, list[tuple[str, int, int]]]) -> None:
    sensitivity = analysed[0].sensitivity
    document = sensitivity.to_json()
    total = sum(sensitivity.rms(name) ** 2 for name in sensitivity.alone)
    for summary in (document["groups"], document["blocks"]):
        assert sum(item["linears"] for item in summary.values()) == LINEARS
        assert sum(item["rms"] ** 2 for item in summary.values()) == pytest.approx(total)
    for item in document["groups"].values():
        mean = sum(error**2 for error in item["rms_by_step"]) / STEPS
        assert math.sqrt(mean) == pytest.approx(item["rms"])
    assert list(document["groups"]) == list(GROUPS)
    worst = sensitivity.ranked()[0]
    assert sensitivity.rms(worst) == max(map(sensitivity.rms, sensitivity.alone))


def test_files(analysed: tuple[Analysis, list[tuple[str, int, int]]], shapes: Path, calibrated: Path) -> None:
    found = analysed[0]
    folder = found.json.parent
    names = ["recipe-tensorrt-fp8.json", "sensitivity-tensorrt-fp8.json", "sensitivity-tensorrt-fp8.svg"]
    assert sorted(path.name for path in folder.iterdir()) == names
    document = json.loads(found.json.read_text(encoding="utf-8"))
    assert document == json.loads(json.dumps(found.to_json()))
    checkpoint = Checkpoint.open(shapes)
    assert document["checkpoint"]["weights_sha256"] == checkpoint.weights_sha256()
    assert document["calibration_sha256"] == Calibration.open(calibrated, checkpoint).sha256
    svg = ElementTree.parse(found.svg).getroot()
    texts = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    for word in (*GROUPS, "block", "relative L2", "sigma: noise to picture"):
        assert word in texts
    cells = [element.text or "" for element in svg.iter("{http://www.w3.org/2000/svg}title")]
    assert sum(cell.split(":")[0] in found.sensitivity.alone for cell in cells) == LINEARS
    assert len(list(svg.iter("{http://www.w3.org/2000/svg}polyline"))) == len(GROUPS)


def test_recipe(analysed: tuple[Analysis, list[tuple[str, int, int]]]) -> None:
    found = analysed[0]
    assert found.found is not None
    assert found.recipe is not None
    search = found.found
    assert 0 < len(search.high) < LINEARS
    assert search.error <= 0.02
    # One linear fewer kept high is beyond the target, and was measured to be.
    assert next(probe.error for probe in search.probes if probe.high == len(search.high) - 1) > 0.02
    recipe = QuantisationRecipe.read(recipe_path := found.recipe)
    assert recipe_path.name == "recipe-tensorrt-fp8.json"
    recipe.check(FP8_STATIC.precisions(), static=True)
    quantisation = Quantisation(("transformer",), recipe.rules, static=True)
    precisions = {name: quantisation.precision(name) for name in found.sensitivity.alone}
    assert {name for name, precision in precisions.items() if precision == "high"} == set(search.high)
    assert set(precisions.values()) == {"high", "fp8"}


def test_progress(analysed: tuple[Analysis, list[tuple[str, int, int]]]) -> None:
    found, calls = analysed
    steps = 2 * STEPS
    total = (LINEARS + 1) * steps
    assert calls[: total + 1] == [("measuring", done, total) for done in range(total + 1)]
    assert found.found is not None
    runs = len(found.found.probes) - 1  # the first is that of all linears together
    assert calls[total + 1 :] == runs * [("searching", done, steps) for done in range(1, steps + 1)]


@pytest.mark.parametrize(("target", "precision", "limit"), [("cpu", "int8", 0.03), ("tensorrt", "int8", 0.1)])
def test_int8(
    shapes: Path,
    calibrated: Path,
    analysed_in_int8: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    precision: str,
    limit: float,
) -> None:
    name = f"sensitivity-{target}-{precision}"
    if (begun := analysed_in_int8 / "calibration" / f"{name}.partial.json").is_file():
        shutil.copyfile(begun, tmp_path / begun.name)  # every linear alone
    else:
        monkeypatch.setattr(analysis, "PICTURES", 1)  # every linear is measured on each
    found, calls = run(shapes, calibrated, tmp_path, target=target, precision=precision)
    steps = STEPS * len(found.sensitivity.pictures)
    assert calls[0] == ("measuring", LINEARS * steps if begun.is_file() else 0, (LINEARS + 1) * steps)
    assert found.found is None
    assert len(found.sensitivity.alone) == LINEARS
    assert 0 < judged(found.sensitivity.together) < limit
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{name}.json",
        f"{name}.svg",
    ]


@pytest.fixture(scope="module")
def interrupted_once(shapes: Path, calibrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a calibration whose sensitivity was interrupted within the third linear."""
    folder = shutil.copytree(calibrated, tmp_path_factory.mktemp("interrupted") / "calibration")

    def progress(stage: str, done: int, total: int) -> None:
        if done == 5 * STEPS:
            raise KeyboardInterrupt

    checkpoint = Checkpoint.open(shapes)
    with pytest.raises(KeyboardInterrupt):
        analyse(checkpoint, Calibration.open(folder, checkpoint), folder, PROMPTS, progress=progress)
    assert sorted(path.name for path in folder.iterdir()) == [RECORD, TENSORS, PARTIAL]
    return folder


@pytest.fixture
def interrupted(interrupted_once: Path, tmp_path: Path) -> Path:
    """A copy of the interrupted folder."""
    return shutil.copytree(interrupted_once, tmp_path / "calibration")


def test_an_interrupted_measurement_goes_on(
    analysed: tuple[Analysis, list[tuple[str, int, int]]], shapes: Path, measured: Path, interrupted: Path
) -> None:
    """From the linears of before the interruption, and those that would have come until the last two."""
    expected = analysed[0].sensitivity
    path, left = interrupted / PARTIAL, 2
    begun, whole = (json.loads(file.read_text(encoding="utf-8")) for file in (path, measured / PARTIAL))
    assert list(begun["alone"]) == list(expected.alone)[:2]
    begun["alone"] |= {name: whole["alone"][name] for name in list(expected.alone)[2:-left]}
    path.write_text(json.dumps(begun), encoding="utf-8")
    calibrate(shapes, interrupted, PROMPTS, **SETTINGS)  # what is left in its folder is no obstacle
    found, calls = run(shapes, interrupted, interrupted)
    assert found.sensitivity.alone == expected.alone
    assert found.sensitivity.together == expected.together
    assert list(found.sensitivity.alone) == list(expected.alone)
    total = (LINEARS + 1) * 2 * STEPS
    assert calls == [("measuring", done, total) for done in range((LINEARS - left) * 2 * STEPS, total + 1)]
    assert not (interrupted / PARTIAL).exists()


@pytest.mark.parametrize("changed", ["versions", "calibration", "damaged"])
def test_a_measurement_of_anything_else_begins_anew(shapes: Path, interrupted: Path, changed: str) -> None:
    checkpoint = Checkpoint.open(shapes)
    calibration = Calibration.open(interrupted, checkpoint)
    path = interrupted / PARTIAL
    begun = json.loads(path.read_text(encoding="utf-8"))
    assert len(begun["alone"]) == 2
    if changed == "damaged":
        path.write_bytes(path.read_bytes()[:-10])
    elif changed == "versions":
        begun["decides"]["settings"]["versions"]["torch"] = "2.0.0"
        path.write_text(json.dumps(begun), encoding="utf-8")
    else:
        calibration = replace(calibration, sha256="another")

    def progress(stage: str, done: int, total: int) -> None:
        assert done == 0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        analyse(checkpoint, calibration, interrupted, PROMPTS, progress=progress)


def test_a_calibration_made_on_cuda_is_analysed_on_a_cpu(shapes: Path, calibrated: Path, nearly: Path) -> None:
    checkpoint = Checkpoint.open(shapes)
    calibration = Calibration.open(calibrated, checkpoint)
    elsewhere = replace(calibration, settings=replace(calibration.settings, device="cuda", versions={"torch": "2.0"}))
    found = analyse(checkpoint, elsewhere, nearly, PROMPTS).to_json()
    assert found["device"] == "cpu"
    assert found["versions"] == calibration.settings.versions


def test_target_that_keeps_everything_high(shapes: Path, calibrated: Path, nearly: Path) -> None:
    with pytest.raises(QwenImageError, match="keeps every one of the 49 linears high"):
        run(shapes, calibrated, nearly, target_error=1e-7)
    assert not list(nearly.glob("recipe-*"))


def test_other_prompts(shapes: Path, calibrated: Path, output: Path) -> None:
    checkpoint = Checkpoint.open(shapes)
    with pytest.raises(UsageError, match="are not the 2 that the calibration was made with"):
        analyse(checkpoint, Calibration.open(calibrated, checkpoint), output, ["another", "prompt"])
