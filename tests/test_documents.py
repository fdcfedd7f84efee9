"""Figures in README.md and docs/ are those of the committed results."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def result(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def document(name: str) -> str:
    return " ".join((ROOT / name).read_text(encoding="utf-8").split())


def shapes() -> list[tuple[str, str]]:
    found = result("shapes")
    two, three = (f"{found[key]['rate']:.1%}" for key in ("one or two shapes", "three shapes"))
    again = result("shapes-from-nothing")
    rates = [f"{again[key]['rate']:.1%}" for key in ("one or two shapes", "three shapes")]
    own, swapped = found["judge accepts"]["own"], max(v for k, v in found["judge accepts"].items() if k != "own")
    return [
        ("README.md", f"{two} of held-out prompts of one or two shapes, {three} of three"),
        ("README.md", f"{two} of one or two shapes, {three} of three"),
        ("docs/shapes.md", f"{rates[0]} of 200 held-out prompts of one or two shapes and {rates[1]} of three"),
        ("docs/shapes.md", f"it took {again['training']['wall_s'] // 60} minutes"),
        ("docs/shapes.md", f"| one or two shapes | {two} |"),
        ("docs/shapes.md", f"| three shapes | {three} |"),
        ("docs/shapes.md", f"accepts {own:.0%} of the recipe's own drawings and {swapped:.0%}"),
    ]


def pictures() -> list[tuple[str, str]]:
    found = result("picture")["results"]
    seconds = {name: f"{found[name]['total_s']:.2f} s" for name in ("onnxruntime", "openvino", "reference")}
    return [
        (
            "README.md",
            f"ONNX Runtime {seconds['onnxruntime']}, OpenVINO {seconds['openvino']}, "
            f"torch reference {seconds['reference']}",
        )
    ]


def parity() -> list[tuple[str, str]]:
    rows = result("demo-verify")["components"]
    worst = max(row["relative_l2"] for row in rows)
    figures = {row["figure"]: row["worst"] for row in result("parity")["figures"]}
    networks = max(
        value for name, value in figures.items() if "against diffusers, relative" in name or "transformers, rel" in name
    )
    engines = max(value for name, value in figures.items() if "on onnxruntime" in name or "on openvino" in name)
    return [
        (
            "README.md",
            f"{sum(len(row['cases']) for row in rows)} rows of the comparison | worst {worst:.1e} relative L2",
        ),
        ("README.md", f"networks and whole pipelines {networks:.1e}, engines {engines:.1e}"),
    ]


def demo() -> list[tuple[str, str]]:
    found = result("demo")
    assert found["passed"]
    return [("README.md", f"`make demo` after its set-up | {found['seconds']['total']:.0f} s |")]


def judge() -> list[tuple[str, str]]:
    rates = [f"{row['pictures']['one or two shapes']['rate']:.1%}" for row in result("judge")["results"]]
    names = ("fp32", "int8", "static FP8", "static int8")
    return [("README.md", ", ".join(f"{name} {rate}" for name, rate in zip(names, rates, strict=True)))]


def speed() -> list[tuple[str, str]]:
    ratio = {
        (row["tokens"], row["way"]): f"{row['times_faster_than']['diffusers bf16']['ratio_of_medians']:.2f}x"
        for row in result("speed")["results"]
    }
    ways = ("ONNX Runtime int8", "OpenVINO int8, rest bf16")
    small, large = ([ratio[tokens, way] for way in ways] for tokens in (1024, 4096))
    return [
        ("README.md", f"int8 in ONNX Runtime {small[0]} diffusers bf16, in OpenVINO with bf16 {small[1]}"),
        ("README.md", f"{large[0]} and {large[1]}"),
    ]


def memory() -> list[tuple[str, str]]:
    found = result("export_memory")
    peak = max(run["peak_bytes"]["exported"] for run in found["runs"]) / 1e9
    largest = found["largest_tensor_bytes"] / 1e9
    return [("README.md", f"peak resident memory {peak:.2f} GB, largest tensor {largest:.2f} GB")]


def quantisation() -> list[tuple[str, str]]:
    rows = {(row["checkpoint"], row["way"]): row for row in result("quantisation")["rows"]}
    texts = []
    for checkpoint in dict.fromkeys(checkpoint for checkpoint, _ in rows):
        cosines = ", ".join(
            f"{name} {rows[checkpoint, way]['step_cosine_mean']:.4f}"
            for name, way in (
                ("int8", "int8"),
                ("static FP8", "FP8, twin"),
                ("static int8", "static int8, twin"),
                ("plain W8A8", "plain W8A8"),
            )
        )
        texts.append(f"{checkpoint} | {cosines}")
    return [("README.md", text) for text in texts]


def full_size() -> list[tuple[str, str]]:
    link, int8 = result("full-size-export")["exports"]
    pictures = result("full-size-run-onnxruntime")["pictures"]
    peak = max(item["anonymous_bytes"] for picture in pictures for item in picture["peaks"].values())
    minutes = [f"{item['process_s'] / 60:.1f} min" for item in (link, int8)]
    return [
        ("README.md", f"linked for `tensorrt` bf16 {minutes[0]}, `cpu` int8 {minutes[1]}"),
        ("README.md", f"{pictures[0]['seconds']['step_s']:.0f} s a step, at most {peak / 1e9:.1f} GB"),
    ]


def test_tables_are_those_of_the_results() -> None:
    script = ROOT / "benchmarks" / "documents.py"
    found = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, f"{found.stderr}: run make docs"


@pytest.mark.parametrize("figures", [shapes, pictures, parity, demo, judge, memory, quantisation, speed, full_size])
def test_figures(figures: Any) -> None:
    for name, text in figures():
        assert text in document(name), name
