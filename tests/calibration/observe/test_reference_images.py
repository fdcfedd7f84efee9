"""A calibration with reference images: what is observed of them, and what decides the result."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen_image_engine.calibration.observe.calibrate import calibrate
from qwen_image_engine.calibration.observe.record import RECORD, Calibration
from qwen_image_engine.calibration.observe.request import Request
from qwen_image_engine.calibration.observe.trajectories import Trajectories
from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.networks.transformer import Transformer
from qwen_image_engine.runtime.cli.main import main
from qwen_image_engine.runtime.cli.verbs.calibrate import image_files
from tests.support.images import patches

PROMPTS = ("make it red", "a circle", "a blue one")
IMAGES = (patches(300, 320), patches(400, 280, "RGB", 1))
SETTINGS: dict[str, Any] = {
    "images": IMAGES,
    "reference_resolution": 288,
    "steps": 2,
    "sizes": [(64, 64)],
    "guidance": 1.0,
}
OBSERVED = "transformer_blocks.1.attn.to_q"


@pytest.fixture(scope="module")
def made(random_checkpoint: Callable[..., Path], tmp_path_factory: Any) -> tuple[Calibration, list[torch.Tensor], Path]:
    """A calibration, and the inputs of one linear in the reference images' pass as it was made."""
    seen: list[torch.Tensor] = []
    whole = Transformer.prefix_image

    def watched(self: Transformer, *arguments: Any) -> Any:
        linear = self.get_submodule(OBSERVED)
        hook = linear.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].flatten(0, -2)))
        result = whole(self, *arguments)
        hook.remove()
        return result

    folder = tmp_path_factory.mktemp("images") / "calibration"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transformer, "prefix_image", watched)
        return calibrate(random_checkpoint("narrow"), folder, PROMPTS, **SETTINGS), seen, folder


def test_the_pass_of_reference_images_is_observed(
    made: tuple[Calibration, list[torch.Tensor], Path], random_checkpoint: Callable[..., Path]
) -> None:
    calibration, seen, folder = made
    assert list(calibration.components) == ["text_encoder", "prefix", "prefix_image", "step"]
    prefix, image = calibration.components["prefix"], calibration.components["prefix_image"]
    assert prefix.keys() == image.keys()
    assert len(seen) == 2  # the first and the third prompt
    rows = torch.cat(seen)
    assert torch.equal(image[OBSERVED].channel_absmax, rows.abs().amax(dim=0))
    assert image[OBSERVED].absmax_by_step.shape == (1,)
    assert not torch.equal(image[OBSERVED].channel_absmax, prefix[OBSERVED].channel_absmax)
    opened = Calibration.open(folder, Checkpoint.open(random_checkpoint("narrow")))
    assert torch.equal(opened.components["prefix_image"][OBSERVED].channel_absmax, image[OBSERVED].channel_absmax)


def test_record(made: tuple[Calibration, list[torch.Tensor], Path]) -> None:
    calibration, _, folder = made
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    assert (record["schema"], record["images"]) == (3, 2)
    assert record["images_sha256"] == calibration.settings.images_sha256
    assert len(record["images_sha256"]) == 64


def test_images_are_taken_in_turn_for_every_second_prompt(random_checkpoint: Callable[..., Path]) -> None:
    checkpoint = Checkpoint.open(random_checkpoint("narrow"))
    options: dict[str, Any] = {"negative_prompt": "", "seed": 0, "device": "cpu", "dtype": "fp32"}
    request = Request.of(checkpoint, PROMPTS * 2, **SETTINGS, **options)
    first, second = request.images
    taken = [request.references(index).images for index in range(6)]
    assert taken == [(first,), (), (second,), (), (first,), ()]
    assert first.sha256 != second.sha256
    without = Request.of(checkpoint, PROMPTS, **{**SETTINGS, "images": ()}, **options)
    assert [without.references(index).images for index in range(3)] == [()] * 3


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"images": ()}, "2 other reference images, now 0"),
        ({"images": IMAGES[::-1]}, "2 other reference images, now 2"),
        ({"reference_resolution": 320}, "2 other reference images, now 2"),
    ],
)
def test_other_images_are_refused(
    made: tuple[Calibration, list[torch.Tensor], Path],
    random_checkpoint: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, Any],
    word: str,
) -> None:
    monkeypatch.setattr(Trajectories, "__init__", lambda *_: pytest.fail("drawn before the settings were compared"))
    with pytest.raises(QwenImageError, match=word):
        calibrate(random_checkpoint("narrow"), made[2], PROMPTS, **{**SETTINGS, **changed})
    assert calibrate(random_checkpoint("narrow"), made[2], PROMPTS, **SETTINGS).sha256 == made[0].sha256


def test_bidirectional_attention(random_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(random_checkpoint("narrow"), attention="bidirectional")
    found = calibrate(checkpoint, tmp_path / "calibration", PROMPTS[:1], **{**SETTINGS, "images": IMAGES[:1]})
    assert list(found.components) == ["text_encoder", "joint"]
    assert found.components["joint"][OBSERVED].absmax_by_step.shape == (2,)
    assert "transformer_blocks.1.img_mlp.out" in found.components["joint"]


def test_files_and_folders(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", ".hidden"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder").mkdir()
    found = image_files([tmp_path / "b.png", tmp_path])
    assert [path.name for path in found] == ["b.png", "a.png", "b.png"]
    with pytest.raises(UsageError, match="folder: holds no files"):
        image_files([tmp_path / "folder"])


def test_the_verb_takes_images(
    random_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    (tmp_path / "images").mkdir()
    for index, image in enumerate(IMAGES):
        image.save(tmp_path / "images" / f"{index}.png")
    words = ["calibrate", "-m", random_checkpoint("narrow"), tmp_path / "calibration", "--images", tmp_path / "images"]
    words += ["--prompts", tmp_path / "prompts.txt", "--reference-resolution", 288, "--steps", 2, "--size", "64x64"]
    assert main([*map(str, words), "--guidance", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["components"]) == ["text_encoder", "prefix", "prefix_image", "step"]
    assert found["images"] == 2


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"images": [Path("absent.png")]}, "absent"),
        ({"images": [*IMAGES, IMAGES[0]]}, "3 reference images and 3 prompts.*: 1 would never be seen"),
        ({"images": IMAGES[0]}, "expected a list"),
        ({"reference_resolution": 64}, "use --reference-resolution"),
    ],
)
def test_images_that_cannot_be_used(
    random_checkpoint: Callable[..., Path], output: Path, changed: dict[str, Any], word: str
) -> None:
    with pytest.raises(UsageError, match=word):
        calibrate(random_checkpoint("narrow"), output / "calibration", PROMPTS, **{**SETTINGS, **changed})
