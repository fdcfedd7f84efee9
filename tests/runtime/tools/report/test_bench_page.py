"""The report of a benchmark: every figure, nothing from elsewhere, and folders that are refused."""

import io
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.runtime.images.png import png_bytes
from qwen_image_engine.runtime.system.memory_use import MemoryUse
from qwen_image_engine.runtime.tools.bench.case import Case
from qwen_image_engine.runtime.tools.bench.result import Benchmark, ContenderInfo
from qwen_image_engine.runtime.tools.bench.runs import CaseRuns, ContenderRuns
from qwen_image_engine.runtime.tools.report import folder as report_folder
from qwen_image_engine.runtime.tools.report.bench_case import seconds_text
from qwen_image_engine.runtime.tools.report.folder import check_report, write_report
from qwen_image_engine.runtime.tools.report.html import tag
from qwen_image_engine.runtime.tools.report.pictures import LEAST_END, difference_map, picture_difference, scale_end
from tests.support.chromium import BROWSER
from tests.support.report_page import check_in_browser, check_page
from tests.support.small_benchmark import settings

ATTACK = "<script>alert(1)</script>"


def runs(contender: str, role: str, step_s: float, rounds: int, picture: int, seed: int) -> ContenderRuns:
    rng = np.random.default_rng(seed)

    def sample() -> dict[str, tuple[float, ...]]:
        steps = tuple(float(step_s * (1 + 0.01 * value)) for value in rng.random(4))
        return {
            "encode": (0.02,),
            "first_step": (step_s,),
            "step": steps,
            "decode": (0.1,),
            "total": (sum(steps) + 0.2,),
        }

    peaks = {"encode": MemoryUse(1_230_000, 40, 4_560_000), "step": MemoryUse(2_000_000, 40, 7_890_000)}
    drawn = png_bytes(np.full((32, 48, 4), picture, np.uint8))
    return ContenderRuns(
        contender, role, sample(), peaks, tuple(sample() for _ in range(rounds)), (0.01,) * rounds, drawn
    )


def of_stages(run: ContenderRuns, *stages: str) -> ContenderRuns:
    return replace(run, rounds=tuple({name: sample[name] for name in stages} for sample in run.rounds))


@pytest.fixture
def benchmark_result() -> Callable[..., Benchmark]:
    def make(rounds: int = 6, bundle: str = ATTACK, **changes: Any) -> Benchmark:
        asked = settings(bundle=bundle, baselines=("torch", "diffusers"), sizes=((48, 32),), rounds=rounds)
        contenders = (
            ContenderInfo(
                "onnxruntime", "engine", None, "1.32", "fp32", 2.0, MemoryUse(1, 2, 3_450_000), 9_870_000, 10**8
            ),
            ContenderInfo("torch", "baseline", None, "2.13", "fp32", 3.5, None, None, 10**8),
            ContenderInfo("diffusers", "baseline", f"diffusers is not installed {ATTACK}"),
        )
        own = runs("onnxruntime", "engine", 0.5, rounds, 100, 0), runs("torch", "baseline", 0.8, rounds, 103, 1)
        environment = {
            "began": "2026-01-02T03:04:05+00:00",
            "machine": {"cpu": "a processor & more", "cores": 2, "cpu_flags": {"avx2": True, "amx_int8": False}},
            "versions": {"numpy": "2.4.1", "torch": None},
        }
        facts = {"target": "cpu", "precision": "fp32", "checkpoint": ATTACK, "disk_bytes": {"transformer": 5_550_000}}
        return Benchmark(asked, facts, environment, contenders, (CaseRuns(Case(48, 32, 5), own),))

    return make


def test_every_figure_stands_in_the_page(benchmark_result: Callable[..., Benchmark], tmp_path: Path) -> None:
    found = benchmark_result()
    page = check_page(write_report(found, tmp_path / "report"))
    assert ATTACK in page.text  # as text
    for case in found.cases:
        for run in case.runs:
            for quantiles in run.quantiles.values():
                for seconds in quantiles.values():
                    assert seconds_text(seconds) in page.text
            assert "4.56 MB" in page.text
            assert "7.89 MB" in page.text
        for ratio in case.ratios():
            at = ratio.judged.interval
            assert at is not None
            assert f"{at.median:.2f}x {at.low:.2f} to {at.high:.2f} {at.coverage:.1%} 6" in page.text
    assert "onnxruntime is 1.5" in page.text  # 1.54x or so of a whole picture
    for text in ("9.87 MB", "3.45 MB", "5.55 MB", "diffusers is not installed", "a processor & more", "avx2", "2.4.1"):
        assert text in page.text
    assert found.settings.command() in page.text
    assert "difference from torch: largest 3" in page.text
    assert len(page.named("img")) == 4  # two pictures, a difference, the bar of its colours


@pytest.mark.slow
def test_many_cases_do_not_bury_the_page(benchmark_result: Callable[..., Benchmark], tmp_path: Path) -> None:
    """A box for each pair, which names its cases, and one for all the noise."""
    found = benchmark_result()
    case = found.cases[0]
    calm = replace(case, runs=tuple(of_stages(run, "step", "total") for run in case.runs))  # two plots, not five
    noisy = [
        CaseRuns(Case(side, side, 5), tuple(replace(run, waiting=(0.9,) * 6) for run in calm.runs))
        for side in (64, 96, 128)
    ]
    page = check_page(write_report(replace(found, cases=(calm, *noisy)), tmp_path / "report"))
    boxes = [item for item in page.named("div") if "verdict" in (item.get("class") or "").split()]
    assert len(boxes) == 3
    assert re.search(r"onnxruntime is 1\.\d\dx as fast as torch, 48x32, 5 steps A whole picture", page.text)
    assert "Too noisy or too little to tell in 3 of 4 comparisons Which onnxruntime against torch. A whole" in page.text
    assert "Noisy in 6 of 8 runs: nothing there is called the same At worst it waited for a core for 90%" in page.text
    both = check_page(write_report(replace(found, cases=(calm, replace(calm, case=Case(96, 96, 5)))), tmp_path / "two"))
    assert re.search(r"onnxruntime is faster than torch in 2 of 2 cases \(1\.\d\dx to 1\.\d\dx\)", both.text)


def test_a_result_read_back_has_no_pictures(benchmark_result: Callable[..., Benchmark], tmp_path: Path) -> None:
    found = Benchmark.from_json(benchmark_result(rounds=2).to_json())
    page = check_page(write_report(found, tmp_path / "report"))
    assert page.named("img") == []
    assert "2 pairs, a ratio needs 5" in page.text


@pytest.mark.process
@pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH")
def test_in_a_browser(benchmark_result: Callable[..., Benchmark], tmp_path: Path) -> None:
    long = benchmark_result(bundle="a-folder-with-a-name-that-does-not-fit-a-phone-" * 3)
    check_in_browser(write_report(long, tmp_path / "report"), tmp_path)


def test_an_earlier_report_is_replaced_and_nothing_else(
    benchmark_result: Callable[..., Benchmark], tmp_path: Path
) -> None:
    folder = tmp_path / "report"
    folder.mkdir()
    write_report(benchmark_result(bundle="first"), folder)
    write_report(benchmark_result(bundle="second"), folder)
    assert [path.name for path in folder.iterdir()] == ["index.html"]
    assert "second" in check_page(folder / "index.html").text
    (folder / "thesis.txt").touch()
    with pytest.raises(QwenImageError, match=r"other things in it \(thesis.txt\)"):
        check_report(folder)
    other = tmp_path / "other"
    other.mkdir()
    (other / "index.html").write_text("<p>mine")
    with pytest.raises(QwenImageError, match=r"other things in it \(index.html\)"):
        check_report(other)
    with pytest.raises(QwenImageError, match="is a file"):
        check_report(other / "index.html")
    with pytest.raises(QwenImageError, match="no folder"):
        check_report(tmp_path / "gone" / "report")


def test_an_interruption_leaves_nothing(
    benchmark_result: Callable[..., Benchmark], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    found = benchmark_result()
    kept = write_report(found, tmp_path / "kept").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)  # of a file
        patch.setattr(Path, "rename", interrupted)  # of a folder
        for folder in (tmp_path / "new", tmp_path / "kept"):
            with pytest.raises(KeyboardInterrupt):
                write_report(replace(found), folder)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["index.html"]
    assert (tmp_path / "kept" / "index.html").read_bytes() == kept


@pytest.mark.parametrize("verb", ["bench", "verify"])
def test_refused_before_the_work(
    verb: str, tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    assert "is a file" in fails(1, verb, tmp_path / "bundle", "--report", tmp_path / "file")
    assert "no folder" in fails(1, verb, tmp_path / "bundle", "--report", tmp_path / "gone" / "report")
    if Path("/proc/self").is_dir():  # where nobody can write, root included
        message = fails(1, verb, tmp_path / "bundle", "--report", "/proc/report")
        assert message.startswith("cannot write /proc/report: ")
        assert message.endswith("; choose a folder that can be written to")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    message = fails(1, verb, tmp_path / "bundle", "--report", tmp_path / "report")
    assert message.endswith(f"install it with: {report_folder.INSTALL}")
    assert "qwen-image-engine[report]" in message
    # Without a report nobody asks for it.
    assert "does not exist" in fails(1, verb, tmp_path / "bundle")


@pytest.mark.process
def test_the_command(benchmarked: Path) -> None:
    """Pictures of one seed from processes of their own."""
    page = check_page(benchmarked / "written" / "report" / "index.html")
    assert "onnxruntime (engine)" in page.text
    assert "difference from openvino: largest" in page.text
    assert [path.name for path in (benchmarked / "written").iterdir()] == ["report"]


def test_differences_as_the_eye_sees_them() -> None:
    first = np.zeros((2, 2, 4), np.uint8)
    first[..., 3] = 255
    second = first.copy()
    second[0, 0] = (0, 9, 5, 255)
    found = picture_difference(png_bytes(second), png_bytes(first))
    assert found is not None
    assert found.values.tolist() == [[9, 0], [0, 0]]
    assert found.largest == 9
    assert found.mean == pytest.approx((9 + 5) / 12)
    assert scale_end([found]) == 9
    assert scale_end([]) == LEAST_END
    with Image.open(io.BytesIO(difference_map(found, 9))) as image:
        colours = np.asarray(image.convert("RGB"))
    assert colours[0, 0].sum() > 600  # the brightest of the scale
    assert colours[1, 1].sum() < 10
    clear = first.copy()
    clear[1, 1] = (0, 0, 0, 0)  # black on black, white on white
    seen = picture_difference(png_bytes(clear), png_bytes(first))
    assert seen is not None
    assert seen.largest == 255
    assert picture_difference(png_bytes(first[:1]), png_bytes(first)) is None


def test_text_is_escaped_where_it_goes_in() -> None:
    built = tag("p", "<b>", ["&", tag("i", '"')], title='"><script>')
    assert built.markup == '<p title="&quot;&gt;&lt;script&gt;">&lt;b&gt;&amp;<i>"</i></p>'
