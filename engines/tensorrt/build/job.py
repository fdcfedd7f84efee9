"""What one component's engine is built from, as it goes to the process that builds it, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from qwen_image_engine.engines.plans.entry import Profile

BUILDER_REVISION = 2
"""Part of every plan's key: raise it where `tensorrt_builder` makes another engine of the same job, or audits it by
other rules, so that plans which an older version made are built again."""


@dataclass(frozen=True)
class BuildOptions:
    """What a user may choose of an engine.

    Attributes:
        strip_weights: leave the weights out of the plan; they come from the bundle's graph when it is loaded.
        weight_streaming: let weights stay on the host.
        workspace_bytes: of scratch memory that a kernel may take, None for all there is.
    """

    strip_weights: bool = False
    weight_streaming: bool = False
    workspace_bytes: int | None = None


@dataclass(frozen=True)
class Promise:
    """What the graph promises of its engine.

    Attributes:
        fp8_products: products in FP8.
        int8_products: products in INT8.
        fp8_attention: blocks whose attention is FP8.
        attentions: nodes of the graph that a fused kernel must run each.
    """

    fp8_products: int
    int8_products: int
    fp8_attention: int
    attentions: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Promise:
        """What `dataclasses.asdict` made of one, through JSON."""
        return cls(**{**data, "attentions": tuple(data["attentions"])})


@dataclass(frozen=True)
class BuildJob:
    """One component.

    Attributes:
        component: its name.
        model: file of its graph; the weights are where the graph says.
        plan: file to write the engine to.
        timing_cache: file to read and write timings of kernels.
        profiles: in the order in which the engine is to number them.
        options: chosen by the user.
        promise: what the finished engine is held against.
        softmax_scale: of FP8 attention's probabilities, None where no attention is FP8.
        layers: file for what TensorRT's inspector says of the engine, None for none.
    """

    component: str
    model: str
    plan: str
    timing_cache: str
    profiles: tuple[Profile, ...]
    options: BuildOptions
    promise: Promise
    softmax_scale: float | None
    layers: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BuildJob:
        """The job that `to_json` wrote."""
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
                "profiles": profiles,
                "options": BuildOptions(**data["options"]),
                "promise": Promise.from_json(data["promise"]),
            }
        )


@dataclass(frozen=True)
class BuildResult:
    """A written plan: its size and SHA-256, what the audit counted in the engine, its scratch memory by profile.

    `warnings` are what went wrong beside it.
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
        """What `dataclasses.asdict` made of one, through JSON."""
        tuples = {name: tuple(data[name]) for name in ("scratch_bytes", "warnings") if name in data}
        return cls(**{**data, **tuples})
