"""The runtime alone: what importing it loads, and the path from a bundle to a PNG where torch cannot be imported."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qwen_image_engine.runtime.images.parameters import PictureParameters

HEAVY = ("torch", "matplotlib", "onnx", "onnxruntime", "openvino", "transformers", "diffusers", "safetensors")

BLOCKER = """
import sys

BLOCKED = {"torch", "matplotlib", "onnx", "onnx_ir", "onnxscript", "safetensors", "transformers", "diffusers"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is blocked in this test", name=name)

sys.meta_path.insert(0, Blocker())
"""


def python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.process
@pytest.mark.parametrize("name", ["qwen_image_engine.runtime", "qwen_image_engine.runtime.pipeline"])
def test_importing_loads_nothing_heavy(name: str) -> None:
    loaded = python(f"import sys, {name}\nprint(*(name for name in {HEAVY} if name in sys.modules))")
    assert loaded.split() == []


@pytest.mark.process
def test_drawing_needs_neither_tools_nor_the_command() -> None:
    loaded = python(
        "import sys, qwen_image_engine.runtime.pipeline\n"
        "print(*(name for name in sys.modules if name.startswith('qwen_image_engine.')))"
    )
    rooms = {tuple(name.split(".")[1:3]) for name in loaded.split()}
    assert {top for top, *_ in rooms} == {"engines", "runtime"}
    assert not {("runtime", "tools"), ("runtime", "serve"), ("runtime", "cli")} & rooms


@pytest.mark.process
def test_public_names_exist() -> None:
    listed = python(
        "import qwen_image_engine.runtime as runtime\n"
        "print(*(getattr(runtime, name).__name__ for name in runtime.__all__))"
    )
    assert "QwenImage" in listed.split()
    with pytest.raises(AssertionError, match="has no attribute 'Qwen'"):
        python("from qwen_image_engine import runtime\nruntime.Qwen")


@pytest.mark.process
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_whole_path_without_torch(exported: Callable[..., Path], tmp_path: Path, engine: str) -> None:
    pytest.importorskip(engine)
    code = f"""{BLOCKER}
from pathlib import Path
import numpy as np
from qwen_image_engine.runtime import QwenImage

folder, out, engine = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
for number in range(2):
    with QwenImage.load(folder, engine=engine, memory="sequential", threads=1) as pipeline:
        pictures = pipeline.generate("a red circle", width=64, height=96, steps=3, seed=7, num_images=2)
    pictures[1].save(out / f"{{number}}.png")
    np.save(out / f"{{number}}.npy", np.stack([picture.latents for picture in pictures]))
assert not BLOCKED & set(sys.modules)
"""
    folder = exported()
    python(code, str(folder), str(tmp_path), engine)
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "1.png").read_bytes()
    assert PictureParameters.read(tmp_path / "0.png").engine == engine
    assert np.array_equal(np.load(tmp_path / "0.npy"), np.load(tmp_path / "1.npy"))
