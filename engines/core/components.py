"""The table of components: the network of each graph of a bundle, when the graph runs, and what it needs of an engine.

The tensors of a component are in its contract in `contract.py`. Everything else that depends on the component alone is
a column here. Every set of components is computed from the rows, here or in the module that uses the set.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

Attention = Literal["causal", "bidirectional"]
"""Attention between the tokens of a transformer: block-causal (as in 2.1), or all to all (as 2.0 is described)."""


@dataclass(frozen=True)
class Component:
    """A row of the table of components.

    Attributes:
        name: name of the component, of its contract and of its graph.
        network: the network of the checkpoint whose weights the component reads.
        stage: the stage of a request that the component's time is counted in.
        runs: how often the component runs: once a prompt, a reference image, a step, a picture or a tile of a picture.
        attention: attention of the transformers that have this component; None if every checkpoint has it.
        needs_reference_images: whether the component runs only for reference images.
        optional: whether `export --without` takes the component's name. Every component that needs reference images is
            left out with it.
        on_latents: whether the inputs grow with the latents of a picture or of a reference image.
        batched: whether the component runs once for all images of a batch. If not, it runs for one prompt or image at a
            time.
        causal_mask: whether attention is causal within the call.
        query_norms: whether the queries of the attention come from an RMS norm.
        returns_cache: whether the component returns keys and values alone. The last block of such a component ends at
            the projections to keys and values.
    """

    name: str
    network: str
    stage: Literal["references", "encode", "prefix", "step", "decode"]
    runs: Literal["prompt", "image", "step", "picture", "tile"]
    attention: Attention | None = None
    needs_reference_images: bool = False
    optional: bool = False
    on_latents: bool = False
    batched: bool = False
    causal_mask: bool = False
    query_norms: bool = False
    returns_cache: bool = False


COMPONENTS: Mapping[str, Component] = {
    row.name: row
    for row in (
        Component("text_encoder", "text_encoder", "encode", "prompt", causal_mask=True, query_norms=True),
        Component("vision", "vision", "references", "image", needs_reference_images=True, optional=True),
        Component(
            "prefix",
            "transformer",
            "prefix",
            "prompt",
            attention="causal",
            causal_mask=True,
            query_norms=True,
            returns_cache=True,
        ),
        Component(
            "prefix_image",
            "transformer",
            "prefix",
            "image",
            attention="causal",
            needs_reference_images=True,
            on_latents=True,
            query_norms=True,
            returns_cache=True,
        ),
        Component(
            "step",
            "transformer",
            "step",
            "step",
            attention="causal",
            on_latents=True,
            batched=True,
            query_norms=True,
        ),
        Component(
            "joint",
            "transformer",
            "step",
            "step",
            attention="bidirectional",
            on_latents=True,
            batched=True,
            query_norms=True,
        ),
        Component("vae_decoder_mid", "vae", "decode", "picture", on_latents=True),
        Component("vae_decoder_up", "vae", "decode", "tile", on_latents=True),
        Component(
            "vae_encoder", "vae", "references", "image", needs_reference_images=True, optional=True, on_latents=True
        ),
    )
}
"""Rows by name, in the order in which bundles list them."""

EVERY_STEP: Collection[str] = tuple(row.name for row in COMPONENTS.values() if row.runs == "step")
"""Names of the components that run once a step."""

FOR_REFERENCE_IMAGES: Collection[str] = tuple(row.name for row in COMPONENTS.values() if row.needs_reference_images)
"""Names of the components that run only for reference images."""

NETWORKS: Collection[str] = tuple(dict.fromkeys(row.network for row in COMPONENTS.values()))
"""Names of the networks, in the order of their first components."""


def components_with(attention: Attention) -> tuple[Component, ...]:
    """Return the components of a checkpoint whose transformer has this attention, in the order of the table."""
    return tuple(row for row in COMPONENTS.values() if row.attention in (None, attention))
