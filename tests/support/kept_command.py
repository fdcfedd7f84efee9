"""A command in a process of its own, whose exports take the traced graphs that tests keep.

python tests/support/kept_command.py MODULE:FUNCTION ARGUMENT…
"""

import sys
from importlib import import_module
from pathlib import Path


def kept_command(entry: str) -> tuple[str, ...]:
    """Return the words that run the function `MODULE:FUNCTION`; arguments follow."""
    return sys.executable, __file__, entry


def main() -> None:
    """Run the function that the first argument names, as its console script does."""
    sys.path[0] = str(Path(__file__).parents[2])
    from qwen_image_engine.export.bundle import network_folder
    from tests.support.traces import kept_traces

    network_folder.trace = kept_traces(network_folder.trace)
    module, function = sys.argv[1].split(":")
    sys.argv = [module, *sys.argv[2:]]
    sys.exit(getattr(import_module(module), function)())


if __name__ == "__main__":
    main()
