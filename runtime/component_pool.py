"""The memory policy: the components whose engines stay loaded, and the time at which each engine is freed."""

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
"""Components of the transformer. Each of their engines holds a copy of the weights, unless they are inputs of its plan:
then all share one, which is freed with the last of them."""


class ComponentPool:
    """A pool of engines by component, loaded by `load` and held as the memory policy says.

    "resident" keeps every loaded engine. The exception is a GPU without room for prefix and step, which are graphs of
    one network: then each frees the others, and a new prompt loads both again. "sequential" holds one engine at a time
    and frees it before it loads the next. The weights of the transformer are then never in memory twice. Weights that
    are inputs of plans are freed with their engine and uploaded again with the next.
    """

    def __init__(
        self, load: Callable[[str], Engine], memory: Memory = "resident", watch: MemoryWatch | None = None
    ) -> None:
        """Check the policy and create an empty pool.

        Args:
            load: function from a component name, as in `engines.core.components`, to a new engine.
            memory: the memory policy.
            watch: watch of this process's memory, so that `timings` holds peaks too; None for seconds alone.

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
        """Load `components` now if the policy is "resident". "sequential" loads each engine when it first runs."""
        if self.memory == "resident":
            for component in components:
                self.allocate(component, partial(self._get, component))

    def run(self, component: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run one component and return its outputs. Load its engine first if it is not held.

        Raises:
            QwenImageError: the engine cannot be loaded, the inputs do not match the contract, or the run failed.
        """
        return self.allocate(component, lambda: self._run(component, inputs))

    def loops(self, component: str) -> bool:
        """Return whether the engine of `component` takes the sampler's steps itself. Load it if it is not held."""
        return isinstance(self.allocate(component, lambda: self._get(component)), LoopingEngine)

    def loop(self, component: str, inputs: LoopInputs) -> Loop:
        """Return the sampler's loop on the device of the engine of `component`, which must be a `LoopingEngine`.

        Raises:
            QwenImageError: the engine cannot be loaded, or refuses the inputs of the loop.
        """

        def make() -> Loop:
            engine = self._get(component)
            assert isinstance(engine, LoopingEngine)
            return engine.loop(inputs)

        return self.allocate(component, make)

    def allocate(self, component: str, make: Callable[[], Allocated]) -> Allocated:
        """Call `make`. If the device is out of memory, free other engines of the network and call it once more.

        Args:
            component: component whose next run needs the allocation.
            make: function that allocates.

        Raises:
            OutOfDeviceMemory: there is no room, and no other engine of the network was held or freeing did not suffice.
        """
        try:
            return make()
        except OutOfDeviceMemory:
            if not self._free_other_graphs(component):
                raise
        return make()

    def close(self) -> None:
        """Free every engine. A later run loads its engine again."""
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
        """Free the transformer's other engines if `component` belongs to it. Return whether any was freed."""
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
