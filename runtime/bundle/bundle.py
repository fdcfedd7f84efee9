"""An open bundle: the manifest, and loaders of every part of the pipeline."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tokenizers import Tokenizer

from qwen_image_engine.engines.backends import (
    Backend,
    backends_for,
    check_kernel_specialization,
    find_backend,
    load_engine,
    require,
)
from qwen_image_engine.engines.core.engine import Engine
from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.engines.core.files import read_regular
from qwen_image_engine.engines.cuda.driver import device_info
from qwen_image_engine.engines.plans.fit import check_plan_fits, choose_plan
from qwen_image_engine.engines.tensorrt.package import KernelSpecialization
from qwen_image_engine.runtime.bundle.bound_files import check_bound_files
from qwen_image_engine.runtime.bundle.capability import check_capability
from qwen_image_engine.runtime.bundle.files import (
    WeightHeaders,
    build_command,
    check_bound_lists,
    check_files,
    check_graphs,
    check_tables,
    export_advice,
)
from qwen_image_engine.runtime.bundle.manifest import Manifest, read_manifest
from qwen_image_engine.runtime.bundle.manifest_entries import ComponentEntry
from qwen_image_engine.runtime.images.read import ReferenceSource
from qwen_image_engine.runtime.images.reference_image import ReferenceImages
from qwen_image_engine.runtime.sampling.schedule import ScheduleConfig
from qwen_image_engine.runtime.system.files import file_sha256
from qwen_image_engine.runtime.system.json_schema import MAX_JSON_BYTES, SchemaError, parse
from qwen_image_engine.runtime.system.machine import reachable_memory_bytes
from qwen_image_engine.runtime.text.embedding import EmbeddingTable
from qwen_image_engine.runtime.text.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from qwen_image_engine.engines.tensorrt.session import TensorRtSession


@dataclass(frozen=True)
class Bundle:
    """A bundle folder whose files match its manifest in size, header and, if they are small, contents.

    Its graphs hold what exports hold, and read weights where the files have them.
    """

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the manifest of the bundle in `folder`, run the quick check of the files, and check the graphs.

        Everything that a sampler needs minutes to reach is checked here: an engine reads a graph when it first runs.
        Plans are checked when they are loaded: a bundle may have those of one card alone.

        Raises:
            QwenImageError: the folder has no bundle, the manifest is damaged or of another schema version, a file is
                missing or changed, a graph holds something that no export holds, a weight is not where its file has
                it, or the list of a plan's bound weights is another bundle's.
        """
        manifest = read_manifest(folder)
        check_files(folder, manifest, [name for name in manifest.files if name not in manifest.plan_files])
        headers = WeightHeaders(folder)
        check_graphs(folder, manifest, headers=headers)
        check_tables(folder, manifest, headers)
        check_bound_lists(folder, manifest)
        return cls(folder, manifest)

    def read_references(self, sources: Sequence[ReferenceSource], resolution: int) -> ReferenceImages:
        """Read and fit reference images. Nothing of the bundle is loaded.

        Raises:
            UsageError: there are too many images, an image cannot be read or fitted, or the bundle was exported without
                the components that read them.
        """
        manifest = self.manifest
        return ReferenceImages.read(sources, resolution, manifest.facts.vision, manifest.absent_for_references)

    def load_engine(
        self,
        component: str,
        backend: str,
        threads: int | None = None,
        kernel_specialization: KernelSpecialization | None = None,
    ) -> Engine:
        """Load the engine of `component` on a backend.

        Args:
            component: name of a component of the bundle.
            backend: name of a backend.
            threads: threads of one run on the CPU; None leaves the number to the backend.
            kernel_specialization: when tensorrt-rtx compiles kernels for the shapes of a call, "lazy" or "eager"; None
                for "lazy".

        Raises:
            UsageError: the backend is unknown or does not run the bundle's graphs, the number of threads is out of
                range, or `kernel_specialization` is unknown or given for another backend.
            QwenImageError: the bundle does not have the component, its weights alone need more memory than is free, no
                plan was built for this GPU, the backend's package or its device is missing, or a file is damaged.
        """
        entry = self.manifest.components.get(component)
        if entry is None:
            raise QwenImageError(f"{self.folder} has no component {component}; {self._again()}")
        row = find_backend(backend)
        self._check_backend(row)
        check_kernel_specialization(backend, kernel_specialization)
        if row.create is None:
            return self._load_plan(component, entry, row, kernel_specialization)
        self._check_memory(component, entry, row)
        return load_engine(backend, self.folder / entry.model, entry.contract, threads)

    def _check_backend(self, backend: Backend) -> None:
        """Raise if a backend does not run graphs for the bundle's target.

        Raises:
            UsageError: the backend does not run graphs for the bundle's target.
        """
        target = self.manifest.target
        able = backends_for(target)
        if backend.name in able:
            return
        built = {plan.builder for plans in self.manifest.plans.values() for plan in plans}
        named = [name for name in able if name in built] or able
        wanted = f"--engine {' or '.join(named)}" if len(named) <= 2 else "another --engine"
        raise UsageError(
            f"{self.folder} holds graphs for {target}, which {backend.name} does not run; run it with {wanted}, or "
            f"export with --target {backend.target or 'cpu'}"
        )

    def _load_plan(
        self,
        component: str,
        entry: ComponentEntry,
        backend: Backend,
        kernel_specialization: KernelSpecialization | None,
    ) -> Engine:
        """Load a component's plan for this GPU, after a check of its builder and its hash.

        Raises:
            QwenImageError: no plan was built, the plan does not fit this machine, its SHA-256 is not the manifest's, a
                file does not hold a weight that the plan takes as an input, or there is no driver, no GPU or no package
                of the backend.
            OutOfDeviceMemory: the GPU has no room for the plan's weights.
        """
        device = device_info()  # first: without a driver TensorRT's objects end the process
        named = (device.compute_capability,) if backend.builder is not None else ()  # which builds for any GPU
        rebuild = build_command(self.folder, backend.name, named)
        plans = self.manifest.plans.get(component, ())
        require(backend.name)
        session = self._session
        plan = choose_plan(component, plans, backend.name, session.device, session.version, rebuild)
        check_plan_fits(component, plan, session.device, session.version, rebuild)
        check_files(self.folder, self.manifest, [plan.file])
        path, expected = self.folder / plan.file, self.manifest.files[plan.file]
        if file_sha256(path) != expected.sha256:  # hashed each time: whoever changes a plan runs code on the GPU
            raise QwenImageError(
                f"{component}: {path} has other contents than its sha256 says; build it again with: {rebuild}"
            )
        check_bound_files(self.folder, self.manifest, component, plan, rebuild)
        from qwen_image_engine.engines.tensorrt.engine import TensorRtEngine
        from qwen_image_engine.engines.tensorrt.load import PlanSource

        refitted = plan.stripped and not plan.bound  # which are inputs, and shared
        weights = sum(self.manifest.files[name].bytes for name in entry.weights) if refitted else 0
        source = PlanSource(
            path=path,
            entry=plan,
            weights_bytes=expected.bytes + weights,
            scratch_bytes=self._scratch_bytes(plan.builder, device.compute_capability),
            graph=self.folder / entry.model,
            rebuild=rebuild,
            specialization=kernel_specialization,
            folder=self.folder,
            mend=export_advice(self.folder, self.manifest),
        )
        return TensorRtEngine(session, source, entry.contract)

    def _scratch_bytes(self, builder: str, capability: str) -> int:
        """Return the most bytes of activations of any plan of `builder` for a compute capability."""
        listed = (
            item
            for plans in self.manifest.plans.values()
            for item in plans
            if item.builder == builder and capability in item.compute_capabilities
        )
        return max((most for item in listed for most in item.scratch_bytes), default=0)

    @cached_property
    def _session(self) -> "TensorRtSession":
        """Session that all engines of this bundle share; a process uses one product with TensorRT's API.

        Raises:
            QwenImageError: there is no driver or no GPU.
        """
        from qwen_image_engine.engines.tensorrt.session import TensorRtSession

        return TensorRtSession.open(device_info())

    def _check_memory(self, component: str, entry: ComponentEntry, backend: Backend) -> None:
        """Raise if the weights of a component do not fit into free memory, or the GPU is too old for its graph.

        A system that overcommits memory would kill the process instead.

        Raises:
            QwenImageError: the weights need more memory than is free, the GPU is too old for the graph, or there is no
                GPU or no package of the backend.
        """
        on_gpu = backend.device == "gpu"
        if on_gpu:
            require(backend.name)
            device = device_info()
            check_capability(component, entry, device, "bf16")
        needed = sum(self.manifest.files[name].bytes for name in entry.weights)
        free = device.free_bytes if on_gpu else reachable_memory_bytes()
        if free is not None and needed > free:
            raise QwenImageError(
                f"{component}: its weights take {needed} bytes, activations aside, and {free} bytes of "
                f"{'the GPU are' if on_gpu else 'memory and swap are'} free; free some, run with --memory sequential, "
                f"or export with {'--target tensorrt --precision fp8' if on_gpu else '--precision int8'}"
            )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the checkpoint, cached: loading its 150,000 tokens takes a while.

        Raises:
            QwenImageError: the tokenizer's file is missing, unreadable, or lacks the tokens of the prompt template.
        """
        return load_tokenizer(self.folder)

    def embeddings(self) -> EmbeddingTable:
        """Map the token embedding table into memory.

        Raises:
            QwenImageError: the table's dtype is not supported, or the file is missing or ends before the table does.
        """
        entry = self.manifest.embeddings
        return EmbeddingTable.open(self.folder / entry.file, entry.offset, entry.dtype, entry.shape)

    def schedule(self) -> ScheduleConfig:
        """Read the schedule of the noise levels.

        Raises:
            QwenImageError: a file of the schedule is missing or damaged, or has a value that is not implemented.
        """
        scheduler = self._json("scheduler/scheduler_config.json")
        grid = self._json("model_index.json").get("sample_sigmas")
        return ScheduleConfig.from_json(scheduler, grid, str(self.folder / "scheduler" / "scheduler_config.json"))

    def _json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        if name not in self.manifest.files:
            raise QwenImageError(f"{path} is not listed in the manifest; {self._again()}")
        try:
            values = parse(read_regular(path, MAX_JSON_BYTES))
        except OSError as error:
            raise QwenImageError(f"cannot read {path}: {error.strerror or error}") from error
        except SchemaError as error:
            raise QwenImageError(f"{path} is {error}; {self._again()}") from error
        if not isinstance(values, dict):
            raise QwenImageError(f"{path} holds no object; {self._again()}")
        return values

    def _again(self) -> str:
        return f"export again with: {self.manifest.export_command(self.folder)}"
