"""Windows and macOS, as far as Linux can show them: no module needs POSIX, by its source and in a run without it."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.posix_free import posix_only_modules, posix_only_names, taking_away
from tests.support.small_calibration import PROMPTS
from tests.test_rooms import SOURCES

MODULES = posix_only_modules()
NAMES = {module: posix_only_names(module) for module in ("os", "signal", "time", "socket", "select")}
ANY_OF_THEM = re.compile(rf"\b({'|'.join(sorted(MODULES.union(*NAMES.values())))})\b")

RUN = """
import importlib, pkgutil, sys
from pathlib import Path

import qwen_image_engine

absent = set()
for module in pkgutil.walk_packages(qwen_image_engine.__path__, "qwen_image_engine."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        absent.add(error.name)
print("> absent:", *absent, flush=True)

from qwen_image_engine.export.bundle import network_folder
from qwen_image_engine.export.verify import parity, recording
from qwen_image_engine.runtime.cli.main import main
from tests.support.traces import kept_traces

bundle, checkpoint, shapes, folder = map(Path, sys.argv[1:])
network_folder.trace = kept_traces(network_folder.trace)
parity.default_cases = lambda tokenizer, references: (recording.Case("small", "\\u7ea2", 64, 32), recording.edit_case())
picture = ["-p", "\\u7ea2", "-W", "64", "-H", "64", "-s", "2"]
calibration = ["--prompts", folder / "prompts.txt", "--steps", "2", "--size", "64x64"]
for words in (
    ["doctor"],
    ["run", bundle, *picture, "-o", folder / "onnxruntime.png"],
    ["run", bundle, *picture, "-o", folder / "openvino.png", "--engine", "openvino"],
    ["export", "-m", checkpoint, folder / "bundle"],
    ["export", "-m", checkpoint, folder / "bundle"],
    ["calibrate", "-m", shapes, folder / "calibration", *calibration],
    ["verify", folder / "bundle", "--threads", "1"],
    ["build", bundle],
):
    print(f"> {words[0]}:", main([str(word) for word in words]), flush=True)
"""


class _WithoutOtherSystems(ast.NodeTransformer):
    """Drop what is not read on Windows, by the two forms of the question that mypy knows too."""

    def visit_If(self, node: ast.If) -> object:
        question = ast.unparse(node.test)
        if question == "sys.platform == 'win32'":
            return [self.visit(item) for item in node.body]
        if question == "sys.platform != 'win32'":
            return [self.visit(item) for item in node.orelse]
        return self.generic_visit(node)


def posix_only_uses(file: Path) -> Iterator[str]:
    """POSIX-only parts of the standard library that a source takes without asking for them or for the system first."""
    text = file.read_text(encoding="utf-8")
    if not ANY_OF_THEM.search(text):
        return
    tree = ast.parse(text)
    nodes = list(ast.walk(_WithoutOtherSystems().visit(tree) if "win32" in text else tree))
    asked = {
        (ast.unparse(call.args[0]), ast.literal_eval(call.args[1]))
        for call in nodes
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "hasattr"
        if isinstance(call.args[1], ast.Constant)
    }
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            names = NAMES.get(node.module or "", frozenset())
            yield from (f"{node.module}.{alias.name}" for alias in node.names if alias.name in names)
            if node.module in MODULES:
                yield node.module
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module, name = node.value.id, node.attr
            if name in NAMES.get(module, ()) and (module, name) not in asked:
                yield f"{module}.{name}"


def test_the_lists_are_those_of_windows() -> None:
    assert {"fcntl", "grp", "pwd", "resource", "syslog", "termios"} <= MODULES
    assert MODULES.isdisjoint({"os", "signal", "mmap", "subprocess", "contextvars", "msvcrt"})
    assert {"getuid", "sysconf", "sched_getaffinity", "mkfifo", "statvfs", "O_NOFOLLOW", "O_DIRECTORY"} <= NAMES["os"]
    assert NAMES["os"].isdisjoint({"link", "fsync", "replace", "kill", "symlink", "umask"})
    assert {"SIGHUP", "SIGKILL"} <= NAMES["signal"]
    assert "SIGTERM" not in NAMES["signal"]


def test_no_source_needs_posix() -> None:
    assert {name: uses for name, file in SOURCES.items() if (uses := list(posix_only_uses(file)))} == {}


def test_facts_of_linux_are_read_in_few_places() -> None:
    """In each of them a fact that the system does not report is None."""
    readers = {name for name, file in SOURCES.items() if re.search(r"\"/(proc|sys|dev)/", file.read_text("utf-8"))}
    assert readers == {"runtime.system.machine", "runtime.system.memory_use", "runtime.system.run_queue"}


@pytest.mark.process
def test_everything_is_imported_and_runs_without_posix(
    exported: Callable[..., Path], random_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """A single process for all of it, whose text files and console know few letters, as on Windows.

    Importing torch and every module takes most of the time.
    """
    (tmp_path / "prompts.txt").write_text(f"{PROMPTS[1]}\r\n", encoding="utf-8-sig", newline="")
    places = (exported(), random_checkpoint(), ROOT / "reference" / "shapes" / "checkpoint", tmp_path)
    letters = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(
        [sys.executable, "-c", taking_away() + RUN, *map(str, places)],
        cwd=ROOT,
        env=os.environ | letters,
        capture_output=True,
        text=True,
        encoding="cp1252",
        timeout=600,
        check=False,
    )
    found = [line.removeprefix("> ") for line in done.stdout.splitlines() if line.startswith("> ")]
    assert found == [
        "absent: tensorrt",
        "doctor: 0",
        "run: 0",
        "run: 0",
        "export: 0",
        "export: 0",
        "calibrate: 0",
        "verify: 0",
        "build: 2",
    ], done.stderr
    assert "is for cpu, and engines are built from graphs for TensorRT" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bundle",
        "calibration",
        "onnxruntime.png",
        "openvino.png",
        "prompts.txt",
    ]
