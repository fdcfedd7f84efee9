"""Writes the figures of README.md and docs/ from the results: `python -m benchmarks.documents.write [--check]`.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`, NAME being one of `_TABLES`; words with
figures in a sentence between `<!-- figure: NAME -->` and `<!-- end -->`, NAME being one of `FIGURES`.
"""

import argparse
import re
import sys

from benchmarks.common.paths import ROOT
from benchmarks.documents.figures import FIGURES
from benchmarks.documents.gpu import gpu
from benchmarks.documents.measured import measured
from benchmarks.documents.tables import TABLES

_TABLES = {**TABLES, "measured": measured, "gpu": gpu}
_TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_FIGURE = re.compile(r"(<!-- figure: (\w+) -->).*?(<!-- end -->)")


def written(text: str) -> str:
    """A document's text with its figures as the results have them.

    Raises:
        KeyError: it names a table or a figure that there is not.
    """
    text = _TABLE.sub(lambda found: found[1] + _TABLES[found[2]]() + found[3], text)
    return _FIGURE.sub(lambda found: found[1] + FIGURES[found[2]]() + found[3], text)


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
