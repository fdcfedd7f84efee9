from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qwen_image_engine.engines.core.contract import Contract, Dims, contract
from qwen_image_engine.engines.core.contract_check import PortFacts, check_graph, check_inputs, check_outputs
from qwen_image_engine.engines.core.engine import Array
from qwen_image_engine.engines.core.errors import QwenImageError

StepInputs = Callable[..., dict[str, Array]]


def test_inputs_bind_the_symbolic_axes(step_contract: Contract, step_inputs: StepInputs) -> None:
    assert check_inputs(step_contract, step_inputs(2, 7, 3)) == {"batch": 2, "tokens": 7, "prefix": 3}


def test_image_axes_are_multiples() -> None:
    encoder = contract("vae_encoder", Dims(*[4] * 11))
    sizes = check_inputs(encoder, {"image": np.zeros((1, 4, 32, 48), np.float32)})
    assert sizes == {"batch": 1, "height": 2, "width": 3}
    with pytest.raises(QwenImageError, match=r"is float32 \(1, 4, 32, 40\), expected float32 \(batch, 4, 16\*height"):
        check_inputs(encoder, {"image": np.zeros((1, 4, 32, 40), np.float32)})
    with pytest.raises(QwenImageError, match=r"output latents .*expected .* with batch=1, height=2, width=3"):
        check_outputs(encoder, {"latents": np.zeros((1, 4, 3, 2), np.float32)}, sizes)


def test_a_sum_of_axes_is_bound_by_its_parts() -> None:
    wanted = contract("prefix_image", Dims(*[4] * 11))
    sizes = {"batch": 1, "image": 5, "text": 3, "prefix": 2}
    arrays = {spec.name: np.zeros((1, 8, 4, 4), np.float32) for spec in wanted.outputs}
    check_outputs(wanted, arrays, sizes)
    message = (
        r"own_key_0 is float32 \(1, 7, 4, 4\), expected float32 \(batch, image\+text, 4, 4\) with batch=1, image=5"
    )
    with pytest.raises(QwenImageError, match=message):
        check_outputs(wanted, arrays | {"own_key_0": np.zeros((1, 7, 4, 4), np.float32)}, sizes)


def test_slots_are_bound_by_their_patches() -> None:
    vision = contract("vision", Dims(*[4] * 11))
    shapes = {"patches": (1, 24, 1536), "weights": (24, 4), "cos": (24, 2), "sin": (24, 2)}
    inputs: dict[str, Array] = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    inputs["indices"] = np.zeros((24, 4), np.int64)
    assert check_inputs(vision, inputs) == {"batch": 1, "slots": 6}
    with pytest.raises(QwenImageError, match=r"indices is int32 \(24, 4\), expected int64 \(4\*slots, 4\)"):
        check_inputs(vision, inputs | {"indices": np.zeros((24, 4), np.int32)})
    with pytest.raises(QwenImageError, match=r"patches is float32 \(1, 22, 1536\)"):
        check_inputs(vision, inputs | {"patches": np.zeros((1, 22, 1536), np.float32)})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "latents",
            lambda a: a.astype(np.float64),
            r"latents is float64 \(2, 5, 8\), expected float32 \(batch, tokens, 8\)",
        ),
        ("latents", lambda a: a[0], r"latents is float32 \(5, 8\)"),
        ("latents", lambda a: a[..., :7], r"latents is float32 \(2, 5, 7\)"),
        ("cos", lambda a: a[:4], r"cos is float32 \(4, 2\), expected float32 \(tokens, 2\) with tokens=5"),
        ("key_0", lambda a: a[:1], r"key_0 is .*expected float32 \(batch, prefix, 2, 4\) with batch=2"),
        ("value_0", lambda a: a[:, 1:], r"value_0 is .*with batch=2, prefix=3"),
        ("key_0", lambda a: a[:, :0], r"key_0 is float32 \(2, 0, 2, 4\)"),
    ],
)
def test_each_mismatch_says_found_and_expected(
    step_contract: Contract, step_inputs: StepInputs, name: str, change: Callable[[Array], Array], message: str
) -> None:
    inputs = step_inputs(2, 5, 3)
    inputs[name] = change(inputs[name])
    with pytest.raises(QwenImageError, match="step: input " + message):
        check_inputs(step_contract, inputs)


def test_names_that_differ_are_listed(step_contract: Contract, step_inputs: StepInputs) -> None:
    inputs = step_inputs()
    inputs["velocity"] = inputs.pop("sin")
    with pytest.raises(QwenImageError, match="step: input sin is missing, input velocity is not known"):
        check_inputs(step_contract, inputs)


def ports(wanted: Contract, side: str) -> dict[str, PortFacts]:
    specs = getattr(wanted, side)
    return {s.name: PortFacts(s.dtype, tuple(a if isinstance(a, int) else None for a in s.shape)) for s in specs}


@pytest.mark.parametrize(
    ("name", "port", "message"),
    [
        (
            "latents",
            PortFacts("float16", (None, None, 8)),
            r"float16 \(\?, \?, 8\), expected float32 \(batch, tokens, 8\)",
        ),
        ("latents", PortFacts("float32", (1, None, 8)), r"float32 \(1, \?, 8\), expected"),
        ("latents", PortFacts("float32", (None, None, 9)), r"float32 \(\?, \?, 9\), expected"),
        ("latents", PortFacts("float32", (None, 8)), r"float32 \(\?, 8\), expected"),
        ("time_features", PortFacts("float32", (1, 128)), r"float32 \(1, 128\), expected float32 \(1, 256\)"),
    ],
)
def test_graph_that_differs_is_refused(step_contract: Contract, name: str, port: PortFacts, message: str) -> None:
    inputs = ports(step_contract, "inputs") | {name: port}
    with pytest.raises(QwenImageError, match=rf"another graph than its contract's: input {name} is {message}"):
        check_graph(step_contract, Path("step.onnx"), inputs, ports(step_contract, "outputs"))


def test_graph_may_leave_open_what_the_contract_fixes(step_contract: Contract) -> None:
    outputs = {"velocity": PortFacts("float32", None)}
    check_graph(step_contract, Path("step.onnx"), ports(step_contract, "inputs"), outputs)
