"""Traced graphs that tests keep: made again when anything that they are made from has changed, and else the same."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import onnx_ir as ir
import pytest

from qwen_image_engine.export import trace as tracing
from qwen_image_engine.export.bundle import network_folder
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from tests.support.kept import forget
from tests.support.paths import ROOT
from tests.support.traces import KeptTraces, source_hash

COMPONENT = "prefix"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources."""
    home = tmp_path_factory.mktemp("home")
    for folder in ("engines", "export", "runtime", "reference"):
        shutil.copytree(ROOT / folder, home / folder, ignore=shutil.ignore_patterns("shapes", "__pycache__"))
    return home


@pytest.mark.parametrize(
    ("name", "traces_again"),
    [
        ("reference/networks/transformer.py", True),
        ("reference/networks/layers.py", True),
        ("reference/components.py", True),
        ("engines/core/contract.py", True),
        ("export/trace.py", True),
        ("export/passes/cleanup.py", False),
        ("export/bundle/network_folder.py", False),
        ("runtime/pipeline.py", False),
    ],
)
def test_a_changed_network_traces_again_and_a_changed_pass_does_not(home: Path, name: str, traces_again: bool) -> None:
    before = source_hash(home)
    assert before == source_hash(ROOT)
    text = (home / name).read_text(encoding="utf-8")
    try:
        (home / name).write_text(f"{text}CHANGED = 1\n", encoding="utf-8")
        assert (source_hash(home) != before) == traces_again
    finally:
        (home / name).write_text(text, encoding="utf-8")


def test_a_kept_graph_is_the_traced_one(
    random_checkpoint: Callable[..., Path], tmp_path: Path, trace_once: None
) -> None:
    """And the one that all other tests have, which another process may have traced."""
    checkpoint = Checkpoint.open(random_checkpoint())
    first = KeptTraces(tracing.trace, tmp_path, "a")
    traced = first(checkpoint, COMPONENT, "float32")
    again = KeptTraces(tracing.trace, tmp_path, "a")
    kept = again(checkpoint, COMPONENT, "float32")
    assert (first.fresh, again.fresh) == (1, 0)
    common = network_folder.trace(checkpoint, COMPONENT, "float32")
    assert ir.to_proto(kept) == ir.to_proto(traced) == ir.to_proto(common)


def empty(checkpoint: Checkpoint, component: str, dtype: str) -> ir.Model:
    return ir.Model(ir.Graph([], [], nodes=[], name=f"{component} {dtype}"), ir_version=11)


def test_a_worker_traces_another_graph_while_one_is_traced(
    random_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = Checkpoint.open(random_checkpoint())
    begun, other = Event(), Event()
    traced = []

    def slow(checkpoint: Checkpoint, component: str, dtype: str) -> ir.Model:
        traced.append(component)
        if component == COMPONENT:
            begun.set()
            assert other.wait(60)
        else:
            other.set()
        return empty(checkpoint, component, dtype)

    with ThreadPoolExecutor() as pool:
        first = pool.submit(KeptTraces(slow, tmp_path, "a"), checkpoint, COMPONENT, "float16")
        assert begun.wait(60)
        second = KeptTraces(slow, tmp_path, "a")(checkpoint, COMPONENT, "float16")
    assert second.graph.name == first.result().graph.name == f"{COMPONENT} float16"
    assert traced == [COMPONENT, "text_encoder"]
    kept = KeptTraces(slow, tmp_path, "a")
    for component in ("text_encoder", "vision", COMPONENT):
        kept(checkpoint, component, "float16")
    assert kept.fresh == 1


def test_another_source_or_dtype_is_another_graph(random_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(random_checkpoint())

    def fresh(source: str, dtype: str) -> int:
        kept = KeptTraces(empty, tmp_path, source)
        assert kept(checkpoint, COMPONENT, dtype).graph.name == f"{COMPONENT} {dtype}"
        return kept.fresh

    calls = [("a", "float32"), ("another network", "float32"), ("a", "float16"), ("a", "float32")]
    assert [fresh(*call) for call in calls] == [1, 1, 1, 0]


def test_a_graph_that_no_run_uses_goes(tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").touch()
    forget(tmp_path, days=1)
    assert list(tmp_path.iterdir())
    forget(tmp_path, days=-1)
    assert not list(tmp_path.iterdir())
