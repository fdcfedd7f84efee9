"""`qwen-image export`: a checkpoint to a bundle of engine files."""

import argparse
from pathlib import Path

from qwen_image_engine.runtime.commands.export_packages import export_packages
from qwen_image_engine.runtime.commands.plan import add_recipe_arguments
from qwen_image_engine.runtime.commands.report import Report, size_text

SUMMARY = "turn a checkpoint into a bundle that the runtime draws with"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the folder to write")
    add_recipe_arguments(parser)


def execute(options: argparse.Namespace) -> Report:
    """Export."""
    raise NotImplementedError
