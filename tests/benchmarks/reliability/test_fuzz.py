"""Two hundred seeded mutations of a bundle, a checkpoint and calibrations: each is refused in one line or harmless."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.documents.tables import result
from benchmarks.reliability.fuzz import GOOD, SIGNED, Fuzzer, summary, write_calibrations
from benchmarks.reliability.mutations import copy_folder, mutate

pytestmark = pytest.mark.process

MUTATIONS = 200
LIMIT_S = 30.0


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
    with Fuzzer(sources, tmp_path, LIMIT_S, ("onnxruntime",), in_process) as fuzzer:
        found = summary(fuzzer.run(range(MUTATIONS)))
    assert found["ended_badly"] == []
    assert set(found["states"]) <= GOOD
    assert found["states"]["refused"] > MUTATIONS / 2


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
