"""The reference's inputs and outputs in Polygraphy's own format, and a script that compares bundles with them.

Polygraphy is a separate tool. It runs a component's graph in ONNX Runtime or TensorRT, and uses nothing of this
package.
"""

from __future__ import annotations

import importlib
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen_image_engine.engines.core.contract import CODES, Contract
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.files import whole_folder
from qwen_image_engine.export.targets import thresholds
from qwen_image_engine.export.thresholds import Threshold
from qwen_image_engine.export.verify.recording import Call, Recording, ends
from qwen_image_engine.runtime.bundle.manifest import Manifest
from qwen_image_engine.runtime.system.files import no_folder

SCRIPT = "run.sh"

_WORST_STEP = 4
"""Factor on a threshold for the mean over steps, because Polygraphy compares each run with its tolerance.

The last step is up to 3 times as far off as the mean (`thresholds._INT8_STEP`).
"""

_HEAD = """\
#!/bin/sh
# Written by `qwen-image verify --polygraphy`: components of bundles, on the fp32 reference's inputs, against its
# outputs. It stops at the first that is too far off. An SNR of x dB is a relative L2 of 10^(-x/20): 100 dB is 1e-5.
#
# The lines with --trt are comments. They need polygraphy and tensorrt on a machine with an NVIDIA GPU (see
# `qwen-image doctor`), and graphs that TensorRT reads: those of `--target tensorrt-twin`, in float32. Graphs of
# `--target cpu` hold nodes of com.microsoft, which it does not know. Nobody has run these lines yet.
set -e
cd "$(dirname "$0")"
"""


def check_polygraphy(folder: Path) -> None:
    """Check that the files can be written, before the work starts.

    Raises:
        QwenImageError: Polygraphy is not installed, or the folder is a file, is not empty, or has no parent.
    """
    _polygraphy("json")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise QwenImageError(f"--polygraphy {folder}: is there already and not empty; name a new folder")
    if not folder.parent.is_dir():
        raise QwenImageError(f"--polygraphy {folder}: {no_folder(folder.parent)}")


def write_polygraphy(folder: Path, recordings: Sequence[Recording], bundles: Mapping[Path, Manifest]) -> None:
    """Write the first and the last call of each component in each case, and the script, whole or not at all.

    Raises:
        QwenImageError: the files cannot be written.
    """
    calls: dict[str, list[Call]] = {}
    for recording in recordings:
        for component, found in recording.calls.items():
            calls.setdefault(component, []).extend(ends(found))
    try:
        with whole_folder(folder) as written:
            for component, found in calls.items():
                _save(written, component, found)
            script = written / SCRIPT
            script.write_text(_HEAD + "\n".join(_lines(calls, bundles)), encoding="utf-8", newline="\n")
            script.chmod(0o755)
    except OSError as error:
        raise QwenImageError(f"cannot write {folder}: {error.strerror or error}") from error


def _save(folder: Path, component: str, calls: Sequence[Call]) -> None:
    save_json = _polygraphy("json").save_json
    results = _polygraphy("comparator").RunResults()
    results.add([dict(call.outputs) for call in calls], runner_name="reference")
    save_json([dict(call.inputs) for call in calls], str(folder / _inputs(component)))
    save_json(results, str(folder / _outputs(component)))


def _lines(calls: Mapping[str, Sequence[Call]], bundles: Mapping[Path, Manifest]) -> Iterator[str]:
    for bundle, manifest in bundles.items():
        limits = thresholds(manifest.target, manifest.precision, "onnxruntime")
        assert limits is not None
        yield f"\n# {manifest.target} {manifest.precision}"
        yield f"BUNDLE={shlex.quote(str(bundle.resolve()))}"
        for component, entry in manifest.components.items():
            if component in calls and _holds_codes(entry.contract):
                yield f"# {component}: no line, Polygraphy gives no keys and values in FP8"
            elif component in calls:
                run = f'polygraphy run "$BUNDLE/{entry.model}"'
                against = (
                    f"--load-inputs {_inputs(component)} --load-outputs {_outputs(component)} "
                    f"--compare snr --snr-threshold {snr_db(limits[component]):.1f}"
                )
                yield f"{run} --onnxrt {against}"
                yield f"# {run} --trt --strongly-typed {_profile(calls[component])} {against}"
    yield ""


def _holds_codes(contract: Contract) -> bool:
    return any(spec.dtype == CODES for spec in (*contract.inputs, *contract.outputs))


def snr_db(threshold: Threshold) -> float:
    """Return a threshold as the least signal-to-noise ratio of every run, in dB: -20 log10 of relative L2."""
    return -20 * math.log10(threshold.relative_l2 * (_WORST_STEP if threshold.over == "mean" else 1))


def _profile(calls: Sequence[Call]) -> str:
    """Return flags with the smallest and the largest shapes of the inputs.

    TensorRT chooses kernels for the largest shapes.
    """
    shapes = {name: [call.inputs[name].shape for call in calls] for name in calls[0].inputs}
    least, most = (
        " ".join(f"{name}:[{','.join(str(pick(axes)) for axes in zip(*found, strict=True))}]" for name, found in every)
        for pick, every in ((min, shapes.items()), (max, shapes.items()))
    )
    return f"--trt-min-shapes {least} --trt-opt-shapes {most} --trt-max-shapes {most}"


def _inputs(component: str) -> str:
    return f"{component}-inputs.json"


def _outputs(component: str) -> str:
    return f"{component}-outputs.json"


def _polygraphy(module: str) -> Any:
    try:
        return importlib.import_module(f"polygraphy.{module}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "polygraphy":
            raise
        raise QwenImageError(
            "polygraphy is not installed, and --polygraphy writes its files; install it with: "
            "pip install 'polygraphy>=0.53'"
        ) from None
