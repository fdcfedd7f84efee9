"""The table of accepted operators against the exports of every target: nothing is missing, and no row is dead."""

from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest

from qwen_image_engine.engines.core.graph.accepted import IR_VERSIONS, OF_EARLIER_EXPORTS, OPERATORS, OPSETS
from qwen_image_engine.export.targets import TARGETS
from qwen_image_engine.runtime.bundle.files import check_graphs
from qwen_image_engine.runtime.bundle.manifest import read_manifest


@pytest.fixture(scope="module")
def bundles(
    exported: Callable[..., Path],
    int8_bundle: Callable[..., tuple[Path, Path]],
    static_bundle: Callable[..., tuple[Path, Path]],
) -> tuple[Path, ...]:
    """Bundles of every target and precision, with bidirectional attention and with FP8 attention."""

    def bundle(target: str, precision: str) -> Path:
        if target == "cpu":
            return exported() if precision == "fp32" else int8_bundle("narrow")[1]
        return static_bundle("narrow", target, precision)[1]

    in_fp8 = (static_bundle("narrow", name, "fp8", fp8_attention=True)[1] for name in ("tensorrt", "tensorrt-twin"))
    return (*(bundle(*key) for key in TARGETS), exported(attention="bidirectional"), *in_fp8)


def graphs(bundles: tuple[Path, ...]) -> Iterator[onnx.ModelProto]:
    for folder in bundles:
        for entry in read_manifest(folder).components.values():
            yield onnx.load(folder / entry.model, load_external_data=False)


def test_exports_of_every_target_are_accepted(bundles: tuple[Path, ...]) -> None:
    for folder in bundles:
        check_graphs(folder, read_manifest(folder))


def test_the_table_holds_nothing_that_no_export_holds(bundles: tuple[Path, ...]) -> None:
    operators: dict[tuple[str, str], set[str]] = {}
    opsets: dict[str, set[int]] = {}
    versions = set()
    for model in graphs(bundles):
        versions.add(model.ir_version)
        for item in model.opset_import:
            opsets.setdefault(item.domain, set()).add(item.version)
        for node in model.graph.node:
            used = operators.setdefault((node.domain, node.op_type), set())
            used.update(attribute.name for attribute in node.attribute)
    needed = {key: set(row.attributes) for key, row in OPERATORS.items() if key not in OF_EARLIER_EXPORTS}
    assert needed == operators
    assert OPERATORS.keys() > OF_EARLIER_EXPORTS
    assert dict(OPSETS) == opsets
    assert versions == IR_VERSIONS
