"""Two results of `verify --pictures` beside one another."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.runtime.cli.main import main
from qwen_image_engine.runtime.tools.compare.compare import compare
from tests.support.paths import RESULTS


def row(solver: str, psnr: float, flip: float, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "prompts",
        "solver": solver,
        "steps": 14,
        "sigmas": None,
        "asked": True,
        "figures": {"psnr_rgb": psnr, "psnr_alpha": 80.0, "flip": flip},
        "judged": [],
        **changes,
    }


def document(*rows: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": "qwen-image-pictures",
        "schema": 1,
        "checkpoint": "shapes",
        "config_sha256": "0" * 64,
        "weights_sha256": "1" * 64,
        "guidance": 1.0,
        "solution": {"solver": "heun", "steps": 200},
        "cases": [{"name": "one"}],
        "bundles": [{"precision": "fp32", "engine": "onnxruntime", "engine_version": "1.32", "rows": list(rows)}],
    }


@pytest.fixture
def changes(tmp_path: Path) -> Callable[..., Any]:
    def found(before: Any, after: Any) -> Any:
        paths = tmp_path / "before.json", tmp_path / "after.json"
        for path, data in zip(paths, (before, after), strict=True):
            path.write_text(json.dumps(data), encoding="utf-8")
        return compare(*paths)

    return found


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ((60.0, 0.004), ["same", "same", "same"]),
        ((59.1, 0.0044), ["same", "same", "same"]),
        ((58.0, 0.004), ["worse", "same", "same"]),
        ((62.0, 0.003), ["closer", "same", "closer"]),
        ((60.0, 0.005), ["same", "same", "worse"]),
    ],
)
def test_changes_of_a_setting(changes: Callable[..., Any], after: tuple[float, float], expected: list[str]) -> None:
    found = changes(document(row("ab2", 60.0, 0.004)), document(row("ab2", *after)))
    assert [(item.where, item.what) for item in found.rows] == [
        ("prompts, ab2 14", what) for what in ("RGB", "alpha", "FLIP")
    ]
    assert [item.change for item in found.rows] == expected
    assert found.rows[0].ratio == pytest.approx(10 ** ((after[0] - 60) / 20))
    assert found.failed == ("worse" in expected)


def test_pictures_that_are_as_good_as_equal_are_the_same(changes: Callable[..., Any]) -> None:
    found = changes(document(row("ab2", 100.0, 0.0)), document(row("ab2", 74.0, 0.0004)))
    assert [item.change for item in found.rows] == ["same"] * 3
    assert found.rows[2].ratio is None


def test_rows_are_paired_by_setting(changes: Callable[..., Any], tmp_path: Path) -> None:
    before = document(row("ab2", 60.0, 0.004), row("ab2", 60.0, 0.004, sigmas="karras"), row("unipc", 50.0, 0.01))
    after = document(row("unipc", 50.0, 0.01), row("ab2", 50.0, 0.01, sigmas="karras"), row("euler", 50.0, 0.01))
    found = changes(before, after)
    assert {item.where: item.change for item in found.rows if item.what == "RGB"} == {
        "prompts, ab2 14 karras": "worse",
        "prompts, unipc 14": "same",
    }
    assert found.lost == ("prompts, ab2 14",)
    assert found.notes == ("not in the first: prompts, euler 14",)
    # A baseline that no setting asks for any longer is no loss.
    assert changes(document(row("ab2", 60.0, 0.004), row("euler", 1.0, 0.1, asked=False)), before).lost == ()


def test_pictures_that_cannot_be_drawn_any_longer(
    changes: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = document(row("ab2", 60.0, 0.004)), document(row("ab2", 60.0, 0.004, figures=None))
    assert [(item.what, item.change) for item in changes(good, bad).rows] == [("drawn", "worse")]
    assert main(["compare", str(tmp_path / "before.json"), str(tmp_path / "after.json")]) == 1
    assert "passed  failed" in capsys.readouterr().out
    assert [(item.what, item.change) for item in changes(bad, good).rows] == [("drawn", "closer")]


def test_the_judge(changes: Callable[..., Any]) -> None:
    def judged(rate: float) -> dict[str, Any]:
        return document(row("ab2", 60.0, 0.004, judged=[{"kind": "three shapes", "tried": 200, "rate": rate}]))

    for rate, change in ((0.95, "same"), (0.94, "same"), (0.93, "worse"), (0.97, "closer")):
        found = changes(judged(0.95), judged(rate)).rows[-1]
        assert (found.what, found.change) == ("judge, three shapes", change)


def test_what_makes_them_hard_to_compare_is_said(changes: Callable[..., Any]) -> None:
    before = document(row("ab2", 60.0, 0.004))
    after = copy.deepcopy(before)
    after["solution"]["steps"], after["guidance"], after["cases"] = 100, 3.0, [{"name": "two"}]
    after["bundles"][0]["precision"] = "int8"
    assert changes(before, after).notes == (
        "guidance: 1.0 before, 3.0 now",
        "solution: heun 200 before, heun 100 now",
        "the two drew other requests, so that their figures differ for that reason too",
        "precision: fp32 before, int8 now",
    )


def test_files_that_cannot_be_compared(changes: Callable[..., Any]) -> None:
    own = document(row("ab2", 60.0, 0.004))
    components = json.loads((RESULTS / "demo-verify.json").read_text(encoding="utf-8"))
    with pytest.raises(UsageError, match=r"of verify --pictures and .* of verify: compare two of one kind"):
        changes(own, components)
    with pytest.raises(UsageError, match="schema version 2, this version reads 1; run qwen-image verify --pictures"):
        changes({**own, "schema": 2}, own)
    with pytest.raises(UsageError, match=r"bundles\[0\].rows\[0\].solver"):
        changes(own, document({**row("ab2", 60.0, 0.004), "solver": 3}))
    with pytest.raises(UsageError, match="no figure in common"):
        changes(own, document(row("euler", 60.0, 0.004)))
