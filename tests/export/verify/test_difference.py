"""Measures of a difference: a row of the table is all that a new one needs."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from qwen_image_engine.export.thresholds import TEACHER_FORCED, Threshold
from qwen_image_engine.export.verify.difference import difference, mean, worst
from qwen_image_engine.export.verify.free_running import FreeRunning
from qwen_image_engine.export.verify.layers import Layer, Layers
from qwen_image_engine.export.verify.report.tables import tables
from qwen_image_engine.export.verify.result import RecordedCase, Row, Verification, Verifications
from qwen_image_engine.runtime.tools.compare.compare import compare
from qwen_image_engine.runtime.tools.compare.measures import MEASURES, Measure
from qwen_image_engine.runtime.tools.report.folder import write_report
from tests.support.report_page import check_page

ONES = np.ones(4, np.float32)
MEAN_ABS = Measure(
    "mean_abs",
    "mean abs",
    lambda found, expected: float(np.abs(found - expected).mean()),
    max,
    not_finite=math.inf,
    equal=0.0,
    format=".3f",
    rounding=1e-6,
)


def verification(error: float) -> Verification:
    """A step and the teacher-forced steps of one case, half of whose values are `error` too large."""
    runs = tuple(difference(ONES + np.array([0, 0, error, error]) * factor, ONES) for factor in (0.5, 1.0))
    threshold = Threshold(10.0, "a reason")
    return Verification(
        bundle="bundle",
        target="cpu",
        precision="fp32",
        engine="onnxruntime",
        engine_version="1.32",
        checkpoint="checkpoint",
        config_sha256="0" * 64,
        weights_sha256="1" * 64,
        files=3,
        cases=(RecordedCase("one", "a prompt", 64, 32, 7, 0, 2),),
        rows=(
            Row("step", "one", runs, threshold, (1.0, 0.5)),
            Row(TEACHER_FORCED, "one", runs, dataclasses.replace(threshold, over="mean"), (1.0, 0.5)),
        ),
        free_running=(FreeRunning("one", (0.5, 0.0), (0.1, 0.1), 0.1, (0.1, 0.1)),),
        layers=Layers("step", (("one", 1.0),), (Layer("blocks.0", runs, 0.1),), ()),
    )


def written(path: Path, error: float) -> Path:
    path.write_text(json.dumps(verification(error).to_json()), encoding="utf-8")
    return path


def test_means_and_worsts_are_by_measure() -> None:
    near, far = (difference(np.array([1.0, 1.0 + error]), np.ones(2)) for error in (0.1, 0.5))
    assert worst((near, far)) == far
    assert far.relative_l2 > near.relative_l2
    assert far.cosine < near.cosine
    for name in MEASURES:
        assert mean((near, far)).values[name] == pytest.approx((near.values[name] + far.values[name]) / 2)


def test_values_that_are_not_finite_are_null() -> None:
    assert difference(ONES * np.nan, ONES).to_json() == {"relative_l2": None, "cosine": 0.0, "max_abs": None}


def test_a_measure_is_added_in_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = written(tmp_path / "older.json", 0.2)
    monkeypatch.setitem(MEASURES, MEAN_ABS.name, MEAN_ABS)
    assert difference(ONES, ONES).values["mean_abs"] == 0
    assert difference(ONES * np.nan, ONES).values["mean_abs"] == math.inf

    found = verification(0.4)
    document = found.to_json()
    step, forced = document["components"]
    assert step["mean_abs"] == step["cases"][0]["mean_abs"] == pytest.approx(0.2)
    assert forced["mean_abs"] == pytest.approx(0.15)  # the mean over its two steps
    assert forced["cases"][0]["worst_step"]["mean_abs"] == pytest.approx(0.2)
    assert document["layers"]["rows"][0]["mean_abs"] == pytest.approx(0.2)

    lines = list(tables([found]))
    for heads in (line for line in lines if "max abs" in line):
        assert heads.endswith("max abs  mean abs")
    assert sum(line.endswith("0.200") for line in lines) == 2  # the step's and the layer's
    assert sum(line.endswith("0.150") for line in lines) == 1

    page = check_page(write_report(Verifications((found,)), tmp_path / "report")).text
    assert "cosine least max abs mean abs" in page
    assert "relative L2 growth cosine max abs mean abs" in page
    assert "sigma relative L2 cosine max abs mean abs" in page
    for figures in ("4.0e-01 0.200", "3.0e-01 0.150", "2.0e-01 0.100"):  # max abs, mean abs
        assert figures in page

    before, after = written(tmp_path / "before.json", 0.2), written(tmp_path / "after.json", 0.4)
    changes = {(row.where, row.what): row.change for row in compare(before, after).rows}
    assert changes["step", "one"] == changes["step", "one, mean abs"] == "worse"
    # A document that is older than the measure stays readable.
    assert {row.unit for row in compare(older, after).rows} == {"relative L2"}
