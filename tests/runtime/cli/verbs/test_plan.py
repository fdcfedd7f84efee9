"""`qwen-image plan --gpu`: the fit into cards, from headers alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common.released_configs import released_configs
from benchmarks.full_size.export_memory import write_checkpoint
from qwen_image_engine.runtime.cli.main import main
from qwen_image_engine.runtime.cli.verbs.plan import TYPICAL_CARDS

TENSORRT = ("--target", "tensorrt")


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the released sizes whose weight files are holes behind their headers."""
    folder = tmp_path_factory.mktemp("released") / "model"
    write_checkpoint(folder, contents=False, values=released_configs())
    return folder


@pytest.mark.slow
def test_the_released_model_on_cards(document: Callable[..., Any], released: Path) -> None:
    found = document("plan", "-m", released, *TENSORRT, "--gpu", "rtx-pro-6000,rtx-5090,RTX 4090,rtx-3060")["gpu"]
    plans = {plan["name"]: plan for plan in found["plans"]}
    assert plans["step"]["bound_bytes"] == plans["prefix"]["bound_bytes"] == 2 * 7_115_124_736
    assert plans["step"]["weight_bytes"] == 0
    alone = sum(plans[name]["bound_bytes"] for name in ("text_encoder", "vision", "step"))
    assert found["bound_bytes"] == alone  # prefix and prefix_image take the step's
    assert plans["step"]["build_memory_bytes"] < 10**9
    for picture in found["pictures"]:
        assert picture["cache_bytes"] == 200 * 2 * 2 * 32 * 4096
        assert picture["ways"]["resident"] > picture["ways"]["in turns"] > picture["ways"]["sequential"]
    cards = {card["name"]: card for card in found["cards"]}
    assert list(cards) == ["rtx-pro-6000", "rtx-5090", "rtx-4090", "rtx-3060"]
    assert set(cards["rtx-pro-6000"]["ways"].values()) == {"resident"}
    assert set(cards["rtx-4090"]["ways"].values()) == {"sequential"}
    assert cards["rtx-3060"]["ways"]["1024x1024"] == "streaming"
    assert cards["rtx-4090"]["largest"]["sequential"] == "2048x2048"
    assert cards["rtx-4090"]["largest"]["resident"] is None
    assert "--memory sequential" in cards["rtx-4090"]["helps"]


@pytest.mark.slow
def test_fp8_attention_halves_keys_and_values(
    document: Callable[..., Any], released: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fp8 = (*TENSORRT, "--precision", "fp8", "--gpu", "rtx-4090")
    plain, coded = (document("plan", "-m", released, *fp8, *flags) for flags in ((), ("--fp8-attention",)))
    assert plain["cache_token_bytes"] == 2 * 32 * 4096 * 2 == 2 * coded["cache_token_bytes"]
    for before, after in zip(plain["gpu"]["pictures"], coded["gpu"]["pictures"], strict=True):
        assert before["cache_bytes"] == 2 * after["cache_bytes"]
    assert main(["plan", "-m", str(released), *fp8, "--fp8-attention"]) == 0
    assert "262.14 kB a token in FP8" in capsys.readouterr().out


def test_reference_images_need_more(document: Callable[..., Any], released: Path) -> None:
    def resident(*flags: object) -> int:
        found = document("plan", "-m", released, *TENSORRT, "--gpu", "rtx-4090", *flags)
        return int(found["gpu"]["pictures"][1]["ways"]["resident"])

    weights = 2 * 576_388_336  # of the vision tower; those of prefix_image are there
    assert weights < resident("--references", "1") - resident() < weights + 2 * 7_115_124_736


def test_lines(released: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "-m", str(released), *TENSORRT, "--gpu", "rtx-4090,rtx-5070"]) == 0
    text = capsys.readouterr().out
    assert "bound weights lie on the card once for all plans that take them, " in text
    lines = [line.split() for line in text.splitlines()]
    assert ["rtx-4090", "24", "GiB", "8.9"] in [line[:4] for line in lines]
    assert ["rtx-5070", "12", "GiB", "12.0"] in [line[:4] for line in lines]


def test_no_cards_no_fit(document: Callable[..., Any], released: Path) -> None:
    assert "gpu" not in document("plan", "-m", released, *TENSORRT)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((*TENSORRT, "--gpu", "rtx-4099"), "unknown card 'rtx-4099'; did you mean rtx-4090"),
        (("--gpu", "rtx-4090"), "--gpu with --target cpu: plans for cards are built from --target tensorrt"),
    ],
)
def test_bad_flags(fails: Callable[..., str], released: Path, flags: tuple[str, ...], words: str) -> None:
    assert words in fails(2, "plan", "-m", released, *flags)


def test_an_engine_decides_target_and_cards(document: Callable[..., Any], released: Path) -> None:
    found = document("plan", "-m", released, "--engine", "tensorrt-rtx")
    assert found["target"] == "tensorrt"
    assert [card["name"] for card in found["gpu"]["cards"]] == list(TYPICAL_CARDS)
    assert document("plan", "-m", released, "--engine", "openvino")["target"] == "cpu"


def test_an_engine_of_another_target_is_told(released: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "-m", str(released), "--engine", "openvino", *TENSORRT]) == 2
    assert "--engine openvino with --target tensorrt: expected tensorrt, tensorrt-rtx" in capsys.readouterr().err
