"""Two results beside one another: what is called a change, and files that cannot be compared."""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_image_engine.runtime.bench_case import Case
from qwen_image_engine.runtime.bench_result import Benchmark, WayFacts
from qwen_image_engine.runtime.bench_runs import CaseRuns, WayRuns
from qwen_image_engine.runtime.bench_settings import Settings
from qwen_image_engine.runtime.command import main
from qwen_image_engine.runtime.comparison import compare
from qwen_image_engine.runtime.process_memory import MemoryUse

DEMO = Path(__file__).parents[2] / "benchmarks" / "results" / "demo-verify.json"
STEPS = 6


def benchmark(
    slowdown: float = 1.0, seed: int = 0, rounds: int = 12, noise: float = 0.02, peak_bytes: int = 10**9
) -> Benchmark:
    """One engine, its step `slowdown` times as slow, with lognormal noise on every time."""
    rng = np.random.default_rng(seed)

    def sample() -> Mapping[str, tuple[float, ...]]:
        factors = np.exp(noise * rng.standard_normal(STEPS + 1))
        steps = tuple((0.5 * slowdown * factors[1:]).tolist())
        return {"encode": (0.1 * float(factors[0]),), "step": steps, "rest": (0.01,), "total": (sum(steps) + 0.1,)}

    runs = WayRuns("onnxruntime", "engine", sample(), {}, tuple(sample() for _ in range(rounds)), (0.01,) * rounds)
    settings = Settings(
        bundle="bundle",
        checkpoint=None,
        engines=("onnxruntime",),
        baselines=("diffusers",),
        sizes=((64, 64),),
        steps=(None,),
        batches=(1,),
        references=(0,),
        reference_resolution=1024,
        rounds=rounds,
        threads=None,
        memory="resident",
    )
    ways = (
        WayFacts("onnxruntime", "engine", None, "1.32", "fp32", 2.0, MemoryUse(1, 2, 3), peak_bytes, 10**8),
        WayFacts("diffusers", "baseline", "diffusers is not installed"),
    )
    environment = {"began": "", "machine": {"cpu": "a processor", "cores": 2}, "versions": {}}
    bundle = {"precision": "fp32", "checkpoint": "shapes"}
    return Benchmark(settings, bundle, environment, ways, (CaseRuns(Case(64, 64, STEPS + 1), (runs,)),))


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    def write(document: Any, name: str = "a") -> Path:
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(document), encoding="utf-8")
        return path

    return write


@pytest.fixture
def changes(written: Callable[..., Path]) -> Callable[[Any, Any], dict[tuple[str, str], str]]:
    def found(before: Any, after: Any) -> dict[tuple[str, str], str]:
        rows = compare(written(before, "before"), written(after, "after")).rows
        return {(row.where.rpartition(", ")[2], row.what): row.change for row in rows}

    return found


def test_a_result_survives_its_json() -> None:
    document = json.loads(json.dumps(benchmark().to_json()))
    assert (document["format"], document["schema"]) == ("qwen-image-bench", 1)
    assert Benchmark.from_json(document) == benchmark()
    assert Benchmark.from_json(document).to_json() == benchmark().to_json()


@pytest.mark.parametrize(
    ("slowdown", "step"), [(1.10, {"slower"}), (1 / 1.10, {"faster"}), (1.01, {"same", "unclear"}), (1.0, {"same"})]
)
def test_planted_changes(changes: Callable[..., Any], slowdown: float, step: set[str]) -> None:
    found = changes(benchmark(seed=1).to_json(), benchmark(slowdown, seed=2).to_json())
    assert found["onnxruntime", "step"] in step
    assert found["onnxruntime", "encode"] in {"same", "unclear"}
    assert ("onnxruntime", "rest") not in found


def test_noise_of_the_machine_widens_what_counts(changes: Callable[..., Any]) -> None:
    """Steps that spread by half of themselves hide a tenth, and do not hide a factor of three."""
    for slowdown, expected in ((1.1, "unclear"), (3.0, "slower")):
        found = changes(benchmark(seed=1, noise=0.4).to_json(), benchmark(slowdown, seed=2, noise=0.4).to_json())
        assert found["onnxruntime", "step"] == expected


def test_few_rounds_are_unclear(written: Callable[..., Path]) -> None:
    rows = compare(written(benchmark(rounds=4).to_json()), written(benchmark(2.0).to_json(), "b")).rows
    assert {(row.change, row.reason, row.ratio) for row in rows if row.unit == "s"} == {
        ("unclear", "4 pairs, a ratio needs 5", None)
    }


def test_memory_is_told_and_stops_nothing(
    changes: Callable[..., Any], written: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = benchmark().to_json(), benchmark(peak_bytes=1_060_000_000).to_json()
    assert changes(before, after)["onnxruntime", "peak memory"] == "larger"
    assert changes(after, before)["onnxruntime", "peak memory"] == "smaller"
    assert changes(before, benchmark(peak_bytes=1_040_000_000).to_json())["onnxruntime", "peak memory"] == "same"
    assert main(["compare", str(written(before)), str(written(after, "b"))]) == 0
    assert "1.06 GB" in capsys.readouterr().out


def test_the_command_stops_a_script(written: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    slow, fast = written(benchmark(1.5, seed=1).to_json()), written(benchmark(seed=2).to_json(), "b")
    assert main(["compare", str(slow), str(fast), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["failed"] is False
    assert main(["compare", str(fast), str(slow)]) == 1
    out = capsys.readouterr().out
    assert "slower" in out
    assert "Mann and Whitney" in out


def test_what_makes_them_hard_to_compare_is_said(written: Callable[..., Path]) -> None:
    other = benchmark().to_json()
    other["environment"]["machine"] = {"cpu": "another", "cores": 2}
    other["settings"]["threads"] = 1
    other["cases"].append(copy.deepcopy(other["cases"][0]) | {"case": {**other["cases"][0]["case"], "batch": 2}})
    notes = compare(written(benchmark().to_json()), written(other, "b")).notes
    assert notes == (
        "processor: a processor before, another now",
        "threads: None before, 1 now",
        "not in the first: 64x64, 7 steps, 2 images, onnxruntime",
    )


class TestVerify:
    @pytest.fixture
    def demo(self) -> Any:
        """The committed comparison of the demo's bundle."""
        return json.loads(DEMO.read_text(encoding="utf-8"))

    def test_the_same_bundle(self, changes: Callable[..., Any], demo: Any) -> None:
        found = changes(demo, demo)
        assert set(found.values()) == {"same"}
        assert len(found) == sum(len(row["cases"]) for row in demo["components"])

    def test_errors_that_grow_beyond_rounding(self, changes: Callable[..., Any], demo: Any) -> None:
        before, after = copy.deepcopy(demo), copy.deepcopy(demo)
        case, rounding, little = (row["cases"][0] for row in before["components"][:3])
        later, rounding_later, little_later = (row["cases"][0] for row in after["components"][:3])
        case["relative_l2"], later["relative_l2"] = 1e-2, 1.2e-2
        rounding["relative_l2"], rounding_later["relative_l2"] = 2e-7, 9e-7
        little["relative_l2"], little_later["relative_l2"] = 1e-2, 1.05e-2
        names = [(row["component"], row["cases"][0]["case"]) for row in before["components"][:3]]
        found = changes(before, after)
        assert [found[name] for name in names] == ["worse", "same", "same"]
        assert changes(after, before)[names[0]] == "closer"

    def test_a_row_that_fails_now(self, changes: Callable[..., Any], demo: Any) -> None:
        after = copy.deepcopy(demo)
        row = after["components"][0]
        row["cases"][0] |= {"passed": False, "relative_l2": None}
        found = changes(demo, after)
        assert found[row["component"], row["cases"][0]["case"]] == "worse"

    def test_several_bundles_by_their_place(self, written: Callable[..., Path], demo: Any) -> None:
        header = {"format": "qwen-image-verify", "schema": 1, "passed": True}
        both = header | {"bundles": [demo, demo]}
        found = compare(written(both), written(both, "b"))
        assert {row.where.partition(", ")[0] for row in found.rows} == {"bundle 1", "bundle 2"}
        assert main(["compare", str(written(both)), str(written(header | demo, "b"))]) == 1


def without(document: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name != key}


@pytest.mark.parametrize(
    ("document", "code", "message"),
    [
        ({"format": "qwen-image-bench", "schema": 2}, 1, "schema version 2, this version reads 1"),
        ({"format": "qwen-image-verify", "schema": None}, 1, "schema version None, this version reads 1"),
        ({"format": "qwen-image-bundle"}, 1, "no result of bench or verify"),
        ([1, 2], 1, "no result of bench or verify"),
        (without(benchmark().to_json(), "cases"), 1, "misshapen: 'cases' is missing"),
        (benchmark().to_json() | {"ways": [{"name": 1}]}, 1, "misshapen"),
        (benchmark().to_json() | {"ways": 7}, 1, "misshapen"),
        (benchmark().to_json() | {"cases": [], "ways": []}, 1, "no figure in common"),
        (json.loads(DEMO.read_text(encoding="utf-8")), 2, "compare two of one kind"),
    ],
)
def test_files_that_cannot_be_compared(
    fails: Callable[..., str], written: Callable[..., Path], document: Any, code: int, message: str
) -> None:
    assert message in fails(code, "compare", written(benchmark().to_json()), written(document, "b"))


def test_files_that_cannot_be_read(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "text").write_text("{")
    assert "cannot read" in fails(1, "compare", tmp_path / "missing", tmp_path / "text")
    assert "is not JSON" in fails(1, "compare", tmp_path / "text", tmp_path / "text")
