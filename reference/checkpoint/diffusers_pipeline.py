"""A diffusers pipeline as the source of a checkpoint: the files that it was loaded from, checked against it.

The pipeline is read only for this check, because exports stream weights from files. A pipeline whose weights were
changed in memory (adapters, quantisation, training) is an error: an export from the files would lose the changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.reference.storage.stored_network import LAYOUT, StoredNetwork

if TYPE_CHECKING:
    import torch

_SAVE = "save it with pipeline.save_pretrained(FOLDER) and name that folder"


class DiffusersPipeline(Protocol):
    """The parts of a `diffusers.DiffusionPipeline` that are read here."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The pipeline's configuration: the values of model_index.json, and the folder or hub name it came from."""
        ...

    @property
    def components(self) -> Mapping[str, Any]:
        """The networks, the scheduler and the processor, by name."""
        ...


def loaded_from(pipeline: DiffusersPipeline, class_name: str) -> str:
    """Return the folder or hub name that `pipeline` was loaded from.

    Raises:
        QwenImageError: the pipeline is not of the class `class_name`, or was put together in memory.
    """
    found = type(pipeline).__name__
    if found != class_name:
        article = "an" if found[0].lower() in "aeiou" else "a"
        raise QwenImageError(
            f"{article} {found} is no checkpoint; expected a folder, a hub name or a diffusers {class_name}"
        )
    source = pipeline.config.get("_name_or_path")
    if not source:
        raise QwenImageError(f"this {class_name} was not loaded from a folder; {_SAVE}")
    return str(source)


def check_unchanged(
    pipeline: DiffusersPipeline,
    components: Mapping[str, StoredNetwork],
    scheduler: Mapping[str, Any],
    vocabulary: Mapping[str, int],
) -> None:
    """Compare every weight, the scheduler's settings and the vocabulary with the files.

    Weights are compared in the pipeline's dtypes.

    Args:
        pipeline: the diffusers pipeline.
        components: components of the files, by the keys of `LAYOUT`.
        scheduler: parsed scheduler_config.json of the files.
        vocabulary: vocabulary of the files' tokenizer, added tokens included.

    Raises:
        QwenImageError: a weight, a setting or a token differs, or the pipeline lacks it; the text names it.
    """
    absent = [name for name in (*LAYOUT, "scheduler", "processor") if pipeline.components.get(name) is None]
    if absent:
        raise QwenImageError(
            f"the pipeline has no {absent[0]}, which a bundle needs; load it whole, or name its folder"
        )
    _check_vocabulary(pipeline.components["processor"].tokenizer.get_vocab(), vocabulary)
    for name in LAYOUT:
        _check_weights(name, pipeline.components[name].state_dict(), components[name])
    own = pipeline.components["scheduler"].config
    changed = [key for key, value in scheduler.items() if not key.startswith("_") and own.get(key) != value]
    if changed:
        key = changed[0]
        raise QwenImageError(
            f"the pipeline's scheduler has {key} = {own.get(key)!r}, its files {scheduler[key]!r}; {_SAVE}"
        )


def _check_vocabulary(own: Mapping[str, int], stored: Mapping[str, int]) -> None:
    if own != stored:
        changed = min(token for token in own.keys() | stored.keys() if own.get(token) != stored.get(token))
        raise QwenImageError(
            f"the pipeline's tokenizer has {changed!r} as {own.get(changed, 'no token')}, its files as "
            f"{stored.get(changed, 'no token')}; {_SAVE}"
        )


def _check_weights(name: str, state: Mapping[str, torch.Tensor], stored: StoredNetwork) -> None:
    unknown = [key for key in state if key not in stored.tensors and not stored.may_stay_unread(key)]
    absent = [key for key in stored.tensors if key not in state]
    if unknown or absent:
        raise QwenImageError(
            f"the pipeline's {name} has other tensors than {stored.location}: {(unknown or absent)[0]} is "
            f"{'not in the files' if unknown else 'not in the pipeline'}; unload adapters (export --lora merges their "
            f"files) and quantisation, or {_SAVE}"
        )
    for key in stored.tensors:
        tensor = state[key]
        if tensor.is_meta:
            raise QwenImageError(f"the pipeline's {name} is offloaded: {key} is in no memory; name its folder instead")
        if not tensor.cpu().equal(stored.read(key, copy=True).to(tensor.dtype)):
            raise QwenImageError(f"the pipeline's {name} is not what {stored.location} holds: {key} differs; {_SAVE}")
