"""The parsing of a job's graph into a network, with its weights inside or as inputs."""

from __future__ import annotations

from pathlib import Path

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.graph.external_weights import read_graph
from qwen_image_engine.engines.core.graph.weight_inputs import WeightInput, weight_inputs, with_weights_as_inputs
from qwen_image_engine.engines.tensorrt.bindings import PRODUCT, Log, trt
from qwen_image_engine.engines.tensorrt.build.job import BuildJob


def parse_graph(parser: trt.OnnxParser, job: BuildJob, log: Log) -> frozenset[str]:
    """Parse the graph of a job, and return the names of the network's inputs for weights.

    The parser gets a graph without these weights in memory, with the path of the file: it is where the parser looks for
    the weights that stay. It reads no others.

    Raises:
        QwenImageError: the graph cannot be parsed.
        OSError: the graph, or a file with its scales, cannot be read.
    """
    log.clear()
    bound: list[WeightInput] = []
    if job.options.weights != "bound":
        parsed = parser.parse_from_file(job.model)
    else:
        model = read_graph(Path(job.model))
        try:
            bound = weight_inputs(model, Path(job.model).parent)
            graph = with_weights_as_inputs(model, bound)
        except ValueError as error:
            raise QwenImageError(f"{job.component}: {job.model} is no graph ({error}); export it again") from error
        parsed = parser.parse(graph, job.model)
    if not parsed:
        raise QwenImageError(f"{job.component}: {PRODUCT.text} cannot parse {job.model}: {_parse_errors(parser, log)}")
    return frozenset(weight.name for weight in bound)


def _parse_errors(parser: trt.OnnxParser, log: Log) -> str:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    found = "; ".join(f"{error.node_name()} ({error.node_operator()}): {error.desc()}" for error in errors)
    return f"{found or log.errors()}; see what qwen-image inspect --check says of the bundle"
