"""Weights for a plan that was built without them, read from the bundle's own graph and weight files."""

from pathlib import Path

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.tensorrt.bindings import Log, made, trt


def refit(engine: trt.ICudaEngine, model: Path, log: Log, rebuild: str) -> None:
    """Give `engine` the weights that the graph in `model` names, before its first run.

    `rebuild` is the command that builds another plan, for an error's text.

    Raises:
        QwenImageError: weights are missing, or TensorRT does not take them.
    """
    refitter = made("refitter", log, lambda: trt.Refitter(engine, log))
    # It maps the weight files until it is gone, and the refitter reads them when it refits.
    parser = made("parser of weights", log, lambda: trt.OnnxParserRefitter(refitter, log))
    log.clear()
    fits = parser.refit_from_file(str(model))
    missing = refitter.get_missing_weights()
    if not fits or missing or not refitter.refit_cuda_engine():
        errors = "" if fits else "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise QwenImageError(
            f"{model}: {len(missing)} weights of the plan that was built without them are not in it "
            f"({', '.join(missing[:5]) or errors or log.errors()}); build it again with: {rebuild} --strip-weights"
        )
