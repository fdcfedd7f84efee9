"""The accuracy of 8-bit methods against the fp32 reference: ours, ours without some of its parts, and others.

python -m benchmarks.quantisation.run [-m CHECKPOINT] [--output benchmarks/results/quantisation.json]

There are four checkpoints: the one named, random weights as deep as the released transformer, and both of them with
planted outliers that change nothing in fp32. Each component runs on the reference's own inputs, recorded on three
prompts at three sizes over their schedules. Teacher-forced steps run everything from the prompt on, with the
reference's latents at each step. Our static scales come from `calibrate` on prompts.txt, which has none of the three
prompts. The other methods quantise the same linears. Plain W8A8 has one scale for each tensor, from the largest
magnitudes of the same inputs that it is tested on. ONNX Runtime's quantize_static and ModelOpt, if it is installed,
also calibrate on these inputs.
"""

import argparse
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import onnx
import torch
from safetensors.torch import load_file, save_file

from benchmarks.common.environment import environment
from benchmarks.common.paths import PROMPTS, RESULTS, SHAPES
from benchmarks.common.released_configs import released_configs
from benchmarks.quantisation.naive_w8a8 import quantise_naively
from benchmarks.quantisation.outliers import FACTOR, write_with_outliers
from qwen_image_engine.calibration.observe.calibrate import calibrate
from qwen_image_engine.calibration.observe.statistics import InputStatistics
from qwen_image_engine.calibration.quantise import fp8, smoothing, static_input
from qwen_image_engine.calibration.quantise import network as quantised_network
from qwen_image_engine.calibration.quantise.smoothing import Smoothing
from qwen_image_engine.calibration.rules.linears import LINEARS
from qwen_image_engine.calibration.rules.quantisation import Quantisation, Rule
from qwen_image_engine.engines.backends import load_engine
from qwen_image_engine.engines.core.components import COMPONENTS
from qwen_image_engine.engines.core.contract import contract
from qwen_image_engine.engines.core.engine import Engine
from qwen_image_engine.export import targets
from qwen_image_engine.export.bundle import network_folder
from qwen_image_engine.export.bundle.bundle import export_bundle
from qwen_image_engine.export.verify.bundle import compare_bundle
from qwen_image_engine.export.verify.difference import Difference, difference, mean, worst
from qwen_image_engine.export.verify.recording import Recording, default_cases, record
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.components import dims
from qwen_image_engine.reference.load import load_network
from qwen_image_engine.reference.pipeline import embedding_table, model_facts, schedule_config
from qwen_image_engine.reference.torch_engine import TorchEngine
from qwen_image_engine.runtime.bundle.manifest import read_manifest
from qwen_image_engine.runtime.component_pool import ComponentPool
from qwen_image_engine.runtime.pipeline import PictureOrigin, QwenImage
from qwen_image_engine.runtime.text.tokenizer import load_tokenizer

SIZES = ((256, 256), (192, 128), (128, 192), (128, 128))
KINDS = ("attn.to_[qkv]", "attn.to_out.0", "img_mlp.gate_layer", "img_mlp.proj", "img_mlp.out")
"""Kinds of linears. An ablation keeps one kind in high precision, in all blocks."""
QUANTISED = ("text_encoder", "prefix", "step")
MODELOPT = {"FP8": "FP8_DEFAULT_CFG", "INT8 SmoothQuant": "INT8_SMOOTHQUANT_CFG"}
BLOCKS: int = released_configs()["transformer"]["num_layers"]
"""Number of blocks with random weights: 32. At initialisation (Glorot) the mean gate is 0.1, and a block adds a seventh
to the stream. In the trained `shapes` the gates are 0.6 and 0.5, and a block adds at least a third. Over only 7 blocks,
as in `shapes`, most of an error inside random blocks is lost: with planted outliers plain W8A8 had a cosine of 0.933
there, over 32 blocks 0.751."""
ALL_LINEARS = Quantisation(("transformer", "text_encoder"), (Rule("*", "int8"),))
Found = dict[str, list[tuple[Difference, ...]]]
"""Errors of each case's runs, by row of the table: a component, or "teacher_forced"."""


def compared(engines: Mapping[str, Engine], checkpoint: Checkpoint, recordings: Sequence[Recording]) -> Found:
    """Compare engines that belong to no bundle with the recordings, as `export.verify.bundle.compare_bundle` does."""
    found: Found = {
        component: [
            tuple(
                worst(difference(outputs[key], call.outputs[key]) for key in outputs)
                for call in recording.calls[component]
                for outputs in [engines[component].run(call.inputs)]
            )
            for recording in recordings
        ]
        for component in QUANTISED
    }
    pipeline = QwenImage(
        ComponentPool(engines.__getitem__),
        load_tokenizer(checkpoint.folder),
        embedding_table(checkpoint),
        schedule_config(checkpoint),
        model_facts(checkpoint),
        PictureOrigin(engine="other", precision="int8", checkpoint=checkpoint.name),
    )
    found["teacher_forced"] = []
    for recording in recordings:
        case = recording.case
        velocity = pipeline.denoiser(pipeline.encode(case.prompt), width=case.width, height=case.height)
        found["teacher_forced"].append(
            tuple(difference(velocity(step.latents, step.sigma), step.velocity) for step in recording.steps)
        )
    return found


def in_torch(
    checkpoint: Checkpoint,
    recordings: Sequence[Recording],
    quantise: Callable[[torch.nn.Module, Sequence[str], Callable[[], None]], torch.nn.Module],
) -> Found:
    """Compare the reference's networks, quantised by `quantise`, with the recordings.

    Args:
        checkpoint: checkpoint of the networks.
        recordings: recorded inputs and outputs of the components.
        quantise: function that takes a network, its linears, and a function that runs it on the recorded inputs; it
            returns the quantised network.
    """
    sizes = dims(checkpoint)
    engines: dict[str, Engine] = {}
    for name in LINEARS:
        network = load_network(checkpoint, name)
        prefix = checkpoint.components[name].layout.prefix
        quantised = quantised_network.quantised_network(checkpoint, name, ALL_LINEARS)
        components = [component for component in QUANTISED if COMPONENTS[component].network == name]

        def run(network: torch.nn.Module = network, components: Sequence[str] = components) -> None:
            for component in components:
                engine = TorchEngine(contract(component, sizes), network)
                for recording in recordings:
                    for call in recording.calls[component]:
                        engine.run(call.inputs)

        changed = quantise(network, [linear.removeprefix(prefix) for linear in quantised.layers], run)
        engines |= {component: TorchEngine(contract(component, sizes), changed) for component in components}
    return compared(engines, checkpoint, recordings)


def plainly(network: torch.nn.Module, linears: Sequence[str], run: Callable[[], None]) -> torch.nn.Module:
    quantise_naively(network, linears, run)
    return network


def modelopt(configuration: str) -> Callable[..., torch.nn.Module]:
    """Return a `quantise` function with ModelOpt's named configuration.

    It quantises only the given linears: the wildcards of the configuration also match embedders and final layers.
    """
    import modelopt.torch.quantization as mtq

    settings: dict[str, Any] = getattr(mtq, configuration)
    off, *kinds = (entry for entry in settings["quant_cfg"] if entry["quantizer_name"] == "*" or "cfg" in entry)

    def quantise(network: torch.nn.Module, linears: Sequence[str], run: Callable[[], None]) -> torch.nn.Module:
        entries = [
            {**kind, "quantizer_name": kind["quantizer_name"].replace("*", f"{linear}.")}
            for linear in linears
            for kind in kinds
            if "cfg" in kind
        ]
        with torch.inference_mode(), redirect_stdout(None):
            mtq.quantize(network, {**settings, "quant_cfg": [off, *entries]}, lambda model: run())
        enabled = {
            name.rpartition(".")[0]
            for name, module in network.named_modules()
            if name.endswith("_quantizer") and module.is_enabled
        }
        if enabled != set(linears):
            raise RuntimeError(f"ModelOpt quantised {sorted(enabled ^ set(linears))} other than it was told.")
        return network

    return quantise


def quantize_static(checkpoint: Checkpoint, recordings: Sequence[Recording], work: Path) -> Found:
    """Compare ONNX Runtime's `quantize_static` with the recordings, with the settings that it advises on x64.

    The format is QDQ, with int8 weights by channel and uint8 activations by tensor, calibrated by range.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Inputs(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, component: str) -> None:
            calls = (call for recording in recordings for call in recording.calls[component])
            self._inputs = (dict(call.inputs) for call in calls)

        def get_next(self) -> dict[str, Any] | None:
            return next(self._inputs, None)

    bundle = work / "plain"
    manifest = export_bundle(checkpoint, bundle)
    engines: dict[str, Engine] = {}
    for component in QUANTISED:
        entry = manifest.components[component]
        layers = quantised_network.quantised_network(checkpoint, COMPONENTS[component].network, ALL_LINEARS).layers
        model = onnx.load(str(bundle / entry.model))
        names = []
        for index, node in enumerate(model.graph.node):
            node.name = f"node_{index}"
            if node.op_type == "Gemm" and node.input[1].removesuffix(quantised_network.WEIGHT) in layers:
                names.append(node.name)
        plain, quantised = work / f"{component}.onnx", work / f"{component}-static.onnx"
        onnx.save(model, str(plain))
        with redirect_stdout(None):
            quantize_static(
                str(plain),
                str(quantised),
                Inputs(component),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=names,
            )
        engines[component] = load_engine("onnxruntime", quantised, entry.contract)
    return compared(engines, checkpoint, recordings)


def ours(
    checkpoint: Checkpoint,
    recordings: Sequence[Recording],
    work: Path,
    target: str,
    precision: str,
    engine: str = "onnxruntime",
    **options: Any,
) -> Found:
    bundle = work / "bundle"
    shutil.rmtree(bundle, ignore_errors=True)  # what is mocked here, an export that reuses folders does not see
    export_bundle(checkpoint, bundle, target=target, precision=precision, without=("vision",), **options)
    found: Found = {}
    for row in compare_bundle(bundle, read_manifest(bundle), recordings, engine, None).rows:
        found.setdefault(row.component, []).append(row.runs)
    return found


def unsmoothed(inputs: Sequence[InputStatistics]) -> Smoothing:
    return Smoothing(0.0, torch.ones_like(inputs[0].channel_absmax))


@contextmanager
def recipe_with(target: str, precision: str, **changes: Any) -> Iterator[None]:
    """Change settings of the quantisation of a target and precision inside the block."""
    plain = targets.TARGETS[target, precision]
    assert plain.quantisation is not None
    changed = replace(plain, quantisation=replace(plain.quantisation, **changes))
    with mock.patch.object(targets, "TARGETS", {(target, precision): changed}):
        yield


def table(found: Found) -> dict[str, Any]:
    """Return the figures of a row: the worst case's mean over the schedule, and the worst step of all."""
    steps, forced = found["step"], found["teacher_forced"]
    return {
        "step_cosine_mean": min(mean(runs).cosine for runs in steps),
        "step_cosine_worst": min(worst(runs).cosine for runs in steps),
        "teacher_forced_relative_l2_mean": max(mean(runs).relative_l2 for runs in forced),
        "teacher_forced_relative_l2_worst": max(worst(runs).relative_l2 for runs in forced),
        "prefix_relative_l2": max(worst(runs).relative_l2 for runs in found["prefix"]),
        "text_encoder_relative_l2": max(worst(runs).relative_l2 for runs in found["text_encoder"]),
    }


def measure(name: str, checkpoint: Checkpoint, work: Path, ablation: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the rows of one checkpoint; with `ablation` also the rows that justify the choices of a recipe."""
    recordings = record(checkpoint, default_cases(load_tokenizer(checkpoint.folder), references=False))
    calibration = work / f"calibration-{checkpoint.weights_sha256()[:8]}"
    prompts = PROMPTS.read_text(encoding="utf-8").splitlines()
    calibrate(checkpoint, calibration, prompts, steps=20, sizes=SIZES)

    def row(way: str, found: Found) -> dict[str, Any]:
        result = {"checkpoint": name, "way": way, **table(found)}
        print(json.dumps(result), flush=True)
        return result

    def cpu(engine: str = "onnxruntime") -> Found:
        return ours(checkpoint, recordings, work, "cpu", "int8", engine)

    def static(precision: str, **options: Any) -> Found:
        return ours(checkpoint, recordings, work, "tensorrt-twin", precision, calibration=calibration, **options)

    yield row("plain W8A8", in_torch(checkpoint, recordings, plainly))
    yield row("ONNX Runtime quantize_static", quantize_static(checkpoint, recordings, work))
    if importlib.util.find_spec("modelopt") is not None:
        for way, configuration in MODELOPT.items():
            yield row(
                f"ModelOpt {version('nvidia-modelopt')} {way}",
                in_torch(checkpoint, recordings, modelopt(configuration)),
            )
    yield row("int8", cpu())
    yield row("int8, OpenVINO", cpu("openvino"))
    yield row("FP8, twin", static("fp8"))
    yield row("static int8, twin", static("int8"))
    if not ablation:
        return
    for channels in (1, 16):
        with recipe_with("cpu", "int8", largest_rotation=channels):
            yield row(f"int8, rotations of at most {channels}", cpu())
    with mock.patch.object(quantised_network, "linear_pairs", return_value=[]):
        yield row("int8, not equalised", cpu())
    ends = (0, checkpoint.transformer.num_layers - 1)
    for precision, way in (("fp8", "FP8"), ("int8", "static int8")):
        with recipe_with("tensorrt-twin", precision, rules=(Rule("*", precision),)):
            yield row(f"{way}, every linear, twin", static(precision))
            for kind in KINDS:
                yield row(f"{way}, {kind} high, twin", static(precision, exclude=[f"*.{kind}"]))
            yield row(f"{way}, first and last block high, twin", static(precision, skip_blocks=ends))
    yield row("FP8 with FP8 attention, twin", static("fp8", fp8_attention=True))
    with mock.patch.object(fp8, "MARGIN", 1.0):
        yield row("FP8 without a margin, twin", static("fp8"))
    with mock.patch.object(smoothing, "ALPHAS", smoothing.ALPHAS[:1]):
        yield row(f"static int8, alpha {smoothing.ALPHAS[0]}, twin", static("int8"))
    with mock.patch.object(static_input, "best_smoothing", lambda inputs, weights: unsmoothed(inputs)):
        yield row("static int8, not smoothed, twin", static("int8"))


def write_random(source: Path, target: Path, blocks: int) -> Path:
    """Copy a checkpoint with `blocks` blocks and matrices of normal noise of variance 2 / (rows + columns) (Glorot).

    Norms come from `source`, whose blocks repeat. Each network is one file.
    """
    shutil.copytree(source, target)
    configuration = target / "transformer" / "config.json"
    values = json.loads(configuration.read_text(encoding="utf-8"))
    configuration.write_text(json.dumps(values | {"num_layers": blocks}, indent=2) + "\n", encoding="utf-8")
    generator = torch.Generator().manual_seed(0)
    for network in LINEARS:
        for file in (target / network).glob("*.safetensors"):
            tensors = load_file(file)
            if network == "transformer":
                tensors = _with_blocks(tensors, values["num_layers"], blocks)
            for name, tensor in tensors.items():
                if tensor.ndim == 2 and "embed_tokens" not in name:
                    noise = torch.randn(tensor.shape, generator=generator) * (2 / sum(tensor.shape)) ** 0.5
                    tensors[name] = noise.to(tensor.dtype)
            save_file(tensors, file, {"format": "pt"})
    return target


def _with_blocks(tensors: Mapping[str, torch.Tensor], present: int, blocks: int) -> dict[str, torch.Tensor]:
    found = {name: tensor for name, tensor in tensors.items() if not name.startswith("transformer_blocks.")}
    for block in range(blocks):
        source = f"transformer_blocks.{block % present}."
        for name, tensor in tensors.items():
            if name.startswith(source):
                found[f"transformer_blocks.{block}.{name.removeprefix(source)}"] = tensor.clone()
    return found


@contextmanager
def traced_once() -> Iterator[None]:
    """Reuse traced graphs inside the block, because tracing takes most of an export.

    Weights and recipes do not change a traced graph; the network's sizes do.
    """
    trace, traced = network_folder.trace, {}

    def once(checkpoint: Checkpoint, component: str, dtype: Any) -> Any:
        key = (getattr(checkpoint, COMPONENTS[component].network), component, dtype)
        if key not in traced:
            traced[key] = trace(checkpoint, component, dtype)
        return traced[key].clone()

    with mock.patch.object(network_folder, "trace", once):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", type=Path, default=SHAPES)
    parser.add_argument("--output", type=Path, default=RESULTS / "quantisation.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, traced_once():
        work = Path(folder)
        planted = write_with_outliers(options.model, work / "planted")
        random = write_random(options.model, work / "random", BLOCKS)
        random_planted = write_with_outliers(random, work / "random-planted")
        checkpoint = Checkpoint.open(options.model)
        outliers = f"one channel in 32 scaled by {FACTOR:g}"
        rows = [
            *measure("as trained", checkpoint, work, ablation=True),
            *measure(outliers, Checkpoint.open(planted), work),
            *measure(f"random weights, {BLOCKS} blocks", Checkpoint.open(random), work),
            *measure(f"random weights, {BLOCKS} blocks, {outliers}", Checkpoint.open(random_planted), work),
        ]
    document = {
        "what": "errors against the fp32 reference on three prompts over their schedules",
        "checkpoint": checkpoint.name,
        "weights_sha256": checkpoint.weights_sha256(),
        "rows": rows,
        **environment(),
    }
    options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
