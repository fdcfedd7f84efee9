"""The entry point of the command. Signals and failures end with one line, even while the command's modules load."""

import os
import sys


def main() -> int:
    """Run the command and return its exit code. End the process where a signal ended the command."""
    wants_json = "--json" in sys.argv
    try:
        from qwen_image_engine.runtime.cli.shared.failure import at_once, failed
        from qwen_image_engine.runtime.system.interruption import interruptible

        with interruptible(process_ends=True, last_words=lambda found: at_once(found, wants_json)) as interruption:
            try:
                from qwen_image_engine.runtime.cli.main import main as command

                code = command()
            except (Exception, KeyboardInterrupt) as error:
                code = failed(error, interruption, wants_json)
            if interruption.number is not None:
                # Python's own end waits for threads, and kills the process by SIGINT where `exec` of a text was ended.
                os._exit(code)
        return code
    except KeyboardInterrupt:  # before there was a handler
        if sys.stderr is not None:
            print("qwen-image: error: interrupted", file=sys.stderr)
        if wants_json and sys.stdout is not None:
            print('{"error": "interrupted", "exit_code": 130}')
        return 130


if __name__ == "__main__":
    sys.exit(main())
