"""The compiler's accounts of real builds, read again without it.

`accounts/` has what TensorRT for RTX 1.7.1.116 said of graphs of `shapes` in default shapes: the files beside three
plans of `step`, and the log's list of layers of `vae_decoder_mid` for compute capabilities 8.6, 8.9 and 12.0 at once,
whose attention may run unfused.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.tensorrt.build.account import (
    Names,
    file_text,
    is_part,
    layers_of_log,
    names_of_file,
    scratch_of_log,
)
from qwen_image_engine.engines.tensorrt.build.audit import Network, audit
from qwen_image_engine.engines.tensorrt.build.summary import HEADINGS, summary

ACCOUNTS = Path(__file__).parent / "accounts"
SIZES = ("512x512", "1024x1024", "2048x2048")
STEPS = {
    "bf16-8.6": (108, 0, {"bf16": 55}),
    "int8-8.6": (120, 0, {"bf16": 6, "int8": 49}),
    "fp8-8.9": (141, 7, {"bf16": 6, "fp8": 49}),
}


def read(name: str) -> str:
    return gzip.decompress((ACCOUNTS / name).read_bytes()).decode()


def step(name: str) -> str:
    return read(f"step-{name}.json.gz")


@pytest.mark.parametrize("name", STEPS)
def test_the_account_of_a_step(name: str) -> None:
    kernels, in_fp8, products = STEPS[name]
    found = summary(step(name))
    assert tuple(item.profile for item in found) == SIZES
    for item in found:
        assert (item.kernels, item.attentions, item.fused_attentions) == (kernels, 7, 7)
        assert (item.fp8_attentions, item.products, item.unfused, item.wide) == (in_fp8, products, (), ())
        assert len(item.row()) == len(HEADINGS)
    assert found[0].row()[:4] == ("512x512", str(kernels), "7 of 7", str(in_fp8))


@pytest.mark.parametrize("name", STEPS)
def test_the_audit_and_the_summary_agree(name: str) -> None:
    names = names_of_file(step(name))
    found = audit(step(name), Network(names.attentions, names.products, from_codes=names.from_codes), len(SIZES))
    _, in_fp8, products = STEPS[name]
    assert {(item.fused_attentions, item.fp8_attentions) for item in found} == {(7, in_fp8)}
    counts = (products.get("fp8", 0), products.get("int8", 0))
    assert {(item.fp8_products, item.int8_products) for item in found} == {counts}


def test_quantised_inputs_of_an_attention_that_reads_bf16_are_no_fp8_attention() -> None:
    """As Q/DQ alone compile: the kernel's inputs are BF16 behind a kernel that dequantises."""
    data = json.loads(step("fp8-8.9"))
    changed = next(layer for layer in data["Layers"] if "_gemm_mha" in layer["Name"] and "_myl1_" in layer["Name"])
    for tensor in changed["Inputs"]:
        assert tensor["Datatype"] == "FP8"
        tensor["Datatype"] = "BFloat16"
    assert [item.fp8_attentions for item in summary(json.dumps(data))] == [7, 6, 7]


def test_the_log_of_several_capabilities() -> None:
    log = read("vae_decoder_mid-bf16.log.gz")
    layers = json.loads(layers_of_log([log]))["Layers"]
    assert len(layers) == log.count("LayerType: ") == 204
    assert {layer["LayerType"] for layer in layers} == {"correlation", "gemm", "kgen", "shape_call", "signal", "wait"}
    profiles = tuple(f"{size} {side}" for size in SIZES for side in ("landscape", "portrait"))
    names = Names(profiles, ("Attention_58",), (), ())
    text = file_text(json.dumps({"Layers": layers}), names)
    assert names_of_file(text) == names
    assert [item.unfused for item in summary(text)] == [("Attention_58",)] * 2 + [()] * 4
    fused = next(layer for layer in layers if layer["Name"] == "_gemm_mha_v2_myl2_11")
    assert fused["Inputs"][0]["Dimensions"] == [1, -1, 64]
    assert fused["Inputs"][0]["Datatype"] == "BFloat16"
    assert fused["Metadata"] == "[ONNX Layer: Attention_58]"


LINE = (
    "Name: a, b_myl0_1, LayerType: gemm, Inputs: [ { Name: x [y], z, Dimensions: [1,-1], Strides: [1,1], "
    "Datatype: FP8, Format: (Linear) Row, major }], Constants: [], Outputs: [], TacticName: , StreamId: 0, EventId: 1, "
    "Metadata: "
)


def test_a_line() -> None:
    (layer,) = json.loads(layers_of_log([f"Layers:\n{LINE}\n\nI/O Tensors:\n Name: x"]))["Layers"]
    tensor = {"Name": "x [y], z", "Dimensions": [1, -1], "Strides": [1, 1], "Datatype": "FP8"}
    assert layer == {
        "Name": "a, b_myl0_1",
        "LayerType": "gemm",
        "Inputs": [{**tensor, "Format": "(Linear) Row, major"}],
        "Constants": [],
        "Outputs": [],
        "TacticName": "",
        "StreamId": 0,
        "Metadata": "",
    }


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "0 lists of layers"),
        ([f"Layers:\n{LINE}"] * 2, "2 lists of layers"),
        ([f"Layers:\n{LINE}\nanother line\n\nI/O"], 'the line "another line"'),
        ([f"Layers:\n{LINE.replace('Strides: [1,1], ', '')}"], r'the tensors " ?{ Name: x \[y\], z, Dimensions'),
        ([f"Layers:\n{LINE.replace('LayerType: gemm', 'Kind: gemm')}"], 'the line "Name: a, b_myl0_1, Kind'),
        (["Layers:\n"], "no layers"),
    ],
)
def test_another_form_is_told(messages: list[str], words: str) -> None:
    with pytest.raises(QwenImageError, match=rf"another form than known \({words}.*cannot be checked"):
        layers_of_log(messages)


@pytest.mark.parametrize("text", ["", "{}", '{"Layers": []}', '{"Profiles": 1, "Attentions": [], "Products": []}'])
def test_a_file_of_another_form_is_told(text: str) -> None:
    with pytest.raises(QwenImageError, match="another form than known"):
        summary(text)


def test_what_is_kept_of_the_log() -> None:
    said = ["Layers:\nName", "Total Activation Memory: 17 bytes", "Total Weights Memory: 3 bytes", "Layers: 3", ""]
    assert [message for message in said if is_part(message)] == said[:2]
    assert scratch_of_log([*said[:2], "Total Activation Memory: 18 bytes"]) == (17, 18)


def test_names_are_texts() -> None:
    names = Names(("a",), ("b",), ("c", "d"), ("d",))
    assert asdict(names_of_file(file_text('{"Layers": []}', names))) == asdict(names)
