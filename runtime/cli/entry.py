"""The entry point of the command. Ctrl-C prints one line, even during the import of the command's modules."""

import sys


def main() -> int:
    """Run the command and return its exit code."""
    try:
        from qwen_image_engine.runtime.cli.main import main as command

        return command()
    except KeyboardInterrupt:
        if sys.stderr is not None:
            print("qwen-image: error: interrupted", file=sys.stderr)
        if "--json" in sys.argv and sys.stdout is not None:
            print('{"error": "interrupted", "exit_code": 130}')
        return 130
