"""The error of one int8 product of the released width, by the number of channels rotated together.

python -m benchmarks.quantisation.rotations

Rows and weights are normal, with 4096 channels, and one channel in 128 is 60 times as large in the rows. There is one
scale for each row and one for each output, as in int8 on the CPU. The time of rotations is in speed.json, by kind of
operator.
"""

import json
import sys

import torch

from benchmarks.common.environment import environment
from benchmarks.common.paths import RESULTS
from qwen_image_engine.calibration.quantise.hadamard import rotate
from qwen_image_engine.calibration.quantise.int8 import quantise_rows

ROWS, CHANNELS, OUTPUTS, EVERY, FACTOR = 1024, 4096, 4096, 128, 60.0


def rounded(rows: torch.Tensor) -> torch.Tensor:
    codes, scales = quantise_rows(rows)
    return codes.float() * scales[:, None]


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, weight = (torch.randn(count, CHANNELS, generator=generator) for count in (ROWS, OUTPUTS))
    rows[:, ::EVERY] *= FACTOR
    exact = rows @ weight.T
    results = []
    for rotation in (1, 16, 64, 256):
        found = rounded(rotate(rows, rotation)) @ rounded(rotate(weight, rotation)).T
        results.append({"rotation": rotation, "relative_l2": float((found - exact).norm() / exact.norm())})
        print(f"{rotation:4} channels: {results[-1]['relative_l2']:.2%}")
    document = {
        "what": f"relative error of ({ROWS}, {CHANNELS}) x ({CHANNELS}, {OUTPUTS}) in int8, one channel in {EVERY} "
        f"{FACTOR:g} times as large, by channels rotated together",
        "results": results,
        **environment(),
    }
    file = RESULTS / "rotations.json"
    file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(file, file=sys.stderr)


if __name__ == "__main__":
    main()
