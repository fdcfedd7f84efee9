"""The parts of Python's standard library that Windows lacks, and code that takes it away from a process.

The lists are those of typeshed's stubs, which mypy brings along.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import mypy

_STUBS = Path(mypy.__file__).parent / "typeshed" / "stdlib"

# Python's own modules and other packages use the other names on this system, which they were built for.
TAKEN_FROM_OS = (
    *("chown", "fchown", "getegid", "geteuid", "getgid", "getpgid", "getuid", "killpg", "mkfifo", "mknod"),
    *("sched_getaffinity", "setsid", "setuid", "sysconf"),
)
TAKEN_FROM_SIGNAL = ("SIGALRM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")


def posix_only_modules() -> frozenset[str]:
    """Modules of the standard library that define something on Linux and nothing on Windows: `fcntl`, `pwd`, …"""
    stubs = {file.stem: ast.parse(file.read_text(encoding="utf-8")).body for file in _STUBS.glob("[!_]*.pyi")}
    return frozenset(
        name for name, body in stubs.items() if any(_defined(body, "linux")) and not any(_defined(body, "win32"))
    )


def posix_only_names(module: str) -> frozenset[str]:
    """Names that a module of the standard library has on Linux and not on Windows."""
    file = next(path for path in (_STUBS / f"{module}.pyi", _STUBS / module / "__init__.pyi") if path.is_file())
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return frozenset(_defined(body, "linux")) - frozenset(_defined(body, "win32"))


def taking_away() -> str:
    """Code without POSIX-only modules, without some functions of `os` and `signal`, and without /proc and /sys."""
    modules = sorted(posix_only_modules())
    return f"""
import os, shutil, signal, sys

for name in {modules}:
    sys.modules[name] = None
for owner, names in ((os, {TAKEN_FROM_OS}), (signal, {TAKEN_FROM_SIGNAL})):
    for name in names:
        delattr(owner, name)


def no_such_file(event, arguments):
    if event == "open" and str(arguments[0]).startswith(("/proc/", "/sys/")):
        raise FileNotFoundError(2, "No such file or directory", arguments[0])


sys.addaudithook(no_such_file)
"""


def _defined(body: list[ast.stmt], system: str) -> Iterator[str]:
    """Public names that the statements of a stub define on a system, up to an `assert` that excludes it."""
    for node in body:
        names: list[str] = []
        if isinstance(node, ast.Assert) and not _holds(node.test, system):
            return
        if isinstance(node, ast.If):
            yield from _defined(node.body if _holds(node.test, system) else node.orelse, system)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
        yield from (name for name in names if not name.startswith("_"))


def _holds(test: ast.expr, system: str) -> bool:
    facts = SimpleNamespace(platform=system, version_info=sys.version_info, implementation=sys.implementation)
    return bool(eval(compile(ast.Expression(test), "<stub>", "eval"), {"sys": facts, "TYPE_CHECKING": True}))
