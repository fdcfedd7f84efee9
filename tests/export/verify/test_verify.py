"""Verify: what it measures, what it catches, what it keeps."""

import json
import math
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from qwen_image_engine.engines.core.contract import CONTRACTS, Contract
from qwen_image_engine.engines.core.engine import Engine
from qwen_image_engine.engines.core.errors import Cancelled, OutOfMemory, QwenImageError
from qwen_image_engine.export.targets import TARGETS, thresholds
from qwen_image_engine.export.thresholds import TEACHER_FORCED, Threshold
from qwen_image_engine.export.verify import parity
from qwen_image_engine.export.verify.difference import difference
from qwen_image_engine.export.verify.parity import verify_bundle
from qwen_image_engine.export.verify.recording import STEPS, Case, Recording, edit_case, record
from qwen_image_engine.export.verify.report.tables import tables
from qwen_image_engine.export.verify.result import Row
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.runtime.bundle import bundle as engines
from qwen_image_engine.runtime.bundle.manifest import read_manifest
from qwen_image_engine.runtime.cli.main import main
from qwen_image_engine.runtime.component_pool import Memory
from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.system.files import file_sha256
from tests.support.differences import planted
from tests.support.edit_manifest import edit_manifest, rehash

QUICK = (Case("quick", "a red circle", 64, 32),)
CASES = ("english", "chinese", "long", "edit")
EDIT = ("edit",)
"""The case that runs every component."""


@pytest.fixture(scope="module")
def record_once() -> Callable[..., list[Recording]]:
    """`record` for the cases that verify has by itself, by which the reference runs each of a checkpoint once."""
    made: dict[tuple[Path, str], Recording] = {}

    def once(checkpoint: Checkpoint, cases: Sequence[Case], memory: Memory = "resident") -> list[Recording]:
        left = [case for case in cases if (checkpoint.folder, case.name) not in made]
        for recording in record(checkpoint, left, memory):
            made[checkpoint.folder, recording.case.name] = recording
        return [made[checkpoint.folder, case.name] for case in cases]

    return once


@pytest.fixture
def default_cases(
    monkeypatch: pytest.MonkeyPatch, record_once: Callable[..., list[Recording]]
) -> Callable[[Sequence[str]], None]:
    """`default_cases(names)`: of the cases that verify has by itself, those of the names are left."""
    monkeypatch.setattr(parity, "record", record_once)
    every = parity.default_cases

    def left(names: Sequence[str]) -> None:
        def named(tokenizer: Tokenizer, *, references: bool = True) -> tuple[Case, ...]:
            return tuple(case for case in every(tokenizer, references=references) if case.name in names)

        monkeypatch.setattr(parity, "default_cases", named)

    return left


@pytest.fixture
def copied(exported: Callable[..., Path], tmp_path: Path) -> Path:
    return shutil.copytree(exported(), tmp_path / "bundle")


def test_differences_of_known_arrays() -> None:
    expected = np.array([3.0, 4.0], np.float32)
    found = difference(np.array([3.0, 4.5], np.float32), expected)
    assert found.relative_l2 == pytest.approx(0.1)
    assert found.values["max_abs"] == pytest.approx(0.5)
    assert found.cosine == pytest.approx(27 / (5 * math.hypot(3, 4.5)))
    assert difference(expected, expected).relative_l2 == 0
    assert difference(np.zeros(2), np.zeros(2)).cosine == 1
    assert difference(-expected, expected).cosine == pytest.approx(-1)
    assert difference(np.array([np.nan, 1.0]), expected).relative_l2 == math.inf
    assert difference(expected, np.zeros(2)).relative_l2 == math.inf


def test_every_row_has_a_threshold_with_a_reason() -> None:
    for rows in (target.thresholds for target in TARGETS.values()):
        assert set(rows) == {*CONTRACTS, TEACHER_FORCED}
        assert all(row.reason for row in rows.values())


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("options", [{}, {"name": "odd", "turbo": True, "dtype": "bfloat16"}])
def test_exported_bundle_passes(
    exported: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    engine: str,
    options: dict[str, str],
    default_cases: Callable[[Sequence[str]], None],
) -> None:
    cases = EDIT if options and engine == "openvino" else CASES  # OpenVINO compiles each graph at each shape
    default_cases(cases)
    folder = shutil.copytree(exported(**options), tmp_path / "bundle")
    assert main(["verify", str(folder), "--engine", engine, "--output", str(tmp_path / "verify.json")]) == 0
    lines = capsys.readouterr().out
    assert "✗" not in lines
    # Six components and teacher forcing in every case, what reads reference images in the one that has some.
    assert lines.count("✓") == 1 + len(cases) * 7 + 2
    document = json.loads((tmp_path / "verify.json").read_text())
    assert document["passed"] is True
    assert document["engine"] == engine
    rows = {row["component"]: row for row in document["components"]}
    assert set(rows) == set(TARGETS["cpu", "fp32"].thresholds) - {"joint"}
    for name, row in rows.items():
        assert row["relative_l2"] <= row["threshold"] == TARGETS["cpu", "fp32"].thresholds[name].relative_l2
        own = ("edit",) if name in ("vision", "prefix_image") else cases
        assert tuple(case["case"] for case in row["cases"]) == own
    steps = 8 if options else STEPS
    assert len(rows[TEACHER_FORCED]["cases"][0]["relative_l2_by_step"]) == steps
    assert read_manifest(folder).verify == document


def test_each_engine_is_loaded_once(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, loaded = engines.load_engine, []

    def counted(backend: str, model: Path, contract: Contract, threads: int | None = None) -> Engine:
        loaded.append(contract.component)
        return load(backend, model, contract, threads)

    monkeypatch.setattr(engines, "load_engine", counted)
    cases = (*QUICK, Case("other", "a blue square", 32, 64), replace(edit_case(), width=64, height=64))
    result = verify_bundle(copied, cases=cases)
    assert result.passed
    components = [*read_manifest(copied).components]
    assert sorted(loaded) == sorted(components)
    assert [*dict.fromkeys(row.component for row in result.rows)] == [*components, TEACHER_FORCED]
    assert [row.case for row in result.rows if row.component == "step"] == ["quick", "other", "edit"]


def test_cases_are_encoded_one_by_one_where_memory_is_short(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []

    def check(tokens: Collection[object], *others: object) -> None:
        encoded.append(len(tokens))
        if len(tokens) > 1:
            raise OutOfMemory("keys and values of all cases do not fit")

    monkeypatch.setattr("qwen_image_engine.runtime.conditioning.check_memory", check)
    assert verify_bundle(copied, cases=(*QUICK, Case("other", "a blue square", 32, 64))).passed
    assert encoded[-3:] == [2, 1, 1]


def test_what_is_cancelled_loads_nothing_more(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cancel(*arguments: object) -> None:
        raise Cancelled("the caller cancelled")

    def load(*arguments: object, **named: object) -> Engine:
        raise AssertionError("an engine is loaded")

    monkeypatch.setattr(QwenImage, "encode_each", cancel)
    monkeypatch.setattr(engines, "load_engine", load)
    with pytest.raises(Cancelled):
        verify_bundle(copied, cases=QUICK)


def test_a_bundle_that_cannot_be_written_is_verified_all_the_same(copied: Path) -> None:
    before = (copied / "manifest.json").read_bytes()
    (copied / ".manifest.json.partial").mkdir()  # in the way of the write, for root too
    found = verify_bundle(copied, cases=QUICK)
    assert found.passed
    assert found.not_recorded == f"{copied / 'manifest.json'}: cannot be written (Is a directory)"
    assert found.to_json()["not_recorded"] == found.not_recorded
    lines = list(tables([found]))
    assert lines[-2] == f"the result is not recorded in the bundle: {found.not_recorded}"
    assert "every row is within its threshold" in lines[-1]
    assert (copied / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_int8_is_held_to_thresholds_of_its_own(
    int8_bundle: Callable[..., tuple[Path, Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    engine: str,
    default_cases: Callable[[Sequence[str]], None],
) -> None:
    default_cases(EDIT if engine == "openvino" else CASES)
    folder = shutil.copytree(int8_bundle("narrow")[1], tmp_path / "bundle")
    assert main(["verify", str(folder), "--engine", engine, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["precision"] == "int8"
    rows = {row["component"]: row for row in document["components"]}
    for name, row in rows.items():
        threshold = TARGETS["cpu", "int8"].thresholds[name]
        assert row["threshold"] == threshold.relative_l2
        assert row["least_cosine"] == threshold.cosine
        assert row["judged_by"] == threshold.over
    # VAE and vision tower are not quantised, and what is, is not fp32.
    for name in ("vision", "vae_decoder_mid", "vae_decoder_up", "vae_encoder"):
        assert rows[name]["relative_l2"] <= TARGETS["cpu", "fp32"].thresholds[name].relative_l2
    assert rows["step"]["relative_l2"] > TARGETS["cpu", "fp32"].thresholds["step"].relative_l2
    assert all(case["worst_step"]["relative_l2"] >= case["relative_l2"] for case in rows["step"]["cases"])


def test_an_engine_in_bf16_has_thresholds_of_its_own() -> None:
    plain, wider = (thresholds("cpu", "int8", engine) for engine in ("openvino", "openvino-bf16"))
    assert plain == TARGETS["cpu", "int8"].thresholds
    assert wider is not None
    assert wider.keys() == TARGETS["cpu", "int8"].thresholds.keys()
    assert all(wider[row].relative_l2 > TARGETS["cpu", "int8"].thresholds[row].relative_l2 for row in wider)
    assert thresholds("tensorrt", "int4", "tensorrt") is None


def test_means_and_cosines_are_judged_where_a_threshold_says_so() -> None:
    near, far = planted(0.01, 0.9999, 0.1), planted(0.03, 0.9995, 0.2)
    by_worst = Row("step", "case", (near, far), Threshold(0.02, "reason"))
    assert by_worst.judged == far
    assert not by_worst.passed
    by_mean = Row("step", "case", (near, far), Threshold(0.02, "reason", cosine=0.9996, over="mean"))
    assert by_mean.judged.relative_l2 == pytest.approx(0.02)
    assert by_mean.judged.cosine == pytest.approx(0.9997)
    assert by_mean.passed
    assert not Row("step", "case", (near, far), Threshold(0.02, "reason", cosine=0.9998, over="mean")).passed
    assert by_mean.to_json()["worst_step"]["relative_l2"] == 0.03


def test_a_changed_weight_is_seen(
    copied: Path, capsys: pytest.CaptureFixture[str], default_cases: Callable[[Sequence[str]], None]
) -> None:
    default_cases(EDIT)
    _change_bytes(copied / "transformer" / "weights.safetensors")
    rehash(copied, "transformer/weights.safetensors")
    assert main(["verify", str(copied), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["passed"] is False
    failed = {row["component"] for row in document["components"] if not row["passed"]}
    assert failed == {"prefix", "prefix_image", "step", TEACHER_FORCED}
    assert main(["inspect", str(copied)]) == 0
    assert "✗" in capsys.readouterr().out


def test_changed_file_is_refused(copied: Path) -> None:
    _change_bytes(copied / "vae" / "weights.safetensors")
    with pytest.raises(QwenImageError, match=r"1 of \d+ files .*vae/weights.safetensors has changed; export again"):
        verify_bundle(copied, cases=QUICK)


def test_facts_are_those_of_the_checkpoint(copied: Path) -> None:
    """The hash of the facts fits, and no contract and no header shows a base of rotary frequencies."""
    edit_manifest(copied, lambda document: document["facts"].update(encoder_rope_theta=50_000.0))
    with pytest.raises(QwenImageError, match=r"the fact encoder_rope_theta 50000\.0, its checkpoint \d+\.0; export"):
        verify_bundle(copied, cases=QUICK)


def test_graphs_are_checked_before_an_engine_reads_them(copied: Path) -> None:
    path = copied / "vae" / "decoder_up.onnx"
    path.write_bytes(path.read_bytes() + b"\xca\x01\x00")  # an empty function
    edit_manifest(
        copied,
        lambda document: document["files"]["vae/decoder_up.onnx"].update(
            bytes=path.stat().st_size, sha256=file_sha256(path)
        ),
    )
    with pytest.raises(QwenImageError, match=r"vae_decoder_up: .* the field 25"):
        verify_bundle(copied, cases=QUICK)


def test_another_checkpoint_is_refused(copied: Path, random_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    trained_on = shutil.copytree(random_checkpoint(), tmp_path / "trained on")
    _change_bytes(trained_on / "transformer" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(QwenImageError, match=r"was not made from .*weights"):
        verify_bundle(copied, trained_on, cases=QUICK)
    with pytest.raises(QwenImageError, match=r"was not made from .*configuration"):
        verify_bundle(copied, random_checkpoint("odd"), cases=QUICK)


def test_moved_checkpoint_is_named(
    copied: Path, random_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["checkpoint"]["path"] = str(tmp_path / "gone")
    path.write_text(json.dumps(manifest))
    assert main(["verify", str(copied)]) == 1
    assert "with -m" in capsys.readouterr().err
    assert verify_bundle(copied, random_checkpoint(), cases=QUICK).passed


def _change_bytes(path: Path) -> None:
    """Turn the lowest exponent bit of one weight in a thousand: no hash, no shape and no header shows it."""
    data = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    values = np.frombuffer(data, np.uint32, offset=header, count=(len(data) - header) // 4)
    values[::1000] ^= np.uint32(1 << 23)
    path.write_bytes(data)
