"""The stored weights of a network: every tensor as a place in a memory-mapped safetensors file.

Tensors are views of a private mapping, so that a network of any size loads without a copy. Exporters take `TensorInfo`
(file, offset, length) instead of the values.
"""

from __future__ import annotations

import fnmatch
import mmap
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_image_engine.engines.core.dtypes import STORED_FLOATS
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.files import open_regular
from qwen_image_engine.reference.storage.json_file import read_json
from qwen_image_engine.reference.storage.tensor_file import TensorInfo, read_header
from qwen_image_engine.reference.storage.weight_kinds import check_unquantised
from qwen_image_engine.runtime.system.json_schema import NAME, SchemaError, described, named

if TYPE_CHECKING:
    import torch

_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


@dataclass(frozen=True)
class NetworkLayout:
    """The storage layout of one component of the released checkpoint.

    Attributes:
        library: library of the component's class: "diffusers" or "transformers".
        class_name: name of the class.
        weights: stem of the weight files.
        prefix: text before the network's parameter names in the stored names.
        unread: glob patterns of stored names that the network may leave unread; every other stored tensor must have a
            parameter.
    """

    library: str
    class_name: str
    weights: str
    prefix: str = ""
    unread: tuple[str, ...] = ()


LAYOUT: Mapping[str, NetworkLayout] = {
    "transformer": NetworkLayout("diffusers", "QwenImage21Transformer2DModel", "diffusion_pytorch_model"),
    "text_encoder": NetworkLayout(
        "transformers",
        "Qwen3VLForConditionalGeneration",
        "model",
        prefix="model.language_model.",
        unread=(
            "lm_head.*",
            "model.visual.*",
            # The states are taken before the final norm, and the host gathers rows of the table itself.
            "model.language_model.norm.weight",
            "model.language_model.embed_tokens.weight",
        ),
    ),
    # Convolutions over time, which one frame never reaches.
    "vae": NetworkLayout("diffusers", "AutoencoderKLQwenImage21", "diffusion_pytorch_model", unread=("*.time_conv.*",)),
}

VISION = NetworkLayout("transformers", "Qwen3VLVisionModel", "model", prefix="model.visual.")
"""The layout of the vision tower, which is stored with the text encoder."""


@dataclass(frozen=True)
class StoredNetwork:
    """The stored weights of a component.

    Attributes:
        name: key of the component in `LAYOUT`.
        location: folder or single file that holds the weights.
        layout: storage layout of the component.
        tensors: stored tensor by name in the diffusers layout.
        files: weight files under their names in the folder (in a hub snapshot, symlinks), sorted.
    """

    name: str
    location: Path
    layout: NetworkLayout
    tensors: Mapping[str, TensorInfo]
    files: tuple[Path, ...]
    _maps: dict[Path, mmap.mmap] = field(default_factory=dict, compare=False, repr=False)

    @property
    def parameters(self) -> int:
        """Number of elements of all stored tensors."""
        return sum(tensor.elements for tensor in self.tensors.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(tensor.stored.nbytes for tensor in self.tensors.values())

    @property
    def dtypes(self) -> dict[str, int]:
        """Number of elements by dtype, in safetensors' spelling."""
        counts: dict[str, int] = {}
        for tensor in self.tensors.values():
            dtype = tensor.stored.dtype
            counts[dtype] = counts.get(dtype, 0) + tensor.elements
        return counts

    def stored_name(self, file: Path) -> str:
        """Return the name of one of `files` in the diffusers layout, even if it is a single file of another name."""
        return f"{self.layout.weights}.safetensors" if file == self.location else file.name

    def may_stay_unread(self, name: str) -> bool:
        """Return whether the network here may leave the stored tensor `name` unread."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.layout.unread)

    def read(self, name: str, *, copy: bool = False) -> torch.Tensor:
        """Return the tensor `name` as a view of the mapped file: no copy, and writes to it stay in this process.

        A tensor with updates is computed, in float32.

        Args:
            name: name of the tensor in the diffusers layout.
            copy: read the tensor into memory of its own and do not map the file. A reader that streams all tensors one
                at a time then holds one; pages of a mapped file count as memory of the process until the system
                reclaims them.

        Raises:
            QwenImageError: there is no such tensor, or its dtype is not BF16, F16 or F32.
        """
        import torch

        if name not in self.tensors:
            raise QwenImageError(f"{self.location}: no tensor {name!r} among its {len(self.tensors)}")
        info = self.tensors[name]
        self._check_dtypes([info])
        dtype: torch.dtype = getattr(torch, STORED_FLOATS[info.dtype].name)
        if info.elements == 0:
            return torch.empty(info.shape, dtype=dtype)
        if copy or info.stored is not info:
            from qwen_image_engine.reference.storage.tensor_blocks import read_tensor

            return read_tensor(info)
        flat = torch.frombuffer(self._map(info.file), dtype=torch.uint8, count=info.nbytes, offset=info.offset)
        if flat.data_ptr() % dtype.itemsize:
            flat = flat.clone()  # safetensors does not promise alignment
        return flat.view(dtype).reshape(info.shape)

    def match(self, shapes: Mapping[str, Iterable[int]]) -> dict[str, TensorInfo]:
        """Return the stored tensor of every parameter of a network.

        Args:
            shapes: shape of each parameter by name, without the stored prefix.

        Raises:
            QwenImageError: a tensor is missing, has another shape, has a dtype other than BF16, F16 and F32, or is
                stored without being a parameter or allowed to stay unread. One error names the first few and counts
                the rest.
        """
        expected = {self.layout.prefix + name: tuple(shape) for name, shape in shapes.items()}
        missing = [name for name in expected if name not in self.tensors]
        unexpected = [name for name in self.tensors if name not in expected and not self.may_stay_unread(name)]
        misshapen = [
            f"{name} is {self.tensors[name].shape}, expected {shape}"
            for name, shape in expected.items()
            if name in self.tensors and self.tensors[name].shape != shape
        ]
        faults = [
            counted(what, names)
            for what, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
            if names
        ]
        if faults:
            raise QwenImageError(
                f"{self.location}: its tensors are not those of {self.layout.class_name} with this config.json: "
                f"{'; '.join(faults)}; {len(expected)} expected, {len(self.tensors)} stored"
            )
        self._check_dtypes(self.tensors[name] for name in expected)
        return {name: self.tensors[self.layout.prefix + name] for name in shapes}

    def load_into(self, module: torch.nn.Module, dtype: torch.dtype | None = None) -> None:
        """Load all weights of `module`, strictly, in `dtype` or as stored.

        Parameters that need no conversion become views of the mapped file, so the module may be on "meta".

        Raises:
            QwenImageError: the stored tensors do not match the module (`match` lists the conditions).
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        state = {}
        for name, info in self.match(shapes).items():
            tensor = self.read(info.name)
            state[name] = tensor if dtype is None else tensor.to(dtype)
        module.load_state_dict(state, strict=True, assign=True)

    def _check_dtypes(self, tensors: Iterable[TensorInfo]) -> None:
        for tensor in tensors:
            dtype = tensor.stored.dtype
            if dtype not in STORED_FLOATS:
                raise QwenImageError(
                    f"{self.location}: tensor {tensor.name!r} has dtype {dtype}, expected BF16, F16 or F32"
                )

    def _map(self, file: Path) -> mmap.mmap:
        if file not in self._maps:
            try:
                with open_regular(file) as opened:
                    # Copy-on-write: torch knows no read-only tensors, and a write into a read-only page is a crash.
                    self._maps[file] = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
            except OSError as error:
                raise QwenImageError(f"{file}: cannot be mapped ({error.strerror or error})") from error
        return self._maps[file]


def counted(what: str, names: Sequence[str]) -> str:
    """Return the number of names, the fault `what` that they share, and the first few names, for an error."""
    return f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def open_network(root: Path, name: str, layout: NetworkLayout, variant: str | None = None) -> StoredNetwork:
    """Open the component `name` of the checkpoint in `root`, from one weight file or an index of shards.

    Args:
        root: folder of the checkpoint.
        name: name of the component's folder.
        layout: storage layout of the component.
        variant: variant of the weight files, "bf16" for `*.bf16.safetensors`; None for the files without a variant. As
            in diffusers, a component without files of the variant is read from its files without a variant.

    Raises:
        QwenImageError: weights are missing or damaged, or do not agree with their index.
    """
    folder = root / name
    single, index = _weight_files(folder, layout, variant if variant in variants(folder, layout) else None)
    if single.is_file() and index.is_file():
        raise QwenImageError(f"{folder}: holds both {single.name} and {index.name}; remove the one that is not meant")
    if index.is_file():
        tensors, files = _read_shards(folder, index)
    elif single.is_file():
        tensors, files = read_header(single), [single]
    else:
        others = sorted(path.name for path in folder.glob("*") if path.suffix in (".safetensors", ".bin", ".pt"))
        found = f" (found {', '.join(others[:3])})" if others else ""
        named = variants(folder, layout)
        if named:
            found = f", and there are the variants {', '.join(named)}; choose one with --variant {named[0]}"
        raise QwenImageError(f"{folder}: no weights, expected {single.name} or {index.name}{found}")
    check_unquantised(folder, tensors)
    return StoredNetwork(name, folder, layout, tensors, tuple(sorted(files)))


def variants(folder: Path, layout: NetworkLayout) -> list[str]:
    """Return the variants that a component's folder has weights of: "bf16" for `model.bf16.safetensors`, sorted.

    Sharded weights count by their index, `model.safetensors.index.bf16.json` (diffusers and transformers,
    `_add_variant`) or `model.safetensors.bf16.index.json` (diffusers before 0.32).
    """
    stem = re.escape(layout.weights)
    name = r"([\w-]+)"
    forms = re.compile(
        rf"{stem}\.{name}\.safetensors|{stem}\.safetensors\.index\.{name}\.json|{stem}\.safetensors\.{name}\.index\.json"
    )
    found = (forms.fullmatch(path.name) for path in folder.glob("*"))
    named = {next(filter(None, match.groups())) for match in found if match}
    return sorted(name for name in named if not _SHARD.search(name))


def _weight_files(folder: Path, layout: NetworkLayout, variant: str | None) -> tuple[Path, Path]:
    """Return the places of a component's single weight file and of its index of shards."""
    stem = f"{layout.weights}.safetensors"
    if variant is None:
        return folder / stem, folder / f"{stem}.index.json"
    index = folder / f"{stem}.index.{variant}.json"
    former = folder / f"{stem}.{variant}.index.json"
    return folder / f"{layout.weights}.{variant}.safetensors", index if index.is_file() else former


def _read_shards(folder: Path, index: Path) -> tuple[dict[str, TensorInfo], list[Path]]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise QwenImageError(f"{index}: no 'weight_map' of tensor names to files")
    try:
        named(NAME)(weight_map, "weight_map")
    except SchemaError as error:
        raise QwenImageError(f"{index}: {error}") from error
    listed: dict[str, set[str]] = {}
    for tensor, shard_name in weight_map.items():
        listed.setdefault(shard_name, set()).add(tensor)
    names = sorted(listed)
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise QwenImageError(f"{index}: names the file {described(outside[0])}, expected one in the same folder")
    files = [folder / name for name in names]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise QwenImageError(f"{folder}: {len(absent)} of {len(files)} shards missing: {', '.join(absent[:3])}")
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        shard = read_header(file)
        wrong = sorted(listed[file.name].symmetric_difference(shard))
        if wrong:
            state = "absent from it" if wrong[0] in listed[file.name] else "stored but not listed there"
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise QwenImageError(
                f"{index}: does not agree with {file.name}: tensor {described(wrong[0])} is {state}{more}"
            )
        tensors.update(shard)
    return tensors, files
