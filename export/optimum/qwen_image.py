"""`optimum-cli export qwen-image …`: `qwen-image export` where users of optimum look for it.

optimum imports every file of the namespace `optimum.commands.register`, in which this one is installed, whenever its
command starts; so nothing is imported here but the flags, and nothing runs without optimum.
"""

import sys
from argparse import ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

from qwen_image_engine.runtime.cli.verbs import export


class QwenImageExportCommand(BaseOptimumCLICommand):
    """The verb, its flags and its exit codes."""

    COMMAND = CommandInfo(name="qwen-image", help=export.SUMMARY)

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Declare the flags."""
        export.add_arguments(parser)
        parser.add_argument("--json", action="store_true", help="print one JSON document on standard output")

    def run(self) -> None:
        """Export, and leave the process with the verb's exit code."""
        from qwen_image_engine.runtime.cli.main import carry_out

        options = self.args
        assert options is not None
        sys.exit(carry_out(lambda: export.execute(options), options.json, quiet=options.json))


REGISTER_COMMANDS = [(QwenImageExportCommand, ExportCommand)]
