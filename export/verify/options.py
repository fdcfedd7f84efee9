"""Options of `verify`, and the command with the same options."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from qwen_image_engine.export.verify.limits import Limit
from qwen_image_engine.export.verify.recording import Case
from qwen_image_engine.reference.checkpoint.checkpoint import Source
from qwen_image_engine.reference.lora.file import LoraFile
from qwen_image_engine.runtime.component_pool import Memory


class Options(TypedDict, total=False):
    """Options of a comparison; every option has a default.

    Attributes:
        transformer_file: single file of the transformer; None for the file in the manifest, if any.
        loras: adapters, in the order in which they were merged; None for the adapters in the manifest.
        attention: attention of the transformer; None for the attention in the manifest, if any.
        variant: variant of the weight files; None for the variant in the manifest, if any.
        engine: backend that runs the bundles ("onnxruntime").
        threads: number of threads of one engine; None for every core.
        memory: policy by which the reference holds its networks ("resident").
        cases: requests to record; None for three prompts at three sizes, and an edit if a bundle can do one.
        limits: limits of rows, beside their thresholds.
        layers: whether to compare the outputs of the step's layers too.
        judge: number of held-out prompts of each kind, whose pictures by each bundle and by the reference the judge of
            `shapes` scores.
        polygraphy: a new folder for the reference's inputs and outputs in Polygraphy's format.
        pictures: whether to keep the pictures of the bundles and the reference, for a report.
    """

    transformer_file: str | Path | None
    loras: Sequence[LoraFile] | None
    attention: str | None
    variant: str | None
    engine: str
    threads: int | None
    memory: Memory
    cases: Sequence[Case] | None
    limits: Sequence[Limit]
    layers: bool
    judge: int | None
    polygraphy: str | Path | None
    pictures: bool


def command(bundles: Sequence[Path], checkpoint: Source | None, options: Options) -> str:
    """Return the command `qwen-image verify` with the same arguments.

    Arguments that have no flag (cases, memory, a pipeline) are left out.
    """
    words = ["qwen-image", "verify", *map(str, bundles)]
    transformer, loras, attention = options.get("transformer_file"), options.get("loras"), options.get("attention")
    if isinstance(checkpoint, str | Path):
        words += ["-m", str(checkpoint)]
    if transformer is not None:
        words += ["--transformer", str(transformer)]
    for lora in loras or ():
        words += ["--lora", str(lora)]
    if attention is not None:
        words += ["--attention", attention]
    if (variant := options.get("variant")) is not None:
        words += ["--variant", variant]
    words += ["--engine", options.get("engine", "onnxruntime")]
    threads, judge, polygraphy = options.get("threads"), options.get("judge"), options.get("polygraphy")
    if threads is not None:
        words += ["--threads", str(threads)]
    for limit in options.get("limits", ()):
        words += ["--fail-on", f"{limit.row}={limit.relative_l2:g}"]
    if options.get("layers"):
        words.append("--layers")
    if judge is not None:
        words += ["--judge", str(judge)]
    if polygraphy is not None:
        words += ["--polygraphy", str(polygraphy)]
    return shlex.join(words)
