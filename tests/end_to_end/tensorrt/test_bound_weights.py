"""Plans whose weights are inputs: one copy on the device, and each bad input refused in a sentence."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from qwen_image_engine.engines.core.device_array import DeviceArray
from qwen_image_engine.engines.core.errors import OutOfDeviceMemory, QwenImageError
from qwen_image_engine.engines.cuda.memory import CudaMemory
from qwen_image_engine.engines.plans.bound_weight import BoundWeight
from qwen_image_engine.runtime.bundle.bundle import Bundle
from qwen_image_engine.runtime.bundle.files import describe_file
from tests.support.fake_cuda import FakeDriver
from tests.support.fake_tensorrt_runtime import Context, plan_bytes
from tests.support.numpy_engines import same_pictures
from tests.support.played_tensorrt import REFERENCES, SIZE, MakeBundle, expected, pipeline, step_inputs
from tests.support.toy_bound import BLOCKS, STEP_ALONE, plan_weights

TRANSFORMER = ("prefix", "prefix_image", "step", "joint")
PLACE = 512  # of a toy weight
STEP_WEIGHTS, PREFIX_WEIGHTS = 3 * PLACE, 2 * PLACE
BOTH = pytest.mark.parametrize("product", ["tensorrt", "tensorrt-rtx"], indirect=True)


def used(driver: FakeDriver) -> int:
    return driver.total_bytes - driver.free_bytes


def uploads(driver: FakeDriver) -> int:
    return driver.calls["cuMemcpyHtoDAsync_v2"]


@BOTH
@pytest.mark.parametrize("memory", ["resident", "sequential"])
def test_pictures_are_those_of_the_networks(
    make_bundle: MakeBundle, checkpoint: Path, driver: FakeDriver, product: str, memory: Any
) -> None:
    arguments: dict[str, Any] = {**REFERENCES, "guidance": 2.5, "negative_prompt": "grey"}
    with pipeline(make_bundle("bound"), checkpoint, memory, product) as drawn:
        first, again = (drawn.generate("a", **SIZE, **arguments) for _ in range(2))
    assert same_pictures(first, expected(checkpoint, **arguments))
    assert same_pictures(first, again)
    del drawn
    assert driver.free_bytes == driver.total_bytes


@BOTH
def test_the_transformers_engines_share_one_copy(make_bundle: MakeBundle, driver: FakeDriver, product: str) -> None:
    bundle = make_bundle("bound")
    seen, engines = [], []
    for component in TRANSFORMER:
        engines.append(bundle.load_engine(component, product))
        seen.append((uploads(driver), used(driver)))
    assert seen == [(3, PREFIX_WEIGHTS), (3, PREFIX_WEIGHTS), (4, STEP_WEIGHTS), (4, STEP_WEIGHTS)]
    freed = []
    for engine in engines:
        engine.close()
        freed.append(used(driver))
    assert freed == [STEP_WEIGHTS, STEP_WEIGHTS, STEP_WEIGHTS, 0]


def test_what_another_engine_holds_stays_and_the_rest_is_freed(make_bundle: MakeBundle, driver: FakeDriver) -> None:
    bundle = make_bundle("bound")
    prefix, step = (bundle.load_engine(component, "tensorrt") for component in ("prefix", "step"))
    step.close()
    assert used(driver) == PREFIX_WEIGHTS
    step = bundle.load_engine("step", "tensorrt")
    assert (uploads(driver), used(driver)) == (5, STEP_WEIGHTS)
    prefix.close()
    step.close()
    step.close()
    assert used(driver) == 0


def test_sequential_frees_and_uploads_again_and_hashes_once(
    make_bundle: MakeBundle, checkpoint: Path, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qwen_image_engine.engines.cuda import file_upload

    hashed, add = [], file_upload._hash
    monkeypatch.setattr(
        file_upload, "_hash", lambda digest, rows, before: (hashed.append(1), add(digest, rows, before))
    )
    bundle = make_bundle("bound")
    sent = []
    for _ in range(2):
        before = uploads(driver)
        for component in ("text_encoder", "prefix", "step"):
            bundle.load_engine(component, "tensorrt").close()
            assert used(driver) == 0
        sent.append(uploads(driver) - before)
    assert sent == [1 + 3 + 4] * 2
    assert len(hashed) == 1 + 4  # the blocks' weights once, for prefix


def test_a_step_costs_no_more_calls_than_with_weights_inside(
    make_bundle: MakeBundle, checkpoint: Path, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    set_address = Context.set_tensor_address
    monkeypatch.setattr(
        Context, "set_tensor_address", lambda self, name, at: (names.append(name), set_address(self, name, at))[1]
    )
    with pipeline(make_bundle("bound"), checkpoint) as drawn:
        steps = [(uploads(driver), names.count(STEP_ALONE)) for _ in drawn.sample(drawn.encode("a"), **SIZE)]
    assert [after[0] - before[0] for before, after in pairwise(steps[1:])] == [1] * 3
    assert {count for _, count in steps} == {1}


def test_another_array_is_bound_by_name(make_bundle: MakeBundle, driver: FakeDriver) -> None:
    bundle = make_bundle("bound")
    engine: Any = bundle.load_engine("step", "tensorrt")
    prefix = bundle.load_engine("prefix", "tensorrt")
    inputs = step_inputs(engine.contract)
    plain = [engine.run(inputs)["velocity"] for _ in range(3)]
    shape = (5, 7)
    other = DeviceArray(CudaMemory(engine._session.context, 70), shape, "bfloat16")
    engine.bind(BLOCKS[0], other)
    changed = [engine.run(inputs)["velocity"] for _ in range(3)]
    assert all((found == plain[0] + 1).all() for found in changed)  # graphs too
    with pytest.raises(
        QwenImageError, match=r"step: bfloat16 \(5, 7\) cannot be bound to blocks.1.mlp.weight, expected"
    ):
        engine.bind(BLOCKS[1], other)
    with pytest.raises(QwenImageError, match="to another, expected a weight that the plan takes as an input"):
        engine.bind("another", other)
    assert used(driver) > STEP_WEIGHTS  # prefix has the file's
    engine.close()
    with pytest.raises(QwenImageError, match="closed"):
        engine.bind(BLOCKS[0], other)
    prefix.close()


def rewritten(bundle: Bundle, change: Callable[[bytearray], None]) -> Path:
    path = bundle.folder / "transformer.safetensors"
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    return path


def flip_last(data: bytearray) -> None:
    data[-1] ^= 1


def test_other_bytes_are_refused_and_nothing_is_kept(make_bundle: MakeBundle, driver: FakeDriver) -> None:
    bundle = make_bundle("bound")
    path = rewritten(bundle, flip_last)
    pieces = [piece for weight in bundle.manifest.plans["step"][0].bound for piece in weight.pieces]
    last = max(pieces, key=lambda piece: piece.offset).name
    files = {**bundle.manifest.files, path.name: describe_file(path)}  # as for large files, whose bytes are not hashed
    bundle = replace(bundle, manifest=replace(bundle.manifest, files=files))
    words = (
        rf"transformer.safetensors: bytes \d+ and on are others than their SHA-256 says, and it should hold the weight "
        rf"{last}; export again with: qwen-image export "
    )
    for _ in range(2):
        with pytest.raises(QwenImageError, match=words) as caught:
            bundle.load_engine("step", "tensorrt")
        assert "\n" not in str(caught.value)
        del caught
        assert used(driver) == 0


def test_a_file_that_changed_between_two_uploads_is_hashed_again(make_bundle: MakeBundle, driver: FakeDriver) -> None:
    bundle = make_bundle("bound")
    bundle.load_engine("step", "tensorrt").close()
    path = bundle.folder / "transformer.safetensors"
    stamp = path.stat().st_mtime_ns
    rewritten(bundle, flip_last)
    os.utime(path, ns=(stamp, stamp + 1))
    files = {**bundle.manifest.files, path.name: describe_file(path)}
    bundle.manifest.__dict__["files"] = files  # the same session
    with pytest.raises(QwenImageError, match="others than their SHA-256 says"):
        bundle.load_engine("step", "tensorrt")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.unlink(), r"step takes the weight \S+ from \S+: missing; export again with: "),
        (lambda path: (path.unlink(), path.mkdir()), r"step takes the weight \S+ from \S+: cannot be read \(Is a dir"),
        (lambda path: (path.unlink(), os.mkfifo(path)), r"step takes the weight \S+ from .*a pipe or a device"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:-1]),
            r"step takes the weight \S+ from \S+: \d+ bytes, expected \d+; export again",
        ),
    ],
    ids=["missing", "folder", "pipe", "short"],
)
def test_a_file_that_is_not_there_is_told_before_anything_is_uploaded(
    make_bundle: MakeBundle, driver: FakeDriver, change: Callable[[Path], object], words: str
) -> None:
    bundle = make_bundle("bound")
    change(bundle.folder / "transformer.safetensors")
    with pytest.raises(QwenImageError, match=words):
        bundle.load_engine("step", "tensorrt")
    assert uploads(driver) == used(driver) == 0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"shape": (7, 2)},
            r"takes blocks.0.attn.to_k.weight, BF16 \(7, 2\), from byte \d+ of \S+, whose header has blocks.0",
        ),
        (
            {"dtype": "float16"},
            r"blocks.0.attn.to_q.weight, F16 \(3, 7\), from byte \d+ .* header has blocks.0.*, BF16 \(3, 7",
        ),
        (
            {"offset": 1 << 40},
            r"from byte 1099511627776 of \S+, whose header has nothing; build it again with: qwen-image",
        ),
        ({"offset": 8}, r"from byte 8 of \S+, whose header has nothing; build it again with: qwen-image"),
        ({"dtype": "int5"}, r"takes blocks.0.attn.to_q.weight as int5 from .* no such weight; build it again with: "),
        (
            {"file": "other"},
            r"takes blocks.0.attn.to_k.weight as bfloat16 from \S+other, and this bundle has no such weight",
        ),
    ],
)
def test_a_list_that_is_not_the_headers_is_refused(
    make_bundle: MakeBundle, driver: FakeDriver, values: dict[str, Any], words: str
) -> None:
    bundle = changed_list(make_bundle("bound"), values)
    with pytest.raises(QwenImageError, match=rf"^step: its engine {words}" if "takes" in words else words):
        bundle.load_engine("step", "tensorrt")
    assert uploads(driver) == 0


def changed_list(bundle: Bundle, values: dict[str, Any] | None, name: str = BLOCKS[0]) -> Bundle:
    """A bundle that lists an input of the step otherwise, by the last of its pieces, or not at all."""
    (plan,) = bundle.manifest.plans["step"]
    bound = [
        changed(weight, values or {}) if weight.name == name else weight
        for weight in plan.bound
        if values is not None or weight.name != name
    ]
    plans = {**bundle.manifest.plans, "step": (replace(plan, bound=tuple(bound)),)}
    return replace(bundle, manifest=replace(bundle.manifest, plans=plans))


def changed(weight: BoundWeight, values: dict[str, Any]) -> BoundWeight:
    if values.keys() <= {"name", "dtype"}:
        return replace(weight, **values)
    return replace(weight, pieces=(*weight.pieces[:-1], replace(weight.pieces[-1], **values)))


def changed_plan(bundle: Bundle, **values: Any) -> Bundle:
    """A bundle whose step's plan has another first weight than the manifest lists."""
    weights = plan_weights(bundle.folder, bundle.manifest.plans["step"][0].bound)
    path = bundle.folder / "step.plan"
    path.write_bytes(plan_bytes("step", False, [replace(weights[0], **values), *weights[1:]]))
    files = {**bundle.manifest.files, path.name: describe_file(path)}
    return replace(bundle, manifest=replace(bundle.manifest, files=files))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda bundle: changed_plan(bundle, shape=(7, 5)), r"\S+ is bfloat16 \(7, 5\), expected bfloat16 \(5, 7\);"),
        (lambda bundle: changed_plan(bundle, dtype="int8"), r"\S+ is int8 \(5, 7\), expected bfloat16 \(5, 7\);"),
        (lambda bundle: changed_plan(bundle, name="a"), r"a is not known, input \S+ is missing, expected bfloat16"),
        (lambda bundle: changed_list(bundle, None), r"blocks.0.attn.to_q.weight\+\S+ is not known;"),
        (lambda bundle: changed_list(bundle, {"name": "latents"}), r"\S+ is not known, input latents is a weight"),
    ],
    ids=["shape", "dtype", "name", "not listed", "listed twice"],
)
def test_a_plan_of_another_bundle_is_refused(
    make_bundle: MakeBundle, driver: FakeDriver, change: Callable[[Bundle], Bundle], words: str
) -> None:
    bundle = change(make_bundle("bound"))
    with pytest.raises(
        QwenImageError, match=rf"^step: \S+step.plan is another bundle's, by .* weights: input {words}"
    ) as caught:
        bundle.load_engine("step", "tensorrt")
    assert "build it again with: qwen-image build" in str(caught.value)
    assert uploads(driver) == 0


def test_too_little_memory_is_told_before_an_upload_and_counts_what_is_there(
    make_bundle: MakeBundle, driver: FakeDriver
) -> None:
    bundle = make_bundle("bound")
    plan = bundle.manifest.files["step.plan"].bytes
    prefix = bundle.load_engine("prefix", "tensorrt")
    driver.total_bytes = used(driver) + PLACE + plan - 1
    with pytest.raises(
        OutOfDeviceMemory,
        match=rf"^step: its weights take {STEP_WEIGHTS} bytes, of which {PREFIX_WEIGHTS} are on the GPU .* its plan "
        rf"{plan} .* free: 1 are missing; run with --memory sequential, .* --precision fp8 or int8$",
    ):
        bundle.load_engine("step", "tensorrt")
    assert uploads(driver) == 3
    driver.total_bytes += 1
    step = bundle.load_engine("step", "tensorrt")
    prefix.close()
    step.close()


def test_bound_weights_are_never_streamed(make_bundle: MakeBundle, checkpoint: Path, driver: FakeDriver) -> None:
    bundle = make_bundle("bound", weight_streaming=True)
    with pipeline(bundle, checkpoint) as drawn:
        assert same_pictures(drawn.generate("a", **SIZE), expected(checkpoint))
        held: Any = drawn._components._held
        assert [held[name]._engine.weight_streaming_budget_v2 for name in ("prefix", "step")] == [1000, 1000]
    assert driver.calls["cuGraphLaunch"] > 0


def test_an_address_that_is_refused_is_told(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_bundle("bound").load_engine("step", "tensorrt")
    monkeypatch.setattr(Context, "set_tensor_address", lambda self, name, at: name != STEP_ALONE)
    with pytest.raises(QwenImageError, match=f"TensorRT takes no address for {STEP_ALONE}"):
        engine.run(step_inputs(engine.contract))
