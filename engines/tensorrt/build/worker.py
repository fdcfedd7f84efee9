"""The process that builds one engine: a job as JSON on standard input, progress and the result as lines of JSON.

A separate process gives all memory back, and a crash inside TensorRT ends it alone. `launch.run_build` starts it and
reads its output.
"""

import json
import os
import sys
import time
from dataclasses import asdict

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.cuda.driver import device_info
from qwen_image_engine.engines.tensorrt.build.job import BuildJob
from qwen_image_engine.engines.tensorrt.package import PRODUCTS, choose

_SAID_EVERY_S = 0.1


def main() -> int:
    """Build the job on standard input and return the exit code."""
    # Libraries that print must not mix with the lines.
    lines = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    said = 0.0

    def say(**message: object) -> None:
        print(json.dumps(message), file=lines, flush=True)

    def progress(phase: str, done: int, steps: int) -> bool:
        nonlocal said
        now = time.monotonic()
        if now - said >= _SAID_EVERY_S:
            said = now
            try:
                say(phase=phase, done=done, steps=steps)
            except OSError:
                return False  # whoever asked for the engine is gone
        return True

    try:
        job = BuildJob.from_json(json.load(sys.stdin))
        if PRODUCTS[job.builder].needs_gpu:
            device_info()  # without a driver its objects crash
        choose(job.builder)
        from qwen_image_engine.engines.tensorrt.build.builder import build

        say(result=asdict(build(job, progress)))
    except (QwenImageError, OSError) as error:
        say(error=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
