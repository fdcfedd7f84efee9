"""The toolkit of report pages (HTML, plots, pictures) and the page of `bench`, without a network and without scripts.

    from qwen_image_engine.runtime.tools.report import write_report

    write_report(bench("bundle", baselines=["torch"], pictures=True), "report")

Plots need matplotlib (the extra `report`), which is imported when a plot is drawn.
"""

from typing import TYPE_CHECKING

from qwen_image_engine.engines.core.entries import lazy_names

if TYPE_CHECKING:
    from qwen_image_engine.runtime.tools.report.folder import write_report as write_report

__all__ = ["write_report"]

__getattr__ = lazy_names(__name__, {"write_report": "runtime.tools.report.folder"})
