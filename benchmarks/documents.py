"""Writes the tables of README.md and docs/ from the committed results: `python benchmarks/documents.py [--check]`.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`, NAME being one of `TABLES`.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
_TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def result(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def speed() -> str:
    """Cached steps at the released width, by size and way."""
    return markdown(
        ("tokens + prefix", "way", "seconds", "x diffusers fp32", "x diffusers bf16", "error"),
        (
            (
                f"{row['tokens']} + {row['prefix']}",
                row["way"],
                f"{row['median_s']:.2f}",
                *(
                    f"{row['times_faster_than'][f'diffusers {base}']['ratio_of_medians']:.2f}"
                    for base in ("fp32", "bf16")
                ),
                f"{row['relative_l2']:.1%}" if row["relative_l2"] > 1e-4 else f"{row['relative_l2']:.0e}",
            )
            for row in result("speed")["results"]
        ),
    )


def profile() -> str:
    """Shares of the time of a step by kind of operator."""
    found = result("speed")["profiles"]
    kinds = list(found[0]["kinds"])
    return markdown(
        ("tokens + prefix", "engine", *kinds),
        (
            (
                f"{row['tokens']} + {row['prefix']}",
                row["way"],
                *(f"{row['kinds'][kind]['share']:.1%}" for kind in kinds),
            )
            for row in found
        ),
    )


def attention() -> str:
    """One block's attention on every engine."""
    return markdown(
        ("way", "seconds", "GFLOP/s", "error"),
        (
            (row["way"], f"{row['median_s']:.2f}", f"{row['gflop_per_s']:.0f}", f"{row['relative_l2']:.0e}")
            for row in result("attention")["results"]
        ),
    )


def rotations() -> str:
    """One product with outliers, by the size of the rotation."""
    return markdown(
        ("channels rotated together", "relative error"),
        ((str(row["rotation"]), f"{row['relative_l2']:.1%}") for row in result("rotations")["results"]),
    )


def quantisation() -> str:
    """Every way on every checkpoint."""
    return markdown(
        ("checkpoint", "way", "step cosine", "teacher-forced", "worst step"),
        (
            (
                row["checkpoint"],
                row["way"],
                f"{row['step_cosine_mean']:.5f}",
                f"{row['teacher_forced_relative_l2_mean']:.1%}",
                f"{row['teacher_forced_relative_l2_worst']:.1%}",
            )
            for row in result("quantisation")["rows"]
        ),
    )


def judge() -> str:
    """Bundles on held-out prompts."""
    rows = result("judge")["results"]
    kinds = list(rows[0]["pictures"])
    return markdown(
        ("target, precision", "step cosine", "teacher-forced", "worst step", *kinds),
        (
            (
                f"{row['target']} {row['precision']}",
                f"{row['step']['cosine_mean']:.5f}",
                f"{row['teacher_forced']['relative_l2_mean']:.1%}",
                f"{row['teacher_forced']['relative_l2_worst_step']:.1%}",
                *(
                    f"{row['pictures'][kind]['rate']:.1%} "
                    f"({', '.join(str(seed['fulfilled']) for seed in row['pictures'][kind]['seeds'])} "
                    f"of {row['pictures'][kind]['seeds'][0]['tried']})"
                    for kind in kinds
                ),
            )
            for row in rows
        ),
    )


TABLES: Mapping[str, Callable[[], str]] = {
    table.__name__: table for table in (speed, profile, attention, rotations, quantisation, judge)
}


def written(text: str) -> str:
    """A document's text with its tables as the results have them."""
    return _TABLE.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a document has drifted")
    options = parser.parse_args()
    drifted = False
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text(encoding="utf-8")
        new = written(text)
        if new != text:
            drifted = True
            print(path.relative_to(ROOT), file=sys.stderr)
            if not options.check:
                path.write_text(new, encoding="utf-8")
    sys.exit(1 if drifted and options.check else 0)


if __name__ == "__main__":
    main()
