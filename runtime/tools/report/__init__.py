"""The toolkit of report pages (HTML, plots, pictures) and the page of `bench`, without a network and without scripts.

    from qwen_image_engine.runtime.tools.report import write_report

    write_report(bench("bundle", baselines=["torch"], pictures=True), "report")

Plots take matplotlib (the extra `report`), which is imported when one is drawn.
"""
