"""The command `qwen-image`: parse, call one verb, print its report.

Exit codes: 0 done, 1 failed, 2 a request that cannot be carried out as asked, 130 interrupted (Ctrl-C), 143 ended by
SIGTERM, 129 ended by SIGHUP. With `--json` standard output is exactly one JSON document, `{"error": …}` if the command
fails.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from importlib.metadata import version
from typing import Any, NoReturn, Protocol

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.runtime.cli.shared.failure import failed, write
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
    serve,
    verify,
)
from qwen_image_engine.runtime.system.cancellation import check_cancelled
from qwen_image_engine.runtime.system.interruption import interruptible


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
    "serve": serve,
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
        options = _parser(given).parse_args(given)
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
    with interruptible() as interruption:
        try:
            with redirect_stdout(sys.stderr) if quiet else nullcontext():
                report = work()
                check_cancelled()
            text = json.dumps(report.document, indent=2, allow_nan=False) if wants_json else "\n".join(report.lines)
            interruption.finish()
        except (Exception, KeyboardInterrupt) as error:
            return failed(error, interruption, wants_json)
        try:
            write(f"{text}\n", sys.stdout)
        except BrokenPipeError:  # whoever read the output has left
            return 1
        except OSError as error:
            return failed(error, interruption, wants_json)
    return report.exit_code


def _parser(given: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """Return the command's parser with the flags of every verb, or only of the verbs that are words of `given`."""
    parser = _Parser(prog="qwen-image", description="Compile and run Qwen-Image-2.x.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"qwen-image {version('qwen-image-engine')}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        own = verbs.add_parser(name, help=verb.SUMMARY, description=verb.SUMMARY, allow_abbrev=False)
        if given is None or name in given:  # two hundred flags take longer than to parse some of them
            verb.add_arguments(own)
        own.add_argument("--json", action="store_true", help="print one JSON document on standard output")
    return parser


def _asks_for_text(arguments: Sequence[str]) -> bool:
    return not {"-h", "--help", "--version"}.isdisjoint(arguments)
