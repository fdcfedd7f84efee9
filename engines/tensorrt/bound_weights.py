"""The weights that a plan takes as inputs: their parts of files, their room on the device, the check of the inputs.

The plan holds none of them. Engines of one network have the same ones, and share one copy (`SharedWeights`). It has not
run on a GPU yet. Every call is checked against the types of the bindings of both products.
"""

from collections.abc import Mapping

from qwen_image_engine.engines.core.contract import Contract, describe_shape
from qwen_image_engine.engines.core.contract_check import PortFacts
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.cuda.driver import device_info
from qwen_image_engine.engines.cuda.file_upload import FilePart
from qwen_image_engine.engines.cuda.shared_weights import Parts, room_bytes
from qwen_image_engine.engines.plans.fit import check_memory_fits, check_shared_weights_fit
from qwen_image_engine.engines.tensorrt.load import PlanSource
from qwen_image_engine.engines.tensorrt.session import TensorRtSession


def weight_parts(source: PlanSource) -> dict[str, Parts]:
    """Return the parts of files that lie one behind the other in each of a plan's inputs for weights, by name."""
    return {
        weight.name: tuple(
            FilePart(
                path=source.folder / piece.file,
                offset=piece.offset,
                nbytes=weight.nbytes(piece),
                sha256=piece.sha256,
                name=piece.name,
                mend=source.mend,
            )
            for piece in weight.pieces
        )
        for weight in source.entry.bound
    }


def check_room(session: TensorRtSession, component: str, source: PlanSource, parts: Mapping[str, Parts]) -> None:
    """Raise if the device has no room for a plan and those of its weights that no other engine holds.

    Raises:
        OutOfDeviceMemory: there is no room.
    """
    plan = 0 if source.may_stream else source.weights_bytes
    scratch = max(0, min(source.entry.scratch_bytes, default=0) - session.scratch.nbytes)
    if not parts:
        check_memory_fits(component, plan, scratch, device_info(), source.rebuild)
        return
    weights, missing = room_bytes(parts.values()), room_bytes(session.weights.missing(parts.values()))
    check_shared_weights_fit(component, weights, weights - missing, plan, scratch, device_info())


def without_weights(contract: Contract, source: PlanSource, inputs: Mapping[str, PortFacts]) -> dict[str, PortFacts]:
    """Return the inputs of a plan that are not weights, after a comparison of the weights with the manifest's list.

    Raises:
        QwenImageError: the plan takes other weights as inputs than the manifest lists for it.
    """
    weights = {weight.name: PortFacts(weight.dtype, weight.shape) for weight in source.entry.bound}
    rest = {name: port for name, port in inputs.items() if name not in weights}
    expected = {spec.name for spec in contract.inputs}
    problems = [f"input {name} is not known" for name in rest if name not in expected]
    problems += [f"input {name} is a weight" for name in weights if name in expected]
    problems += [
        f"input {name} is {_described(inputs.get(name))}, expected {_described(weight)}"
        for name, weight in weights.items()
        if inputs.get(name) != weight
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise QwenImageError(
            f"{contract.component}: {source.path} is another bundle's, by the manifest's list of its weights: "
            f"{', '.join(problems[:3])}{more}; build it again with: {source.rebuild}"
        )
    return rest


def _described(port: PortFacts | None) -> str:
    return "missing" if port is None else f"{port.dtype} {describe_shape(port.shape or ())}"
