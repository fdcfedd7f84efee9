"""Pictures of `shapes` by solver and evaluations of the network: their distance from the reference's solution.

    python -m benchmarks.quality.solvers --fp32 BUNDLE --int8 BUNDLE [--parts fp32 int8 guidance solution]

Each part is a run of `verify --pictures`. Parts of an earlier run of this program stay in the result. "solution" tells
how far many-step settings are from one with twice as many steps, which is why Heun with 200 steps is the solution.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.common.environment import environment
from benchmarks.common.paths import RESULTS, SHAPES
from qwen_image_engine.export.verify.pictures.cases import SIZE, default_cases, kind
from qwen_image_engine.export.verify.pictures.measure import verify_pictures
from qwen_image_engine.export.verify.pictures.result import Row
from qwen_image_engine.export.verify.pictures.settings import SOLUTION, Setting
from qwen_image_engine.export.verify.pictures.tables import tables
from qwen_image_engine.export.verify.recording import Case
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.runtime.sampling.solver import SOLVERS

EVALUATIONS = (8, 10, 12, 14, 16, 20, 28, 40)
FEWER = (10, 14, 20, 40)
"""Evaluations of the parts that ask whether the gain holds: int8 and guidance."""
GUIDANCE = 3.0
PARTS = ("fp32", "int8", "guidance", "solution")
MANY_STEPS = (*(Setting(solver, 200) for solver in SOLVERS), Setting("heun", 100))


def settings(part: str) -> tuple[Setting, ...]:
    """Return every solver with as many steps as the evaluations allow. Heun's N steps take 2N - 1."""
    if part == "solution":
        return MANY_STEPS
    counts = EVALUATIONS if part == "fp32" else FEWER
    return tuple(Setting(solver, count // 2 if solver == "heun" else count) for solver in SOLVERS for count in counts)


def row(found: Row) -> dict[str, Any]:
    """Return a row of `verify --pictures` without its single pictures."""
    return {key: value for key, value in found.to_json().items() if key not in ("pictures", "judged")}


def measure(part: str, options: argparse.Namespace, cases: tuple[Case, ...]) -> dict[str, Any]:
    prompts = [case for case in cases if kind(case) == "prompts"]
    fewer = {"solution": prompts[:2], "guidance": prompts[: options.fewer], "int8": prompts[: options.fewer]}
    where = environment()
    bundle = options.int8 if part == "int8" else options.fp32
    found = verify_pictures(
        [bundle],
        options.model,
        settings=settings(part),
        solution=Setting(SOLUTION.solver, 2 * SOLUTION.steps) if part == "solution" else SOLUTION,
        cases=fewer.get(part, cases),
        guidance=GUIDANCE if part == "guidance" else 1.0,
        threads=options.threads,
    )
    print("\n".join(tables(found)), flush=True)
    document = found.to_json()
    (own,) = found.bundles
    return {
        **{key: document[key] for key in ("solution", "guidance", "cases")},
        **{key: getattr(own, key) for key in ("precision", "engine", "engine_version")},
        "rows": [row(item) for item in own.rows(found.cases)],
        **where,
        "versions": found.environment["versions"],  # with flip-evaluator's
    }


def earlier(path: Path) -> Mapping[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))["parts"] if path.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", type=Path, default=SHAPES)
    parser.add_argument("--fp32", type=Path, required=True, metavar="BUNDLE")
    parser.add_argument("--int8", type=Path, metavar="BUNDLE")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--fewer", type=int, default=4, help="prompts of the parts int8 and guidance")
    parser.add_argument("--threads", type=int, help="of the bundles' engines")
    parser.add_argument("--output", type=Path, default=RESULTS / "solvers.json")
    options = parser.parse_args()
    cases = default_cases(Checkpoint.open(options.model), SIZE, references=True)
    for part in options.parts:
        found = measure(part, options, cases)
        measured = {**earlier(options.output), part: found}
        document = {
            "what": f"pictures of `shapes` at {SIZE[0]}x{SIZE[1]} by solver and evaluations of the network: mean PSNR "
            "[dB] and FLIP against the solution that the fp32 reference draws with many steps, beside Euler with as "
            "many evaluations",
            "parts": {name: measured[name] for name in PARTS if name in measured},
        }
        options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        print(options.output, file=sys.stderr)


if __name__ == "__main__":
    main()
