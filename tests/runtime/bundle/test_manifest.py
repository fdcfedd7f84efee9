"""The manifest and the files it lists: read back as written, and every damage told in words."""

import json
import os
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from qwen_image_engine.engines.core.contract import Dims, contract
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.plans.entry import PlanEntry
from qwen_image_engine.engines.plans.profile import Range, profile
from qwen_image_engine.runtime.bundle.files import (
    SMALL_FILE_BYTES,
    check_files,
    check_tables,
    describe_file,
    verify_files,
)
from qwen_image_engine.runtime.bundle.manifest import (
    MANIFEST,
    Manifest,
    is_bundle,
    read_manifest,
    record_verification,
    write_manifest,
)
from qwen_image_engine.runtime.bundle.manifest_entries import (
    CheckpointEntry,
    ComponentEntry,
    EmbeddingsEntry,
    Fp8Scales,
    QuantisedLayer,
    Tool,
)
from qwen_image_engine.runtime.model.facts import ModelFacts, VisionFacts
from qwen_image_engine.runtime.system.files import file_sha256
from tests.support.json_values import changed

DIMS = Dims(
    encoder_hidden=12,
    encoder_head_dim=6,
    context=12,
    layers=2,
    heads=2,
    head_dim=6,
    channels=8,
    z=8,
    features=6,
    vision_head_dim=8,
    deepstack=2,
)
FACTS = ModelFacts(
    channels=8,
    axes_dims_rope=(2, 2, 2),
    encoder_heads=3,
    encoder_head_dim=6,
    encoder_rope_theta=5e6,
    encoder_mrope_section=(1, 1, 1),
    deepstack=2,
    decoder_halo=7,
    cache_token_bytes=192,
    bidirectional=False,
    vision=VisionFacts(8, 1e4, 48, (0.5, 0.5, 0.5), (0.5, 0.25, 0.5), 65536, 16777216),
)
HEADER = b'{"w":{"dtype":"U8","shape":[9000000],"data_offsets":[0,9000000]}}'


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of one component: a small graph, a table, and weights too large to be hashed by the quick check."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "transformer").mkdir()
    (folder / "transformer" / "step.onnx").write_bytes(b"\x08graph")
    (folder / "table.safetensors").write_bytes(len(HEADER).to_bytes(8, "little") + HEADER)
    large = len(HEADER).to_bytes(8, "little") + HEADER + bytes(9_000_000)
    assert len(large) > SMALL_FILE_BYTES
    (folder / "transformer" / "weights.safetensors").write_bytes(large)
    names = ("transformer/step.onnx", "transformer/weights.safetensors", "table.safetensors")
    write_manifest(
        folder,
        Manifest(
            tool=Tool("0.1.0", "ab"),
            target="cpu",
            precision="fp32",
            weights="copy",
            checkpoint=CheckpointEntry("small", "/models/small", "other", "cd", "ef"),
            dims=DIMS,
            facts=FACTS,
            embeddings=EmbeddingsEntry("table.safetensors", 8, "bfloat16", (2, 12)),
            components={
                "step": ComponentEntry(
                    "transformer/step.onnx",
                    ("transformer/weights.safetensors",),
                    "fp32",
                    ("proj_out",),
                    {"transformer_blocks.0.attn.to_q": QuantisedLayer("int8", 8, smoothing=0.8, input_scale=0.01)},
                    23,
                    11,
                    contract("step", DIMS),
                    fused_attentions=("Attention_48",),
                )
            },
            files={name: describe_file(folder / name) for name in names},
            origins={"transformer": "01"},
        ),
    )
    return folder


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    """A copy of `whole`."""
    return shutil.copytree(whole, tmp_path, dirs_exist_ok=True)


PLAN = PlanEntry(
    file="plans/step.plan",
    key="aa",
    builder="tensorrt",
    version="11.4.0.106",
    compute_capabilities=("9.0",),
    gpu="NVIDIA H100 80GB HBM3",
    driver=13000,
    profiles=tuple(
        profile(
            contract("step", DIMS),
            f"{side}x{side}",
            {"batch": Range(1, 1, 2), "tokens": Range.of((side // 16) ** 2), "prefix": Range(1, 64, 512)},
        )
        for side in (512, 1024)
    ),
    stripped=True,
    scratch_bytes=(1000, 4000),
    fused_attentions=32,
    fp8_products=224,
)


def build(bundle: Path) -> None:
    """Give the bundle an engine of its step."""
    (bundle / "plans").mkdir()
    (bundle / PLAN.file).write_bytes(b"plan")
    manifest = read_manifest(bundle)
    files = {**manifest.files, PLAN.file: describe_file(bundle / PLAN.file)}
    write_manifest(bundle, replace(manifest, files=files, plans={"step": (PLAN,)}))


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((bundle / MANIFEST).read_text())
    change(document)
    (bundle / MANIFEST).write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("precisions", "attention", "expected"),
    [
        ((), False, None),
        (("bf16",), False, 8.0),
        (("int8",), False, 8.0),
        (("fp8",), False, 8.9),
        ((), True, 8.9),
        (("int8", "fp8"), False, 10.0),
    ],
)
def test_gpu_that_an_engine_needs(
    bundle: Path, precisions: tuple[str, ...], attention: bool, expected: float | None
) -> None:
    entry = replace(
        read_manifest(bundle).components["step"],
        quantised_layers={f"linear.{precision}": QuantisedLayer(precision) for precision in precisions},
        fp8_attention={"transformer_blocks.0": Fp8Scales(1, 1, 1, 1)} if attention else {},
    )
    assert entry.least_compute_capability == expected


def test_reads_back_what_was_written(bundle: Path, tmp_path: Path) -> None:
    manifest = read_manifest(bundle)
    assert manifest.components["step"].contract == contract("step", DIMS)
    other = tmp_path / "other"
    other.mkdir()
    write_manifest(other, manifest)
    assert read_manifest(other) == manifest
    assert [path.name for path in other.iterdir()] == [MANIFEST]


def with_cache(document: dict[str, Any], component: str, dtype: str, codes: tuple[str, ...] = ()) -> None:
    """Give a component of `document` keys and values in `dtype`, those of `codes` in FP8."""
    use(document, component)
    entry = contract(component, DIMS, dtype, codes).to_json()
    document["components"][component]["contract"] = json.loads(json.dumps(entry))


def test_keys_and_values_may_be_in_fp8(bundle: Path) -> None:
    in_floats = read_manifest(bundle)
    assert in_floats.cache_token_bytes == in_floats.facts.cache_token_bytes
    unsigned(bundle, lambda document: with_cache(document, "step", "bfloat16", ("key_0", "value_0")))
    found = read_manifest(bundle)
    assert found.cache_token_bytes == in_floats.cache_token_bytes * (2 + 1) // (2 * 4)
    assert replace(found.components["step"], quantised_layers={}).least_compute_capability == 8.9


@pytest.mark.parametrize(
    ("dtype", "codes", "words"),
    [
        ("bfloat16", ("key_0",), "prefix.contract is another than"),
        ("float32", ("key_0", "value_0"), "in 2 dtypes beside codes"),
        ("float8_e5m2", ("key_0", "value_0"), "in 2 dtypes beside codes"),
    ],
)
def test_passes_whose_keys_and_values_do_not_fit_are_refused(
    bundle: Path, dtype: str, codes: tuple[str, ...], words: str
) -> None:
    def change(document: dict[str, Any]) -> None:
        with_cache(document, "step", "bfloat16", ("key_0", "value_0"))
        with_cache(document, "prefix", dtype, codes)

    unsigned(bundle, change)
    with pytest.raises(QwenImageError, match=words):
        read_manifest(bundle)


def test_a_file_that_two_networks_link_to_counts_once(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    own = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file()) - (bundle / MANIFEST).stat().st_size
    assert manifest.bytes == own
    name, entry = max(manifest.files.items(), key=lambda item: item[1].bytes)
    twice = {**manifest.files, f"again/{name}": entry}
    assert replace(manifest, weights="copy", files=twice).bytes == own + entry.bytes
    assert replace(manifest, weights="link", files=twice).bytes == own


def test_a_verification_is_kept(bundle: Path) -> None:
    before = read_manifest(bundle)
    record_verification(bundle, {"passed": True, "components": [{"rel_l2": 1e-7}]})
    after = read_manifest(bundle)
    assert after.verify == {"passed": True, "components": [{"rel_l2": 1e-7}]}
    assert replace(after, verify=None) == before


def test_built_engines_are_kept(bundle: Path) -> None:
    assert read_manifest(bundle).plans == {}
    build(bundle)
    assert read_manifest(bundle).plans == {"step": (PLAN,)}


def test_plans_of_the_schema_before_are_read(bundle: Path) -> None:
    build(bundle)

    def older(document: Any) -> None:
        (plan,) = document["plans"]["step"]
        del plan["builder"], plan["layers"], plan["bound"]
        plan["tensorrt"] = plan.pop("version")
        (plan["compute_capability"],) = plan.pop("compute_capabilities")
        document.update(schema=6, plans={"step": plan})

    edit(bundle, older)
    assert read_manifest(bundle).plans == {"step": (PLAN,)}


@pytest.mark.parametrize("plans", [[], {"step": None}, {"step": [1]}, {"step": {}}, {"step": {"tensorrt": 1}}, 3])
def test_damaged_plans_of_the_schema_before_are_refused(bundle: Path, plans: object) -> None:
    edit(bundle, lambda document: document.update(schema=6, plans=plans))
    with pytest.raises(QwenImageError, match="plans"):
        read_manifest(bundle)


def test_a_component_has_plans_of_several_builders_and_gpus(bundle: Path) -> None:
    build(bundle)
    rtx = replace(PLAN, builder="tensorrt-rtx", gpu=None, driver=None, compute_capabilities=("8.6", "8.9"))
    others = (replace(rtx, file="plans/b.plan"), replace(rtx, file="plans/c.plan", compute_capabilities=("8.9",)))
    manifest = read_manifest(bundle)
    files = {**manifest.files, **{plan.file: manifest.files[PLAN.file] for plan in others}}
    manifest = replace(manifest, files=files, plans={"step": (PLAN, *others)})
    write_manifest(bundle, manifest)
    assert read_manifest(bundle).plans == manifest.plans
    for plans, words in (
        ((PLAN, *others, replace(others[0], file="plans/d.plan")), "two plans of one builder for the same compute"),
        ((PLAN, replace(others[0], file=PLAN.file)), "has a file twice"),
        ((replace(PLAN, layers="tokenizer.json"),), r"expected \*\.plan and \*\.layers\.json"),
    ):
        listed = {plan.file: files[PLAN.file] for plan in plans} | {"tokenizer.json": files[PLAN.file]}
        write_manifest(bundle, replace(manifest, files={**files, **listed}, plans={"step": plans}))
        with pytest.raises(QwenImageError, match=words):
            read_manifest(bundle)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda plan: plan.update(builder="tensorrt-lean"), r"plans.step\[0\].builder is \"tensorrt-lean\", expected"),
        (lambda plan: plan.update(builder="tensorrt-rtx"), "which is built without a GPU"),
        (lambda plan: plan.update(gpu=None), "which is built on a GPU"),
        (lambda plan: plan.update(compute_capabilities=["sm_90"]), "expected a compute capability"),
        (lambda plan: plan.update(compute_capabilities=[]), "compute_capabilities"),
        (lambda plan: plan.update(layers="plans/step.layers.json"), "layers is .*not listed"),
        (lambda plan: plan.pop("key"), r"plans.step\[0\].key is missing"),
        (lambda plan: plan.update(file="plans/other.plan"), "not listed"),
        (lambda plan: plan.update(profiles=[{"name": "512x512"}]), r"plans.step\[0\].profiles\[0\].shapes is missing"),
        (lambda plan: plan["profiles"][0]["shapes"].update(cos=[[1, 2], [1, 2]]), "not in the expected format"),
        (lambda plan: plan["profiles"][0]["shapes"].update(cos=[[1, 2], [1], [1, 2]]), "least, best and largest"),
        (lambda plan: plan["profiles"][0]["shapes"].update(cos=[[1, 3], [1, 2], [1, 4]]), "least, best and largest"),
    ],
)
def test_unexpected_plans_are_refused_in_words(bundle: Path, change: Callable[[Any], object], words: str) -> None:
    build(bundle)
    edit(bundle, lambda document: change(document["plans"]["step"][0]))
    with pytest.raises(QwenImageError, match=words):
        read_manifest(bundle)


def test_plans_of_no_component_are_refused(bundle: Path) -> None:
    build(bundle)
    edit(bundle, lambda document: document["plans"].update(joint=document["plans"]["step"]))
    with pytest.raises(QwenImageError, match="plans has joint, which is no component"):
        read_manifest(bundle)


def test_folders_without_a_manifest_are_no_bundles(tmp_path: Path) -> None:
    assert not is_bundle(tmp_path)
    with pytest.raises(QwenImageError, match=r"no manifest\.json in it; .* make one with: qwen-image export"):
        read_manifest(tmp_path)
    checkpoint = tmp_path / "a checkpoint"
    (checkpoint / "transformer").mkdir(parents=True)
    (checkpoint / "transformer" / "config.json").touch()
    with pytest.raises(QwenImageError, match=r"expected a bundle; make a bundle .* export -m '.*a checkpoint' BUNDLE"):
        read_manifest(checkpoint)
    with pytest.raises(QwenImageError, match="does not exist"):
        read_manifest(tmp_path / "absent")


@pytest.mark.parametrize("text", ["", "{", "[]", '"text"', '{"schema": 1}'])
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    assert not is_bundle(tmp_path)
    with pytest.raises(QwenImageError, match="is not"):
        read_manifest(tmp_path)


def test_another_schema_version_says_what_to_do(bundle: Path) -> None:
    edit(bundle, lambda document: document.update(schema=3, dims=None))
    assert is_bundle(bundle)
    with pytest.raises(QwenImageError, match=r"schema version 3, this version reads 9; export .* from /models/small"):
        read_manifest(bundle)
    edit(bundle, lambda document: document.update(schema=10))
    with pytest.raises(QwenImageError, match=r"schema version 10, this version reads 9; a newer version .* update"):
        read_manifest(bundle)


def test_the_command_that_exports_a_bundle_again(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    again = manifest.export_command("my bundle")
    assert shlex.split(again)[:5] == ["qwen-image", "export", "-m", manifest.checkpoint.path, "my bundle"]
    assert f"--target {manifest.target} --precision {manifest.precision}" in again
    assert "--weights" not in again
    linked = replace(manifest, weights="link", checkpoint=replace(manifest.checkpoint, path="/my models/small"))
    assert "-m '/my models/small' " in linked.export_command(bundle)
    assert "--weights link" in linked.export_command(bundle)
    (bundle / "table.safetensors").unlink()
    with pytest.raises(QwenImageError, match=r"missing; its weights are the checkpoint's own files: see that those"):
        check_files(bundle, linked)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda document: document.pop("dims"), "format: dims is missing"),
        (lambda document: document["dims"].pop("heads"), "heads"),
        (lambda document: document["dims"].update(colour="red"), "colour"),
        (lambda document: document.update(components=[]), "components"),
        (lambda document: document["components"]["step"].update(model="absent.onnx"), "not listed"),
        (lambda document: document["components"]["step"].update(opset=None), "not in the expected format"),
        (lambda document: document["components"]["step"]["contract"].pop("inputs"), "export the bundle again"),
        (lambda document: document["files"].update({"../outside": {}}), "leaves the bundle"),
        (lambda document: document["files"].update({"/etc/passwd": {}}), "leaves the bundle"),
        (lambda document: document["files"].update({"..\\outside": {}}), "leaves the bundle"),
        (lambda document: document["files"].update({"C:outside": {}}), "leaves the bundle"),
        (lambda document: document["embeddings"].update(shape=[3]), "not in the expected format"),
        (lambda document: document["facts"].update(channels=float("inf")), "facts.channels is inf"),
        (lambda document: document["facts"]["vision"].update(image_mean=[10**400]), "facts.vision.image_mean"),
        (lambda document: document.update(loras=[{"name": 1}]), r"loras\[0\].path is missing"),
        (
            lambda document: document["checkpoint"].update(path={}),
            "checkpoint.path is an empty object",
        ),
    ],
)
def test_unexpected_manifests_are_refused_in_words(
    bundle: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    edit(bundle, change)
    with pytest.raises(QwenImageError, match=words):
        read_manifest(bundle)


@pytest.mark.slow
def test_no_value_is_refused_without_words(bundle: Path) -> None:
    build(bundle)
    document = json.loads((bundle / MANIFEST).read_text())
    contract = document["components"]["step"]["contract"]
    contract.update(inputs=contract["inputs"][:1], outputs=contract["outputs"][:1])  # the others are like these
    for change, other in changed(document, every=5):
        (bundle / MANIFEST).write_text(json.dumps(other))
        try:
            read_manifest(bundle)
        except QwenImageError:
            continue
        except Exception as error:
            pytest.fail(f"{change}: {error!r}")


def test_an_interrupted_write_keeps_the_old_manifest(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (bundle / MANIFEST).read_bytes()

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        record_verification(bundle, {"passed": False})
    assert (bundle / MANIFEST).read_bytes() == before
    assert not list(bundle.glob("*.partial"))
    assert not list(bundle.glob(".*.partial"))


@pytest.mark.parametrize("name", ["transformer/step.onnx", "transformer/weights.safetensors", "table.safetensors"])
def test_missing_and_shortened_files_are_found(bundle: Path, name: str) -> None:
    manifest = read_manifest(bundle)
    check_files(bundle, manifest)
    assert verify_files(bundle, manifest) == []
    data = (bundle / name).read_bytes()
    (bundle / name).write_bytes(data[:-1])
    with pytest.raises(QwenImageError, match=rf"{name}: {len(data) - 1} bytes, expected {len(data)}; export again"):
        check_files(bundle, manifest)
    assert [fault.path for fault in verify_files(bundle, manifest)] == [name]
    (bundle / name).unlink()
    with pytest.raises(QwenImageError, match=f"{name}: missing"):
        check_files(bundle, manifest)
    assert [fault.found for fault in verify_files(bundle, manifest)] == [None]
    (bundle / name).symlink_to("../blobs/5f")
    with pytest.raises(QwenImageError, match=f"{name}: is a link to ../blobs/5f, which is not there; ") as raised:
        check_files(bundle, manifest)
    assert "export" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "at", "quick"),
    [
        ("transformer/step.onnx", -1, True),
        ("transformer/weights.safetensors", 20, True),
        ("transformer/weights.safetensors", -1, False),
    ],
)
def test_the_quick_check_reads_small_files_and_headers(bundle: Path, name: str, at: int, quick: bool) -> None:
    manifest = read_manifest(bundle)
    data = bytearray((bundle / name).read_bytes())
    data[at] ^= 1
    (bundle / name).write_bytes(data)
    if quick:
        with pytest.raises(QwenImageError, match=f"{name}: another|{name}: other"):
            check_files(bundle, manifest)
    else:
        check_files(bundle, manifest)
    (fault,) = verify_files(bundle, manifest)
    assert fault.path == name
    assert fault.found == file_sha256(bundle / name) != fault.expected


def test_only_the_asked_files_are_checked(bundle: Path) -> None:
    (bundle / "table.safetensors").unlink()
    check_files(bundle, read_manifest(bundle), ["transformer/step.onnx"])


def test_progress_is_the_bytes_of_all_files(bundle: Path) -> None:
    manifest, seen = read_manifest(bundle), []
    verify_files(bundle, manifest, seen.append)
    assert sum(seen) == sum(entry.bytes for entry in manifest.files.values())


def unsigned(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest as the previous release wrote it, without a hash of the facts."""
    edit(bundle, lambda document: (document.pop("facts_sha256"), change(document)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda document: document["facts"].update(channels=-1), r"facts\.channels is -1, expected a whole number"),
        (lambda document: document["facts"].update(channels=4), r"facts\.channels is 4, expected 8 as the sizes"),
        (lambda document: document["facts"].update(axes_dims_rope=[2**63, 2, 2]), "axes_dims_rope is"),
        (lambda document: document["facts"].update(axes_dims_rope=[2, 2, 4]), "axes_dims_rope is 8, expected 6"),
        (lambda document: document["facts"].update(axes_dims_rope=[3, 2, 1]), "axes_dims_rope is"),
        (lambda document: document["facts"].update(encoder_mrope_section=[1, 1]), "expected 3 whole numbers above 0"),
        (lambda document: document["facts"].update(encoder_mrope_section=[1, 1, 2]), "mrope_section is 8, expected 6"),
        (lambda document: document["facts"].update(encoder_rope_theta=0.5), "encoder_rope_theta is 0.5, expected a"),
        (lambda document: document["facts"].update(deepstack=9), "deepstack is 9, expected 2"),
        (lambda document: document["facts"].update(cache_token_bytes=191), "cache_token_bytes is 191, expected 192"),
        (lambda document: document["facts"].update(decoder_halo=-1), "decoder_halo is -1"),
        (lambda document: document["facts"]["vision"].update(head_dim=0), "vision.head_dim is 0"),
        (lambda document: document["facts"]["vision"].update(image_mean=[9, 9, 9]), "image_mean is"),
        (lambda document: document["facts"]["vision"].update(image_std=[0, 1, 1]), "image_std is"),
        (lambda document: document["facts"]["vision"].update(min_pixels=2**30), "expected at most max_pixels"),
        (lambda document: document["dims"].update(layers=10**9), r"dims\.layers is 1000000000"),
        (lambda document: document["dims"].update(layers=3), "cache_token_bytes is 192, expected 288"),
        (lambda document: document["dims"].update(features=7) or use(document, "vae_decoder_up"), "vae_decoder_up"),
        (lambda document: document["embeddings"].update(offset=-1), "embeddings.offset is -1"),
        (lambda document: document["embeddings"].update(offset=2**40), "embeddings end at byte"),
        (lambda document: document["embeddings"].update(shape=[2, 6]), r"embeddings\.shape\[1\] is 6, expected 12"),
        (lambda document: document["embeddings"].update(dtype="int8"), "embeddings.dtype is"),
        (lambda document: document["checkpoint"].update(path="a\0b"), "checkpoint.path is"),
        (lambda document: document["files"].update({"a\0b": {}}), "which no file can have"),
        (lambda document: document["files"].update({"a" * 200_000: {}}), "which no file can have"),
        (lambda document: document.update({"a" * 200_000: 1}), "is no key that this version knows"),
    ],
)
def test_facts_that_contradict_each_other_are_refused(
    bundle: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    unsigned(bundle, change)
    with pytest.raises(QwenImageError, match=words) as raised:
        read_manifest(bundle)
    assert len(str(raised.value)) < 1000


def use(document: dict[str, Any], component: str) -> None:
    """Add a component whose contract is of the sizes in `DIMS`."""
    entry = {**document["components"]["step"], "contract": contract(component, DIMS).to_json()}
    document["components"][component] = json.loads(json.dumps(entry))


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document["facts"].update(encoder_rope_theta=1e6),
        lambda document: document["facts"]["vision"].update(position_side=4),
        lambda document: document["embeddings"].update(offset=10),
        lambda document: document["components"]["step"].update(precision="bf16"),
        lambda document: document["files"]["table.safetensors"].update(sha256="0" * 64),
    ],
)
def test_a_fact_that_was_changed_is_found(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit(bundle, change)
    with pytest.raises(QwenImageError, match=r"its facts have the sha256 .*: a fact was changed"):
        read_manifest(bundle)
    edit(bundle, lambda document: document.pop("facts_sha256"))  # as the previous release wrote it
    read_manifest(bundle)


def test_what_is_added_later_leaves_the_facts_as_they_are(bundle: Path) -> None:
    before = json.loads((bundle / MANIFEST).read_text())["facts_sha256"]
    build(bundle)
    record_verification(bundle, {"passed": True})
    assert json.loads((bundle / MANIFEST).read_text())["facts_sha256"] == before


@pytest.mark.parametrize("name", ["transformer/step.onnx", "transformer/weights.safetensors", MANIFEST])
@pytest.mark.parametrize("kind", ["pipe", "/dev/zero"])
def test_devices_and_pipes_are_refused(bundle: Path, name: str, kind: str) -> None:
    manifest = read_manifest(bundle)
    (bundle / name).unlink()
    if kind == "pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("this system has no pipes in folders")
        os.mkfifo(bundle / name)
    else:
        (bundle / name).symlink_to(kind)
    with pytest.raises(QwenImageError, match=rf"{name}: cannot be read \(it is a pipe or a device"):
        check_files(bundle, manifest) if name != MANIFEST else read_manifest(bundle)


def test_only_weights_may_be_links_out_of_the_bundle(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    manifest, outside = read_manifest(bundle), tmp_path_factory.mktemp("outside")
    for name in ("transformer/weights.safetensors", "transformer/step.onnx"):
        moved = outside / Path(name).name
        (bundle / name).rename(moved)
        (bundle / name).symlink_to(moved)
        if name in manifest.weight_files:
            check_files(bundle, manifest)
            assert verify_files(bundle, manifest) == []
            continue
        for check in (check_files, verify_files):
            with pytest.raises(QwenImageError, match=rf"{name}: is a link out of the bundle"):
                check(bundle, manifest)
        (bundle / name).unlink()
        moved.rename(bundle / name)
    (bundle / "transformer").rename(outside / "transformer")
    (bundle / "transformer").symlink_to(outside / "transformer")
    with pytest.raises(QwenImageError, match=r"transformer: is a link out of the bundle"):
        check_files(bundle, manifest)


def test_a_bundle_in_the_hubs_cache_is_read(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    repository = tmp_path_factory.mktemp("models--org--name")
    (repository / "blobs").mkdir()
    snapshot = repository / "snapshots" / "abc"
    for number, file in enumerate([path for path in bundle.rglob("*") if path.is_file()]):
        blob = file.rename(repository / "blobs" / f"{number:064x}")
        place = snapshot / file.relative_to(bundle)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(os.path.relpath(blob, place.parent))
    check_files(snapshot, read_manifest(snapshot))


def test_the_table_is_where_the_header_says(bundle: Path) -> None:
    save_file({"other": np.zeros((2, 6), np.float32), "table": np.zeros((2, 12), np.float16)}, bundle / "t.safetensors")
    manifest = read_manifest(bundle)
    end = (bundle / "t.safetensors").stat().st_size
    start = end - 48 - 48  # the library sorts by the size of an item: the float32 tensor is first
    check_tables(bundle, replace(manifest, embeddings=EmbeddingsEntry("t.safetensors", end - 48, "float16", (2, 12))))
    for offset, dtype in ((start, "float16"), (end - 50, "float16"), (end - 48, "bfloat16")):
        entry = EmbeddingsEntry("t.safetensors", offset, dtype, (2, 12))
        with pytest.raises(QwenImageError, match="where the manifest has the token embeddings"):
            check_tables(bundle, replace(manifest, embeddings=entry))
