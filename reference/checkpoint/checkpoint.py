"""A checkpoint in the diffusers layout: its folder, configs, licence and hashes.

The transformer's weights may come from a single file instead of the folder, and adapters may be merged into them.

Opening reads only JSON and safetensors headers: 16 billion parameters take as long as five million.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qwen_image_engine.engines.core.dtypes import STORED_FLOATS
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.files import leads_out, read_regular
from qwen_image_engine.reference.checkpoint.config import (
    TextEncoderConfig,
    TransformerConfig,
    VaeConfig,
    VisionConfig,
    check_components,
)
from qwen_image_engine.reference.checkpoint.diffusers_pipeline import DiffusersPipeline, check_unchanged, loaded_from
from qwen_image_engine.reference.checkpoint.hub_cache import REPOSITORY_NAME, snapshot_folder
from qwen_image_engine.reference.checkpoint.processor_config import ImageProcessorConfig
from qwen_image_engine.reference.lora.adapter import Adapter, open_adapter
from qwen_image_engine.reference.lora.file import LoraFile
from qwen_image_engine.reference.lora.merge import merge
from qwen_image_engine.reference.storage.json_file import read_json
from qwen_image_engine.reference.storage.single_file import open_single_file
from qwen_image_engine.reference.storage.stored_network import LAYOUT, VISION, StoredNetwork, open_network, variants
from qwen_image_engine.reference.storage.tensor_file import TensorInfo
from qwen_image_engine.runtime.bundle.checkpoint_flags import checkpoint_flags
from qwen_image_engine.runtime.bundle.manifest import MANIFEST
from qwen_image_engine.runtime.system.files import file_sha256, with_home
from qwen_image_engine.runtime.system.json_schema import MISSING, described

_INDEX = re.compile(r"\.index(\.[\w-]+)?\.json$")

PIPELINE_CLASS = "QwenImage21Pipeline"
_MAX_TEXT_BYTES = 1 << 20
TRANSFORMER = "transformer"
"""The component that a single file may hold."""


Source = str | Path | DiffusersPipeline
"""Sources that `Checkpoint.open` takes: a folder, a hub name, or a diffusers pipeline."""


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint whose configs, headers and folder structure are valid.

    Attributes:
        name: hub name or folder name, followed by the changes to the weights (single file, adapters, attention).
        folder: folder of the checkpoint.
        index: parsed model_index.json.
        scheduler: parsed scheduler_config.json.
        transformer: configuration of the transformer.
        text_encoder: configuration of the text encoder.
        vision: configuration of the vision tower.
        vae: configuration of the autoencoder.
        image_processor: configuration of the image processor.
        components: stored weights by the keys of `LAYOUT`.
        transformer_file: single file with the transformer's weights; None if they are in the folder.
        adapters: adapters that are merged into the transformer, in the order of merging.
        attention: requested attention; None if it comes from the configuration.
        variant: variant of the weight files; None for the files without a variant.
        read_by: tensors that each network reads, by network; `reference.load.read_tensors` fills it.
    """

    name: str
    folder: Path
    index: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    transformer: TransformerConfig
    text_encoder: TextEncoderConfig
    vision: VisionConfig
    vae: VaeConfig
    image_processor: ImageProcessorConfig
    components: Mapping[str, StoredNetwork]
    transformer_file: Path | None = None
    adapters: tuple[Adapter, ...] = ()
    attention: str | None = None
    variant: str | None = None
    read_by: dict[str, tuple[TensorInfo, ...]] = field(default_factory=dict, init=False, compare=False, repr=False)

    @classmethod
    def open(
        cls,
        source: Source,
        *,
        transformer_file: str | Path | None = None,
        loras: Sequence[LoraFile] = (),
        attention: str | None = None,
        variant: str | None = None,
    ) -> Checkpoint:
        """Open a checkpoint: a folder, or the main revision of the repository `org/name` in the local hub cache.

        Nothing is downloaded.

        Args:
            source: folder or hub name with every configuration and the weights of the networks; or the diffusers
                pipeline that was loaded from there. The weights of a pipeline are compared with the files.
            transformer_file: single file that replaces the folder's transformer weights; see `single_file`.
            loras: adapters that are merged into the transformer's weights for every reader; see `lora`.
            attention: one of `runtime.model.facts.ATTENTION`, which overrides the transformer's configuration.
            variant: variant of the weight files, such as "bf16"; see `stored_network.open_network`. None for the files
                without a variant.

        Raises:
            QwenImageError: the checkpoint is missing, incomplete, damaged, or of another architecture; no network has
                weights of the variant; an adapter does
                not fit its transformer; or a pipeline differs from its files.
        """
        if not isinstance(source, str | Path):
            path = loaded_from(source, PIPELINE_CLASS)
            files = cls.open(path, transformer_file=transformer_file, attention=attention, variant=variant)
            from qwen_image_engine.runtime.text.tokenizer import load_tokenizer  # a package that folders do without

            vocabulary = load_tokenizer(files.folder).get_vocab()
            check_unchanged(source, files.components, files.scheduler, vocabulary)
            return cls.open(path, transformer_file=transformer_file, loras=loras, attention=attention, variant=variant)
        folder = _find(source)
        index = read_json(folder / "model_index.json")
        _check_index(folder, index)
        configs = {name: read_json(folder / name / "config.json") for name in LAYOUT}
        scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
        transformer_json = str(folder / "transformer/config.json")
        transformer = TransformerConfig.from_json(configs["transformer"], transformer_json, attention)
        encoder_json = str(folder / "text_encoder/config.json")
        text_encoder = TextEncoderConfig.from_json(configs["text_encoder"], encoder_json)
        vision = VisionConfig.from_json(configs["text_encoder"], encoder_json)
        vae = VaeConfig.from_json(configs["vae"], str(folder / "vae/config.json"))
        check_components(transformer, text_encoder, vae)
        name = str(source) if folder != with_home(source) else folder.resolve().name
        single = None if transformer_file is None else with_home(transformer_file)
        components = _components(folder, single, variant)
        adapters = tuple(open_adapter(components[TRANSFORMER], lora) for lora in loras)
        return cls(
            name=_described(name, variant, single, loras, bidirectional=transformer.bidirectional),
            folder=folder,
            index=index,
            scheduler=scheduler,
            transformer=transformer,
            text_encoder=text_encoder,
            vision=vision,
            vae=vae,
            image_processor=ImageProcessorConfig.from_folder(folder / "processor"),
            components=components | {TRANSFORMER: merge(components[TRANSFORMER], adapters)},
            transformer_file=single,
            adapters=adapters,
            attention=None if attention == configs["transformer"].get("attention", "causal") else attention,
            variant=variant,
        )

    @property
    def loras(self) -> tuple[LoraFile, ...]:
        """Paths and scales of the adapters."""
        return tuple(adapter.file for adapter in self.adapters)

    @property
    def place(self) -> str:
        """The folder, preceded by the checkpoint's name if the folder's name is another."""
        return str(self.folder) if self.name == self.folder.resolve().name else f"{self.name} in {self.folder}"

    @property
    def processor(self) -> Path:
        """The folder of the tokenizer and of the image processor's settings."""
        return self.folder / "processor"

    def stored(self, network: str) -> StoredNetwork:
        """Return the stored weights of a network: "transformer", "text_encoder", "vision" or "vae".

        The vision tower's tensors are in the text encoder's files.
        """
        if network not in ("text_encoder", "vision"):
            return self.components[network]
        encoder, vision = self.components["text_encoder"], network == "vision"
        own = {name: info for name, info in encoder.tensors.items() if name.startswith(VISION.prefix) == vision}
        return replace(encoder, tensors=own, layout=VISION if vision else encoder.layout)

    def token_embeddings(self) -> TensorInfo:
        """Return the stored embedding table, (vocab_size, hidden_size).

        Raises:
            QwenImageError: the table is missing, or has another shape or dtype.
        """
        component = self.components["text_encoder"]
        name = component.layout.prefix + "embed_tokens.weight"
        shape = (self.text_encoder.vocab_size, self.text_encoder.hidden_size)
        tensor = component.tensors.get(name)
        if tensor is None or tensor.shape != shape or tensor.dtype not in STORED_FLOATS:
            found = "missing" if tensor is None else f"{tensor.dtype} {tensor.shape}"
            raise QwenImageError(f"{component.location}: tensor {name} is {found}, expected BF16, F16 or F32 {shape}")
        return tensor

    def check_depth(self, name: str) -> None:
        """Check that the weights of a network are as deep as its config. Call it before the blocks are built.

        Raises:
            QwenImageError: config.json asks for more blocks than are stored.
        """
        key, stored, depth = {
            "transformer": ("num_layers", "transformer_blocks.{}.", self.transformer.num_layers),
            "text_encoder": ("num_hidden_layers", "layers.{}.", self.text_encoder.num_hidden_layers),
            "vision": ("depth", "blocks.{}.", self.vision.depth),
            "vae": ("num_res_blocks", "encoder.down_blocks.0.resnets.{}.", self.vae.num_res_blocks),
        }[name]
        component = self.stored(name)
        last = component.layout.prefix + stored.format(depth - 1)
        if not any(tensor.startswith(last) for tensor in component.tensors):
            raise QwenImageError(
                f"{component.location}: its tensors are not those of {component.layout.class_name} with this "
                f"config.json: key {key!r} is {depth}, and there is no tensor {last}*"
            )

    def ignored_keys(self) -> dict[str, tuple[str, ...]]:
        """Return the keys of each component's config.json that change nothing here."""
        return {
            "transformer": self.transformer.ignored,
            "text_encoder": tuple(sorted((*self.text_encoder.ignored, *self.vision.ignored))),
            "vae": self.vae.ignored,
        }

    def config_sha256(self) -> str:
        """Return one hash of all configuration files, tokenizer included: relative names and bytes, in sorted order.

        Weight indexes are left out, so that sharding does not change the hash. An attention that overrides the files
        counts too.
        """
        folders = [self.folder / name for name in (".", *LAYOUT, "scheduler", "processor")]
        files = [
            path
            for folder in folders
            for path in folder.iterdir()
            if path.is_file()
            and (path.suffix == ".json" or (folder == self.processor and path.suffix in (".txt", ".jinja")))
            and not _INDEX.search(path.name)
        ]
        hashes = [(path.relative_to(self.folder).as_posix(), file_sha256(path)) for path in files]
        return _combined_sha256([*hashes, *([] if self.attention is None else [("--attention", self.attention)])])

    @property
    def flags(self) -> str:
        """The command-line flags that open this checkpoint."""
        loras = map(str, self.loras)
        return checkpoint_flags(self.folder, self.transformer_file, loras, self.attention, self.variant)

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """All files that decide the weights, adapters last: their settings count if they are in files of their own."""
        stored = [file for component in self.components.values() for file in component.files]
        return tuple(dict.fromkeys((*stored, *(file for adapter in self.adapters for file in adapter.files))))

    def weights_sha256(self, progress: Callable[[int], None] | None = None) -> str:
        """Return one hash of all weight files.

        The names of a single file and of adapters do not count; the order, scale and settings of adapters do.

        Args:
            progress: function called with the bytes of each block that was read.
        """
        return self.combined_weights_sha256({file: file_sha256(file, progress) for file in self.weight_files})

    def combined_weights_sha256(self, hashes: Mapping[Path, str]) -> str:
        """Return `weights_sha256` from the known hashes of `weight_files`."""
        stored = [
            (f"{component.name}/{component.stored_name(file)}", hashes[file])
            for component in self.components.values()
            for file in component.files
        ]
        merged = [
            (f"lora {index} at {adapter.file.scale!r}" + (", settings" if place else ""), hashes[file])
            for index, adapter in enumerate(self.adapters)
            for place, file in enumerate(adapter.files)
        ]
        return _combined_sha256([*stored, *merged])

    def licence(self) -> str:
        """Return the licence in README.md's front matter, else the first line of a LICENSE file, else "unknown"."""
        front_matter = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", _text(self.folder / "README.md"), re.DOTALL)
        if front_matter:
            # The hub writes `license: other` and the licence's own name beside it.
            for key in ("license_name", "license"):
                found = re.search(rf"^{key}:[ \t]*(?:\n\s*-[ \t]*)?(\S.*?)\s*$", front_matter[1], re.MULTILINE)
                if found:
                    return found[1].strip("\"'")
        for name in ("LICENSE", "LICENSE.md", "LICENSE.txt"):
            lines = [line.strip("# \t") for line in _text(self.folder / name).splitlines()]
            if any(lines):
                return next(line for line in lines if line)
        return "unknown"


def _find(path_or_name: str | Path) -> Path:
    if not str(path_or_name):
        raise QwenImageError("the checkpoint's name is empty, expected a folder or the name org/name of a cached one")
    path = with_home(path_or_name)
    if path.is_file():
        raise QwenImageError(
            f"{path}: is a single file, expected a folder in the diffusers layout (with model_index.json); a single "
            "file holds the transformer alone: name the folder of the rest here (-m) and the file with --transformer"
        )
    if path.is_dir():
        folder = path
    elif not path.exists() and isinstance(path_or_name, str) and REPOSITORY_NAME.fullmatch(path_or_name):
        folder = snapshot_folder(path_or_name)
    else:
        raise QwenImageError(f"{path}: does not exist, expected a folder or the name org/name of a cached checkpoint")
    if (folder / MANIFEST).is_file() and not (folder / "transformer" / "config.json").is_file():
        raise QwenImageError(
            f"{folder}: is a bundle, expected the checkpoint that it was made from, a folder in the diffusers layout; "
            "qwen-image inspect names it"
        )
    if not (folder / "model_index.json").is_file():
        raise QwenImageError(f"{folder}: no model_index.json, expected a checkpoint in the diffusers layout")
    return folder


def _check_index(folder: Path, index: Mapping[str, Any]) -> None:
    where = folder / "model_index.json"
    if index.get("_class_name") != PIPELINE_CLASS:
        found = described(index.get("_class_name", MISSING))
        raise QwenImageError(f"{where}: key '_class_name' is {found}, expected {PIPELINE_CLASS!r}")
    for name, layout in LAYOUT.items():
        if index.get(name) != [layout.library, layout.class_name]:
            raise QwenImageError(
                f"{where}: key {name!r} is {described(index.get(name, MISSING))}, "
                f"expected {[layout.library, layout.class_name]!r}"
            )
    absent = [name for name in (*LAYOUT, "scheduler", "processor") if not (folder / name).is_dir()]
    if absent:
        raise QwenImageError(f"{folder}: incomplete: no folder {', '.join(name + '/' for name in absent)}")


def _described(
    name: str, variant: str | None, transformer_file: Path | None, loras: Sequence[LoraFile], *, bidirectional: bool
) -> str:
    stored = "" if variant is None else f" ({variant} files)"
    single = "" if transformer_file is None else f" with {transformer_file.name}"
    attention = " (bidirectional attention)" if bidirectional else ""
    return name + stored + single + "".join(f" + {lora.described}" for lora in loras) + attention


def _components(folder: Path, transformer_file: Path | None, variant: str | None) -> dict[str, StoredNetwork]:
    if variant is not None:
        found = {name: variants(folder / name, layout) for name, layout in LAYOUT.items()}
        if not any(variant in names for names in found.values()):
            known = ", ".join(sorted({name for names in found.values() for name in names})) or "none"
            raise QwenImageError(
                f"{folder}: no weights of the variant {variant!r}, such as transformer/"
                f"{LAYOUT[TRANSFORMER].weights}.{variant}.safetensors (variants found: {known})"
            )
    return {
        name: open_network(folder, name, layout, variant)
        if transformer_file is None or name != TRANSFORMER
        else open_single_file(transformer_file, name, layout)
        for name, layout in LAYOUT.items()
    }


def _combined_sha256(hashes: Iterable[tuple[str, str]]) -> str:
    """Return one hash of pairs of a name and its SHA-256, in sorted order."""
    lines = (f"{sha256}  {name}\n" for name, sha256 in sorted(hashes))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _text(path: Path) -> str:
    """Return a file's text, or "" if there is none: a bundle repeats a line of it, so no link may lead elsewhere."""
    if leads_out(path, path.parent):
        return ""
    try:
        return read_regular(path, _MAX_TEXT_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
