"""A TensorRT that reads real ONNX files: their inputs, attentions and products, and holds every profile against them.

It stands on `FakeTensorRT`, so each call is one of the real API. What TensorRT would make of a graph is not known from
here: fused is what must be, and a product is in 8 bits where it reads codes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from onnx import NodeProto, TensorProto

from tests.support.fake_tensorrt import FakeTensorRT

PRODUCTS = ("Gemm", "MatMul")
_CODES = {TensorProto.FLOAT8E4M3FN: "FP8", TensorProto.INT8: "Int8"}


class PlayedBuilder:
    """A builder of one graph at a time; `profiles` has the last one's shapes by input, `inputs` its inputs' axes.

    `stored` are its weights in files, scales aside, and `left_out` those that its plan is to be without.
    """

    def __init__(self, fake: FakeTensorRT) -> None:
        self.fake = fake
        self.layers: list[Any] = []
        self.inputs: dict[str, list[int | None]] = {}
        self.profiles: list[dict[str, tuple[tuple[int, ...], ...]]] = []
        self.kinds: dict[str, str] = {}
        self.stored: set[str] = set()
        self.left_out: set[str] = set()
        network = fake.fake("INetworkDefinition", num_layers=0, num_inputs=0)

        def parse(parser: Any, path: str) -> bool:
            self._read(path)
            network.__dict__.update(num_layers=len(self.layers), num_inputs=len(self.inputs))
            return True

        def leave_out(network: Any, name: str) -> bool:
            self.left_out.add(name)
            return name in self.stored

        def set_shape(profile: Any, name: str, *extents: Any) -> None:
            profile.__dict__.setdefault("shapes", {})[name] = tuple(item.__dict__["axes"] for item in extents)

        def add_profile(config: Any, profile: Any) -> int:
            self.profiles.append(profile.__dict__["shapes"])
            return len(self.profiles) - 1

        def write(builder: Any, network: Any, config: Any, writer: Any) -> bool:
            assert self.profiles
            for shapes in self.profiles:
                self._check(shapes)
            return bool(writer.write(b"a plan") == 6)

        fake.returns |= {
            "Builder.create_network": lambda builder, flags=0: network,
            "OnnxParser.parse_from_file": parse,
            "INetworkDefinition.get_layer": lambda network, index: self.layers[index],
            "INetworkDefinition.get_input": lambda network, index: fake.fake("ITensor", name=[*self.inputs][index]),
            "IAttention.get_input": lambda attention, index: attention.__dict__["inputs"][index],
            "ILayer.get_output": lambda layer, index: layer.__dict__.get("output", "a constant"),
            "INetworkDefinition.mark_weights_refittable": leave_out,
            "INetworkDefinition.add_constant": lambda network, shape, weights: fake.fake("IConstantLayer"),
            "Dims.__init__": lambda dims, axes: dims.__dict__.update(axes=tuple(axes)),
            "IOptimizationProfile.set_shape": set_shape,
            "IBuilderConfig.add_optimization_profile": add_profile,
            "Builder.build_serialized_network_to_stream": write,
            "Runtime.deserialize_cuda_engine": lambda runtime, plan: fake.fake(
                "ICudaEngine", num_optimization_profiles=len(self.profiles)
            ),
            "ITimingCache.serialize": lambda cache: b"timings",
            "EngineInspector.get_engine_information": lambda inspector, form: json.dumps({"Layers": [*self._built()]}),
        }

    def _read(self, path: str) -> None:
        graph = onnx.load(path, load_external_data=False).graph
        for weight in graph.initializer:
            for item in weight.external_data:
                assert item.key != "location" or (Path(path).parent / item.value).is_file()
        weights = {item.name: item.data_type for item in graph.initializer}
        scales = {node.input[1] for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
        self.stored = {item.name for item in graph.initializer if item.external_data} - scales
        self.left_out = set()
        self.inputs = {
            item.name: [axis.dim_value or None for axis in item.type.tensor_type.shape.dim] for item in graph.input
        }
        # The names of nodes are how the audit finds them again in a built engine.
        names = [node.name for node in graph.node]
        assert all(names)
        assert len(set(names)) == len(names)
        makers = {name: node for node in graph.node for name in node.output}
        self.profiles, self.kinds = [], {}
        for node in graph.node:
            if node.op_type in PRODUCTS:
                self.kinds[node.name] = _kind(node, makers, weights)
        self.layers = [*self._layers(graph)]

    def _layers(self, graph: onnx.GraphProto) -> Iterator[Any]:
        kinds = {
            "DequantizeLinear": "DEQUANTIZE",
            "Attention": "ATTENTION_INPUT",
            **dict.fromkeys(PRODUCTS, "MATRIX_MULTIPLY"),
        }
        for node in graph.node:
            if node.op_type not in kinds:
                continue
            kind, metadata = getattr(self.fake.LayerType, kinds[node.op_type]), f"[ONNX Layer: {node.name}]"
            layer = self.fake.fake("ILayer", type=kind, name=node.name, metadata=metadata)
            layer.__dict__["output"] = self.fake.fake("ITensor", name=node.output[0])
            if node.op_type == "Attention":
                mask = self.fake.fake("ITensor", name=node.input[3]) if len(node.input) > 3 and node.input[3] else None
                attention = self.fake.fake("IAttention", name=node.name, metadata=metadata, mask=mask)
                # As the parser does: queries and keys are products with the root of the scale, values the graph's own.
                names = ("a product", "a product", node.input[2])
                attention.__dict__["inputs"] = [self.fake.fake("ITensor", name=name) for name in names]
                layer.__dict__["attention"] = attention
            yield layer

    def _check(self, shapes: dict[str, tuple[tuple[int, ...], ...]]) -> None:
        """As TensorRT would: every input, its rank, its fixed axes, and a range for every other."""
        assert shapes.keys() == self.inputs.keys()
        for name, axes in self.inputs.items():
            for extent in shapes[name]:
                assert len(extent) == len(axes), name
            for axis, *sizes in zip(axes, *shapes[name], strict=True):
                assert 1 <= sizes[0] <= sizes[1] <= sizes[2], name
                assert axis is None or sizes == [axis] * 3, name

    def _built(self) -> Iterator[dict[str, Any]]:
        for layer in self.layers:
            attention = layer.__dict__.get("attention")
            if attention is not None and attention.decomposable is False:
                read = "FP8" if attention.normalization_quantize_to_type == self.fake.fp8 else "BFloat16"
                inputs = [{"Name": "q", "Format/Datatype": read}]
                yield {"Name": "_gemm_mha_v2", "Metadata": attention.metadata, "Inputs": inputs}
            elif layer.name in self.kinds:
                inputs = [{"Name": "x", "Format/Datatype": self.kinds[layer.name]}]
                yield {"Name": layer.name, "Metadata": layer.metadata, "Inputs": inputs}


def _kind(node: NodeProto, makers: dict[str, NodeProto], weights: dict[str, int]) -> str:
    """The dtype in which a product reads its weight."""
    maker = makers.get(node.input[1])
    if maker is None or maker.op_type != "DequantizeLinear":
        return "BF16"
    return _CODES[weights[maker.input[0]]]
