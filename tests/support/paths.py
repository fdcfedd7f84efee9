"""Places in this repository that tests read."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
RESULTS = BENCHMARKS / "results"
SHAPES = ROOT / "reference" / "shapes" / "checkpoint"
