"""Processors whose integer products saturate: found by trying, and kept from doing so."""

from types import ModuleType

import numpy as np
import onnxruntime
import pytest

from qwen_image_engine.engines.onnxruntime import saturation
from qwen_image_engine.engines.onnxruntime.cpu import session_options
from qwen_image_engine.engines.openvino import saturation as openvino_saturation
from qwen_image_engine.engines.openvino.saturation import has_int8_weights
from qwen_image_engine.runtime.system.machine import CPU_FLAGS, Machine, int8_expectation

openvino = pytest.importorskip("openvino")


@pytest.mark.parametrize("backend", [saturation, openvino_saturation])
def test_only_processors_without_vnni_saturate(backend: ModuleType) -> None:
    flags = Machine.here().cpu_flags
    if flags is None or not flags["avx2"]:
        pytest.skip("not an x86 processor that tells its flags")
    assert backend.products_saturate() != (flags["avx_vnni"] or flags["avx512_vnni"] or flags["amx_int8"])


@pytest.mark.parametrize("saturate", [True, False])
def test_the_slower_exact_products_are_asked_for_where_the_others_saturate(
    saturate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen_image_engine.engines.onnxruntime.cpu.products_saturate", lambda: saturate)
    options = session_options(onnxruntime)
    if saturate:
        assert options.get_session_config_entry("session.x64quantprecision") == "1"
    else:
        with pytest.raises(RuntimeError, match="x64quantprecision"):
            options.get_session_config_entry("session.x64quantprecision")


def test_int8_constants_are_seen() -> None:
    op = openvino.opset13
    rows = op.parameter([-1, 4], np.float32)
    for dtype, expected in ((np.int8, True), (np.float32, False)):
        weights = op.convert(op.constant(np.ones((3, 4), dtype)), "f32")
        model = openvino.Model([op.matmul(rows, weights, False, True)], [rows], "linear")
        assert has_int8_weights(model) is expected


@pytest.mark.parametrize(
    ("flags", "word"),
    [({"amx_int8", "avx512_vnni"}, "AMX:"), ({"avx_vnni"}, "VNNI:"), ({"avx2"}, "neither VNNI nor AMX")],
)
def test_doctor_says_what_to_expect(flags: set[str], word: str) -> None:
    assert int8_expectation({name: name in flags for name in CPU_FLAGS}).startswith(word)


def test_another_systems_processor_is_not_guessed_at() -> None:
    assert "not known" in int8_expectation(None)
