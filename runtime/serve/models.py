"""The models of a server by name, and the engines that are loaded within a budget of memory."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.runtime.bundle.bundle import Bundle
from qwen_image_engine.runtime.component_pool import Memory
from qwen_image_engine.runtime.pipeline import QwenImage, preloaded
from qwen_image_engine.runtime.serve.api.errors import ApiError
from qwen_image_engine.runtime.system.json_schema import described
from qwen_image_engine.runtime.system.text import size_text

_NAME = re.compile(r"[\w.:/@+-]{1,200}", re.ASCII)


@dataclass(eq=False)
class Model:
    """A model that requests name.

    Attributes:
        name: name in requests.
        pipeline: the open pipeline, whose engines may be loaded or not.
        bytes: bytes of the files of its weights, each once, however many of its engines read it.
        created: time of the bundle [s since 1970].
    """

    name: str
    pipeline: QwenImage
    bytes: int = 0
    created: int = 0
    loaded: bool = field(default=False, init=False)

    @classmethod
    def open(cls, name: str, folder: Path, engine: str, memory: Memory, threads: int | None) -> Model:
        """Open a bundle. Its smallest engine is loaded and freed, to tell whether the engines run here at all.

        Raises:
            UsageError: the name, the memory policy or the number of threads is not valid, or the engine does not run
                the bundle's graphs.
            QwenImageError: the bundle is missing, changed, incomplete or of another schema version, or the engine's
                package or its device is missing.
        """
        if not _NAME.fullmatch(name):
            raise UsageError(f"the name {name!r} of a model: expected 1 to 200 letters, digits and .:/@+-_")
        bundle = Bundle.open(folder)
        pipeline = QwenImage.open(bundle, engine=engine, memory=memory, threads=threads)
        manifest = bundle.manifest
        needed = [manifest.components[component] for component in preloaded(manifest.facts.attention)]
        least = min(needed, key=lambda entry: sum(manifest.files[file].bytes for file in entry.weights))
        bundle.load_engine(least.contract.component, engine, threads).close()
        names = {file for entry in manifest.components.values() for file in entry.weights}
        # One file may lie there under two names, as a link to the checkpoint's.
        weights = sum({manifest.files[file].sha256: manifest.files[file].bytes for file in names}.values())
        return cls(name, pipeline, weights, int((folder / "manifest.json").stat().st_mtime))

    def document(self) -> dict[str, Any]:
        """Return the model in the form of OpenAI's `GET /v1/models`."""
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "qwen-image-engine"}


class Models:
    """The models of a server. The worker alone calls `load`.

    Attributes:
        all: the models in the order of the command; the first one is for requests without a name.
    """

    def __init__(self, models: Sequence[Model], budget: int | None = None) -> None:
        """Check the models.

        Args:
            models: one or more open models.
            budget: most bytes of loaded models together; None for any.

        Raises:
            UsageError: there is no model, two have one name, or one alone is over the budget.
        """
        names = [model.name for model in models]
        if not names:
            raise UsageError("there is no model to serve, expected one or more bundles")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UsageError(f"two bundles have the name {twice[0]}; name them apart with NAME=BUNDLE")
        for model in models:
            if budget is not None and model.bytes > budget:
                raise UsageError(
                    f"{model.name} has {size_text(model.bytes)} of weights, more than the memory budget of "
                    f"{size_text(budget)}; give a larger --memory-budget"
                )
        self.all = tuple(models)
        self._budget = budget
        self._used: list[Model] = []

    def find(self, name: str | None) -> Model:
        """Return the model of a name; None stands for the first one.

        Raises:
            ApiError: there is no such model.
        """
        if name is None:
            return self.all[0]
        for model in self.all:
            if model.name == name:
                return model
        known = ", ".join(f"'{model.name}'" for model in self.all[:10])
        text = f"The model {described(name)} does not exist; this server has {known}."
        raise ApiError(404, text, "model", "model_not_found")

    def load(self, model: Model) -> list[str]:
        """Load the engines of a model, and before that free those that were not used for longest, if need be.

        Returns:
            Names of the models whose engines were freed.

        Raises:
            QwenImageError: an engine cannot be loaded.
        """
        others = [other for other in self._used if other is not model]
        freed = list(self._over_budget(others, model))
        for other in freed:
            self._used.remove(other)
            other.pipeline.free()
            other.loaded = False
        self._used = [*(other for other in others if other not in freed), model]
        if not model.loaded:
            try:
                model.pipeline.preload()
            except BaseException:
                model.pipeline.free()
                raise
            model.loaded = True
        return [other.name for other in freed]

    def preload(self) -> None:
        """Load the models in order, as many as the budget has room for together.

        Raises:
            QwenImageError: an engine cannot be loaded.
        """
        total = 0
        for model in self.all:
            total += model.bytes
            if self._budget is None or total <= self._budget:
                self.load(model)

    def close(self) -> None:
        """Free all engines for good."""
        for model in self.all:
            model.pipeline.close()

    def _over_budget(self, others: Sequence[Model], model: Model) -> Iterable[Model]:
        """Yield the models to free, the least recently used first."""
        total = sum(other.bytes for other in others) + model.bytes
        for other in others:
            if self._budget is None or total <= self._budget:
                return
            total -= other.bytes
            yield other
