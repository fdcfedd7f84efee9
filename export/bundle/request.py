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
from qwen_image_engine.export.estimate.plan import ExportPlan, Weights, check_memory, plan_export
from qwen_image_engine.export.targets import Target, networks, selected
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.load import read_tensors
from qwen_image_engine.reference.pipeline import schedule_config
from qwen_image_engine.runtime.text.tokenizer import load_tokenizer


@dataclass(frozen=True)
class ExportRequest:
    """A sound checkpoint, the target of its bundle, and what both come to.

    Attributes:
        checkpoint: the opened one.
        target: row of the target and precision, as chosen.
        calibration: source of static scales; None if the target has none.
        quantised: how each network is quantised.
        plan: components, and the bytes that are read, written and needed.
    """

    checkpoint: Checkpoint
    target: Target
    calibration: Calibration | None
    quantised: Mapping[str, QuantisedNetwork]
    plan: ExportPlan

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
        """Make every check that an export can make before it writes; see `export_bundle` for the arguments.

        Raises:
            UsageError: a pattern of the recipe matches nothing, a block is not there, weights that adapters are merged
                into are to be linked, a calibration is missing or not needed, or `without` names another component
                than those for reference images.
            QwenImageError: the checkpoint or the calibration is unsound, ONNX Runtime is missing for the target's
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
        plan = plan_export(checkpoint, target, quantised, weights, components)
        check_memory(plan)
        return cls(checkpoint, target, calibrated, quantised, plan)

    @property
    def networks(self) -> tuple[str, ...]:
        """The networks of the bundle, in the order in which they run."""
        return networks(self.plan.components)

    def components(self, network: str) -> list[str]:
        """Return the components of a network."""
        return [name for name in self.plan.components if COMPONENTS[name].network == network]


def check_checkpoint(checkpoint: Checkpoint, components: Collection[str] | None = None) -> None:
    """Check the tokenizer, the schedule, and name, shape and dtype of every tensor that `components` (all) read.

    Raises:
        QwenImageError: one of them is not what the runtime or a network needs.
    """
    load_tokenizer(checkpoint.folder)
    schedule_config(checkpoint)
    checkpoint.token_embeddings()
    for network in networks(selected(checkpoint) if components is None else components):
        read_tensors(checkpoint, network)


def open_calibration(checkpoint: Checkpoint, target: Target, folder: str | Path | None) -> Calibration | None:
    """Open the source of static scales; None if the target has none.

    Raises:
        UsageError: the target needs a calibration and none is named, or one is named that it does not need.
        QwenImageError: the calibration is damaged, or of another checkpoint.
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
    """Raise if the bundle takes reference images and the calibration saw none.

    Raises:
        QwenImageError: the calibration saw no reference images.
    """
    if calibration is not None and {*FOR_REFERENCE_IMAGES} & {*components} and not calibration.settings.images:
        raise QwenImageError(
            "the calibration saw no reference images; calibrate again with --images, or export with --without vision "
            "for a bundle that takes none"
        )
