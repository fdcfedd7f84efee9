"""Fixtures shared by every test folder."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch: workers with a thread for every core wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from qwen_image_engine.reference.baselines.cpu_torchvision import leave_out_operators
from tests.support.paths import ROOT
from tests.support.processes import ProcessWatch
from tests.support.shared import SharedFolders

leave_out_operators()
gc.disable()  # until all tests are collected

pytest_plugins = ["tests.support.toy_pipeline"]

WATCH = pytest.StashKey[ProcessWatch]()
CHECKPOINTS = frozenset({"trace_once", "calibrated"})
"""Fixtures of every test that exports or calibrates a checkpoint, or runs what others have."""


@pytest.fixture(scope="module", autouse=True)
def modules_are_whole() -> Iterator[None]:
    """Fail after a file that leaves a module of the project out of its package: others could not patch it by name."""
    yield
    for name, module in list(sys.modules.items()):
        package, _, last = name.rpartition(".")
        if name.startswith("qwen_image_engine.") and package in sys.modules:
            found = getattr(sys.modules[package], last, None)
            is_shadowed = found is not None and not isinstance(found, ModuleType)  # by what it defines, of its name
            assert found is module or is_shadowed, f"{name} is imported, and not what its package has under that name"


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> SharedFolders:
    """`shared(make, name, *key) -> Path`: a read-only folder that one run makes once for all its workers."""
    base = tmp_path_factory.getbasetemp()
    return SharedFolders((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared")


@pytest.fixture(scope="session")
def random_checkpoint(shared: SharedFolders) -> Callable[..., Path]:
    """`random_checkpoint(name="narrow", **options) -> Path`: each variant of `write_checkpoint` once."""

    def checkpoint(name: str = "narrow", **options: Any) -> Path:
        def write(folder: Path) -> None:
            from tests.support.random_checkpoint import write_checkpoint

            write_checkpoint(folder, name, **options)

        return shared(write, name, "checkpoint", *sorted(options.items()))

    return checkpoint


@pytest.fixture(scope="session")
def with_outliers(random_checkpoint: Callable[..., Path], shared: SharedFolders) -> Callable[[str], tuple[Path, Path]]:
    """`with_outliers(name) -> (plain, planted)`: two checkpoints that are the same in exact arithmetic.

    The gates of `random_checkpoint(name)` are opened: at random weights they are nearly shut, and the blocks hardly
    count.
    """

    def checkpoints(name: str) -> tuple[Path, Path]:
        def write(folder: Path) -> None:
            from safetensors.torch import load_file, save_file

            from benchmarks.quantisation.outliers import write_with_outliers

            plain = shutil.copytree(random_checkpoint(name), folder / "plain")
            file = plain / "transformer" / "diffusion_pytorch_model.safetensors"
            tensors = {key: tensor.clone() for key, tensor in load_file(file).items()}
            tensors["modulation.1.weight"] *= 4
            save_file(tensors, file, {"format": "pt"})
            write_with_outliers(plain, folder / "planted")

        folder = shared(write, name, "outliers")
        return folder / "plain", folder / "planted"

    return checkpoints


@pytest.fixture(scope="session")
def tensorrt_stub() -> Path:
    """The stub of TensorRT's real API, where `make typecheck-tensorrt` keeps it; made once, which needs the network."""
    return _stubs("tensorrt") / "tensorrt" / "__init__.pyi"


@pytest.fixture(scope="session")
def tensorrt_rtx_stub() -> Path:
    """The stub of TensorRT for RTX's real API, likewise."""
    return _stubs("tensorrt-rtx") / "rtx" / "tensorrt_rtx" / "__init__.pyi"


def _stubs(product: str) -> Path:
    folder = ROOT / "out" / "tensorrt-stubs"
    script = ROOT / ".ci" / "tensorrt_stubs.py"
    made = subprocess.run([sys.executable, script, folder, product], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no stubs of {product} could be made: {made.stderr[-500:]}")
    return folder


@pytest.fixture(scope="session")
def trace_once(pytestconfig: pytest.Config) -> Iterator[None]:
    """Trace each graph once, and keep it: it takes seconds, and the values of weights do not change it."""
    from qwen_image_engine.export.bundle import network_folder
    from tests.support.traces import kept_traces

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network_folder, "trace", kept_traces(network_folder.trace))
        yield


@pytest.fixture(scope="session")
def exported(random_checkpoint: Callable[..., Path], shared: SharedFolders, trace_once: None) -> Callable[..., Path]:
    """`exported(name="narrow", *, without=(), attention=None, **options) -> Path`; read-only.

    The bundle of `random_checkpoint(name, **options)`.
    """

    def export(
        name: str = "narrow", *, without: tuple[str, ...] = (), attention: str | None = None, **options: Any
    ) -> Path:
        def write(folder: Path) -> None:
            from qwen_image_engine.export.bundle.bundle import export_bundle
            from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint

            checkpoint = Checkpoint.open(random_checkpoint(name, **options), attention=attention)
            export_bundle(checkpoint, folder, without=without)

        return shared(write, "bundle", name, without, attention, *sorted(options.items()))

    return export


@pytest.fixture
def within(record_property: Callable[[str, object], None]) -> Callable[[str, float, float], None]:
    """`within(figure, found, limit)`: asserts, and leaves both for `benchmarks/quality/parity.py` to report."""

    def check(figure: str, found: float, limit: float) -> None:
        record_property(figure, (float(found), limit))
        assert found <= limit, figure

    return check


@pytest.fixture
def hears_interruptions() -> Iterator[None]:
    """Ctrl-C as Python handles it: a shell's background jobs ignore the signal, and tests inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Path]:
    """A folder that must be as empty afterwards as before."""
    folder = tmp_path / "output"
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`fails(code, *arguments) -> message`: the command's one line, and the same in JSON."""

    def check(code: int, *arguments: object) -> str:
        from qwen_image_engine.runtime.cli.main import main

        capsys.readouterr()
        words = [str(word) for word in arguments]
        assert main(words) == code
        plain = capsys.readouterr()
        assert plain.out == ""
        assert plain.err.startswith("qwen-image: error: ")
        assert plain.err.count("\n") == 1
        assert main([*words, "--json"]) == code
        with_json = capsys.readouterr()
        message = plain.err.removeprefix("qwen-image: error: ").rstrip("\n")
        assert json.loads(with_json.out) == {"error": message, "exit_code": code}
        assert with_json.err == plain.err
        return message

    return check


def pytest_configure(config: pytest.Config) -> None:
    """Watch for processes that tests start."""
    config.stash[WATCH] = ProcessWatch()


@pytest.hookimpl(tryfirst=True)  # before what `-m` leaves out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what exports or calibrates, and put files first in which anything takes long: two workers end together."""
    for item in items:
        if CHECKPOINTS & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    long = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("process")}
    items.sort(key=lambda item: item.path not in long)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep what is imported by now out of every later collection of garbage: torch alone is a million objects.

    Later ones are rare: graphs are made of so many objects that collections took an eighth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 20)
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[object]:
    """Fail a test of `make test-fast` that starts a process: it has to be marked, to be left out."""
    watch = pyfuncitem.config.stash[WATCH]
    before = watch.started
    result = yield
    if watch.started > before and "not process" in str(pyfuncitem.config.option.markexpr):
        pytest.fail("this test starts a process: mark it with @pytest.mark.process")
    return result


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """With CI=true, fail if a test was skipped: there, everything that a test needs is installed."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = len(reporter.stats.get("skipped", ())) if reporter is not None else 0
    if skipped and os.environ.get("CI") == "true" and exitstatus == 0:
        reporter.write_line(f"{skipped} skipped, which is a failure with CI=true; install what they name", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
