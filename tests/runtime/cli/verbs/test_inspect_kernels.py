"""`inspect --kernels`: the document, the tables, the page, and one sentence for everything that cannot be counted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_image_engine.engines.plans.cards import CARDS
from qwen_image_engine.runtime.bundle.accounts import MAX_ACCOUNT_BYTES
from qwen_image_engine.runtime.bundle.files import describe_file
from qwen_image_engine.runtime.bundle.manifest import read_manifest, write_manifest
from qwen_image_engine.runtime.cli.main import main
from qwen_image_engine.runtime.tools.kernels.result import NOT_TIMED
from tests.support.chromium import BROWSER
from tests.support.kernel_accounts import BLOCKS, SIZES, shapes_account
from tests.support.kernel_bundle import ACCOUNT, add_plan, change_plans, first_plan, renamed, write_kernel_bundle
from tests.support.report_page import check_in_browser, check_page


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_kernel_bundle(tmp_path / "bundle", shapes_account("bf16", "8.6"))


def with_account(bundle: Path, text: str) -> Path:
    """A bundle whose manifest lists this account."""
    (bundle / ACCOUNT).write_text(text, encoding="utf-8")
    manifest = read_manifest(bundle)
    write_manifest(bundle, replace(manifest, files={**manifest.files, ACCOUNT: describe_file(bundle / ACCOUNT)}))
    return bundle


def keys(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield key, item
            yield from keys(item)
    elif isinstance(value, list):
        for item in value:
            yield from keys(item)


def test_the_document(bundle: Path, document: Callable[..., Any]) -> None:
    found = document("inspect", bundle, "--kernels")
    assert (found["kind"], found["format"], found["schema"]) == ("kernels", "qwen-image-kernels", 1)
    assert (found["gpu"], found["estimate"], found["target"]) == (None, NOT_TIMED, "tensorrt bf16")
    assert [item["profile"] for item in found["profiles"]] == [*SIZES]
    item = found["profiles"][1]
    assert (item["sizes"], item["sizes_of"], item["sizes_known"]) == (
        {"batch": 1, "tokens": 4096, "prefix": 4190},
        "optimum",
        True,
    )
    block, numbers = item["block"], BLOCKS["shapes bf16"]
    total, beside = block["total"], block["beside_products_and_attention"]
    assert (total["kernels"], block["kinds"]["product"]["kernels"]) == (numbers.kernels, numbers.products)
    assert total["bytes_read"] + total["bytes_written"] == numbers.moved
    assert beside["bytes_read"] + beside["bytes_written"] == numbers.beside
    assert (block["least_bytes"], block["times_least"]) == (numbers.least, pytest.approx(2.70, abs=0.01))
    for part in (item["all"], block, item["ends"]):
        for key in ("kernels", "bytes_read", "bytes_written", "bytes_weights", "flops"):
            assert sum(kind[key] for kind in part["kinds"].values()) == part["total"][key]
    assert item["all"]["total"]["kernels"] == 108 == item["ends"]["total"]["kernels"] + 6 * total["kernels"]
    assert {value for key, value in keys(found["profiles"]) if key.startswith("estimate_")} == {None}


def test_estimates_are_called_so(
    bundle: Path, document: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    found = document("inspect", bundle, "--kernels", "--gpu", "RTX 3090")
    assert (found["gpu"]["name"], found["gpu"]["has_plan"]) == ("rtx-3090", True)
    timed = {key for key, value in keys(found["profiles"]) if "second" in key or "bound" in key}
    assert timed == {"estimate_seconds", "estimate_bound"}
    kinds = found["profiles"][1]["block"]["kinds"]
    assert kinds["attention"]["estimate_bound"] == "arithmetic"
    assert kinds["copy"]["estimate_bound"] == "memory"
    copy = kinds["copy"]
    assert copy["estimate_seconds"] == pytest.approx((copy["bytes_read"] + copy["bytes_written"]) / 936e9)
    total = found["profiles"][1]["all"]
    assert total["total"]["estimate_seconds"] == pytest.approx(
        sum(kind["estimate_seconds"] for kind in total["kinds"].values())
    )
    assert main(["inspect", str(bundle), "--kernels", "--gpu", "rtx-3090"]) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [line for line in lines if "kernels" in line and ("kind " in line or "component " in line)]
    assert len(heads) == 1 + 3 * len(SIZES)
    assert all(NOT_TIMED in line for line in heads)


@pytest.mark.slow
def test_another_card_has_no_plan(
    bundle: Path, document: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert document("inspect", bundle, "--kernels", "--gpu", "rtx-5090")["gpu"]["has_plan"] is False
    assert main(["inspect", str(bundle), "--kernels", "--gpu", "rtx-5090"]) == 0
    assert "✗ step: no plan is for 12.0, so kernels are those of other cards" in capsys.readouterr().out.splitlines()
    add_plan(bundle, "12.0")
    found = document("inspect", bundle, "--kernels", "--gpu", "rtx-5090")
    assert found["gpu"]["has_plan"] is True
    assert {tuple(item["compute_capabilities"]) for item in found["profiles"]} == {("12.0",)}
    assert len(document("inspect", bundle, "--kernels")["profiles"]) == 2 * len(SIZES)


def test_lines_without_a_card(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(bundle), "--kernels"]) == 0
    text = capsys.readouterr().out
    assert NOT_TIMED not in text
    assert "profile 1024x1024 at batch 1, tokens 4096, prefix 4190" in text
    assert "one block, of 6 between the first attention and the last, 5 of them alike:" in text
    assert "2.70 times the least, 34.68 MB" in text


@pytest.mark.parametrize("gpu", [(), ("--gpu", "rtx-3090")])
@pytest.mark.slow
def test_the_page(bundle: Path, tmp_path: Path, gpu: tuple[str, ...]) -> None:
    assert main(["inspect", str(bundle), "--kernels", *gpu, "--report", str(tmp_path / "page")]) == 0
    page = check_page(tmp_path / "page" / "index.html")
    assert "step, 1024x1024 (8.6)" in page.text
    assert "least that is needed" in page.text
    assert page.text.count(NOT_TIMED) >= (3 * len(SIZES) if gpu else 0)
    assert bool(gpu) == (NOT_TIMED in page.text)


@pytest.mark.process
@pytest.mark.skipif(BROWSER is None, reason="needs a Chromium")
def test_the_page_in_a_browser(bundle: Path, tmp_path: Path) -> None:
    assert main(["inspect", str(bundle), "--kernels", "--gpu", "rtx-3090", "--report", str(tmp_path / "page")]) == 0
    check_in_browser(tmp_path / "page" / "index.html", tmp_path)


def test_flags_that_do_not_belong(bundle: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    assert "--kernels" in fails(2, "inspect", bundle, "--check", "--kernels")
    assert "add --kernels" in fails(2, "inspect", bundle, "--gpu", "rtx-5090")
    assert "add --kernels" in fails(2, "inspect", bundle, "--report", tmp_path / "page")
    assert "is no bundle" in fails(2, "inspect", tmp_path, "--kernels")
    message = fails(2, "inspect", bundle, "--kernels", "--gpu", "rtx-5091")
    assert "rtx-5090" in message
    assert all(name in message for name in CARDS)
    assert "--compute-capability" not in message


def test_what_cannot_be_counted(bundle: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    build = f"qwen-image build {bundle} --engine tensorrt-rtx"
    plan = first_plan(bundle)
    change_plans(bundle, replace(plan, layers=None))
    assert fails(1, "inspect", bundle, "--kernels").endswith(build)
    change_plans(bundle, replace(plan, profiles=renamed(plan.profiles)))
    assert "expected other 512x512" in fails(1, "inspect", bundle, "--kernels")
    change_plans(bundle)
    message = fails(1, "inspect", bundle, "--kernels")
    assert "has no engine files" in message
    assert message.endswith(build)
    write_manifest(bundle, replace(read_manifest(bundle), target="cpu", precision="fp32"))
    assert "--target tensorrt" in fails(2, "inspect", bundle, "--kernels")
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "[" * 100_000,
        json.dumps({"Profiles": 3, "Attentions": [], "Products": [], "FromCodes": [], "Layers": []}),
        json.dumps(
            {
                "Profiles": [*SIZES],
                "Attentions": [],
                "Products": [],
                "FromCodes": [],
                "Layers": [{"Name": "a", "LayerType": "kgen", "Inputs": [{"Name": "x", "Dimensions": [[]]}]}],
            }
        ),
    ],
)
def test_accounts_of_another_form(bundle: Path, fails: Callable[..., str], tmp_path: Path, text: str) -> None:
    with_account(bundle, text)
    message = fails(1, "inspect", bundle, "--kernels", "--report", tmp_path / "page")
    assert ACCOUNT in message
    assert "another form" in message
    assert not (tmp_path / "page").exists()


def test_an_account_that_is_changed_missing_or_huge(bundle: Path, fails: Callable[..., str]) -> None:
    (bundle / ACCOUNT).write_text("{}", encoding="utf-8")
    assert ACCOUNT in fails(1, "inspect", bundle, "--kernels")
    with_account(bundle, "{}")
    os.truncate(bundle / ACCOUNT, MAX_ACCOUNT_BYTES + 1)
    manifest = read_manifest(bundle)
    entry = replace(manifest.files[ACCOUNT], bytes=MAX_ACCOUNT_BYTES + 1)
    write_manifest(bundle, replace(manifest, files={**manifest.files, ACCOUNT: entry}))
    assert "cannot be read" in fails(1, "inspect", bundle, "--kernels")
    (bundle / ACCOUNT).unlink()
    assert ACCOUNT in fails(1, "inspect", bundle, "--kernels")
