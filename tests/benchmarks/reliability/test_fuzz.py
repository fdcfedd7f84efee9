"""Seeded mutations of a bundle, a checkpoint and calibrations, each sort once: refused in one line or harmless."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.documents.tables import result
from benchmarks.reliability.fuzz import GOOD, SIGNED, Fuzzer, summary, write_calibrations
from benchmarks.reliability.mutations import COMMON, PLACES, SPECIFIC, copy_folder, mutate

pytestmark = pytest.mark.process

SEEDS = range(18_332, 18_832)
"""Seeds whose first 131 have every kind of mutation of every subject, and a changed graph of each component."""

LIMIT_S = 30.0
JSON, HEADER, GRAPH = (SPECIFIC[suffix] for suffix in (".json", ".safetensors", ".onnx"))
KINDS = {
    "bundle": {*JSON, *HEADER, *GRAPH, *COMMON, *PLACES},
    "checkpoint": {*JSON, *HEADER, *COMMON},
    "calibration": {*JSON, *HEADER, *COMMON},
    "unfinished calibration": {*HEADER, *COMMON},
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_mutations_end_well(
    exported: Callable[..., Path], random_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = random_checkpoint()
    calibrations = write_calibrations(checkpoint, tmp_path / "calibrations")
    # Its files are linked into every damaged folder, and ONNX's checker, in another test, refuses files with links.
    bundle = shutil.copytree(exported(), tmp_path / "bundle")
    sources = {"bundle": bundle, "checkpoint": checkpoint, **calibrations}
    in_process = {"checkpoint", "calibration", "unfinished calibration"}
    left = {(subject, kind) for subject, kinds in KINDS.items() for kind in kinds}
    left |= {("graph", path.relative_to(bundle).as_posix()) for path in bundle.rglob("*.onnx")}
    records = []
    with Fuzzer(sources, tmp_path, LIMIT_S, ("onnxruntime",), in_process) as fuzzer:
        for record in fuzzer.spread(SEEDS):
            records.append(record)
            left -= {(record.subject, record.mutation.kind), (record.mutation.kind, record.mutation.file)}
            if not left:
                break
    found = summary(records)
    assert found["ended_badly"] == []
    assert set(found["states"]) <= GOOD
    assert found["states"]["refused"] > found["mutations"] / 2
    assert not left


def test_a_seed_decides_everything_and_changes_one_file(exported: Callable[..., Path], tmp_path: Path) -> None:
    whole = shutil.copytree(exported(), tmp_path / "whole")
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    for seed in range(40):
        changed = []
        for name in ("first", "second"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
            copy_folder(whole, tmp_path / name)
            changed.append((mutate(tmp_path / name, random.Random(seed)), files(tmp_path / name)))
        assert changed[0] == changed[1]
        mutation, found = changed[0]
        others = {mutation.file, "manifest.json"} if mutation.signed else {mutation.file}
        assert {name for name, data in files(whole).items() if found.get(name) != data} <= others
    assert before == {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}


def test_the_committed_run_is_large_and_none_ended_badly() -> None:
    found = result("fuzz")
    assert found["mutations"] >= 5000
    assert found["bad"] == 0
    assert set(found["states"]) <= GOOD
    assert found["states"][SIGNED] > 0  # repaired hashes reach what lies behind them
    ends = (count for kinds in found["by_subject"].values() for states in kinds.values() for count in states.values())
    assert sum(ends) == found["mutations"]
    assert not found["commit"].endswith("-dirty")


def files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
