"""Builds of plans that take their weights as inputs, with a builder that is played: lists, keys, sharing, refusals."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.engines.plans.bound_weight import BoundWeight, WeightPiece
from qwen_image_engine.engines.plans.entry import PlanEntry
from qwen_image_engine.runtime.bundle.bound_lists import LISTS, bound_bytes, bound_count, list_digest
from qwen_image_engine.runtime.bundle.files import check_bound_lists, describe_file, verify_files
from qwen_image_engine.runtime.bundle.manifest import MANIFEST, read_manifest, write_manifest
from qwen_image_engine.runtime.cli.main import main
from qwen_image_engine.runtime.tools.build.build import build_bundle
from qwen_image_engine.runtime.tools.build.plans_folder import PLANS
from tests.support.bound_graph import BINDABLE, WEIGHTS, bound_graph, values_of, write_weights
from tests.support.builders import install_builders
from tests.support.played_build import GPU, FakeBuild, build

BOUND = ("prefix", "step")
"""Components whose graphs have weights, the same ones."""


def no_gpu() -> Any:
    raise QwenImageError("no CUDA driver")


def rtx(bundle: Path, run: FakeBuild, *capabilities: str, **changes: Any) -> Any:
    return build(bundle, run, compute_capabilities=capabilities, device=no_gpu, **changes)


def replace_files(bundle: Path, contents: dict[str, bytes]) -> None:
    for name, data in contents.items():
        (bundle / name).write_bytes(data)
    manifest = read_manifest(bundle)
    written = {name: describe_file(bundle / name) for name in contents}
    write_manifest(bundle, replace(manifest, files={**manifest.files, **written}))


@pytest.fixture
def bound(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundle with weights in two of its graphs, and TensorRT for RTX installed."""
    install_builders(monkeypatch, tensorrt_rtx="1.7.1.116")
    write_weights(bundle / "weights.safetensors")
    graphs = {f"{name}.onnx": bound_graph(name, bundle / "weights.safetensors") for name in BOUND}
    replace_files(bundle, {"weights.safetensors": (bundle / "weights.safetensors").read_bytes(), **graphs})
    return bundle


def in_pieces(weights: tuple[BoundWeight, ...]) -> tuple[BoundWeight, ...]:
    """The weights as plans of before had them, each an input of its own."""
    return tuple(BoundWeight.of(weight.dtype, [piece]) for weight in weights for piece in weight.pieces)


def step_of(bundle: Path) -> PlanEntry:
    return read_manifest(bundle).plans["step"][0]


def edit(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    change(document)
    (bundle / MANIFEST).write_text(json.dumps(document), encoding="utf-8")


def test_bound_is_the_default_of_tensorrt_for_rtx(bound: Path) -> None:
    run = FakeBuild()
    rtx(bound, run)
    manifest = read_manifest(bound)
    places = {job.component: job.options.weights for job in run.jobs}
    assert {name for name, place in places.items() if place == "bound"} == set(BOUND)
    assert {name for name, (plan,) in manifest.plans.items() if plan.bound} == set(BOUND)
    data = (bound / "weights.safetensors").read_bytes()
    found = step_of(bound).bound
    assert tuple(weight.name for weight in found) == BINDABLE
    for weight in found:
        values = values_of(weight.name)
        assert (weight.dtype, weight.shape) == (values.dtype.name, values.shape)
        assert b"".join(data[item.offset :][: weight.nbytes(item)] for item in weight.pieces) == values.tobytes()
        for piece in weight.pieces:
            assert (piece.shape, piece.file) == (WEIGHTS[piece.name].shape, "weights.safetensors")
            assert piece.sha256 == hashlib.sha256(WEIGHTS[piece.name].tobytes()).hexdigest()
    assert bound_bytes(found) == sum(values_of(name).nbytes for name in BINDABLE)
    assert bound_count(found) == len(BINDABLE) + 1
    check_bound_lists(bound, manifest)
    assert verify_files(bound, manifest) == []


def test_the_manifest_has_a_list_once(bound: Path) -> None:
    rtx(bound, FakeBuild(), "8.9")
    rtx(bound, FakeBuild(), "12.0")
    document = json.loads((bound / MANIFEST).read_text(encoding="utf-8"))
    (digest,) = document[LISTS]
    assert [plan["bound"] for plan in document["plans"]["step"]] == [digest] * 2
    assert document["plans"]["prefix"][0]["bound"] == digest  # the same weights
    assert document["plans"]["vision"][0]["bound"] is None
    assert len({plan.bound for name in BOUND for plan in read_manifest(bound).plans[name]}) == 1


def test_the_places_are_two_plans_where_weights_are(bound: Path) -> None:
    rtx(bound, FakeBuild())
    run = FakeBuild()
    rtx(bound, run, weights="inside")
    assert sorted(run.built) == sorted(BOUND)
    assert not step_of(bound).bound
    again = FakeBuild()
    rtx(bound, again)
    assert sorted(again.built) == sorted(BOUND)
    assert step_of(bound).bound


@pytest.mark.parametrize("flags", [{"weight_streaming": True}, {"strip_weights": True}, {}])
def test_the_other_defaults(bound: Path, monkeypatch: pytest.MonkeyPatch, flags: Any) -> None:
    if not flags.get("weight_streaming"):
        install_builders(monkeypatch, tensorrt="11.4.0.106")
    run = FakeBuild()
    build(bound, run, **flags)
    assert {job.options.weights for job in run.jobs} == {"inside"}
    assert not step_of(bound).bound


def test_tensorrt_binds_weights_if_told_so(bound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_builders(monkeypatch, tensorrt="11.4.0.106")
    build(bound, FakeBuild(), weights="bound", only=("step",))
    assert tuple(weight.name for weight in step_of(bound).bound) == BINDABLE
    assert step_of(bound).gpu == GPU.name


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"weights": "bound", "weight_streaming": True}, "--weights bound with --weight-streaming: .*--weights inside"),
        ({"weights": "bound", "strip_weights": True}, "--weights bound with --strip-weights: .*without --strip"),
        ({"strip_weights": True}, "--strip-weights with --engine tensorrt-rtx: .*--weights bound"),
        ({"weights": "inside", "source": Path("other")}, "--from other without --strip-weights or --weights bound"),
    ],
)
def test_options_that_contradict_each_other(bound: Path, flags: Any, words: str) -> None:
    run = FakeBuild()
    with pytest.raises(UsageError, match=words):
        rtx(bound, run, **flags)
    assert run.built == []
    assert not (bound / PLANS).exists()


def test_a_build_without_memory_for_weights_inside_says_how(bound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen_image_engine.runtime.tools.build.build.reachable_memory_bytes", lambda: 400_000_200)
    with pytest.raises(QwenImageError, match=r"prefix: its build takes .* are free, .*; build with --weights bound"):
        rtx(bound, FakeBuild(), only=("prefix",), weights="inside")
    monkeypatch.setattr("qwen_image_engine.runtime.tools.build.build.reachable_memory_bytes", lambda: 100)
    with pytest.raises(QwenImageError, match=r"prefix: its build takes .* are free") as refused:
        rtx(bound, FakeBuild(), only=("prefix",))
    assert "--weights bound" not in str(refused.value)


class TestPlansOfAnotherBundle:
    @pytest.fixture
    def other(self, bound: Path, tmp_path: Path) -> Path:
        """Its manifest and plans alone."""
        whole = shutil.copytree(bound, tmp_path / "whole")
        rtx(whole, FakeBuild())
        (tmp_path / "shared").mkdir()
        shutil.copy(whole / MANIFEST, tmp_path / "shared")
        shutil.copytree(whole / PLANS, tmp_path / "shared" / PLANS)
        return tmp_path / "shared"

    def test_those_without_weights_are_taken(self, bound: Path, other: Path) -> None:
        run = FakeBuild()
        rtx(bound, run, source=other)
        assert not set(run.built).intersection(BOUND)
        assert run.built  # whose plans hold their weights
        assert step_of(bound) == step_of(other)
        manifest = read_manifest(bound)
        check_bound_lists(bound, manifest)
        assert verify_files(bound, manifest) == []

    def test_a_plan_of_other_weights_is_refused(self, bound: Path, other: Path) -> None:
        manifest = read_manifest(other)
        (plan,) = manifest.plans["step"]
        write_manifest(other, replace(manifest, plans={"step": (replace(plan, bound=plan.bound[1:]),)}))
        with pytest.raises(QwenImageError, match=r"bound weights of its plan of step are those of another graph"):
            rtx(bound, FakeBuild(), source=other, only=("step",))
        assert not read_manifest(bound).plans
        assert not [*bound.rglob("*.partial")]


class TestLists:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"offset": 8}, r"bound weights is another bundle's: matrix is float32 \[3, 4\] at byte 8 of"),
            ({"shape": (4, 3)}, r"matrix is float32 \[4, 3\] .*, and float32 \[3, 4\] at byte"),
            ({"dtype": "int32"}, r"matrix is int32"),
            ({"name": "keys"}, r"keys is float32 \[3, 4\] at byte \d+ .*, and float32 \[2, 4\] at byte"),
            ({"file": "tokenizer.json"}, r"of tokenizer.json in the list, and .* of weights.safetensors in step.onnx"),
            ({"name": "stranger"}, r"stranger is .*, and missing in step.onnx; build it again with: qwen-image build"),
        ],
    )
    def test_a_list_of_another_bundle(self, bound: Path, change: Any, words: str) -> None:
        rtx(bound, FakeBuild(), only=("step",))
        manifest = read_manifest(bound)
        (plan,) = manifest.plans["step"]
        files = {**manifest.files, "tokenizer.json": manifest.files["step.onnx"]}
        pieces = [replace(plan.bound[0].pieces[0], **{key: of for key, of in change.items() if key != "dtype"})]
        rest = [weight for weight in plan.bound[1:] if "keys" not in weight.name]
        listed = (BoundWeight.of(change.get("dtype", "float32"), pieces), *rest)
        write_manifest(bound, replace(manifest, files=files, plans={"step": (replace(plan, bound=listed),)}))
        with pytest.raises(QwenImageError, match=words) as refused:
            check_bound_lists(bound, read_manifest(bound))
        assert "\n" not in str(refused.value)
        if "tokenizer.json" not in change.values():  # which is no file of the bundle
            run = FakeBuild()
            write_manifest(bound, replace(read_manifest(bound), files=manifest.files))
            rtx(bound, run, only=("step",))
            assert run.built == ["step"]
            check_bound_lists(bound, read_manifest(bound))

    def test_a_changed_list_is_not_read(self, bound: Path) -> None:
        rtx(bound, FakeBuild(), only=("step",))
        (digest,) = json.loads((bound / MANIFEST).read_text(encoding="utf-8"))[LISTS]
        whole = (bound / MANIFEST).read_bytes()

        def cut(document: Any) -> None:
            document[LISTS][digest].pop()

        def lose(document: Any) -> None:
            document[LISTS] = {}

        def misname(document: Any) -> None:
            document[LISTS][digest][0]["pieces"][0]["file"] = "elsewhere"

        def disorder(document: Any) -> None:
            document[LISTS][digest] = 3

        for change, words in (
            (cut, "is another list than its key"),
            (lose, f'has the bound weights "{digest[:40]}.*, which are not in {LISTS}'),
            (misname, "is another list than its key"),
            (disorder, f"{LISTS}.{digest[:8]}.* is 3, expected a list"),
        ):
            (bound / MANIFEST).write_bytes(whole)
            edit(bound, change)
            with pytest.raises(QwenImageError, match=words):
                read_manifest(bound)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"name": "keys+queries"}, '"keys.queries" of the shape'),
            ({"shape": (20, 1)}, r'"queries.keys" of the shape \[20, 1\], which are not the names and the shapes of'),
            ({"shape": (6, 4)}, r"of the shape \[6, 4\]"),
            ({"pieces": ()}, r"pieces is an empty list, expected a list"),
        ],
    )
    def test_a_list_whose_pieces_are_others_than_its_weights(self, bound: Path, change: Any, words: str) -> None:
        rtx(bound, FakeBuild(), only=("step",))
        manifest = read_manifest(bound)
        (plan,) = manifest.plans["step"]
        listed = (*plan.bound[:-1], replace(plan.bound[-1], **change))
        write_manifest(bound, replace(manifest, plans={"step": (replace(plan, bound=listed),)}))
        with pytest.raises(QwenImageError, match=words):
            read_manifest(bound)

    def test_pieces_of_other_columns_cannot_lie_one_behind_the_other(self, bound: Path) -> None:
        first, other = (WeightPiece(name, shape, "a", 0, "") for name, shape in (("a", (2, 3)), ("b", (2, 4))))
        assert not BoundWeight.of("float32", [first, other]).is_consistent
        assert not BoundWeight.of("float32", [replace(item, shape=()) for item in (first, other)]).is_consistent
        assert BoundWeight.of("float32", [first, replace(other, shape=(5, 3))]).is_consistent

    def test_manifests_with_one_weight_an_input_are_read(self, bound: Path) -> None:
        rtx(bound, FakeBuild())
        manifest = read_manifest(bound)
        apart = {
            name: tuple(replace(plan, bound=in_pieces(plan.bound)) for plan in plans)
            for name, plans in manifest.plans.items()
        }
        write_manifest(bound, replace(manifest, plans=apart))
        before = read_manifest(bound)

        def older(document: Any) -> None:
            document["schema"] = 8
            lists = {
                digest: [{"dtype": item["dtype"], **item["pieces"][0]} for item in of]
                for digest, of in document[LISTS].items()
            }
            names = {digest: list_digest(of) for digest, of in lists.items()}
            document[LISTS] = {names[digest]: of for digest, of in lists.items()}
            for plan in (plan for plans in document["plans"].values() for plan in plans if plan["bound"]):
                plan["bound"] = names[plan["bound"]]

        edit(bound, older)
        assert json.loads((bound / MANIFEST).read_text(encoding="utf-8"))[LISTS]
        assert read_manifest(bound) == before
        check_bound_lists(bound, before)
        edit(bound, lambda document: next(iter(document[LISTS].values()))[0].update(offset=9))
        with pytest.raises(QwenImageError, match="not in the expected format"):
            read_manifest(bound)

    def test_manifests_without_lists_are_read(self, bound: Path) -> None:
        rtx(bound, FakeBuild(), weights="inside")
        before = read_manifest(bound)

        def older(document: Any) -> None:
            document["schema"] = 7
            del document[LISTS]
            for plans in document["plans"].values():
                for plan in plans:
                    del plan["bound"]

        edit(bound, older)
        assert read_manifest(bound) == before


def test_the_command_and_inspect_tell_bound_weights(
    bound: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "qwen_image_engine.runtime.tools.build.build.build_bundle.__kwdefaults__",
        {**build_bundle.__kwdefaults__, "device": no_gpu, "run": FakeBuild()},
    )
    nbytes = sum(values_of(name).nbytes for name in BINDABLE)
    assert main(["build", str(bound), "--only", "step", "--json"]) == 0
    (component,) = json.loads(capsys.readouterr().out)["components"]
    assert component["bound_bytes"] == nbytes
    assert main(["inspect", str(bound)]) == 0
    assert f", beside {nbytes} B of bound weights; profiles" in capsys.readouterr().out
    assert main(["build", str(bound), "--only", "step", "--weights", "inside", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["components"][0]["bound_bytes"] == 0
    assert main(["build", str(bound), "--weights", "beside"]) == 2
    assert "invalid choice: 'beside'" in capsys.readouterr().err
