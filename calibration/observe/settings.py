"""What a calibration was made from and how: equal settings on one machine give equal statistics, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

FORMAT = "qwen-image-calibration"
SCHEMA = 3


@dataclass(frozen=True)
class CheckpointIdentity:
    """The checkpoint: its name, which may change, and its hashes, which may not."""

    name: str
    config_sha256: str
    weights_sha256: str

    def is_same(self, other: CheckpointIdentity) -> bool:
        """Whether both are the same configuration and weights, whatever their names."""
        return (self.config_sha256, self.weights_sha256) == (other.config_sha256, other.weights_sha256)

    def __str__(self) -> str:
        return f"{self.name} (config {self.config_sha256[:12]}, weights {self.weights_sha256[:12]})"


@dataclass(frozen=True)
class Settings:
    """Of one calibration.

    Attributes:
        checkpoint: that was observed.
        prompts: how many, one trajectory each.
        prompts_sha256: of the prompts in order, UTF-8, each with a newline behind it.
        images: reference images, of which every second prompt is drawn with one, in turn.
        images_sha256: of their fitted pixels, in order; empty without.
        negative_prompt: of the second branch, None where there was no guidance.
        guidance: 1 for none.
        seeds: of the noise, one a trajectory.
        steps: of each trajectory.
        sizes: (width, height) in pixels, taken in turn.
        dtype: of weights and arithmetic.
        device: that the networks ran on.
        versions: of what computed it, by package.
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
        """Plain JSON, with format and schema version."""
        return {"format": FORMAT, "schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """What `to_json` wrote; other keys are left alone.

        Raises:
            ValueError: it is of another format or schema version, or a value is missing or misshapen.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(f'no "format": "{FORMAT}" in it')
        if data.get("schema") != SCHEMA:
            raise ValueError(f"schema version {data.get('schema')!r}, this version reads {SCHEMA}")
        try:
            negative_prompt = data["negative_prompt"]
            return cls(
                checkpoint=CheckpointIdentity(
                    *(_text(data["checkpoint"][key]) for key in ("name", "config_sha256", "weights_sha256"))
                ),
                prompts=int(data["prompts"]),
                prompts_sha256=_text(data["prompts_sha256"]),
                images=int(data["images"]),
                images_sha256=_text(data["images_sha256"]),
                negative_prompt=None if negative_prompt is None else _text(negative_prompt),
                guidance=float(data["guidance"]),
                seeds=tuple(int(seed) for seed in data["seeds"]),
                steps=int(data["steps"]),
                sizes=tuple((int(width), int(height)) for width, height in data["sizes"]),
                dtype=_text(data["dtype"]),
                device=_text(data["device"]),
                versions={_text(package): _text(version) for package, version in data["versions"].items()},
            )
        except KeyError as error:
            raise ValueError(f"{error} is missing") from error
        except (TypeError, AttributeError) as error:
            raise ValueError(str(error)) from error

    def differences(self, asked: Settings, *, unfinished: bool = False) -> str:
        """What `asked` says otherwise, in words; empty where it says the same.

        Device and versions count for an unfinished calibration alone: its result is to be that of one run, bit for
        bit. A finished one stands for what it was made from, whoever asks for it.
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


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _described(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(f"{width}x{height}" for width, height in value)
    if isinstance(value, Mapping):
        return " ".join(f"{package} {version}" for package, version in value.items())
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else repr(value) if isinstance(value, str) else str(value)
