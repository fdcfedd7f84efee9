"""Weights for a plan that was built without them, from the bundle's own graph and weight files."""

from pathlib import Path

import tensorrt as trt

from qwen_image_engine.engines.errors import QwenImageError
from qwen_image_engine.engines.tensorrt_factory import made
from qwen_image_engine.engines.tensorrt_log import Log
from qwen_image_engine.engines.tensorrt_softmax import NAME, SoftmaxScale


def refit(engine: trt.ICudaEngine, model: Path, log: Log, softmax_scale: float | None = None) -> None:
    """Give `engine` the weights that the graph in `model` names, before its first run.

    `softmax_scale` is that of FP8 attention's probabilities, which stands in no graph; None where none is FP8.

    Raises:
        QwenImageError: TensorRT takes them not, or some are missing then.
    """
    refitter = made("refitter", log, lambda: trt.Refitter(engine, log))
    parser = made("parser of weights", log, lambda: trt.OnnxParserRefitter(refitter, log))
    log.clear()
    if not parser.refit_from_file(str(model)):
        reasons = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise QwenImageError(
            f"{model}: its weights do not fit the plan that was built without them ({reasons or log.errors()}); "
            "build again with: qwen-image build"
        )
    softmax = SoftmaxScale(softmax_scale) if softmax_scale is not None else None  # read when the engine is refitted
    if softmax is not None and not softmax.refit(refitter):
        raise QwenImageError(
            f"{model}: the plan that was built without weights has no {NAME} ({log.errors()}); build again with: "
            "qwen-image build"
        )
    missing = refitter.get_missing_weights()
    if missing or not refitter.refit_cuda_engine():
        raise QwenImageError(
            f"{model}: {len(missing)} weights of the plan are not in it ({', '.join(missing[:5]) or log.errors()}); "
            "build again with: qwen-image build"
        )
