"""The command `optimum-cli export qwen-image …`: `qwen-image export` for users who look for it in optimum.

optimum imports every file of the namespace `optimum.commands.register`, in which this module is installed, whenever its
command starts. So this module imports nothing but the flags, and nothing runs without optimum.
"""

import sys
from argparse import ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

from qwen_image_engine.runtime.cli.verbs import export


class QwenImageExportCommand(BaseOptimumCLICommand):
    """The verb `export` as a command of optimum, with the same flags and exit codes."""

    COMMAND = CommandInfo(name="qwen-image", help=export.SUMMARY)

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Declare the flags."""
        export.add_arguments(parser)
        parser.add_argument("--json", action="store_true", help="print one JSON document on standard output")

    def run(self) -> None:
        """Export, and leave the process with the exit code of the verb."""
        from qwen_image_engine.runtime.cli.main import carry_out

        options = self.args
        assert options is not None
        sys.exit(carry_out(lambda: export.execute(options), options.json, quiet=options.json))


REGISTER_COMMANDS = [(QwenImageExportCommand, ExportCommand)]
