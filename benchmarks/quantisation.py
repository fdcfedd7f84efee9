"""What int8 costs in accuracy: ours, ours with parts taken away, and plain W8A8, against the fp32 reference.

python benchmarks/quantisation.py [-m CHECKPOINT] [--output benchmarks/results/quantisation.json]

Two checkpoints: the one named, and the same with outliers planted that change nothing in fp32. Each component runs on
the reference's own inputs, recorded on three prompts at three sizes over their schedules; teacher-forced steps run the
whole way from the prompt with the reference's latents at each step. Plain W8A8 has one scale a tensor, from the largest
magnitudes of the very inputs that it is then tested on.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from environment import environment

from qwen_image_engine.calibration.linears import LINEARS
from qwen_image_engine.calibration.naive import quantise_naively
from qwen_image_engine.calibration.outliers import FACTOR, write_with_outliers
from qwen_image_engine.engines.contract import contract
from qwen_image_engine.engines.engine import Engine
from qwen_image_engine.export import network_folder, quantised_network, recipe
from qwen_image_engine.export.bundle import export_bundle
from qwen_image_engine.export.compare import Difference, difference, mean, worst
from qwen_image_engine.export.recording import Recording, default_cases, record
from qwen_image_engine.export.verify import compare_bundle
from qwen_image_engine.reference.checkpoint import Checkpoint
from qwen_image_engine.reference.engine import NETWORK, TorchEngine, dims, load_network
from qwen_image_engine.reference.pipeline import embedding_table, model_facts, schedule_config
from qwen_image_engine.runtime.manifest import read_manifest
from qwen_image_engine.runtime.memory import Components
from qwen_image_engine.runtime.pipeline import Origin, QwenImage
from qwen_image_engine.runtime.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[1]
QUANTISED = ("text_encoder", "prefix", "step")
Found = dict[str, list[tuple[Difference, ...]]]
"""Row of the table (a component, or "teacher_forced") to each case's runs."""


def plain_w8a8(checkpoint: Checkpoint, recordings: Sequence[Recording]) -> Found:
    networks = {name: load_network(checkpoint, name) for name in LINEARS}
    sizes = dims(checkpoint)
    engines: dict[str, Engine] = {
        component: TorchEngine(contract(component, sizes), networks[NETWORK[component]]) for component in QUANTISED
    }
    for name, network in networks.items():
        prefix = checkpoint.components[name].layout.prefix
        quantised = quantised_network.quantised_network(checkpoint, name, quantised_network.Quantisation(1))
        quantise_naively(
            network, [linear.removeprefix(prefix) for linear in quantised.layers], replay(engines, name, recordings)
        )
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
        Components(engines.__getitem__),
        load_tokenizer(checkpoint.folder),
        embedding_table(checkpoint),
        schedule_config(checkpoint),
        model_facts(checkpoint),
        Origin(engine="reference", precision="plain W8A8", checkpoint=checkpoint.name),
    )
    found["teacher_forced"] = []
    for recording in recordings:
        case = recording.case
        velocity = pipeline.denoiser(pipeline.encode(case.prompt), width=case.width, height=case.height)
        found["teacher_forced"].append(
            tuple(difference(velocity(step.latents, step.sigma), step.velocity) for step in recording.steps)
        )
    return found


def replay(engines: dict[str, Engine], network: str, recordings: Sequence[Recording]) -> Callable[[], None]:
    def run() -> None:
        for component in QUANTISED:
            if NETWORK[component] == network:
                for recording in recordings:
                    for call in recording.calls[component]:
                        engines[component].run(call.inputs)

    return run


def ours(checkpoint: Checkpoint, recordings: Sequence[Recording], work: Path, engine: str = "onnxruntime") -> Found:
    bundle = work / "bundle"
    export_bundle(checkpoint, bundle, precision="int8")
    found: Found = {}
    for row in compare_bundle(bundle, read_manifest(bundle), recordings, engine, None):
        found.setdefault(row.component, []).append(row.runs)
    return found


@contextmanager
def largest_rotation(channels: int) -> Iterator[None]:
    plain = recipe.RECIPES["cpu", "int8"]
    changed = replace(plain, quantisation=quantised_network.Quantisation(channels))
    with mock.patch.object(recipe, "RECIPES", {("cpu", "int8"): changed}):
        yield


def table(found: Found) -> dict[str, Any]:
    """The issue's figures: means over the schedule of the worst case, and the worst step of all."""
    steps, forced = found["step"], found["teacher_forced"]
    return {
        "step_cosine_mean": min(mean(runs).cosine for runs in steps),
        "step_cosine_worst": min(worst(runs).cosine for runs in steps),
        "teacher_forced_relative_l2_mean": max(mean(runs).relative_l2 for runs in forced),
        "teacher_forced_relative_l2_worst": max(worst(runs).relative_l2 for runs in forced),
        "prefix_relative_l2": max(worst(runs).relative_l2 for runs in found["prefix"]),
        "text_encoder_relative_l2": max(worst(runs).relative_l2 for runs in found["text_encoder"]),
    }


def measure(name: str, checkpoint: Checkpoint, work: Path) -> Iterator[dict[str, Any]]:
    recordings = record(checkpoint, default_cases(load_tokenizer(checkpoint.folder)))

    def row(way: str, found: Found) -> dict[str, Any]:
        result = {"checkpoint": name, "way": way, **table(found)}
        print(json.dumps(result), flush=True)
        return result

    yield row("plain W8A8", plain_w8a8(checkpoint, recordings))
    yield row("int8", ours(checkpoint, recordings, work))
    yield row("int8, OpenVINO", ours(checkpoint, recordings, work, "openvino"))
    for channels in (1, 16, 256):
        with largest_rotation(channels):
            yield row(f"int8, rotations of at most {channels}", ours(checkpoint, recordings, work))
    with mock.patch.object(quantised_network, "linear_pairs", return_value=[]):
        yield row("int8, not equalised", ours(checkpoint, recordings, work))


@contextmanager
def traced_once() -> Iterator[None]:
    """Tracing takes most of an export, and neither weights nor recipes change what it gives."""
    trace, traced = network_folder.trace, {}

    def once(checkpoint: Checkpoint, component: str, dtype: Any) -> Any:
        if component not in traced:
            traced[component] = trace(checkpoint, component, dtype)
        return traced[component].clone()

    with mock.patch.object(network_folder, "trace", once):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", type=Path, default=ROOT / "reference" / "shapes" / "checkpoint")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "quantisation.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, traced_once():
        work = Path(folder)
        planted = write_with_outliers(options.model, work / "planted")
        checkpoint = Checkpoint.open(options.model)
        rows = [
            *measure("as trained", checkpoint, work),
            *measure(f"one channel in 32 scaled by {FACTOR:g}", Checkpoint.open(planted), work),
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
