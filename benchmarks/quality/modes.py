"""Every mode of the model on the small checkpoint: pictures for docs/modes.md, and their times.

    python -m benchmarks.quality.modes [--engine onnxruntime]

The program exports a bundle and makes every request with `qwen-image run`, as a user does. Later requests edit pictures
of earlier ones.
"""

import argparse
import contextlib
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.environment import environment
from benchmarks.common.paths import RESULTS, ROOT, SHAPES
from benchmarks.common.sheet import save_sheet
from qwen_image_engine.runtime.cli.main import main as qwen_image


@dataclass(frozen=True)
class Request:
    """A request of a mode. Sides are in pixels; `references` names earlier requests whose pictures are edited."""

    name: str
    prompt: str
    references: tuple[str, ...] = ()
    width: int = 192
    height: int = 192
    flags: tuple[str, ...] = ()


REQUESTS = (
    Request("text to image", "a red circle at the top left and a blue square in the center on a white background"),
    Request("edit: recolour", "Make the circle at the top left green.", ("text to image",)),
    Request("edit: move", "Move the blue square in the center to the bottom right.", ("text to image",)),
    Request("edit: remove", "Remove the red circle at the top left.", ("text to image",)),
    Request("edit: background", "Remove the background.", ("text to image",)),
    Request("edit: word", 'Write "CAT" at the top right.', ("text to image",)),
    Request("another", "an orange triangle at the bottom on a white background"),
    Request(
        "two references", "Add the orange triangle at the bottom of image 2 to image 1.", ("text to image", "another")
    ),
    Request("transparent", "a yellow cross on the right on a transparent background"),
    Request("small", "a red circle at the top left and a green cross on the right on a pink background", (), 128, 128),
    Request("enlarged", "Enlarge the picture.", ("small",), 256, 256),
    Request("guidance", "把左上角的圆形变成紫色", ("text to image",), flags=("--guidance", "2", "-n", "")),
)


def run(bundle: Path, request: Request, folder: Path, engine: str, steps: int) -> dict[str, Any]:
    """Run `qwen-image run --json` with the picture in `folder`, and return the JSON document.

    Raises:
        SystemExit: the command fails.
    """
    arguments = ["run", str(bundle), "-p", request.prompt, "-o", str(folder / f"{_file(request.name)}.png")]
    arguments += ["-W", str(request.width), "-H", str(request.height), "-s", str(steps), "--engine", engine, "--json"]
    for name in request.references:
        arguments += ["-r", str(folder / f"{_file(name)}.png")]
    arguments += ["--reference-resolution", str(request.width), "--seed", "7,8", *request.flags]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = qwen_image(arguments)
    if code:
        raise SystemExit(code)
    document: dict[str, Any] = json.loads(out.getvalue())
    first = folder / f"{_file(request.name)}-0.png"
    first.replace(folder / f"{_file(request.name)}.png")
    return document


def _file(name: str) -> str:
    return name.replace(": ", "-").replace(" ", "-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default=str(SHAPES))
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--work", type=Path, default=Path("out/bench/modes"))
    parser.add_argument("--sheet", type=Path, default=ROOT / "docs" / "modes.png")
    parser.add_argument("--output", type=Path, default=RESULTS / "modes.json")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    bundle = options.work / "bundle"
    if code := qwen_image(["export", "-m", options.model, str(bundle)]):
        raise SystemExit(code)
    rows = []
    for request in REQUESTS:
        document = run(bundle, request, options.work, options.engine, options.steps)
        first, second = (item["timings"] for item in document["requests"])
        rows.append(
            {
                "mode": request.name,
                "prompt": request.prompt,
                "references": len(request.references),
                "size": [request.width, request.height],
                "prefix_tokens": document["prefix_tokens"],
                "cache_bytes": document["cache_bytes"],
                "timings": first,
                "timings_of_the_second_seed": second,
            }
        )
        print(request.name, json.dumps({"first": first, "second": second}), flush=True)
    columns = [[(options.work / f"{_file(request.name)}.png", request.name)] for request in REQUESTS]
    save_sheet(options.sheet, columns)
    document = {
        "what": f"modes of `shapes` on {options.engine}, {options.steps} steps, two seeds from one process",
        "results": rows,
        **environment(),
    }
    options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(options.output, file=sys.stderr)


if __name__ == "__main__":
    main()
