"""The request to build one plan, and the reply. Both are sent to or from the build process as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from qwen_image_engine.engines.plans.entry import Profile

BUILDER_REVISION = 4
"""A part of every plan's key. Raise it if the builder makes another engine of the same job, or audits the engine by
other rules. Plans of an older version are then built again."""


Weights = Literal["bound", "inside"]
"""Place of a plan's weights: inputs of the plan, bound when it runs, or inside the plan."""


@dataclass(frozen=True)
class BuildOptions:
    """The options of a plan that a user may choose.

    Attributes:
        strip_weights: whether to leave the weights out of the plan; they come from the bundle's graph at load time.
        weight_streaming: whether weights may stay on the host.
        workspace_bytes: bytes of scratch memory that a kernel may take; None for all there is.
        weights: place of the weights of products and of tables; None for the builder's default, which is decided before
            there is a job. Vectors, scales of quantisation and kernels of convolutions are inside always.
    """

    strip_weights: bool = False
    weight_streaming: bool = False
    workspace_bytes: int | None = None
    weights: Weights | None = None


@dataclass(frozen=True)
class ExpectedFusions:
    """The fused attentions and 8-bit products that a graph promises of its plan.

    Attributes:
        fp8_products: number of products in FP8.
        int8_products: number of products in INT8.
        fp8_attention: number of blocks whose attention is FP8.
        attentions: names of the graph nodes that must each run in a fused kernel.
    """

    fp8_products: int
    int8_products: int
    fp8_attention: int
    attentions: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ExpectedFusions:
        """Return the promise that `dataclasses.asdict` wrote, read from JSON."""
        return cls(**{**data, "attentions": tuple(data["attentions"])})


@dataclass(frozen=True)
class BuildJob:
    """The request to build the plan of one component.

    Attributes:
        component: name of the component.
        builder: name of the backend whose package builds the plan.
        compute_capabilities: compute capabilities to build for; empty for the one of this machine's GPU.
        model: path of the graph; the weights are where the graph says.
        plan: path to write the plan to.
        timing_cache: path to read and write timings of kernels; None for a builder that times none.
        profiles: optimization profiles in the order in which the plan numbers them.
        options: options chosen by the user.
        promise: counts that the finished plan is checked against.
        softmax_scale: scale of the probabilities of FP8 attention; None if no attention is FP8.
        layers: path for the compiler's account of the plan's layers.
    """

    component: str
    builder: str
    compute_capabilities: tuple[str, ...]
    model: str
    plan: str
    timing_cache: str | None
    profiles: tuple[Profile, ...]
    options: BuildOptions
    promise: ExpectedFusions
    softmax_scale: float | None
    layers: str

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON. `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BuildJob:
        """Return the job that `to_json` wrote."""
        profiles = tuple(
            Profile(
                item["name"],
                {
                    name: (tuple(least), tuple(best), tuple(largest))
                    for name, (least, best, largest) in item["shapes"].items()
                },
            )
            for item in data["profiles"]
        )
        return cls(
            **{
                **data,
                "compute_capabilities": tuple(data["compute_capabilities"]),
                "profiles": profiles,
                "options": BuildOptions(**data["options"]),
                "promise": ExpectedFusions.from_json(data["promise"]),
            }
        )


@dataclass(frozen=True)
class BuildResult:
    """The result of a build: size and SHA-256 of the plan, counts of the audit, scratch memory by profile.

    `warnings` are problems that did not fail the build.
    """

    bytes: int
    sha256: str
    fused_attentions: int
    fp8_products: int
    int8_products: int
    scratch_bytes: tuple[int, ...]
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BuildResult:
        """Return the result that `dataclasses.asdict` wrote, read from JSON."""
        tuples = {name: tuple(data[name]) for name in ("scratch_bytes", "warnings") if name in data}
        return cls(**{**data, **tuples})
