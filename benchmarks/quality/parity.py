"""The parity figures of the tests: the largest value of every figure that they compare.

python -m benchmarks.quality.parity

Runs the tests that call `within` (tests/conftest.py) and writes the values that they measure, with their limits.
"""

import argparse
import json
import sys
from pathlib import Path

import pytest

from benchmarks.common.environment import environment
from benchmarks.common.paths import RESULTS, ROOT

TESTS = ("tests/reference", "tests/runtime", "tests/export/test_parity.py")


class Figures:
    """A pytest plugin that collects the values and limits that `within` records."""

    def __init__(self) -> None:
        self.found: dict[str, list[tuple[float, float]]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            for name, value in report.user_properties:
                self.found.setdefault(name, []).append(value)  # type: ignore[arg-type]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / "parity.json")
    options = parser.parse_args()
    figures = Figures()
    code = pytest.main(["--rootdir", str(ROOT), *(str(ROOT / tests) for tests in TESTS)], plugins=[figures])
    rows = [
        {
            "figure": name,
            "worst": max(value for value, _ in found),
            "limit": min(limit for _, limit in found),
            "checks": len(found),
        }
        for name, found in sorted(figures.found.items())
    ]
    for row in rows:
        print(f"{row['worst']:10.2e}  (limit {row['limit']:g}, {row['checks']} checks)  {row['figure']}")
    document = {"what": "largest value of every figure of parity that the tests compare; fp32", "figures": rows}
    options.output.write_text(json.dumps(document | environment(), indent=2) + "\n", encoding="utf-8")
    print(options.output, file=sys.stderr)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
