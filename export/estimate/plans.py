"""The sizes of the plans that an export's graphs would become, for the fit into a card."""

from __future__ import annotations

from qwen_image_engine.engines.core.components import COMPONENTS
from qwen_image_engine.engines.core.contract import contract
from qwen_image_engine.export.estimate.sizes import ExportEstimate
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.components import dims
from qwen_image_engine.reference.pipeline import model_facts
from qwen_image_engine.runtime.tools.build.device_memory import Model, PlanSize


def estimated_model(checkpoint: Checkpoint, plan: ExportEstimate) -> Model:
    """Return the estimate of the plans of an export's components, as `build` makes them for RTX cards by default.

    Graphs of the transformer each take all its weights as inputs, the same ones. The VAE's have theirs inside, each a
    part, so one size stands for them all.
    """
    sizes, plans = dims(checkpoint), []
    for network in plan.networks:
        names = [name for name in plan.components if COMPONENTS[name].network == network.network]
        if network.network == "vae":
            plans.append(PlanSize.estimated("vae", names, network.engine_bytes))
        else:
            bound = {network.network: network.engine_bytes}
            stored = checkpoint.stored(network.network).tensors.values()
            count = sum(len(tensor.shape) > 1 for tensor in stored)
            plans += [PlanSize.estimated(name, (name,), 0, bound, count) for name in names]
    contracts = {name: contract(name, sizes, plan.dtype, plan.codes) for name in plan.components}
    return Model(tuple(plans), contracts, plan.precision, model_facts(checkpoint).decoder_halo)
