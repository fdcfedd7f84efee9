"""The share of held-out prompts and edits that a checkpoint's fp32 reference fulfils, by the judge.

python -m benchmarks.quality.shapes [-m reference/shapes/checkpoint]
"""

import argparse
import json
import sys
from pathlib import Path
from time import perf_counter

from benchmarks.common.environment import environment
from benchmarks.common.paths import RESULTS
from qwen_image_engine.reference.pipeline import reference_pipeline
from qwen_image_engine.reference.shapes.judge.evaluate import KINDS, STEPS, report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="reference/shapes/checkpoint")
    parser.add_argument("--prompts", type=int, default=200, help="of one or two shapes, and as many of three")
    parser.add_argument("--edits", type=int, default=150, help="of all kinds in turn")
    parser.add_argument("--output", type=Path, default=RESULTS / "shapes.json")
    options = parser.parse_args()
    began = perf_counter()
    with reference_pipeline(options.model) as pipeline:
        found = report(pipeline, options.prompts, options.edits)
    document = {
        "what": f"held-out prompts and edits that the fp32 reference fulfils by the judge; {STEPS} steps, all sizes",
        **found,
        "seconds": perf_counter() - began,
        **environment(),
    }
    options.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    for name in KINDS:
        print(f"{name}: {found[name]['rate']:.1%}")
    print(f"edits: {found['edits']['rate']:.1%}, {found['edits']['kept']:.1%} of the other pixels left alone")
    print(options.output, file=sys.stderr)


if __name__ == "__main__":
    main()
