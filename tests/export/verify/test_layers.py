"""Errors by layer: every linear and block of the step has a row, and a planted error shows in its own."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from qwen_image_engine.export.verify.layer_outputs import scaled_layers
from qwen_image_engine.export.verify.layers import Layer, Layers
from qwen_image_engine.export.verify.parity import verify_bundle
from qwen_image_engine.export.verify.recording import Case
from qwen_image_engine.export.verify.report.tables import tables
from qwen_image_engine.export.verify.result import Verification
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.load import empty_network
from qwen_image_engine.runtime.bundle.manifest import read_manifest
from qwen_image_engine.runtime.bundle.manifest_entries import QuantisedLayer
from tests.support.differences import planted
from tests.support.edit_manifest import rehash

QUICK = (Case("quick", "a red circle", 64, 32),)
PLANTED = "transformer_blocks.1.attn.to_out.0"


def plant(bundle: Path) -> None:
    """Turn the signs of a tenth of one linear's rows where they stand, and give the manifest the file's new hash."""
    name = "transformer/weights.safetensors"
    data = bytearray((bundle / name).read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    entry = json.loads(data[8:header])[f"{PLANTED}.weight"]
    begin, end = (header + offset for offset in entry["data_offsets"])
    weight = np.frombuffer(
        data, {"F32": np.float32, "I8": np.int8}[entry["dtype"]], count=math.prod(entry["shape"]), offset=begin
    )
    weight = weight.reshape(entry["shape"])
    assert weight.nbytes == end - begin
    weight[: len(weight) // 10] *= -1
    (bundle / name).write_bytes(data)
    rehash(bundle, name)


def layers_of(result: Verification) -> Layers:
    assert result.layers is not None
    return result.layers


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_every_linear_and_block_has_a_row(
    bundle: Callable[[str], tuple[Path, Path]], tmp_path: Path, engine: str
) -> None:
    checkpoint, exported = bundle("narrow")
    folder = shutil.copytree(exported, tmp_path / "bundle")
    files = sorted(folder.rglob("*"))
    result = verify_bundle(folder, cases=QUICK, layers=True, engine=engine)
    assert sorted(folder.rglob("*")) == files
    found = layers_of(result)
    network = empty_network(Checkpoint.open(checkpoint), "transformer")
    linears = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    blocks = [f"transformer_blocks.{i}" for i in range(len(network.get_submodule("transformer_blocks")))]
    # The text's projection runs in the prefix alone.
    expected = {name for name in linears if not name.startswith("txt_in.")} | set(blocks)
    names = [layer.name for layer in found.layers]
    assert set(names) == expected
    assert len(names) == len(expected)
    assert [name for name in names if name in blocks] == blocks
    assert names.index(PLANTED) < names.index("transformer_blocks.1") < names.index("proj_out")
    assert all(layer.worst.relative_l2 <= 1e-5 for layer in found.layers)
    assert found.grows_most_at is None
    assert found.scaled == ()
    assert [case for case, _ in found.runs] == ["quick", "quick"]
    assert found.runs[0][1] == 1
    assert all(len(layer.runs) == 2 for layer in found.layers)
    # The network's last linear gives the velocity that the component's own row is about.
    row = next(row for row in result.rows if row.component == "step")
    assert found.layers[-1].runs[0].relative_l2 == pytest.approx(row.runs[0].relative_l2, rel=0.5)


def test_a_planted_error_shows_in_its_row_and_in_the_verdict(exported: Callable[..., Path], tmp_path: Path) -> None:
    folder = shutil.copytree(exported(), tmp_path / "bundle")
    plant(folder)
    result = verify_bundle(folder, cases=QUICK, layers=True)
    found = layers_of(result)
    errors = {layer.name: layer.worst.relative_l2 for layer in found.layers}
    names = list(errors)
    assert all(errors[name] <= 1e-5 for name in names[: names.index(PLANTED)])
    assert errors[PLANTED] > 0.1
    assert errors["transformer_blocks.1"] > 1e-5
    assert found.grows_most_at is not None
    assert found.grows_most_at.name == PLANTED
    assert not result.passed
    assert {row.component for row in result.rows if not row.passed} >= {"step", "teacher_forced"}
    assert f"the error grows most at {PLANTED}" in list(tables([result]))[-1]
    assert result.to_json()["layers"]["grows_most_at"] == PLANTED


def test_a_planted_error_among_those_of_int8(int8_bundle: Callable[..., tuple[Path, Path]], tmp_path: Path) -> None:
    folder = shutil.copytree(int8_bundle("narrow")[1], tmp_path / "bundle")
    clean = layers_of(verify_bundle(folder, cases=QUICK, layers=True))
    step = read_manifest(folder).components["step"]
    assert set(clean.scaled) == scaled_layers(step.quantised_layers)
    assert {name.rpartition("transformer_blocks.")[2].partition(".")[2] for name in clean.scaled} == {
        "attn.to_v",
        "img_mlp.proj",
    }
    assert not set(clean.scaled) & {layer.name for layer in clean.layers}
    assert all(layer.worst.relative_l2 < 0.1 for layer in clean.layers)
    plant(folder)
    planted = layers_of(verify_bundle(folder, cases=QUICK, layers=True)).grows_most_at
    assert planted is not None
    assert planted.name == PLANTED
    assert planted.worst.relative_l2 > 0.1


def test_scaled_linears_are_the_first_of_a_pair() -> None:
    pair = {
        "a.attn.to_v": QuantisedLayer("int8", equalised_with="a.attn.to_out.0"),
        "a.attn.to_out.0": QuantisedLayer("int8", equalised_with="a.attn.to_v"),
        "a.img_mlp.out": QuantisedLayer("int8", equalised_with="a.img_mlp.proj"),
        "a.attn.to_q": QuantisedLayer("int8"),
    }
    assert scaled_layers(pair) == {"a.attn.to_v", "a.img_mlp.proj"}


def test_growth_that_is_not_finite() -> None:
    broken = Layer("b", (planted(np.inf, 0, np.inf),), np.inf)
    found = Layers("step", (("quick", 1.0),), (Layer("a", (planted(0, 1, 0),), 0.0), broken), ())
    assert found.grows_most_at == broken
    row = found.to_json()["rows"][1]
    assert (row["growth"], row["relative_l2"], row["relative_l2_by_run"]) == (None, None, [None])
