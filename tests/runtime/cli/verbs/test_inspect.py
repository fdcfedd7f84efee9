"""`inspect` of a checkpoint: shows what it can, and ends with 1 where `export` refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_image_engine.runtime.cli.main import main
from tests.support.edit_checkpoint import edit_json, edit_tensors

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
FAULTS: dict[str, Callable[[Path], object]] = {
    "1 missing (img_in.weight)": lambda folder: edit_tensors(
        folder / TRANSFORMER, lambda found: found.pop("img_in.weight")
    ),
    "key 'num_layers' is 9": lambda folder: edit_json(folder / "transformer/config.json", "num_layers", value=9),
    "tokenizer.json": lambda folder: (folder / "processor" / "tokenizer.json").unlink(),
    "tensor 'img_in.weight' has dtype F64": lambda folder: edit_tensors(
        folder / TRANSFORMER, lambda found: found.update({"img_in.weight": found["img_in.weight"].double()})
    ),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_what_export_refuses(
    random_checkpoint: Callable[..., Path],
    tmp_path: Path,
    fails: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
    fault: str,
) -> None:
    folder = shutil.copytree(random_checkpoint(), tmp_path / "model")
    assert main(["inspect", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fault"] is None
    FAULTS[fault](folder)
    message = fails(1, "plan", "-m", folder)
    assert fault in message
    assert main(["inspect", str(folder), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["fault"] == message
    assert [network["network"] for network in found["networks"]] == ["transformer", "text_encoder", "vae"]
    assert main(["inspect", str(folder)]) == 1
    assert capsys.readouterr().out.endswith(f"\n✗ it cannot be exported: {message}\n")
