"""A watch on processes that tests start: each such test is marked, so that `make test-fast` can leave it out."""

import sys
from typing import Any

STARTS = frozenset({"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.exec"})


class ProcessWatch:
    """Count the processes that this one starts, which Python's audit events tell."""

    def __init__(self) -> None:
        self.started = 0
        sys.addaudithook(self._heard)

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in STARTS:
            self.started += 1
