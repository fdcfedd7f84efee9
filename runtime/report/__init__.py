"""A result of `bench` or `verify` as one HTML page: plots, pictures and tables, without a network and without scripts.

    from qwen_image_engine.runtime.tools.report.folder import write_report

    write_report(bench("bundle", baselines=["torch"], pictures=True), "report")

Plots take matplotlib (the extra `report`), which is imported when one is drawn.
"""
