"""The program of `make demo`, from checkpoint to pictures: export, draw with engine and torch reference, verify.

Where TensorRT for RTX is installed, engine files for RTX cards are built last; building them needs no GPU.

python -m benchmarks.quality.demo --checkpoint reference/shapes/checkpoint --output out/demo
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.common.environment import environment
from benchmarks.common.sheet import save_sheet
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.reference.pipeline import reference_pipeline
from qwen_image_engine.runtime.cli.main import main as qwen_image
from qwen_image_engine.runtime.pipeline import QwenImage


@dataclass(frozen=True)
class Request:
    name: str
    prompt: str
    width: int
    height: int
    seed: int


REQUESTS = (
    Request("circle", "a red circle in the center on a white background", 128, 128, 1),
    Request("two", "a blue square on the left and a yellow triangle on the right on a black background", 192, 128, 2),
    Request("chinese", "左上角有一个绿色的十字，右下角有一个紫色的圆形，粉色背景", 128, 192, 3),
    Request("transparent", "an orange cross at the top on a transparent background", 192, 192, 4),
    Request("chinese-transparent", "透明背景，一个蓝色正方形在中间。", 192, 128, 5),
    Request("word", 'a green circle on the left and the word "HI" on the right on a grey background', 192, 192, 6),
    Request(
        "three",
        "an orange triangle at the bottom left, a white square in the center and a red cross at the top right "
        "on a sky blue background",
        256,
        256,
        7,
    ),
    Request("chinese-word", "一个红色三角形在上方，下方写着“OK”，白色背景", 192, 192, 8),
)


def draw(pipeline: QwenImage, kind: str, output: Path, requests: list[Request], steps: int) -> float:
    """Draw and save all pictures, and return the seconds that it takes."""
    began = time.perf_counter()
    for request in requests:
        (picture,) = pipeline.generate(
            request.prompt, width=request.width, height=request.height, seed=request.seed, steps=steps
        )
        picture.save(output / f"{kind}-{request.name}.png")
    return time.perf_counter() - began


def demo(checkpoint: str, output: Path, engine: str, steps: int, most: int | None) -> int:
    output.mkdir(parents=True, exist_ok=True)
    bundle = output / "bundle"
    requests = list(REQUESTS[:most])
    seconds: dict[str, float] = {}
    began = time.perf_counter()
    print(f"export {checkpoint} to {bundle}")
    if code := qwen_image(["export", "-m", checkpoint, str(bundle)]):
        return code
    seconds["export"] = time.perf_counter() - began

    print(f"draw {len(requests)} pictures with {engine} and with the torch reference")
    with QwenImage.load(bundle, engine=engine) as pipeline:
        seconds["engine"] = draw(pipeline, "engine", output, requests, steps)
    with reference_pipeline(checkpoint) as pipeline:
        seconds["reference"] = draw(pipeline, "reference", output, requests, steps)
    print(f"  {engine}: {seconds['engine']:.1f} s, reference: {seconds['reference']:.1f} s")
    columns = [
        [(output / f"{kind}-{item.name}.png", f"{kind}: {item.name}, {item.width}x{item.height}") for kind in kinds]
        for item in requests
        for kinds in [("engine", "reference")]
    ]
    save_sheet(output / "sheet.png", columns)
    prompts = {item.name: {"prompt": item.prompt, "seed": item.seed} for item in requests}
    (output / "prompts.json").write_text(json.dumps(prompts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    print("verify")
    began_verify = time.perf_counter()
    code = qwen_image(["verify", str(bundle), "-m", checkpoint, "--output", str(output / "verify.json")])
    seconds["verify"] = time.perf_counter() - began_verify
    code = code or build_for_rtx_cards(checkpoint, output / "rtx", seconds)
    seconds["total"] = time.perf_counter() - began
    document = {"passed": code == 0, "engine": engine, "pictures": len(requests), "steps": steps, "seconds": seconds}
    (output / "demo.json").write_text(json.dumps(document | environment(), indent=2) + "\n", encoding="utf-8")
    print(f"look at {output / 'sheet.png'}: engine above, reference below; the table is in {output / 'verify.json'}")
    return code


def build_for_rtx_cards(checkpoint: str, bundle: Path, seconds: dict[str, float]) -> int:
    """Export graphs for TensorRT and build engine files of them if the compiler is installed. Return the exit code."""
    if find_spec("tensorrt_rtx") is None:
        print("no engine files for RTX cards: tensorrt-rtx is not installed")
        return 0
    print(f"build engine files for RTX cards in {bundle}")
    began = time.perf_counter()
    code = qwen_image(["export", "-m", checkpoint, str(bundle), "--target", "tensorrt"])
    code = code or qwen_image(["build", str(bundle), "--engine", "tensorrt-rtx", "--profile", "256x256,512x512"])
    seconds["rtx"] = time.perf_counter() - began
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="reference/shapes/checkpoint")
    parser.add_argument("--output", type=Path, default=Path("out/demo"))
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pictures", type=int, help="only the first few")
    options = parser.parse_args()
    try:
        return demo(options.checkpoint, options.output, options.engine, options.steps, options.pictures)
    except QwenImageError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
