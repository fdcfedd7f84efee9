"""`qwen-image serve` as a process: the same bytes as `run`, clients that leave, and its end by a signal."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from qwen_image_engine.runtime.cli.main import main
from qwen_image_engine.runtime.serve.models import Model
from tests.support.images import patches

ENTRY = (sys.executable, "-m", "qwen_image_engine.runtime.cli.entry", "serve")


@contextmanager
def process(log: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its address, once its models are loaded; `log` becomes its standard error."""
    with log.open("w", encoding="utf-8") as lines:
        running = subprocess.Popen(
            [*ENTRY, *arguments, "--port", "0", "--json"],
            stdout=subprocess.PIPE,
            stderr=lines,
            text=True,
            # What a shell starts behind itself ignores Ctrl-C, and hands that down.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
    try:
        address = next(line["address"] for line in follow(log, running) if line["event"] == "listening")
        yield running, address
    finally:
        if running.poll() is None:
            running.kill()
        running.communicate()


def follow(log: Path, running: subprocess.Popen[str], seconds: float = 60.0) -> Iterator[dict[str, Any]]:
    """Lines of a log as they come."""
    end, seen = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        yield from (json.loads(line) for line in whole[seen:])
        seen = len(whole)
        assert running.poll() is None, log.read_text(encoding="utf-8")
        time.sleep(0.02)
    pytest.fail(f"it did not come: {log.read_text(encoding='utf-8')}")


@pytest.mark.process
def test_draws_what_run_draws_and_ends_with_0(exported: Callable[..., Path], tmp_path: Path) -> None:
    bundle, log = str(exported()), tmp_path / "log"
    patches(96, 64).save(tmp_path / "cat.png")
    common = ["-W", "64", "-H", "96", "-s", "3", "--threads", "1"]
    assert main(["run", bundle, "-p", "a fox", "-o", str(tmp_path / "a.png"), "--seed", "5,6", *common]) == 0
    reference = ["-r", str(tmp_path / "cat.png"), "--reference-resolution", "288"]
    assert main(["run", bundle, "-p", "a hat", "-o", str(tmp_path / "b.png"), "--seed", "7", *reference, *common]) == 0
    with process(log, f"narrow={bundle}", "--threads", "1") as (running, address):
        client = OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)
        extra = {"num_inference_steps": 3, "seed": 5}
        reply = client.images.generate(model="narrow", prompt="a fox", n=2, size="64x96", extra_body=extra)
        assert reply.data is not None
        for index, item in enumerate(reply.data):
            assert base64.b64decode(item.b64_json or "") == (tmp_path / f"a-{index}.png").read_bytes()
        extra = {"num_inference_steps": 3, "seed": 7, "reference_resolution": 288}
        with (tmp_path / "cat.png").open("rb") as image:
            reply = client.images.edit(image=image, prompt="a hat", size="64x96", extra_body=extra)
        assert reply.data is not None
        data = base64.b64decode(reply.data[0].b64_json or "")
        assert data == (tmp_path / "b.png").read_bytes()

        (tmp_path / "served.png").write_bytes(data)
        again = ["run", bundle, "--from", str(tmp_path / "served.png"), "-o", str(tmp_path / "c.png")]
        assert main([*again, "-r", str(tmp_path / "cat.png"), "--threads", "1"]) == 0
        assert (tmp_path / "c.png").read_bytes() == data

        running.send_signal(signal.SIGTERM)
        out, _ = running.communicate(timeout=60)
    assert running.returncode == 0
    assert json.loads(out)["pictures"] == 3
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert lines[-1]["event"] == "stopped"
    assert "a fox" not in log.read_text(encoding="utf-8")


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_leaves_and_what_is_late_is_cancelled(
    exported: Callable[..., Path], tmp_path: Path, number: signal.Signals
) -> None:
    log = tmp_path / "log"
    with process(log, str(exported()), "--threads", "1", "--grace", "0.2") as (running, address):
        host, _, port = address.removeprefix("http://").partition(":")

        def ask() -> socket.socket:
            body = json.dumps({"prompt": "a", "size": "512x512", "num_inference_steps": 1000, "stream": True})
            connection = socket.create_connection((host, int(port)), timeout=60)
            head = f"Host: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(f"POST /v1/images/generations HTTP/1.1\r\n{head}{body}".encode())
            while b"step 2 of 1000" not in connection.recv(65536):
                pass
            return connection

        ask().close()
        assert next(line for line in follow(log, running) if line["event"] == "cancelled")
        with ask() as connection:
            running.send_signal(number)
            running.communicate(timeout=60)
            rest = b"".join(iter(lambda: connection.recv(65536), b""))
    assert running.returncode == 0
    assert b"event: error" in rest
    events = [json.loads(line)["event"] for line in log.read_text(encoding="utf-8").splitlines()]
    assert events.count("cancelled") == 2
    assert events[-1] == "stopped"
    assert "picture" not in events


def test_a_file_of_weights_counts_once(exported: Callable[..., Path]) -> None:
    """Against the files on the disk: three graphs of the transformer and three of the VAE read one file each."""
    bundle = exported()
    model = Model.open("narrow", bundle, "onnxruntime", "resident", 1)
    model.pipeline.close()
    files = list(bundle.rglob("weights*.safetensors"))
    assert len(files) == 4
    assert model.bytes == sum(file.stat().st_size for file in files)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere"], 1, "nowhere"),
        (["BUNDLE", "--host", "0.0.0.0"], 2, "QWEN_IMAGE_API_KEY"),
        (["BUNDLE", "--queue", "-1"], 2, "--queue"),
        (["BUNDLE", "--grace", "nan"], 2, "--grace"),
        (["BUNDLE", "--api-key", ""], 2, "ASCII"),
        (["BUNDLE", "--memory-budget", "much"], 2, "24GB"),
        (["BUNDLE", "BUNDLE"], 2, "NAME=BUNDLE"),
        (["a b=BUNDLE"], 2, "the name 'a b'"),
        (["BUNDLE", "--memory-budget", "1kB"], 2, "--memory-budget"),
        (["BUNDLE", "--threads", "0"], 2, "0 threads: expected 1 to 1024"),
        (["BUNDLE", "--engine", "onnxruntime-cuda"], 2, "which onnxruntime-cuda does not run"),
        (["BUNDLE", "--memory-budget", "1KiB"], 2, "--memory-budget"),
        (["BUNDLE", "--port", "70000"], 2, "expected 0 to 65535"),
    ],
)
def test_is_refused(
    exported: Callable[..., Path],
    fails: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    monkeypatch.delenv("QWEN_IMAGE_API_KEY", raising=False)
    bundle = str(exported())
    given = [word.replace("BUNDLE", bundle) for word in arguments]
    assert words in fails(code, "serve", *given)


@pytest.mark.process
def test_without_the_extra(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['starlette'] = None\n"
        "from qwen_image_engine.runtime.cli.main import main\n"
        "sys.exit(main(['serve', 'BUNDLE']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ}, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "starlette is not installed, and serve needs it" in done.stderr
    assert "pip install 'qwen-image-engine[serve]'" in done.stderr
