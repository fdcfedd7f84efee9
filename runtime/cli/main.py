"""The command `qwen-image`: parse, call one verb, print its report.

Exit codes: 0 done, 1 failed, 2 a request that cannot be carried out as asked, 130 interrupted. With `--json` standard
output is exactly one JSON document, `{"error": …}` if the command fails.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout, suppress
from importlib.metadata import version
from typing import Any, NoReturn, Protocol, TextIO

from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.runtime.cli.shared.result import VerbResult
from qwen_image_engine.runtime.cli.verbs import (
    bench,
    build,
    calibrate,
    compare,
    doctor,
    export,
    inspect,
    plan,
    run,
    verify,
)
from qwen_image_engine.runtime.system.cancellation import check_cancelled
from qwen_image_engine.runtime.system.interruption import remembered_interruption

INTERRUPTED = 130


class Verb(Protocol):
    """The interface of a module of `runtime.cli.verbs`."""

    SUMMARY: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the verb's own flags."""

    def execute(self, options: argparse.Namespace) -> VerbResult:
        """Execute the verb and return its report.

        Raises:
            UsageError: the request cannot be carried out as asked.
            QwenImageError: the verb failed.
        """
        ...


VERBS: Mapping[str, Verb] = {
    "plan": plan,
    "export": export,
    "calibrate": calibrate,
    "build": build,
    "run": run,
    "verify": verify,
    "bench": bench,
    "compare": compare,
    "inspect": inspect,
    "doctor": doctor,
}


class _Parser(argparse.ArgumentParser):
    """A parser that raises usage errors as `UsageError`, and takes values that begin with a dash, such as "-1,2"."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse like argparse, which takes a word that begins with a dash for a flag, and a value for missing.

        The word behind a flag that takes a single value is its value, as in POSIX, unless it is itself a flag.
        """
        return super().parse_known_args(self._with_values_joined(args or []), namespace)

    def _with_values_joined(self, words: Sequence[str]) -> list[str]:
        flags = self._option_string_actions
        joined: list[str] = []
        expects_value = False
        for index, word in enumerate(words):
            if word == "--":
                return [*joined, *words[index:]]
            if expects_value and word.startswith("-") and word != "-" and word.partition("=")[0] not in flags:
                joined[-1] += f"={word}"
            else:
                joined.append(word)
            expects_value = joined[-1] == word and word in flags and flags[word].nargs is None
        return joined

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments` and return its exit code. None stands for the arguments of the process."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    wants_json = "--json" in given

    def work() -> VerbResult:
        options = _parser().parse_args(given)
        return VERBS[options.verb].execute(options)

    return carry_out(work, wants_json, quiet=wants_json and not _asks_for_text(given))


def carry_out(work: Callable[[], VerbResult], wants_json: bool, *, quiet: bool) -> int:
    """Call `work`, print its report or its error, and return the exit code.

    Args:
        work: function that parses and executes.
        wants_json: whether standard output is one JSON document.
        quiet: whether the output of libraries goes to standard error, so that it does not mix with the document.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that has no ✓ is no reason to fail
    try:
        with remembered_interruption(), redirect_stdout(sys.stderr) if quiet else nullcontext():
            report = work()
            check_cancelled()
        _print(
            json.dumps(report.document, indent=2, allow_nan=False) if wants_json else "\n".join(report.lines),
            sys.stdout,
        )
        return report.exit_code
    except UsageError as error:
        return _fail(str(error), 2, wants_json)
    except QwenImageError as error:
        return _fail(str(error), 1, wants_json)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED, wants_json)
    except BrokenPipeError:
        # Whoever read the output has left; the interpreter's own flush at exit must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError:
        return _fail("out of memory", 1, wants_json)
    except OSError as error:  # a full disk, a folder without permission
        return _fail(str(error), 1, wants_json)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="qwen-image", description="Compile and run Qwen-Image-2.x.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"qwen-image {version('qwen-image-engine')}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        own = verbs.add_parser(name, help=verb.SUMMARY, description=verb.SUMMARY, allow_abbrev=False)
        verb.add_arguments(own)
        own.add_argument("--json", action="store_true", help="print one JSON document on standard output")
    return parser


def _asks_for_text(arguments: Sequence[str]) -> bool:
    return not {"-h", "--help", "--version"}.isdisjoint(arguments)


def _print(text: str, stream: TextIO | None) -> None:
    if stream is not None:  # a process without a console has none
        print(text, file=stream, flush=True)


def _fail(message: str, code: int, wants_json: bool) -> int:
    line = " ".join(message.split())
    _print(f"qwen-image: error: {line}", sys.stderr)
    if wants_json:
        document: dict[str, Any] = {"error": line, "exit_code": code}
        with suppress(OSError):  # it may be the document that could not be written
            _print(json.dumps(document, indent=2), sys.stdout)
    return code
