"""Observed denoising trajectories of the reference."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from qwen_image_engine.calibration.observe.activations import observed_components, observed_tensors
from qwen_image_engine.calibration.observe.observer import ObservedEngine, Position
from qwen_image_engine.calibration.observe.partial import Sums
from qwen_image_engine.calibration.observe.request import DTYPES, Request
from qwen_image_engine.calibration.observe.statistics import InputSums
from qwen_image_engine.calibration.rules.linears import LINEARS
from qwen_image_engine.engines.core.components import COMPONENTS, EVERY_STEP
from qwen_image_engine.engines.core.contract import contract
from qwen_image_engine.engines.core.engine import Engine
from qwen_image_engine.reference.components import dims
from qwen_image_engine.reference.load import load_network
from qwen_image_engine.reference.pipeline import embedding_table, pipeline_on
from qwen_image_engine.reference.torch_engine import TorchEngine
from qwen_image_engine.runtime.component_pool import ComponentPool


def empty_sums(request: Request) -> Sums:
    """Return empty sums for every activation that `request` observes."""
    device = torch.device(request.device)
    return {
        component: {
            name: InputSums.empty(
                tensor.channels, request.steps if component in EVERY_STEP else 1, device, tensor.block
            )
            for name, tensor in observed_tensors(request.checkpoint, component).items()
        }
        for component in observed_components(request.checkpoint, references=bool(request.images))
    }


class Trajectories:
    """The trajectories of a request. The networks are loaded once."""

    def __init__(self, request: Request, sums: Sums) -> None:
        """Load the networks. Every trajectory adds to `sums`.

        Raises:
            QwenImageError: the checkpoint's tensors do not match the networks.
        """
        self._request = request
        self._position = Position()
        self._embeddings = embedding_table(request.checkpoint)
        sizes = dims(request.checkpoint)
        dtype = DTYPES[request.dtype]
        names = (*LINEARS, *(("vision", "vae") if request.images else ()))
        networks = {name: load_network(request.checkpoint, name, dtype).to(request.device) for name in names}

        def engine(component: str) -> Engine:
            network = networks[COMPONENTS[component].network]
            if component not in sums:
                return TorchEngine(contract(component, sizes), network)
            observed = observed_tensors(request.checkpoint, component)
            inner = TorchEngine(contract(component, sizes), network)
            return ObservedEngine(inner, network, observed, sums[component], self._position)

        self._components = ComponentPool(engine)

    def draw(self, index: int) -> Iterator[int]:
        """Draw prompt `index` up to its last latents, and yield the number of finished steps after each step.

        Raises:
            QwenImageError: an activation or a result is not finite.
        """
        request, position = self._request, self._position
        # A pipeline of its own: one that keeps the encodings of prompts would count a repeated prompt once, and once
        # more where the calibration went on after an interruption.
        pipeline = pipeline_on(request.checkpoint, self._components, request.dtype, request.tokenizer, self._embeddings)
        width, height = request.sizes[index % len(request.sizes)]
        position.step, position.prompt = 0, request.prompts[index]
        images = request.references(index)
        conditioning = pipeline.encode(request.prompts[index], images)
        negative = None if request.negative_prompt is None else pipeline.encode(request.negative_prompt, images)
        for step in pipeline.sample(
            conditioning,
            negative=negative,
            guidance=request.guidance,
            width=width,
            height=height,
            steps=request.steps,
            seed=request.seed + index,
        ):
            position.step = step.index + 1
            yield position.step
