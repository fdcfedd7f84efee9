"""The result of measuring pictures, and its JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from qwen_image_engine.export.verify.pictures.cases import Kind, kind
from qwen_image_engine.export.verify.pictures.distance import Distance, Figures
from qwen_image_engine.export.verify.pictures.settings import Setting
from qwen_image_engine.export.verify.recording import Case
from qwen_image_engine.reference.shapes.judge.evaluate import EditScore, Score
from qwen_image_engine.runtime.tools.compare.result import PICTURES, PICTURES_SCHEMA


@dataclass(frozen=True)
class DrawnPicture:
    """A picture of one request, compared with the solution.

    Attributes:
        case: name of the request.
        distance: distance from the solution; None if the picture could not be drawn.
        png: the picture, a PNG; None if it could not be drawn or pictures are not kept.
        missing: reason why the picture could not be drawn; "" if it was.
    """

    case: str
    distance: Distance | None
    png: bytes | None = None
    missing: str = ""


@dataclass(frozen=True)
class SettingPictures:
    """The pictures of one bundle with one setting.

    Attributes:
        setting: the setting.
        asked: whether the caller named the setting; otherwise it is the baseline of one that the caller named.
        pictures: a picture of each request that the bundle can do.
        judged: scores by the judge of `shapes`, by kind of prompt; empty if not requested.
    """

    setting: Setting
    asked: bool
    pictures: tuple[DrawnPicture, ...]
    judged: Mapping[str, Score | EditScore] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """The figures of one bundle, one kind of request and one setting, beside those of its baseline.

    Attributes:
        kind: kind of the requests.
        found: the pictures of all requests.
        own: the pictures of this kind.
        figures: figures of these pictures; None if one could not be drawn.
        baseline: figures of Euler with as many evaluations; None if one of its pictures could not be drawn.
        judged: the judge's scores of prompts, or of edits.
    """

    kind: Kind
    found: SettingPictures
    own: tuple[DrawnPicture, ...]
    figures: Figures | None
    baseline: Figures | None
    judged: Mapping[str, Score | EditScore]

    @property
    def gain(self) -> float | None:
        """Gain in mean PSNR of the colours over the baseline [dB]; None if one of the two has no figures."""
        if self.figures is None or self.baseline is None:
            return None
        return self.figures.psnr_rgb - self.baseline.psnr_rgb

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON. A row or a picture that could not be drawn has no figures."""
        setting = self.found.setting
        return {
            "kind": self.kind,
            **asdict(setting),
            "evaluations": setting.evaluations,
            "asked": self.found.asked,
            "figures": _figures(self.figures),
            "gain_db": self.gain,
            "baseline": {**asdict(setting.baseline), "figures": _figures(self.baseline)},
            "judged": [
                {"kind": name, "tried": score.tried, "fulfilled": score.fulfilled, "rate": score.rate}
                for name, score in self.judged.items()
            ],
            "pictures": [
                {"case": item.case, "figures": _figures(item.distance), "missing": item.missing or None}
                for item in self.own
            ],
        }


@dataclass(frozen=True)
class BundlePictures:
    """The pictures of one bundle on one engine.

    Attributes:
        bundle: folder of the bundle.
        target: target of the bundle.
        precision: precision of the bundle.
        engine: name of the backend.
        engine_version: version of the backend's package.
        settings: settings with their pictures, baselines first, then by solver and number of steps.
    """

    bundle: str
    target: str
    precision: str
    engine: str
    engine_version: str
    settings: tuple[SettingPictures, ...]

    def rows(self, cases: tuple[Case, ...]) -> Iterator[Row]:
        """Yield the rows of each kind of request that the bundle can do."""
        kinds = {case.name: kind(case) for case in cases}
        for each in dict.fromkeys(kinds.values()):
            found = {
                item.setting: tuple(picture for picture in item.pictures if kinds[picture.case] == each)
                for item in self.settings
            }
            for item in self.settings:
                own, baseline = found[item.setting], found[item.setting.baseline]
                if not own:
                    continue
                judged = {name: score for name, score in item.judged.items() if (name == "edits") == (each == "edits")}
                yield Row(each, item, own, _together(own), _together(baseline), judged)


@dataclass(frozen=True)
class PictureComparison:
    """The distances of bundles' pictures from the reference's solution, by setting.

    Attributes:
        bundles: result of each bundle.
        cases: requests that were drawn.
        solution: setting with which the reference drew the solution.
        guidance: guidance weight of every request; 1 without guidance.
        negative_prompt: negative prompt of every request; None without guidance.
        checkpoint: name of the checkpoint.
        config_sha256: SHA-256 of the checkpoint's configuration.
        weights_sha256: SHA-256 of the checkpoint's weights.
        solutions: PNGs of the solution by name of the request; empty if pictures are not kept.
        command: command with the same options.
        environment: machine, versions of packages, and start time; neither the environment nor the command is in the
            JSON.
    """

    bundles: tuple[BundlePictures, ...]
    cases: tuple[Case, ...]
    solution: Setting
    guidance: float
    negative_prompt: str | None
    checkpoint: str
    config_sha256: str
    weights_sha256: str
    solutions: Mapping[str, bytes] = field(default_factory=dict)
    command: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every picture could be drawn."""
        return all(
            picture.distance is not None
            for bundle in self.bundles
            for item in bundle.settings
            for picture in item.pictures
        )

    def to_json(self) -> dict[str, Any]:
        """Return `{"format": …, "solution": {…}, "cases": […], "bundles": [{"rows": […]}]}`."""
        return {
            "format": PICTURES,
            "schema": PICTURES_SCHEMA,
            "passed": self.passed,
            "checkpoint": self.checkpoint,
            "config_sha256": self.config_sha256,
            "weights_sha256": self.weights_sha256,
            "solution": {**asdict(self.solution), "evaluations": self.solution.evaluations},
            "guidance": self.guidance,
            "negative_prompt": self.negative_prompt,
            "cases": [
                {
                    "name": case.name,
                    "kind": kind(case),
                    "prompt": case.prompt,
                    "width": case.width,
                    "height": case.height,
                    "seed": case.seed,
                    "references": len(case.references),
                }
                for case in self.cases
            ],
            "bundles": [
                {
                    "bundle": item.bundle,
                    "target": item.target,
                    "precision": item.precision,
                    "engine": item.engine,
                    "engine_version": item.engine_version,
                    "rows": [row.to_json() for row in item.rows(self.cases)],
                }
                for item in self.bundles
            ],
        }


def _together(pictures: tuple[DrawnPicture, ...]) -> Figures | None:
    distances = [picture.distance for picture in pictures if picture.distance is not None]
    return Figures.of(distances) if len(distances) == len(pictures) else None


def _figures(found: Figures | Distance | None) -> dict[str, float] | None:
    return None if found is None else asdict(found)
