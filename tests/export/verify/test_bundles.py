"""Several bundles in one run, limits of the caller's own, and requests that cannot be carried out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_image_engine.engines.core.components import COMPONENTS
from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.export.targets import TARGETS
from qwen_image_engine.export.verify import parity as module
from qwen_image_engine.export.verify.judge import check_judged, judge_pictures
from qwen_image_engine.export.verify.limits import Limit
from qwen_image_engine.export.verify.parity import verify, verify_bundle
from qwen_image_engine.export.verify.recording import Case
from qwen_image_engine.export.verify.report.tables import tables
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.pipeline import reference_pipeline
from qwen_image_engine.runtime.bundle.manifest import read_manifest
from tests.support.edit_manifest import edit_manifest
from tests.support.paths import SHAPES

QUICK = (Case("quick", "a red circle", 64, 32),)


def test_bundles_share_one_recording_and_one_table(
    exported: Callable[..., Path],
    int8_bundle: Callable[..., tuple[Path, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = shutil.copytree(exported("narrow"), tmp_path / "plain")
    int8 = shutil.copytree(int8_bundle("narrow")[1], tmp_path / "int8")
    recorded = []
    record = module.record
    monkeypatch.setattr(module, "record", lambda *given: recorded.append(given) or record(*given))
    limits = (Limit("step", 1e-5), Limit("teacher_forced", 1.0))
    result = verify([plain, int8], cases=QUICK, limits=limits)
    assert len(recorded) == 1
    assert [item.precision for item in result.bundles] == ["fp32", "int8"]
    # Rows pass by their own thresholds, and the limit that int8 breaks is the caller's.
    assert all(row.passed for item in result.bundles for row in item.rows)
    assert [item.passed for item in result.bundles] == [True, False]
    assert not result.passed

    document = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert (document["format"], document["schema"], document["passed"]) == ("qwen-image-verify", 1, False)
    for item, folder in zip(document["bundles"], (plain, int8), strict=True):
        assert item["bundle"] == str(folder)
        assert item == read_manifest(folder).verify
        (case,) = item["cases"]
        assert (case["name"], case["width"], case["height"], case["steps"]) == ("quick", 64, 32, 8)
        rows = {row["component"]: row["cases"][0] for row in item["components"]}
        assert rows["step"]["sigma_by_step"] == rows["teacher_forced"]["sigma_by_step"]
        assert len(rows["step"]["sigma_by_step"]) == len(rows["step"]["relative_l2_by_step"]) == 8
        assert "sigma_by_step" not in rows["vae_encoder"]
        assert [limit["row"] for limit in item["limits"]] == ["step", "teacher_forced"]
    assert [limit["passed"] for limit in document["bundles"][1]["limits"]] == [False, True]

    lines = list(tables(result.bundles))
    (head,) = (line for line in lines if line.startswith("component"))
    assert head.split()[-2:] == [str(plain), str(int8)]
    (step,) = (line for line in lines if line.startswith("step ") and "quick" in line)
    assert step.count("✓") == 2
    assert sum(line.startswith("✗ --fail-on step=1e-05") for line in lines) == 1
    assert "1 of 2 limits of --fail-on are broken" in lines[-1]


def test_bundles_of_different_checkpoints_are_refused(exported: Callable[..., Path], fails: Callable[..., str]) -> None:
    message = fails(1, "verify", exported("narrow"), exported("odd"))
    assert "one run takes bundles of one checkpoint" in message
    assert str(exported("odd")) in message


def test_a_bundle_named_twice_is_refused(exported: Callable[..., Path], fails: Callable[..., str]) -> None:
    assert f"the bundle {exported()} is named twice" in fails(2, "verify", exported(), exported())
    other = exported().parent / "." / ".." / exported().parent.name / exported().name
    assert f"also as {other}, is named twice" in fails(2, "verify", exported(), other)
    with pytest.raises(UsageError, match="no bundles are given; name at least one"):
        verify([])
    with pytest.raises(UsageError, match="bundles 'int8': expected a list of folders; verify_bundle takes one"):
        verify("int8")


def test_folders_are_text_or_paths(
    exported: Callable[..., Path], random_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = str(shutil.copytree(exported(), tmp_path / "bundle"))
    assert verify([folder], str(random_checkpoint()), cases=QUICK).passed


def test_another_checkpoint_is_named_once(
    exported: Callable[..., Path], random_checkpoint: Callable[..., Path], fails: Callable[..., str]
) -> None:
    other = random_checkpoint("odd")
    assert f"was not made from {other}: the checkpoint's configuration" in fails(1, "verify", exported(), "-m", other)


def test_a_bundle_is_no_checkpoint(exported: Callable[..., Path], fails: Callable[..., str]) -> None:
    message = fails(1, "verify", exported(), "-m", exported())
    assert message.startswith(f"{exported()}: is a bundle, expected the checkpoint that it was made from")


@pytest.mark.parametrize("text", ["step", "=0.1", "step=", "step=far", "step=-1", "step=nan", "step=inf"])
def test_limits_that_are_none(fails: Callable[..., str], text: str) -> None:
    assert "expected ROW=VALUE" in fails(2, "verify", "bundle", "--fail-on", text)


def test_limits_on_rows_that_there_are_not(exported: Callable[..., Path], fails: Callable[..., str]) -> None:
    assert Limit.parse("vae_encoder=1e-3") == Limit("vae_encoder", 1e-3)
    message = fails(2, "verify", exported(), "--fail-on", "joint=0.1")
    assert "joint=0.1: no such row; known: text_encoder" in message
    assert "teacher_forced" in message
    # The bundle has the component, and no case runs it.
    with pytest.raises(UsageError, match="vision=1: no such row"):
        verify_bundle(exported(), cases=QUICK, limits=[Limit("vision", 1)])


def test_layers_without_thresholds(exported: Callable[..., Path], tmp_path: Path, fails: Callable[..., str]) -> None:
    folder = shutil.copytree(exported(), tmp_path / "bundle")
    edit_manifest(folder, lambda manifest: manifest.update(target="tensorrt", precision="fp4"))
    assert "no thresholds for 'tensorrt' in precision 'fp4'" in fails(1, "verify", folder, "--layers")


@pytest.mark.parametrize(("target", "precision"), TARGETS)
def test_every_bundle_that_export_makes_has_thresholds(target: str, precision: str) -> None:
    assert {*COMPONENTS, "teacher_forced"} == set(TARGETS[target, precision].thresholds)


def test_the_judge_knows_shapes_alone(exported: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="is not `shapes`"):
        verify_bundle(exported(), cases=QUICK, judge=1)
    shapes = Checkpoint.open(SHAPES)
    check_judged(shapes, 1)
    with pytest.raises(UsageError, match="--judge 0: expected"):
        check_judged(shapes, 0)
    with reference_pipeline(shapes) as pipeline:
        scores = judge_pictures(pipeline, 1, edits=False)
    assert {kind: score.tried for kind, score in scores.items()} == {"one or two shapes": 1, "three shapes": 1}
