"""The request for a bundle: everything that an export needs, read and checked before anything is written."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from qwen_image_engine.calibration.observe.record import Calibration, calibrate_command
from qwen_image_engine.calibration.quantise.network import QuantisedNetwork, check_rules, quantised_networks
from qwen_image_engine.engines.backends import require
from qwen_image_engine.engines.core.components import COMPONENTS, FOR_REFERENCE_IMAGES
from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.export.estimate.sizes import ExportEstimate, Weights, check_memory, estimate_export
from qwen_image_engine.export.targets import Target, networks, selected
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.load import read_tensors
from qwen_image_engine.reference.pipeline import schedule_config
from qwen_image_engine.runtime.text.tokenizer import load_tokenizer


@dataclass(frozen=True)
class ExportRequest:
    """A checked export: a valid checkpoint, the target of its bundle, and the estimate for both.

    Attributes:
        checkpoint: the opened checkpoint.
        target: row of the target and precision, as chosen.
        calibration: calibration that static scales come from; None if the target has no static scales.
        quantised: quantisation of each network, by name.
        plan: estimate: the components, and the bytes that are read, written and needed.
    """

    checkpoint: Checkpoint
    target: Target
    calibration: Calibration | None
    quantised: Mapping[str, QuantisedNetwork]
    plan: ExportEstimate

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        target: Target,
        *,
        weights: Weights = "copy",
        calibration: str | Path | None = None,
        without: Sequence[str] = (),
    ) -> Self:
        """Check everything that an export can check before it writes, and return the request.

        See `export_bundle` for the arguments.

        Raises:
            UsageError: a pattern of the recipe matches nothing, the transformer has no such block, `weights` is "link"
                for a checkpoint with merged adapters, a calibration is missing or not needed, or `without` names a
                component that is not optional.
            QwenImageError: the checkpoint or the calibration is invalid, ONNX Runtime is missing for the target's
                audit, or memory is too small.
        """
        components = selected(checkpoint, without)
        check_checkpoint(checkpoint, components)
        check_rules(checkpoint, target.quantisation, target.precision)
        if target.audited:
            require("onnxruntime")  # missing, better told now than after minutes of work
        calibrated = open_calibration(checkpoint, target, calibration)
        quantised = quantised_networks(checkpoint, target.quantisation, calibrated)
        _check_calibrated(calibrated, components)
        plan = estimate_export(checkpoint, target, quantised, weights, components)
        check_memory(plan)
        return cls(checkpoint, target, calibrated, quantised, plan)

    @property
    def networks(self) -> tuple[str, ...]:
        """Networks of the bundle, in the order in which they run."""
        return networks(self.plan.components)

    def components(self, network: str) -> list[str]:
        """Return the components of a network."""
        return [name for name in self.plan.components if COMPONENTS[name].network == network]


def check_checkpoint(checkpoint: Checkpoint, components: Collection[str] | None = None) -> None:
    """Check the tokenizer, the schedule, and every tensor that `components` (by default all) read.

    The check of a tensor covers name, shape and dtype.

    Raises:
        QwenImageError: the tokenizer, the schedule or a tensor does not match what the runtime or a network needs.
    """
    load_tokenizer(checkpoint.folder)
    schedule_config(checkpoint)
    checkpoint.token_embeddings()
    for network in networks(selected(checkpoint) if components is None else components):
        read_tensors(checkpoint, network)


def open_calibration(checkpoint: Checkpoint, target: Target, folder: str | Path | None) -> Calibration | None:
    """Open the calibration that static scales come from; return None if the target has no static scales.

    Raises:
        UsageError: the target needs a calibration and `folder` is None, or it needs none and `folder` is given.
        QwenImageError: the calibration is damaged, or was made from another checkpoint.
    """
    static = target.quantisation is not None and target.quantisation.static
    if folder is None:
        if static:
            raise UsageError(
                f"--target {target.name} --precision {target.precision} needs --calibration FOLDER; make one with: "
                f"{calibrate_command(checkpoint.flags, 'FOLDER')}"
            )
        return None
    if not static:
        raise UsageError(f"--calibration with --target {target.name} --precision {target.precision}: not needed there")
    return Calibration.open(Path(folder), checkpoint)


def _check_calibrated(calibration: Calibration | None, components: Collection[str]) -> None:
    """Raise if the bundle takes reference images and the calibration had none.

    Raises:
        QwenImageError: the bundle takes reference images, and the calibration had none.
    """
    if calibration is not None and {*FOR_REFERENCE_IMAGES} & {*components} and not calibration.settings.images:
        raise QwenImageError(
            "the calibration saw no reference images; calibrate again with --images, or export with --without vision "
            "for a bundle that takes none"
        )
