"""The C++ sample for programs that embed, built with OpenVINO's headers: it draws what the runtime draws."""

import hashlib
import importlib.util
import shutil
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.text.prompt import tokenize
from qwen_image_engine.runtime.text.tokenizer import load_tokenizer
from tests.support.kept import kept_folder
from tests.support.paths import ROOT, SHAPES
from tests.support.shared import SharedFolders

SOURCE = ROOT / "docs" / "embedding"
FLAGS = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-ffp-contract=off")
TEXT_ALONE = ("vision", "vae_encoder")

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def draw() -> Path:
    """The sample's program, built as docs/embedding.md says."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler: c++, g++ or clang++")
    spec = importlib.util.find_spec("openvino")  # found and not imported: an import sends an event
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package openvino is not installed")
    package = Path(spec.submodule_search_locations[0])
    library = next((package / "libs").glob("libopenvino.so*"), None)
    if library is None:
        pytest.skip("the package openvino holds no libopenvino.so")
    links = (library, f"-Wl,-rpath,{library.parent}")
    command = (compiler, *FLAGS, "-isystem", package / "include", SOURCE / "draw.cpp", *links)
    return kept_program(command, version("openvino"))


def kept_program(command: tuple[str | Path, ...], *versions: str) -> Path:
    """Build the sample, or return the program that the last run built with the same words of the same files.

    It takes five seconds, most of them in OpenVINO's headers.
    """
    compiler = subprocess.run([command[0], "--version"], capture_output=True, text=True, check=True).stdout
    digest = hashlib.sha256("\n".join((*map(str, command), *versions, compiler)).encode())
    for file in sorted(SOURCE.glob("*.?pp")):
        digest.update(file.read_bytes())
    program = kept_folder("programs") / f"draw-{digest.hexdigest()}"
    if program.is_file():
        program.touch()  # what is not used any more goes; see `kept.forget`
        return program
    unfinished = program.with_suffix(".unfinished")
    built = subprocess.run([*command, "-o", unfinished], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return unfinished.rename(program)


@pytest.fixture(scope="module")
def shapes_bundle(shared: SharedFolders, trace_once: None) -> Path:
    """The bundle of `shapes` for CPUs, without what reference images need."""
    from qwen_image_engine.export.bundle.bundle import export_bundle

    return shared(lambda folder: export_bundle(SHAPES, folder, without=TEXT_ALONE), "bundle", SHAPES, TEXT_ALONE)


@pytest.fixture(scope="module")
def turbo_bundle(exported: Callable[..., Path]) -> Path:
    """A bundle of random weights with fixed noise levels, and embeddings in fp32; those of `shapes` are in bf16."""
    return exported("narrow", without=TEXT_ALONE, turbo=True)


def read_pam(path: Path) -> NDArray[np.uint8]:
    header, _, pixels = path.read_bytes().partition(b"ENDHDR\n")
    words = header.split()
    assert words[0] == b"P7"
    facts = dict(zip(words[1::2], words[2::2], strict=True))
    assert (facts[b"TUPLTYPE"], facts[b"DEPTH"], facts[b"MAXVAL"]) == (b"RGB_ALPHA", b"4", b"255")
    return np.frombuffer(pixels, np.uint8).reshape(int(facts[b"HEIGHT"]), int(facts[b"WIDTH"]), 4)


@pytest.mark.parametrize(
    ("fixture", "width", "height", "seed"), [("shapes_bundle", 128, 96, 7), ("turbo_bundle", 32, 96, 2**40 + 3)]
)
def test_it_draws_what_the_runtime_draws(
    draw: Path, request: pytest.FixtureRequest, tmp_path: Path, fixture: str, width: int, height: int, seed: int
) -> None:
    bundle: Path = request.getfixturevalue(fixture)
    prompt = "a red circle, 蓝色"
    with QwenImage.load(bundle, engine="openvino") as model:
        (expected,) = model.generate(prompt, width=width, height=height, steps=8, seed=seed)
    numbers = (width, height, 8, seed, *tokenize(load_tokenizer(bundle), prompt).ids)
    subprocess.run([draw, bundle, tmp_path / "out", *map(str, numbers)], check=True)
    found = np.load(tmp_path / "out.npy")
    assert (found.dtype, found.shape) == (np.float32, (1, *expected.latents.shape))
    # The same graphs and settings, and inputs that are the same bit by bit: 0 was found.
    assert np.abs(found[0] - expected.latents).max() <= 1e-5
    difference = np.abs(read_pam(tmp_path / "out.pam").astype(int) - expected.rgba)
    assert difference.max() <= 1  # of 255: latents that differ in the last bit may round to another byte


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("128", "128", "8"), 2, "expected BUNDLE OUTPUT WIDTH HEIGHT STEPS SEED TOKEN"),
        (("100", "128", "8", "7", "1"), 2, "WIDTH is 100, expected a multiple of 32"),
        (("128", "2048", "8", "7", "1"), 2, "HEIGHT is 2048, expected a whole number from 32 to 1024"),
        (("128", "128", "8", "x", "1"), 2, "SEED is x, expected a whole number"),
        (("128", "128", "8", "7", "1", "2"), 2, "the tokens hold no second turn"),
        (("128", "128", "8", "7", "1", "99999999", "1"), 2, "token 99999999 is beyond the"),
    ],
)
def test_requests_that_cannot_be_drawn(
    draw: Path, shapes_bundle: Path, output: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    done = subprocess.run((draw, shapes_bundle, output / "out", *words), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(f"draw: {message}")
    assert done.stderr.count("\n") == 1


def test_what_is_no_bundle(draw: Path, tmp_path: Path) -> None:
    words = (draw, tmp_path, tmp_path / "out", "128", "128", "8", "7", "1", "1")
    missing = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (missing.returncode, missing.stderr) == (1, f"draw: {tmp_path / 'manifest.json'}: cannot be read\n")
    (tmp_path / "manifest.json").write_text('{"format": [1, 2}', encoding="utf-8")
    damaged = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (damaged.returncode, damaged.stderr) == (1, f"draw: {tmp_path / 'manifest.json'}: is not JSON\n")
    (tmp_path / "manifest.json").write_text('{"format": "qwen-image-bundle", "schema": 99}', encoding="utf-8")
    newer = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (newer.returncode, newer.stderr) == (1, f"draw: {tmp_path}: is of schema 99, expected 6 to 9\n")
