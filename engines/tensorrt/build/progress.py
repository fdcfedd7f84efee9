"""Progress of a build, as TensorRT reports it."""

import threading
from collections.abc import Callable

from qwen_image_engine.engines.tensorrt.bindings import trt

Progress = Callable[[str, int, int], bool]
"""Function that is called with a phase of the build, its steps done and its steps. It returns whether to go on."""


class Monitor(trt.IProgressMonitor):
    """A progress monitor that passes on the finished steps. TensorRT calls it from several threads."""

    def __init__(self, progress: Progress) -> None:
        trt.IProgressMonitor.__init__(self)
        self._progress = progress
        self._steps: dict[str, int] = {}
        self._lock = threading.Lock()

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # type: ignore[override]
        """Store the number of steps of the phase."""
        with self._lock:
            self._steps[phase_name] = num_steps

    def step_complete(self, phase_name: str, step: int) -> bool:  # type: ignore[override]
        """Return whether to go on building."""
        with self._lock:
            return self._progress(phase_name, step + 1, self._steps.get(phase_name, 0))

    def phase_finish(self, phase_name: str) -> None:
        """Forget the phase."""
        with self._lock:
            self._steps.pop(phase_name, None)
