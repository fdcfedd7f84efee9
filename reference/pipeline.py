"""The reference pipeline: the runtime's pipeline on PyTorch engines in fp32."""

from collections.abc import Callable
from weakref import WeakValueDictionary

import torch
from tokenizers import Tokenizer
from torch import nn

from qwen_image_engine.engines.core.components import COMPONENTS
from qwen_image_engine.engines.core.contract import contract
from qwen_image_engine.engines.core.dtypes import STORED_FLOATS
from qwen_image_engine.engines.core.engine import Engine
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint, Source
from qwen_image_engine.reference.components import dims
from qwen_image_engine.reference.load import load_network
from qwen_image_engine.reference.networks.vae import up_halo
from qwen_image_engine.reference.torch_engine import TorchEngine
from qwen_image_engine.runtime.component_pool import ComponentPool, Memory
from qwen_image_engine.runtime.model.facts import ModelFacts, VisionFacts
from qwen_image_engine.runtime.pipeline import PictureOrigin, QwenImage, preloaded
from qwen_image_engine.runtime.sampling.schedule import ScheduleConfig
from qwen_image_engine.runtime.system.memory_use import MemoryWatch
from qwen_image_engine.runtime.text.embedding import EmbeddingTable
from qwen_image_engine.runtime.text.tokenizer import load_tokenizer


def reference_pipeline(
    checkpoint: Checkpoint | Source,
    memory: Memory = "resident",
    watch: MemoryWatch | None = None,
    prepare: Callable[[nn.Module], None] | None = None,
) -> QwenImage:
    """Return the pipeline that every bundle is compared with.

    Args:
        checkpoint: an opened checkpoint, or an argument of `Checkpoint.open`: folder, hub name, diffusers pipeline.
        memory: "resident" keeps all networks loaded; prefix and step share one. "sequential" holds one at a time.
        watch: a watch of this process's memory, so that `timings` holds peaks too; the caller closes it.
        prepare: function called with each network once, after it is loaded and before it runs.

    Raises:
        QwenImageError: the checkpoint is missing, incomplete, damaged, or of another architecture.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint.open(checkpoint)
    components = ComponentPool(engine_loader(checkpoint, prepare=prepare), memory, watch)
    components.preload(*preloaded(checkpoint.transformer.attention))
    return pipeline_on(checkpoint, components)


def pipeline_on(
    checkpoint: Checkpoint,
    components: ComponentPool,
    precision: str = "fp32",
    tokenizer: Tokenizer | None = None,
    embeddings: EmbeddingTable | None = None,
) -> QwenImage:
    """Return the runtime's pipeline on engines of the reference's networks.

    Args:
        checkpoint: the checkpoint that the networks are from.
        components: the engines.
        precision: precision of the networks, as the parameters of the pictures name it.
        tokenizer: tokenizer of the checkpoint; None to load it.
        embeddings: embedding table of the checkpoint; None to map it.

    Raises:
        QwenImageError: the checkpoint's tokenizer, embeddings or schedule are missing or not implemented.
    """
    return QwenImage(
        components,
        load_tokenizer(checkpoint.folder) if tokenizer is None else tokenizer,
        embedding_table(checkpoint) if embeddings is None else embeddings,
        schedule_config(checkpoint),
        model_facts(checkpoint),
        PictureOrigin(engine="reference", precision=precision, checkpoint=checkpoint.name),
    )


def engine_loader(
    checkpoint: Checkpoint,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    prepare: Callable[[nn.Module], None] | None = None,
) -> Callable[[str], Engine]:
    """Return a function that loads the engine of a component by name.

    Components of one network share its weights while an engine of the network is held. `prepare` is called with each
    network once, after it is loaded.
    """
    sizes = dims(checkpoint)
    networks: WeakValueDictionary[str, nn.Module] = WeakValueDictionary()

    def load(component: str) -> Engine:
        name = COMPONENTS[component].network
        network = networks.get(name)
        if network is None:
            network = networks[name] = load_network(checkpoint, name, dtype).to(device)
            if prepare is not None:
                prepare(network)
        return TorchEngine(contract(component, sizes), network)

    return load


def embedding_table(checkpoint: Checkpoint) -> EmbeddingTable:
    """Map the checkpoint's token embeddings.

    Raises:
        QwenImageError: the embeddings are missing or have another shape or dtype.
    """
    info = checkpoint.token_embeddings()
    rows, width = info.shape
    return EmbeddingTable.open(info.file, info.offset, STORED_FLOATS[info.dtype].name, (rows, width))


def schedule_config(checkpoint: Checkpoint) -> ScheduleConfig:
    """Return the checkpoint's schedule.

    Raises:
        QwenImageError: the schedule holds a value that is not implemented.
    """
    where = str(checkpoint.folder / "scheduler" / "scheduler_config.json")
    return ScheduleConfig.from_json(checkpoint.scheduler, checkpoint.index.get("sample_sigmas"), where)


def model_facts(checkpoint: Checkpoint) -> ModelFacts:
    """Return the values of the checkpoint's configs that the host side needs."""
    return ModelFacts(
        channels=checkpoint.transformer.in_channels,
        axes_dims_rope=checkpoint.transformer.axes_dims_rope,
        encoder_heads=checkpoint.text_encoder.num_attention_heads,
        encoder_head_dim=checkpoint.text_encoder.head_dim,
        encoder_rope_theta=checkpoint.text_encoder.rope_theta,
        encoder_mrope_section=checkpoint.text_encoder.mrope_section,
        deepstack=checkpoint.text_encoder.deepstack,
        decoder_halo=up_halo(checkpoint.vae),
        cache_token_bytes=0
        if checkpoint.transformer.bidirectional
        else 2 * 4 * checkpoint.transformer.num_layers * checkpoint.transformer.hidden_size,
        bidirectional=checkpoint.transformer.bidirectional,
        vision=VisionFacts(
            head_dim=checkpoint.vision.head_dim,
            rope_theta=checkpoint.vision.rope_theta,
            position_side=checkpoint.vision.position_side,
            image_mean=checkpoint.image_processor.image_mean,
            image_std=checkpoint.image_processor.image_std,
            min_pixels=checkpoint.image_processor.min_pixels,
            max_pixels=checkpoint.image_processor.max_pixels,
        ),
    )
