"""docs/serve.md: its samples run as they stand, and what it says of bounds and flags is what the code has."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen_image_engine.runtime.cli.main import _parser
from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.serve.api.limits import Limits
from qwen_image_engine.runtime.serve.server import GRACE_S
from tests.support.images import patches
from tests.support.paths import ROOT
from tests.support.served import Served, pixels, served

TEXT = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
FOLDER = ROOT / "docs" / "serve"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def server(pipeline: QwenImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.chdir(tmp_path)
    with served(pipeline) as found:
        yield found


def test_the_python_sample(server: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("python")
    exec(compile(code.replace("http://127.0.0.1:8000", server.url), "serve.md", "exec"), {})
    assert {path.name for path in tmp_path.iterdir()} >= {"circle-0.png", "circle-1.png"}
    assert capsys.readouterr().out.split() == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]


@pytest.mark.process
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_curl_samples(server: Served, tmp_path: Path) -> None:
    patches(128, 128).save(tmp_path / "circle.png")
    (code,) = blocks("sh")
    commands = [command for command in code.split("\n\n") if command.strip()]
    assert len(commands) == 2
    for command, key in zip(commands, ("url", "b64_json"), strict=True):
        words = shlex.split(command.replace("\\\n", " ").replace("http://127.0.0.1:8000", server.url))
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
        reply = json.loads(done.stdout)
        assert set(reply["data"][0]) == {key, "seed"}
        if key == "b64_json":
            assert pixels(reply["data"][0][key]).shape == (128, 128, 4)


@pytest.mark.parametrize("name", ["serve.md", "serve/Dockerfile", "serve/qwen-image.service"])
def test_flags_are_the_commands(name: str) -> None:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    if name.endswith("Dockerfile"):
        lists = [json.loads(found) for found in re.findall(r"^(?:ENTRYPOINT|CMD) (\[.*\])$", text, re.MULTILINE)]
        commands = [[word for words in lists for word in words]]
    else:
        lines = re.findall(r"(?:^    |ExecStart=)(\S*qwen-image serve .*)$", text, re.MULTILINE)
        commands = [shlex.split(line, comments=True) for line in lines]
    assert commands
    for command in commands:
        options = _parser().parse_args(command[1:])
        assert options.bundles
    said = set(re.findall(r"`(--[a-z-]+)", text))
    known = {flag for action in _parser()._actions if action.choices for flag in _serve_flags()}
    assert said <= known


def _serve_flags() -> set[str]:
    verbs = next(action for action in _parser()._actions if isinstance(action.choices, dict))
    assert isinstance(verbs.choices, dict)
    return {flag for verb in ("serve", "run") for flag in verbs.choices[verb]._option_string_actions}


def test_bounds_are_the_servers() -> None:
    limits = Limits()
    assert (limits.json_bytes, limits.form_bytes, limits.header_bytes) == (10**6, 128 * 10**6, 32_000)
    assert (limits.picture_pixels, limits.picture_side) == (2752 * 1536, 8192)
    for words in (
        f"a head took longer than {limits.header_s:g} s; a body came at",
        f"at less than {limits.body_rate / 1000:g} kB a second",
        f"after its first {limits.body_grace_s:g} s, or took longer than {limits.body_s:g} s",
        "1 MB of JSON or 128 MB of a form",
        "a head of more than 32 kB",
        f"`--queue` requests are waiting ({limits.queue}), or {limits.bodies} bodies",
        f"or {limits.client_bodies} of one client's address",
        "at most 2752x1536 pixels and 8,192 a side",
        f"uploads {limits.upload_pixels // 10**6} million",
        f"takes nothing of its reply for {limits.write_s:g} s",
        f"The last {limits.links:,} pictures are kept, up to\n  1 GB",
        f"`--grace` seconds ({GRACE_S:g})",
    ):
        assert words in TEXT, words
    options = _parser().parse_args(["serve", "BUNDLE"])
    assert (options.queue, options.grace, options.host, options.port) == (limits.queue, GRACE_S, "127.0.0.1", 8000)
    assert limits.link_s == 3600
    assert limits.link_bytes == 10**9
    assert not re.search(r"\b[KM]iB", TEXT)
