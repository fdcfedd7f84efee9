"""The reference's components behind the `Engine` interface."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from qwen_image_engine.engines.core import contract_check
from qwen_image_engine.engines.core.components import COMPONENTS
from qwen_image_engine.engines.core.contract import Contract, contract
from qwen_image_engine.engines.core.contract_check import Array
from qwen_image_engine.engines.core.engine import Engine
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.components import components, dims, forward
from qwen_image_engine.reference.load import load_network


class TorchEngine:
    """A component of the reference, with numpy arrays in and out.

    It computes in the dtype of the network's weights and on their device.
    """

    def __init__(self, contract: Contract, network: nn.Module) -> None:
        self._contract = contract
        self._network: nn.Module | None = network

    @property
    def contract(self) -> Contract:
        """The tensors that `run` takes and returns."""
        return self._contract

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the component and return the outputs by name.

        Raises:
            QwenImageError: the inputs do not match the contract, the outputs do not match it, or the engine is closed.
        """
        if self._network is None:
            raise QwenImageError(f"{self._contract.component}: this engine is closed; load it again")
        sizes = contract_check.check_inputs(self._contract, inputs)
        device = next(self._network.parameters()).device
        tensors = {name: torch.as_tensor(array, device=device) for name, array in inputs.items()}
        with torch.inference_mode():
            results = forward(self._contract, self._network, tensors)
        outputs = {
            spec.name: result.contiguous().cpu().numpy()
            for spec, result in zip(self._contract.outputs, results, strict=True)
        }
        contract_check.check_outputs(self._contract, outputs, sizes)
        return outputs

    def close(self) -> None:
        """Free the network. Closing twice is allowed; running afterwards is an error."""
        self._network = None


def reference_engines(checkpoint: Checkpoint) -> dict[str, Engine]:
    """Load an fp32 engine for every component. Components of one network share its weights.

    Raises:
        QwenImageError: the stored tensors do not match the networks.
    """
    sizes = dims(checkpoint)
    names = components(checkpoint)
    networks = {
        name: load_network(checkpoint, name) for name in dict.fromkeys(COMPONENTS[item].network for item in names)
    }
    return {name: TorchEngine(contract(name, sizes), networks[COMPONENTS[name].network]) for name in names}
