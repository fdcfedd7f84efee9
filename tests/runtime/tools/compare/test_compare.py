"""Two results beside one another: what is called a change, and files that cannot be compared."""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_image_engine.runtime.cli.main import main
from qwen_image_engine.runtime.system.memory_use import MemoryUse
from qwen_image_engine.runtime.tools.bench.case import Case
from qwen_image_engine.runtime.tools.bench.result import Benchmark, ContenderInfo
from qwen_image_engine.runtime.tools.bench.runs import CaseRuns, ContenderRuns
from qwen_image_engine.runtime.tools.compare.compare import compare
from tests.support.paths import RESULTS
from tests.support.small_benchmark import settings

DEMO = RESULTS / "demo-verify.json"
STEPS = 6


def benchmark(
    slowdown: float = 1.0, seed: int = 0, rounds: int = 12, noise: float = 0.02, peak_bytes: int = 10**9
) -> Benchmark:
    """An engine, its step `slowdown` times as slow, with lognormal noise on every time."""
    rng = np.random.default_rng(seed)

    def sample() -> Mapping[str, tuple[float, ...]]:
        factors = np.exp(noise * rng.standard_normal(STEPS + 1))
        steps = tuple((0.5 * slowdown * factors[1:]).tolist())
        return {"encode": (0.1 * float(factors[0]),), "step": steps, "rest": (0.01,), "total": (sum(steps) + 0.1,)}

    runs = ContenderRuns(
        "onnxruntime", "engine", sample(), {}, tuple(sample() for _ in range(rounds)), (0.01,) * rounds
    )
    asked = settings(sizes=((64, 64),), rounds=rounds)
    contenders = (
        ContenderInfo("onnxruntime", "engine", None, "1.32", "fp32", 2.0, MemoryUse(1, 2, 3), peak_bytes, 10**8),
        ContenderInfo("diffusers", "baseline", "diffusers is not installed"),
    )
    environment = {"began": "", "machine": {"cpu": "a processor", "cores": 2}, "versions": {}}
    bundle = {"precision": "fp32", "checkpoint": "shapes"}
    return Benchmark(asked, bundle, environment, contenders, (CaseRuns(Case(64, 64, STEPS + 1), (runs,)),))


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
        "peak memory is not compared: the two drew other cases, and the largest of them makes a process's peak",
        "not in the first: 64x64, 7 steps, 2 images, onnxruntime",
    )


def damaged(place: tuple[Any, ...], value: Any, document: Any = None) -> Any:
    """A result with one value in it replaced."""
    document = copy.deepcopy(benchmark().to_json() if document is None else document)
    *path, last = place
    found = document
    for key in path:
        found = found[key]
    found[last] = value
    return json.loads(json.dumps(document))


RUN = ("cases", 0, "runs", 0)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (
            (*RUN, "rounds", 2, "step"),
            [0.5, float("nan")],
            "rounds[2].step[1] is nan, expected a finite number above 0",
        ),
        ((*RUN, "rounds", 0, "total"), [0], "rounds[0].total[0] is 0, expected"),
        ((*RUN, "rounds", 0, "encode"), [-0.1], "rounds[0].encode[0] is -0.1, expected"),
        ((*RUN, "rounds", 0, "encode"), [float("inf")], "rounds[0].encode[0] is inf, expected"),
        ((*RUN, "rounds", 0, "encode"), [True], "rounds[0].encode[0] is true, expected"),
        ((*RUN, "rounds", 0, "encode"), 0.1, "rounds[0].encode is 0.1, expected a list"),
        ((*RUN, "rounds", 0, "lunch"), [1], 'rounds[0] has the unknown key "lunch"'),
        ((*RUN, "rounds", 1), {"total": [1.0]}, "of rounds[0] and rounds[1] only one has encode"),
        ((*RUN, "rounds"), [], "cases[0].runs[0].rounds is an empty list"),
        ((*RUN, "rounds"), {}, "cases[0].runs[0].rounds is an empty object"),
        ((*RUN, "waiting"), [0.1], "has 12 rounds and 1 of waiting"),
        ((*RUN, "waiting", 0), 1.5, "waiting[0] is 1.5, expected a number from 0 to 1"),
        (("cases", 0, "runs"), [], "cases[0].runs is an empty list"),
        (("cases", 0, "case"), None, "cases[0].case is null, expected an object"),
        (("ways", 0, "peak_bytes"), -1, "ways[0].peak_bytes is -1"),
        (("settings", "rounds"), "12", 'settings.rounds is "12", expected a whole number above 0'),
        (("settings", "colour"), 1, "settings.colour is no key that this version knows"),
    ],
)
def test_damaged_values_are_named(
    fails: Callable[..., str], written: Callable[..., Path], place: tuple[Any, ...], value: Any, words: str
) -> None:
    """Refusals of either file, in words."""
    good, bad = written(benchmark().to_json(), "good"), written(damaged(place, value), "bad")
    for files in ((good, bad), (bad, good)):
        message = fails(2, "compare", *files)
        assert message.startswith(f"{bad}: not in the expected format: ")
        assert words in message


def test_what_the_second_has_lost_fails(written: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    both = benchmark().to_json()
    both["cases"].append(damaged(("case", "batch"), 2, both["cases"][0]))
    half = written(benchmark().to_json(), "half")
    found = compare(written(both), half)
    assert found.lost == ("64x64, 7 steps, 2 images, onnxruntime",)
    assert found.failed
    assert not compare(half, written(both)).failed
    assert main(["compare", str(written(both)), str(half)]) == 1
    assert "✗ not in the second: 64x64, 7 steps, 2 images, onnxruntime" in capsys.readouterr().out


def test_a_baseline_that_is_gone_says_why(written: Callable[..., Path]) -> None:
    both = benchmark().to_json()
    both["cases"][0]["runs"].append(damaged(("way",), "diffusers", both["cases"][0]["runs"][0]))
    lost = compare(written(both), written(benchmark().to_json(), "b")).lost
    assert lost == ("64x64, 7 steps, diffusers (diffusers is not installed)",)


def test_peaks_of_other_cases_are_not_compared(written: Callable[..., Path]) -> None:
    larger = benchmark(peak_bytes=2 * 10**9).to_json()
    larger["cases"].append(damaged(("case", "width"), 1024, larger["cases"][0]))
    found = compare(written(benchmark().to_json()), written(larger, "b"))
    assert "peak memory" not in {row.what for row in found.rows}
    assert any("peak memory is not compared" in note for note in found.notes)


def test_a_busy_machine_is_told_once(written: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """The same bundle, measured again while others held the cores: nothing is told, and no line is long."""
    busy = damaged((*RUN, "waiting"), [0.65] * 12, benchmark(4.0, seed=2).to_json())
    assert main(["compare", str(written(benchmark().to_json())), str(written(busy, "b"))]) == 0
    out = capsys.readouterr().out
    assert "slower" not in out.replace("test: ", "")
    assert out.count("it waited for a core for 65% of the time (above 25% nothing can be told)") == 1
    rows = [line for line in out.splitlines() if line.startswith("unclear")]
    assert {line.rpartition("  ")[2].strip().count("x to ") for line in rows} == {1}
    assert max(map(len, rows)) < 110


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

    @pytest.mark.parametrize(
        ("place", "value", "words"),
        [
            (("components", 0, "component"), None, "components[0].component is null, expected a text"),
            (("components",), {}, "components is an empty object, expected a list of one or more"),
            (("components",), [], "components is an empty list"),
            (("components", 0, "cases", 0, "relative_l2"), float("nan"), "relative_l2 is nan, expected"),
            (("components", 0, "cases", 0, "relative_l2"), -1.0, "relative_l2 is -1.0, expected"),
            (("components", 0, "cases", 0, "passed"), "yes", 'passed is "yes", expected true or false'),
            (("passed",), None, "passed is null, expected true or false"),
        ],
    )
    def test_damaged_values_are_named(
        self,
        fails: Callable[..., str],
        written: Callable[..., Path],
        demo: Any,
        place: tuple[Any, ...],
        value: Any,
        words: str,
    ) -> None:
        bad = written(damaged(place, value, demo), "bad")
        message = fails(2, "compare", written(demo), bad)
        assert message.startswith(f"{bad}: not in the expected format: ")
        assert words in message

    def test_one_that_fails_now_is_worse(self, written: Callable[..., Path], demo: Any) -> None:
        failed = demo | {"passed": False}
        found = compare(written(demo), written(failed, "b"))
        assert [(row.where, row.what, row.change) for row in found.rows if row.unit == "passed"] == [
            ("the whole", "limits included", "worse")
        ]
        assert found.failed
        assert not compare(written(failed), written(failed, "b")).failed
        assert not compare(written(failed), written(demo, "b")).failed
        assert main(["compare", str(written(demo)), str(written(failed, "b"))]) == 1

    def test_a_limit_that_is_broken_now_is_worse(self, written: Callable[..., Path], demo: Any) -> None:
        def limited(passed: bool) -> Any:
            limit = {"row": "step", "relative_l2": 0.01, "found": 0.02, "passed": passed}
            return demo | {"passed": False, "limits": [limit]}

        found = compare(written(limited(True)), written(limited(False), "b"))
        changes = {(row.where, row.what): row.change for row in found.rows if row.unit == "passed"}
        assert changes == {("--fail-on", "step=0.01"): "worse", ("the whole", "limits included"): "same"}

    def test_a_row_that_is_lost_fails(self, written: Callable[..., Path], demo: Any) -> None:
        half = demo | {"components": demo["components"][1:]}
        found = compare(written(demo), written(half, "b"))
        assert len(found.lost) == len(demo["components"][0]["cases"])
        assert found.failed
        assert not compare(written(half), written(demo, "b")).failed

    def test_several_bundles_by_their_place(self, written: Callable[..., Path], demo: Any) -> None:
        header = {"format": "qwen-image-verify", "schema": 1, "passed": True}
        both = header | {"bundles": [demo, demo]}
        found = compare(written(both), written(both, "b"))
        assert {row.where.partition(", ")[0] for row in found.rows} == {"bundle 1", "bundle 2"}
        assert main(["compare", str(written(both)), str(written(header | demo, "b"))]) == 2  # nothing in common


def without(document: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name != key}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"format": "qwen-image-bench", "schema": 2}, "schema version 2, this version reads 1"),
        ({"format": "qwen-image-verify", "schema": None}, "schema version null, this version reads 1"),
        ({"format": "qwen-image-bundle"}, "no result of bench or verify"),
        ([1, 2], "no result of bench or verify"),
        (
            without(benchmark().to_json(), "cases"),
            "expected format: cases is missing; run qwen-image bench again",
        ),
        (
            benchmark().to_json() | {"ways": [{"name": 1}]},
            "b.json: not in the expected format: ways[0].role is missing",
        ),
        (benchmark().to_json() | {"ways": 7}, "expected format: ways is 7, expected a list of one or more"),
        (benchmark().to_json() | {"ways": []}, "expected format: ways is an empty list"),
        (benchmark().to_json() | {"cases": []}, "expected format: cases is an empty list"),
        (
            benchmark().to_json() | {"bundle": []},
            "not in the expected format: bundle is an empty list, expected an object",
        ),
        (json.loads(DEMO.read_text(encoding="utf-8")), "compare two of one kind"),
    ],
)
def test_files_that_cannot_be_compared(
    fails: Callable[..., str], written: Callable[..., Path], document: Any, message: str
) -> None:
    assert message in fails(2, "compare", written(benchmark().to_json()), written(document, "b"))


def test_files_that_cannot_be_read(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "text").write_text("{")
    assert "cannot read" in fails(2, "compare", tmp_path / "missing", tmp_path / "text")
    assert "is not JSON" in fails(2, "compare", tmp_path / "text", tmp_path / "text")


def test_no_advice_overwrites_what_was_given(written: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = written({"format": "qwen-image-bundle"})
    assert main(["compare", str(path), str(path)]) == 2
    assert capsys.readouterr().err.endswith("write one with: qwen-image bench BUNDLE --output RESULT.json\n")
