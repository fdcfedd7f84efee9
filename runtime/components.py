"""The memory policy: which components' engines are held, and when they are freed."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, TypeVar, get_args

from qwen_image_engine.engines.core.components import COMPONENTS
from qwen_image_engine.engines.core.engine import CancellableEngine, Engine
from qwen_image_engine.engines.core.errors import OutOfDeviceMemory, UsageError
from qwen_image_engine.engines.core.loop import Loop, LoopingEngine, LoopInputs
from qwen_image_engine.runtime.system.cancellation import on_cancel
from qwen_image_engine.runtime.system.memory_use import MemoryWatch
from qwen_image_engine.runtime.timing import Timings

Memory = Literal["resident", "sequential"]

Allocated = TypeVar("Allocated")

_TRANSFORMER = tuple(row.name for row in COMPONENTS.values() if row.network == "transformer")
"""Graphs of one network, whose weights each engine holds for itself."""


class ComponentPool:
    """Engines by component, loaded by `load` and held as the policy says.

    "resident" keeps every engine once it is loaded, but where a GPU has no room for prefix and step, one network in
    several graphs: then each frees the others, and a new prompt loads both again. "sequential" holds one at a time, and
    frees it before it loads the next: the transformer never takes its memory twice.
    """

    def __init__(
        self, load: Callable[[str], Engine], memory: Memory = "resident", watch: MemoryWatch | None = None
    ) -> None:
        """Take the policy.

        Args:
            load: component name, as in `engines.contract`, to its engine.
            memory: the policy.
            watch: of this process, for `timings` to hold peaks too.

        Raises:
            UsageError: the policy is unknown.
        """
        if memory not in get_args(Memory):
            raise UsageError(f"memory {memory!r}: expected {' or '.join(get_args(Memory))}")
        self.memory = memory
        self.timings = Timings(watch=watch)
        self._load = load
        self._held: dict[str, Engine] = {}

    def preload(self, *components: str) -> None:
        """Load these now if they are to stay; "sequential" loads each when its turn comes."""
        if self.memory == "resident":
            for component in components:
                self.allocate(component, partial(self._get, component))

    def run(self, component: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run one component, loading it first where it is not held; outputs and errors as of `Engine.run`."""
        return self.allocate(component, lambda: self._run(component, inputs))

    def loops(self, component: str) -> bool:
        """Whether its engine takes the sampler's steps itself; loads it where it is not held."""
        return isinstance(self.allocate(component, lambda: self._get(component)), LoopingEngine)

    def loop(self, component: str, inputs: LoopInputs) -> Loop:
        """The sampler's steps on the device of an engine that takes them; errors as of `LoopingEngine.loop`."""

        def make() -> Loop:
            engine = self._get(component)
            assert isinstance(engine, LoopingEngine)
            return engine.loop(inputs)

        return self.allocate(component, make)

    def allocate(self, component: str, make: Callable[[], Allocated]) -> Allocated:
        """What `make` allocates for the next run of `component`, other graphs of its network freed where it must be.

        Raises:
            OutOfDeviceMemory: there is no room for it then either.
        """
        try:
            return make()
        except OutOfDeviceMemory:
            if not self._free_other_graphs(component):
                raise
        return make()

    def close(self) -> None:
        """Free every engine; running one afterwards loads it again."""
        while self._held:
            self._held.popitem()[1].close()

    def _run(self, component: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        engine = self._get(component)
        with self.timings.measure("run", component):
            if not isinstance(engine, CancellableEngine):
                return engine.run(inputs)
            with on_cancel(engine.cancel):
                return engine.run(inputs)

    def _free_other_graphs(self, component: str) -> bool:
        """Free what else is held of the transformer, if `component` is of it; whether anything was."""
        if component not in _TRANSFORMER:
            return False
        others = [name for name in _TRANSFORMER if name in self._held and name != component]
        for name in others:
            self._held.pop(name).close()
        return bool(others)

    def _get(self, component: str) -> Engine:
        if component not in self._held:
            if self.memory == "sequential":
                self.close()
            with self.timings.measure("load", component):
                self._held[component] = self._load(component)
        return self._held[component]
