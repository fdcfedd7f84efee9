"""Plans of the real compiler, kept from one run of the tests to the next by a hash of all that they are made from.

The compiler is asked again when a graph, a weight, an option, a source of the engines or its own version has changed.
What the tests look at, the plan's size and the account of its layers, is what it wrote then.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path

import onnx

from qwen_image_engine.engines.tensorrt.build.job import BuildJob, BuildResult
from qwen_image_engine.engines.tensorrt.build.launch import Watch, run_build
from tests.support.kept import hash_of_sources, kept_folder, write
from tests.support.paths import ROOT

PACKAGES = ("tensorrt-rtx", "numpy", "onnx")
_PLACES = ("model", "plan", "layers")

Build = Callable[[BuildJob, Watch], BuildResult]


class KeptPlans:
    """`run_build` through files in a folder.

    Args:
        run: the function itself.
        folder: where plans are kept; workers of one run share it.
        source: hash of everything but the job that decides a plan.
    """

    def __init__(self, run: Build, folder: Path, source: str) -> None:
        self._run = run
        self._folder = folder
        self._source = source

    def __call__(self, job: BuildJob, watch: Watch) -> BuildResult:
        kept = self._folder / self._key(job)
        files = {kept.with_suffix(".plan"): Path(job.plan), kept.with_suffix(".layers.json"): Path(job.layers)}
        said = kept.with_suffix(".result.json")
        if not all(file.is_file() for file in (said, *files)):
            result = self._run(job, watch)
            for own, made in files.items():
                write(own, made.read_bytes())
            write(said, json.dumps(asdict(result)).encode())
            return result
        for own, asked in files.items():
            shutil.copyfile(own, asked)
        for own in (said, *files):
            os.utime(own)  # what is not used any more goes; see `kept.forget`
        return BuildResult.from_json(json.loads(said.read_text(encoding="utf-8")))

    def _key(self, job: BuildJob) -> str:
        words = {name: value for name, value in job.to_json().items() if name not in _PLACES}
        digest = hashlib.sha256(f"{self._source}\n{json.dumps(words)}".encode())
        model = Path(job.model)
        graph = onnx.load(model, load_external_data=False).graph
        stored = {
            entry.value for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location"
        }
        for file in (model, *(model.parent / name for name in sorted(stored))):
            with file.open("rb") as data:
                digest.update(hashlib.file_digest(data, "sha256").digest())
        return digest.hexdigest()


def source_hash(home: Path) -> str:
    """Hash the sources of the engines, which the build process runs, and the packages that build.

    Args:
        home: the folder in which `engines` is.
    """
    names = (file.relative_to(home).as_posix() for file in (home / "engines").rglob("*.py"))
    return hash_of_sources(home, names, PACKAGES)


@cache
def kept_plans() -> KeptPlans:
    """Return `run_build` through the files that all runs of the tests share."""
    return KeptPlans(run_build, kept_folder("plans"), source_hash(ROOT))
