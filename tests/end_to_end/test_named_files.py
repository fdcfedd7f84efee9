"""Files that a user names: a pipe without a writer and a device are refused in a sentence, and nothing waits."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_image_engine.calibration.rules.recipe_file import QuantisationRecipe
from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.engines.tensorrt.build.onnx_weights import weights_left_out
from qwen_image_engine.runtime.cli.main import main
from qwen_image_engine.runtime.cli.shared.output_files import read_latents
from qwen_image_engine.runtime.cli.verbs.calibrate import read_prompts
from qwen_image_engine.runtime.images.parameters import PictureParameters
from qwen_image_engine.runtime.images.read import read_reference
from qwen_image_engine.runtime.tools.build.checks import check_timing_cache
from qwen_image_engine.runtime.tools.compare.compare import read_result

READERS: dict[str, Callable[[Path], object]] = {
    "--recipe": QuantisationRecipe.read,
    "--prompts": read_prompts,
    "--timing-cache": check_timing_cache,
    "--reference": read_reference,
    "--from": PictureParameters.read,
    "compare": read_result,
}

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")


@pytest.fixture(params=["pipe", "device"])
def endless(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A pipe without a writer, and a device without an end."""
    path = tmp_path / "endless"
    if request.param == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize("name", READERS)
def test_pipes_and_devices_are_refused(name: str, endless: Path) -> None:
    with pytest.raises(UsageError, match=r"pipe|device") as caught:
        READERS[name](endless)
    assert str(endless) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [read_latents, weights_left_out])
def test_pipes_and_devices_are_no_arrays_and_no_graphs(read: Callable[[Path], object], endless: Path) -> None:
    with pytest.raises(Exception, match="it is a pipe or a device"):
        read(endless)


def test_the_command_ends_with_a_line(endless: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(endless), str(endless)]) == 2
    error = capsys.readouterr().err
    assert error == f"qwen-image: error: cannot read {endless}: it is a pipe or a device, expected a file\n"


@pytest.mark.parametrize("read", [QuantisationRecipe.read, read_prompts, read_result])
def test_sizes_are_limited(read: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(1 << 34)  # a hole, which takes no disk
    with pytest.raises(UsageError, match="17179869184 bytes, expected at most"):
        read(path)
