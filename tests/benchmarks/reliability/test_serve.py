"""The benchmark of the server, small: nothing is lost, mixed up or left behind."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.reliability import serve
from benchmarks.reliability.serve import main


@pytest.mark.process
def test_a_small_one(exported: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "EVERY", 20)
    output = tmp_path / "serve.json"
    bounds = ["--rounds", "2", "--side", "64", "--requests", "20", "--clients", "16", "--load-side", "64"]
    main(["--bundle", str(exported()), *bounds, "--leavers", "5", "--output", str(output)])
    found = json.loads(output.read_text(encoding="utf-8"))
    assert len(found["overhead"]["ratios"]) == len(found["overhead"]["cpu_ratios"]) == 2
    assert found["overhead"]["encoding_s"] > 0
    assert 0 < found["first_partial"]["its_step_s"] < found["first_partial"]["last_step_s"]
    load, leave = found["load"], found["leave"]
    assert (load["requests"], load["lost"], load["mixed_up"]) == (20, 0, 0)
    assert list(load["resident_bytes"]) == ["1", "20"]
    assert leave["finished_before_they_left"] + leave["stopped"] <= 5
    assert leave["failures"] == 0
    assert leave["after"]["threads"] <= leave["before"]["threads"]
    assert leave["after"]["files"] <= leave["before"]["files"]
