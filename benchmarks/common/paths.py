"""Paths in this repository that benchmarks read and write."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PROMPTS = ROOT / "benchmarks" / "prompts.txt"
SHAPES = ROOT / "reference" / "shapes" / "checkpoint"
