"""The writer of tables and figures in README.md and docs/: `python -m benchmarks.documents.write [--check]`.

A table is between `<!-- table: NAME -->` and `<!-- end -->`, with a NAME from `_TABLES`. Words with figures in a
sentence are between `<!-- figure: NAME -->` and `<!-- end -->`, with a NAME from `FIGURES`.
"""

import argparse
import re
import sys

from benchmarks.common.paths import ROOT
from benchmarks.documents.figures import FIGURES
from benchmarks.documents.gpu import gpu
from benchmarks.documents.measured import measured
from benchmarks.documents.step_cache import step_cache
from benchmarks.documents.tables import TABLES
from qwen_image_engine.engines.core import contract
from qwen_image_engine.runtime.serve.api import fields
from qwen_image_engine.runtime.serve.api.limits import Limits


def _fields() -> str:
    return fields.markdown(Limits())


_TABLES = {
    **TABLES,
    "measured": measured,
    "gpu": gpu,
    "step_cache": step_cache,
    "contracts": contract.markdown,
    "fields": _fields,
}
_TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_FIGURE = re.compile(r"(<!-- figure: (\w+) -->).*?(<!-- end -->)")


def written(text: str) -> str:
    """Return a document's text with the tables and figures of the results.

    Raises:
        KeyError: the document names a table or a figure that does not exist.
    """
    text = _TABLE.sub(lambda found: found[1] + _TABLES[found[2]]() + found[3], text)
    return _FIGURE.sub(lambda found: found[1] + FIGURES[found[2]]() + found[3], text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a document has drifted")
    options = parser.parse_args()
    drifted = False
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
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
