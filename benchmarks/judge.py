"""How often a bundle's pictures fulfil held-out prompts, beside another bundle's: what a precision costs in pictures.

python benchmarks/judge.py BUNDLE [BUNDLE …] [--engine onnxruntime] [--seeds 3]
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import mean

from environment import environment

from qwen_image_engine.reference.shapes.evaluate import KINDS, SEED, STEPS, evaluate
from qwen_image_engine.runtime.manifest import read_manifest
from qwen_image_engine.runtime.pipeline import QwenImage

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--prompts", type=int, default=200, help="of each kind and seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "judge.json")
    options = parser.parse_args()
    results = []
    for bundle in options.bundles:
        target, precision = read_manifest(bundle).target, read_manifest(bundle).precision
        with QwenImage.load(bundle, engine=options.engine, threads=options.threads) as pipeline:
            for kind, counts in KINDS.items():
                scores = [
                    evaluate(pipeline, counts, options.prompts, SEED * (number + 1)) for number in range(options.seeds)
                ]
                rate = mean(score.rate for score in scores)
                print(f"{target} {precision} {kind}: {rate:.1%}, by seed {', '.join(f'{s.rate:.1%}' for s in scores)}")
                results.append(
                    {
                        "target": target,
                        "precision": precision,
                        "prompts": kind,
                        "rate": rate,
                        "seeds": [asdict(s) for s in scores],
                    }
                )
    what = f"held-out prompts that a bundle fulfils by the judge on {options.engine}; {STEPS} steps; seeds draw anew"
    document = {"what": what, "results": results, **environment()}
    options.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(options.output, file=sys.stderr)


if __name__ == "__main__":
    main()
