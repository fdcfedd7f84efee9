"""benchmarks/speed/run.py at a small width: every way computes the step, and profiles know what an operator is."""

import json
import sys
from pathlib import Path

import onnx
import pytest
import torch

KINDS = {
    "attention",
    "int8 linears",
    "rotations",
    "other linears",
    "quantising",
    "norms",
    "rotary",
    "layout",
    "rest",
}
WAYS = {"ONNX Runtime int8", "OpenVINO int8, rest fp32", "OpenVINO int8, rest bf16"}


@pytest.mark.process
def test_every_way_is_timed_and_profiled(trace_once: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.speed.run import main

    output = tmp_path / "speed.json"
    small = ("--heads", "2", "--blocks", "1", "--tokens", "64", "--rounds", "1", "--threads", "1", "--profile")
    monkeypatch.setattr(sys, "argv", ["run.py", *small, "--work", str(tmp_path / "work"), "--output", str(output)])
    threads = torch.get_num_threads()
    try:
        main()
    finally:
        torch.set_num_threads(threads)
    document = json.loads(output.read_text(encoding="utf-8"))

    rows = {row["way"]: row for row in document["results"]}
    assert {"diffusers fp32", "diffusers bf16"} | (WAYS & rows.keys()) <= rows.keys()
    assert "ONNX Runtime int8" in rows
    for row in rows.values():
        assert row["median_s"] > 0
        assert row["relative_l2"] < (1e-5 if "diffusers fp32" in row["way"] else 0.05)
    assert {row["way"] for row in document["profiles"]} == WAYS & rows.keys()
    for profile in document["profiles"]:
        assert set(profile["kinds"]) == KINDS
    assert document["transformer_sizes"]["released"]["int8_share"] <= 0.535

    # What an operator is called decides its kind: the graph's own names, each counted as a second.
    from benchmarks.speed.operator_times import by_kind

    nodes = onnx.load(tmp_path / "work/bundle/transformer/step.onnx", load_external_data=False).graph.node
    kinds = by_kind((f"{node.op_type} {node.name}", 1.0) for node in nodes)["kinds"]
    assert kinds["rotations"]["s"] == 4  # of a block: what q, k and v take, to_out, gate and proj, out
    assert kinds["attention"]["s"] == 1
    assert kinds["quantising"]["s"] >= 4 * 5
    assert kinds["rotary"]["s"] == 2
