"""`qwen-image run` with reference images and with several seeds: files, the document, and what is refused."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from qwen_image_engine.runtime.cli.main import main
from qwen_image_engine.runtime.images.metadata import text_chunks
from qwen_image_engine.runtime.images.parameters import PictureParameters
from qwen_image_engine.runtime.images.png import save_png
from qwen_image_engine.runtime.sampling.fast import FAST
from tests.runtime.images.test_parameters import EDIT
from tests.support.images import patches


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A wide image with alpha and a tall one without, beside a text."""
    folder = tmp_path_factory.mktemp("references")
    (folder / "text.txt").write_text("no image", encoding="utf-8")
    patches(420, 280).save(folder / "wide.png")
    patches(300, 400, "RGB", 1).save(folder / "tall.png")
    return [folder / "wide.png", folder / "tall.png"]


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine may be loaded."""
    loading = "qwen_image_engine.runtime.pipeline.QwenImage.preload"
    monkeypatch.setattr(loading, lambda *_, **__: pytest.fail("loaded before the request was looked at"))


def test_run_with_references_and_seeds(
    exported: Callable[..., Path], references: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [word for path in references for word in ("-r", str(path))]
    usual = ["run", str(exported()), "-p", "both in one", *flags, "--reference-resolution", "288", "-s", "2", "--json"]
    latents = tmp_path / "latents.npy"
    out = ["-o", str(tmp_path / "out.png"), "--save-latents", str(latents)]
    assert main([*usual, *out, "--seed", "1,2,3", "-W", "96", "-H", "64"]) == 0
    streams = capsys.readouterr()
    found = json.loads(streams.out)
    files = [str(tmp_path / f"out-{index}.png") for index in range(3)]
    assert found["files"] == files
    assert [request["files"] for request in found["requests"]] == [[file] for file in files]
    assert [request["seed"] for request in found["requests"]] == [1, 2, 3]
    first, *others = (request["timings"] for request in found["requests"])
    assert all(seconds > 0 for seconds in first.values())
    for timings in others:
        spent = {name for name, seconds in timings.items() if seconds}
        assert spent == {"first_step_s", "step_s", "decode_s"}
    assert found["timings"] == first
    assert found["total_s"] > sum(first.values()) / 2
    assert [item["file"] for item in found["references"]] == list(map(str, references))
    assert [(item["width"], item["height"]) for item in found["references"]] == [(352, 224), (256, 320)]
    images = sum(item["width"] * item["height"] // 256 for item in found["references"])
    assert 20 < found["prefix_tokens"] - images < 100
    # Keys and values in float32 of two blocks of 96 channels.
    assert found["cache_bytes"] == found["prefix_tokens"] * 2 * 4 * 2 * 96
    assert f"{found['prefix_tokens']} tokens before the target" in streams.err
    hashes = [item["sha256"] for item in found["references"]]
    for seed, file in enumerate(files, 1):
        parameters = PictureParameters.read(file)
        assert (parameters.seed, [item.sha256 for item in parameters.references]) == (seed, hashes)
    assert np.load(latents).shape == (3, 6 * 4, 16)

    alone = tmp_path / "alone.png"
    assert main([*usual, "-o", str(alone), "--seed", "2", "-W", "96", "-H", "64"]) == 0
    with Image.open(files[1]) as one, Image.open(alone) as other:
        assert np.array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize(
    ("flags", "size"),
    [
        ((), (256, 320)),
        (("-H", "128"), (96, 128)),
        (("-W", "96"), (96, 128)),
        (("-W", "64", "-H", "320"), (64, 320)),
    ],
)
def test_the_size_is_the_last_references(
    exported: Callable[..., Path],
    references: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    size: tuple[int, int],
) -> None:
    words = ["run", str(exported()), "-p", "a", "-o", str(tmp_path / "out.png"), "-r", str(references[1]), *flags]
    assert main([*words, "--reference-resolution", "288", "-s", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["width"], found["height"]) == size
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.size == size


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_picture_is_drawn_again(
    exported: Callable[..., Path], references: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second picture of a batch, with guidance and a reference image; then with other flags."""
    first, again, other = (tmp_path / f"{name}.png" for name in ("first", "again", "other"))
    image = ["-r", str(references[1])]
    usual = [
        "run",
        str(exported()),
        "-p",
        "-red 一",
        "-n",
        "",
        "--guidance",
        "2.5",
        "--seed",
        "-3",
        "-W",
        "96",
        "-s",
        "2",
    ]
    assert main([*usual, *image, "--reference-resolution", "288", "--num-images", "2", "-o", str(first)]) == 0
    second = tmp_path / "first-1.png"
    capsys.readouterr()
    assert main(["run", str(exported()), "--from", str(second), *image, "-o", str(again)]) == 0
    assert "will differ" not in capsys.readouterr().err
    assert again.read_bytes() == second.read_bytes()
    assert not np.array_equal(pixels(again), pixels(tmp_path / "first-0.png"))

    changed = ["--seed", "5,6", "--guidance", "1", "-H", "64", "-s", "3", "-r", str(references[0])]
    assert main(["run", str(exported()), "--from", str(second), *changed, "-o", str(other)]) == 0
    assert f"{second} was drawn after reference images with other pixels: the new" in capsys.readouterr().err
    for seed, file in ((5, "other-0.png"), (6, "other-1.png")):
        found = PictureParameters.read(tmp_path / file)
        assert (found.prompt, found.negative_prompt, found.seed, found.steps) == ("-red 一", None, seed, 3)
        assert (found.width, found.height, found.image, found.num_images) == (64, 64, 1, 2)  # 48 x 64 in 96 x 128


def test_a_picture_of_another_bundle_and_engine(
    exported: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    size = ["-W", "64", "-H", "64", "-s", "2"]
    assert main(["run", str(exported()), "-p", "a", "-o", str(first), *size, "--engine", "openvino"]) == 0
    assert main(["run", str(exported()), "--from", str(first), "-o", str(again)]) == 0
    assert PictureParameters.read(again) == PictureParameters.read(first)
    assert first.read_bytes() == again.read_bytes()
    capsys.readouterr()
    alone = exported(without=("vision",))
    assert main(["run", str(alone), "--from", str(first), "-o", str(again), "--engine", "onnxruntime"]) == 0
    expected = rf'^{first} was drawn with another bundle \("[^"]*", "fp32"\), and by the engine "openvino": the new'
    assert re.search(expected, capsys.readouterr().err, re.MULTILINE)


@pytest.mark.usefixtures("unloaded")
def test_pictures_that_cannot_be_drawn_again(
    exported: Callable[..., Path], output: Path, fails: Callable[..., str], tmp_path: Path
) -> None:
    usual: list[Any] = ["run", exported(), "-o", output / "out.png"]
    assert "the flag -p/--prompt is required" in fails(2, *usual)
    assert "cannot read absent.png" in fails(2, *usual, "--from", "absent.png")
    picture = tmp_path / "picture.png"
    save_png(picture, np.zeros((32, 32, 4), np.uint8), text_chunks(EDIT))
    assert '("图.png", from memory), which it does not hold; name them with -r' in fails(2, *usual, "--from", picture)
    given = replace(EDIT, references=(), mask=None, seed=None)
    save_png(picture, np.zeros((32, 32, 4), np.uint8), text_chunks(given))
    assert "drawn from given noise, which it does not hold" in fails(2, *usual, "--from", picture)
    save_png(picture, np.zeros((32, 32, 4), np.uint8), text_chunks(replace(given, seed=1, width=0)))
    assert "width 0 must be a positive multiple of 32" in fails(2, *usual, "--from", picture)


def test_a_picture_goes_to_a_pipe(
    exported: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe, plain = tmp_path / "pipe", tmp_path / "plain.png"
    os.mkfifo(pipe)
    usual = ["run", str(exported()), "-p", "a", "-W", "64", "-H", "64", "-s", "2"]
    assert main([*usual, "-o", str(plain)]) == 0
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert main([*usual, "-o", str(pipe)]) == 0
        assert os.read(reader, 1_000_000) == plain.read_bytes()
        assert main([*usual, "-o", str(pipe), "--seed", "1,2"]) == 2
        assert "is a pipe or a device, which takes one picture, and 2 are asked for" in capsys.readouterr().err
    finally:
        os.close(reader)


def test_lines_name_every_request(
    exported: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", str(exported()), "-p", "a", "-o", str(tmp_path / "out.png"), "-W", "64", "-H", "64", "-s", "2"]
    assert main([*words, "--seed", "4,5", "--num-images", "2"]) == 0
    streams = capsys.readouterr()
    lines = streams.out.splitlines()
    assert lines[:4] == [str(tmp_path / f"out-{index}.png") for index in range(4)]
    assert [line.split(", ")[2] for line in lines[4:6]] == ["seed 4", "seed 5"]
    assert "tokens before the target" not in streams.err


def test_solvers_and_sigmas_are_recorded_and_drawn_again(
    exported: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = ["run", str(exported()), "-p", "a", "-W", "64", "-H", "64"]

    def draw(name: str, *flags: str) -> tuple[dict[str, Any], PictureParameters, NDArray[np.uint8]]:
        file = tmp_path / f"{name}.png"
        assert main([*usual, "-o", str(file), "--json", *flags]) == 0
        return json.loads(capsys.readouterr().out), PictureParameters.read(file), pixels(file)

    found, parameters, heun = draw("heun", "--solver", "heun", "-s", "3", "--sigmas", "karras")
    assert (found["solver"], found["steps"], found["evaluations"]) == ("heun", 3, 5)
    assert len(found["sigmas"]) == 4
    assert (parameters.solver, parameters.evaluations, parameters.sigmas) == ("heun", 5, "karras")
    again = ["--from", str(tmp_path / "heun.png")]
    np.testing.assert_array_equal(draw("again", *again)[2], heun)

    _, parameters, listed = draw("list", "--solver", "ab2", "--sigmas", "1,0.6,0.3")
    assert (parameters.solver, parameters.steps, parameters.sigmas) == ("ab2", 3, (1.0, 0.6, 0.3))
    again = ["--from", str(tmp_path / "list.png")]
    np.testing.assert_array_equal(draw("again", *again)[2], listed)
    assert draw("other", *again, "-s", "2")[1].sigmas is None
    assert draw("other", *again, "--sigmas", "1,0.5")[1].steps == 2
    assert draw("other", *again, "--fast")[1].solver == FAST.solver

    _, fast, drawn = draw("fast", "--fast")
    assert (fast.solver, fast.steps, fast.sigmas) == (FAST.solver, FAST.steps, None)
    np.testing.assert_array_equal(draw("spelt", "--solver", FAST.solver, "-s", str(FAST.steps))[2], drawn)


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--solver", "ab2", "-s", "1"), "1 step asked for, this schedule needs at least 2"),
        (("--sigmas", "cosine"), "sigmas 'cosine': expected numbers, or one of model, linear, karras, beta"),
        (("--sigmas", "1,0.5,0.7"), "expected numbers that fall"),
        (("--sigmas", "1,0.5,0.5"), "expected numbers that fall"),
        (("--sigmas", "1.5,0.5"), "from at most 1"),
        (("--sigmas", "1,0"), "above 0"),
        (("--sigmas", "1,0.5", "-s", "3"), "3 steps asked for, and 2 sigmas"),
        (("--fast", "-s", "8"), "--fast beside -s: --fast is --solver"),
        (("--fast", "--solver", "euler", "--sigmas", "karras"), "--fast beside --solver and --sigmas"),
    ],
)
def test_bad_solvers_and_sigmas_are_told(
    exported: Callable[..., Path], output: Path, fails: Callable[..., str], flags: tuple[str, ...], word: str
) -> None:
    usual: list[Any] = ["run", exported(), "-p", "a", "-o", output / "out.png", "-W", 64, "-H", 64]
    assert word in fails(2, *usual, *flags)


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("-r", "wide.png") * 11, "11"),
        (("-r", "wide.png", "-r", "absent.png"), "absent.png"),
        (("-r", "text.txt"), "text.txt"),
        (("-r", "wide.png", "--reference-resolution", "8"), "from 32 to 4096"),
        (("-r", "wide.png", "--reference-resolution", "64"), "use --reference-resolution"),
        (("-r", "wide.png", "-W", "0"), "width 32"),
        (("--latents", "noise.npy", "--seed", "1,2"), "2 seeds"),
    ],
)
def test_what_cannot_be_drawn(
    exported: Callable[..., Path],
    references: list[Path],
    output: Path,
    fails: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
    word: str,
) -> None:
    monkeypatch.chdir(references[0].parent)
    usual: list[Any] = ["run", exported(), "-p", "a", "-o", output / "out.png", "-s", 2]
    assert word in fails(2, *usual, *flags)


@pytest.mark.usefixtures("unloaded")
def test_a_bundle_that_takes_no_references(
    exported: Callable[..., Path], references: list[Path], output: Path, fails: Callable[..., str]
) -> None:
    folder = exported(without=("vision",))
    usual: list[Any] = ["run", folder, "-p", "a", "-o", output / "out.png", "-s", 2]
    assert "the bundle has no vision" in fails(2, *usual, "-r", references[0])


def test_too_little_memory(
    exported: Callable[..., Path],
    references: list[Path],
    output: Path,
    fails: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qwen_image_engine.runtime.conditioning.reachable_memory_bytes", lambda: 1000)
    usual: list[Any] = ["run", exported(), "-p", "a", "-o", output / "out.png", "-s", 2, "-r", references[0]]
    assert "--reference-resolution" in fails(1, *usual, "--reference-resolution", 288)
