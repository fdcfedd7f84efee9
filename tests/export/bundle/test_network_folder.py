"""Contents of the exported files: the contract, the checkpoint's names, and no more nodes than the network needs."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from safetensors import safe_open

from qwen_image_engine.engines.core.components import COMPONENTS
from qwen_image_engine.engines.core.contract import contract
from qwen_image_engine.export.bundle.network_folder import MODEL_FILES
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.components import dims
from qwen_image_engine.reference.load import read_tensors
from qwen_image_engine.runtime.bundle.manifest import read_manifest

Bundles = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="session")
def bundle_of(
    random_checkpoint: Callable[..., Path], exported: Callable[..., Path]
) -> Callable[..., tuple[Path, Path]]:
    """`bundle_of(name, component) -> (checkpoint, bundle)`: the one that has the component."""

    def of(name: str, component: str) -> tuple[Path, Path]:
        attention = "bidirectional" if component == "joint" else None
        return random_checkpoint(name), exported(name, attention=attention)

    return of


def load(folder: Path, component: str) -> onnx.ModelProto:
    return onnx.load(str(folder / MODEL_FILES[component]), load_external_data=False)


def weights(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    external = onnx.TensorProto.EXTERNAL
    return {item.name: item for item in model.graph.initializer if item.data_location == external}


@pytest.mark.parametrize("component", MODEL_FILES)
def test_files_are_sound_and_of_the_stated_versions(
    bundle_of: Callable[..., tuple[Path, Path]], component: str
) -> None:
    folder = bundle_of("narrow", component)[1]
    path = folder / MODEL_FILES[component]
    onnx.checker.check_model(str(path))
    model = load(folder, component)
    entry = read_manifest(folder).components[component]
    assert model.ir_version == entry.ir_version == 11
    assert {item.domain: item.version for item in model.opset_import}[""] == entry.opset == 23


@pytest.mark.parametrize("name", ["narrow", "odd"])
@pytest.mark.parametrize("component", MODEL_FILES)
def test_inputs_and_outputs_are_the_contract(
    bundle_of: Callable[..., tuple[Path, Path]], name: str, component: str
) -> None:
    checkpoint, folder = bundle_of(name, component)
    expected = contract(component, dims(Checkpoint.open(checkpoint)))
    assert read_manifest(folder).components[component].contract == expected
    model = load(folder, component)
    for values, specs in ((model.graph.input, expected.inputs), (model.graph.output, expected.outputs)):
        assert [value.name for value in values] == [spec.name for spec in specs]
        for value, spec in zip(values, specs, strict=True):
            tensor = value.type.tensor_type
            assert tensor.elem_type == (onnx.TensorProto.INT64 if spec.name == "indices" else onnx.TensorProto.FLOAT)
            found = [axis.dim_param or axis.dim_value for axis in tensor.shape.dim]
            assert [_terms(axis) for axis in found] == [_terms(axis) for axis in spec.shape]


@pytest.mark.parametrize("network", ["text_encoder", "vision", "transformer", "vae"])
def test_weights_have_the_checkpoints_names_and_nothing_is_forgotten(bundle: Bundles, network: str) -> None:
    source, folder = bundle("odd")
    checkpoint = Checkpoint.open(source)
    stored = {tensor.name: tensor.shape for tensor in read_tensors(checkpoint, network)}
    found: dict[str, tuple[int, ...]] = {}
    for component, owner in ((row.name, row.network) for row in COMPONENTS.values()):
        if owner == network and component != "joint":
            found |= {name: tuple(item.dims) for name, item in weights(load(folder, component)).items()}
    assert found == stored


@pytest.mark.parametrize("component", MODEL_FILES)
def test_weights_lie_where_the_safetensors_header_says(
    bundle_of: Callable[..., tuple[Path, Path]], component: str
) -> None:
    folder = bundle_of("narrow", component)[1]
    model = load(folder, component)
    path = folder / MODEL_FILES[component]
    file = path.parent / "weights.safetensors"
    data = file.read_bytes()
    with safe_open(file, "numpy") as opened:
        for name, item in weights(model).items():
            place = {entry.key: entry.value for entry in item.external_data}
            assert place["location"] == file.name
            begin, length = int(place["offset"]), int(place["length"])
            assert data[begin : begin + length] == opened.get_tensor(name).tobytes()
            assert begin % 4 == 0


def test_step_has_no_node_that_a_block_does_not_need(bundle: Bundles) -> None:
    checkpoint, folder = bundle("odd")
    model = load(folder, "step")
    layers = Checkpoint.open(checkpoint).transformer.num_layers
    counts = Counter(node.op_type for node in model.graph.node)
    assert counts["MultiHeadAttention"] == layers
    assert counts["RotaryEmbedding"] == counts["RMSNormalization"] == 2 * layers
    assert counts["LayerNormalization"] == 2 * layers + 1
    # Seven a block; time, modulation, input and output take six.
    assert counts["Gemm"] == 7 * layers + 6
    # cos and sin for every batch entry, once a graph; nothing is cast, transposed or passed through.
    assert counts["Expand"] == 2
    assert not counts.keys() & {"Cast", "Transpose", "Identity", "Slice", "Squeeze", "Unsqueeze", "MatMul", "Constant"}
    # Queries and keys into heads and back, values, cached keys and values, the attention's result; 8 in all.
    assert counts["Reshape"] <= 8 * layers + 8
    assert counts["Shape"] == 2


def test_text_encoder_keeps_its_grouped_heads(bundle: Bundles) -> None:
    checkpoint, folder = bundle("narrow")
    config = Checkpoint.open(checkpoint).text_encoder
    nodes = [node for node in load(folder, "text_encoder").graph.node if node.op_type == "Attention"]
    assert len(nodes) == config.num_hidden_layers
    for node in nodes:
        attributes = {item.name: item.i for item in node.attribute}
        assert attributes["q_num_heads"] == config.num_attention_heads
        assert attributes["kv_num_heads"] == config.num_key_value_heads
        assert attributes["is_causal"] == 1
        assert len(node.input) == 3


def test_the_decoder_sees_the_whole_picture_in_its_first_part_alone(bundle: Bundles) -> None:
    mid, up = (
        Counter(node.op_type for node in load(bundle("narrow")[1], component).graph.node)
        for component in ("vae_decoder_mid", "vae_decoder_up")
    )
    assert mid["MultiHeadAttention"] == 1
    assert not up.keys() & {"MultiHeadAttention", "Attention", "MatMul", "Softmax", "Transpose"}
    # The decoder's four doublings: the first belongs to the part that runs whole.
    assert (mid["Resize"], up["Resize"]) == (1, 3)


@pytest.mark.parametrize("component", MODEL_FILES)
def test_no_graph_takes_a_mask_or_casts_fp32_weights(
    bundle_of: Callable[..., tuple[Path, Path]], component: str
) -> None:
    graph = load(bundle_of("narrow", component)[1], component).graph
    assert not any(value.type.tensor_type.elem_type == onnx.TensorProto.BOOL for value in graph.input)
    counts = Counter(node.op_type for node in graph.node)
    assert not counts.keys() & {"Where", "CastLike", "Identity", "SequenceAt", "Loop", "If"}
    # Sizes of an image and of the text behind it are read and added up; nothing else is cast.
    assert counts["Cast"] <= {"prefix_image": 2, "joint": 1}.get(component, 0)
    for node in graph.node:
        if node.op_type == "Cast":
            assert node.attribute[0].i == onnx.TensorProto.INT64


def _terms(axis: str | int) -> list[str]:
    """Terms of a sum, sorted: torch has an order of its own."""
    return sorted(str(axis).replace(" ", "").split("+"))
