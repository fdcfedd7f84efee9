"""The settings of a calibration. Equal settings on one machine give bit for bit equal statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from qwen_image_engine.runtime.system.json_schema import (
    COUNT,
    NUMBER,
    TEXT,
    WHOLE,
    SchemaError,
    described,
    is_count,
    is_integer,
    is_list_of,
    leaf,
    many,
    named,
    optional,
    record,
)

FORMAT = "qwen-image-calibration"
SCHEMA = 3


@dataclass(frozen=True)
class CheckpointIdentity:
    """The identity of a checkpoint: the name, which may change, and the hashes, which may not."""

    name: str
    config_sha256: str
    weights_sha256: str

    def is_same(self, other: CheckpointIdentity) -> bool:
        """Return whether both have the same configuration and weights, whatever their names."""
        return (self.config_sha256, self.weights_sha256) == (other.config_sha256, other.weights_sha256)

    def __str__(self) -> str:
        return f"{self.name} (config {self.config_sha256[:12]}, weights {self.weights_sha256[:12]})"


@dataclass(frozen=True)
class Settings:
    """Settings of one calibration.

    Attributes:
        checkpoint: identity of the observed checkpoint.
        prompts: number of prompts, one trajectory each.
        prompts_sha256: SHA-256 of the prompts in order, as UTF-8, each followed by a newline.
        images: number of reference images. Every second prompt is drawn with one of them, in turn.
        images_sha256: SHA-256 of the hashes of the fitted reference images in order; "" if there are none.
        negative_prompt: prompt of the second branch; None if there was no guidance.
        guidance: guidance scale; 1 for no guidance.
        seeds: seeds of the noise, one a trajectory.
        steps: steps of each trajectory.
        sizes: (width, height) in pixels, used in turn.
        dtype: dtype of weights and arithmetic.
        device: device that the networks ran on.
        versions: versions of the packages that computed the statistics, by package.
    """

    checkpoint: CheckpointIdentity
    prompts: int
    prompts_sha256: str
    images: int
    images_sha256: str
    negative_prompt: str | None
    guidance: float
    seeds: tuple[int, ...]
    steps: int
    sizes: tuple[tuple[int, int], ...]
    dtype: str
    device: str
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON with format and schema version."""
        return {"format": FORMAT, "schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Read the JSON of `to_json`. Other keys are ignored.

        Raises:
            SchemaError: `data` is of another format or schema version, or a value is missing or of the wrong type.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise SchemaError(f'no "format": "{FORMAT}" in it')
        if data.get("schema") != SCHEMA:
            raise SchemaError(f"schema version {described(data.get('schema'))}, this version reads {SCHEMA}")
        _SETTINGS(data, "")
        values = {name: data[name] for name in _FIELDS}
        return cls(
            **{
                **values,
                "checkpoint": CheckpointIdentity(**{name: data["checkpoint"][name] for name in _CHECKPOINT}),
                "guidance": float(data["guidance"]),
                "seeds": tuple(data["seeds"]),
                "sizes": tuple(tuple(size) for size in data["sizes"]),
            }
        )

    def differences(self, asked: Settings, *, unfinished: bool = False) -> str:
        """Return a description of the differences from `asked`, or "" if there are none.

        Device and versions count only for an unfinished calibration, because its result has to be bit for bit equal to
        the result of one run. A finished calibration is valid for the same settings on any device and version.
        """
        found = []
        if not self.checkpoint.is_same(asked.checkpoint):
            found.append(f"the checkpoint {self.checkpoint}, now {asked.checkpoint}")
        if self.prompts_sha256 != asked.prompts_sha256:
            found.append(f"{self.prompts} other prompts, now {asked.prompts}")
        if self.images_sha256 != asked.images_sha256:
            found.append(f"{self.images} other reference images, now {asked.images}")
        if self.prompts_sha256 == asked.prompts_sha256 and self.seeds != asked.seeds:
            found.append(f"seed {self.seeds[0]}, now {asked.seeds[0]}")
        keys = ("negative_prompt", "guidance", "steps", "sizes", "dtype")
        for key in (*keys, "device", "versions") if unfinished else keys:
            before, now = _described(getattr(self, key)), _described(getattr(asked, key))
            if before != now:
                found.append(f"{key.replace('_', ' ')} {before}, now {now}")
        return "; ".join(found)


_CHECKPOINT = dict.fromkeys(("name", "config_sha256", "weights_sha256"), TEXT)
_FIELDS = {
    "checkpoint": record(_CHECKPOINT),
    "prompts": WHOLE,
    "prompts_sha256": TEXT,
    "images": WHOLE,
    "images_sha256": TEXT,
    "negative_prompt": optional(TEXT),
    "guidance": NUMBER,
    "seeds": many(leaf("a whole number", is_integer)),
    "steps": COUNT,
    "sizes": many(leaf("a width and a height in pixels", lambda value: is_list_of(value, is_count, 2))),
    "dtype": TEXT,
    "device": TEXT,
    "versions": named(TEXT),
}
_SETTINGS = record(_FIELDS)


def _described(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(f"{width}x{height}" for width, height in value)
    if isinstance(value, Mapping):
        return " ".join(f"{package} {version}" for package, version in value.items())
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else repr(value) if isinstance(value, str) else str(value)
