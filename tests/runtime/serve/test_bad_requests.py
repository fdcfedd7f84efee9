"""Bad requests: each with its status, one sentence, and the field at fault. No network runs for any.

One server takes all that change nothing in it.
"""

import io
import json
import re
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.serve.api.limits import Limits
from qwen_image_engine.runtime.serve.server import listen
from tests.support.images import patches, png_chunk
from tests.support.numpy_engines import Journal, numpy_pipeline
from tests.support.served import SMALL, Served, png, served, until

CAT = ("cat.png", png(patches(96, 64)), "image/png")

OPAQUE = Image.new("RGBA", (96, 64), (0, 0, 0, 255))


@pytest.fixture(scope="module")
def journal() -> Journal:
    return Journal()


@pytest.fixture(scope="module")
def server(checkpoint: Path, journal: Journal) -> Iterator[Served]:
    with served(numpy_pipeline(checkpoint, journal)) as found:
        yield found


@pytest.fixture(autouse=True)
def nothing_is_drawn(journal: Journal) -> Iterator[None]:
    journal.events.clear()
    yield
    assert not any(event.startswith("run") for event in journal.events)


def error(reply: Any, status: int, param: str | None = None, code: str | None = None) -> str:
    """The message of a reply, whose form and other facts are checked."""
    assert reply.status_code == status, reply.text
    found = reply.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert (found["param"], found["code"]) == (param, code or found["code"])
    assert reply.headers["x-request-id"].startswith("req_")
    message = found["message"]
    assert isinstance(message, str)
    assert "\n" not in message
    assert 10 < len(message) < 400
    return message


def generate(server: Served, **fields: Any) -> Any:
    with server.client() as client:
        body = json.dumps({"prompt": "a", **fields})  # httpx does not send half a character
        return client.post("/v1/images/generations", content=body, headers={"content-type": "application/json"})


def edit(server: Served, files: Any = (("image", CAT),), **fields: Any) -> Any:
    with server.client() as client:
        return client.post("/v1/images/edits", data={"prompt": "a", **fields}, files=list(files))


@pytest.mark.parametrize(
    ("fields", "param", "code", "words"),
    [
        ({"prompt": None}, "prompt", "missing_required_parameter", "prompt"),
        ({"prompt": 7}, "prompt", "invalid_type", "an integer, expected a string"),
        ({"prompt": ["a"]}, "prompt", "invalid_type", "an array, expected a string"),
        ({"prompt": "a " * 1101}, "prompt", "invalid_value", "1100 fit; shorten it"),
        ({"prompt": "a" * 40_000}, "prompt", "string_above_max_length", "40000 characters, expected at most 32000"),
        ({"prompt": "<|image_pad|>"}, "prompt", "invalid_value", "stands for a reference image"),
        ({"prompt": "\ud800"}, "prompt", "invalid_value", "not valid Unicode"),
        ({"negative_prompt": "b " * 1200, "guidance_scale": 2}, "negative_prompt", "invalid_value", "shorten it"),
        ({"negative_prompt": "b"}, "guidance_scale", "invalid_value", "needs a 'guidance_scale' above 1"),
        ({"guidance_scale": 3}, "negative_prompt", "missing_required_parameter", "is 3, and needs a 'negative_prompt'"),
        ({"guidance_scale": 0.5}, "guidance_scale", "number_below_min_value", "from 1.0 to 100.0"),
        ({"n": 0}, "n", "integer_below_min_value", "from 1 to 10"),
        ({"n": 100}, "n", "integer_above_max_value", "from 1 to 10"),
        ({"n": 1.5}, "n", "invalid_type", "a number, expected an integer"),
        ({"n": True}, "n", "invalid_type", "a boolean, expected an integer"),
        ({"size": "1000x608"}, "size", "invalid_value", "the nearest are"),
        ({"size": "10x10"}, "size", "invalid_value", "the nearest are 32x32"),
        ({"size": "0x64"}, "size", "invalid_value", "WIDTHxHEIGHT"),
        ({"size": "0512x512"}, "size", "invalid_value", "without leading zeros: 512x512"),
        ({"size": "64x0096"}, "size", "invalid_value", "without leading zeros: 64x96"),
        ({"size": "huge"}, "size", "invalid_value", "'auto' or WIDTHxHEIGHT"),
        ({"size": "99968x99968"}, "size", "invalid_value", "expected at most"),
        ({"size": 1024}, "size", "invalid_type", "an integer, expected a string"),
        ({"background": "blue"}, "background", "invalid_value", "'transparent'"),
        ({"background": "transparent", "output_format": "jpeg"}, "background", "invalid_value", "no JPEG"),
        ({"output_format": "gif"}, "output_format", "invalid_value", "'png', 'webp', 'jpeg'"),
        ({"output_compression": 50}, "output_compression", "invalid_value", "PNG"),
        ({"output_compression": 101}, "output_compression", "integer_above_max_value", "from 0 to 100"),
        ({"response_format": "file"}, "response_format", "invalid_value", "'b64_json', 'url'"),
        ({"response_format": "url", "stream": True}, "response_format", "invalid_value", "b64_json"),
        ({"stream": "yes"}, "stream", "invalid_type", "a string, expected a boolean"),
        ({"stream": True, "partial_images": 4}, "partial_images", "integer_above_max_value", "from 0 to 3"),
        ({"partial_images": 1}, "partial_images", "invalid_value", "set 'stream'"),
        ({"seed": 2**64}, "seed", "integer_above_max_value", "from -9223372036854775808"),
        ({"seed": 2**64 - 1, "n": 2}, "seed", None, "the seeds after it"),
        ({"num_inference_steps": 0}, "num_inference_steps", "integer_below_min_value", "from 1 to 1000"),
        ({"num_inference_steps": 1}, "num_inference_steps", "invalid_value", "1 step asked for, this schedule needs"),
        ({"num_inference_steps": 3, "sigmas": [1, 0.5]}, "sigmas", "invalid_value", "leave out 'num_inference_steps'"),
        ({"sigmas": "1,0.5"}, "sigmas", "invalid_type", "a string of numbers, expected an array of them"),
        ({"sigmas": "[1, 0.5]"}, "sigmas", "invalid_type", "a string of numbers, expected an array of them"),
        ({"sigmas": []}, "sigmas", "invalid_value", "numbers above 0"),
        ({"sigmas": [0.5, 0.9]}, "sigmas", "invalid_value", "falling"),
        ({"sigmas": [2, 1]}, "sigmas", "invalid_value", "at most 1"),
        ({"sigmas": "cosine"}, "sigmas", "invalid_value", "'karras'"),
        ({"solver": "rk45"}, "solver", "invalid_value", "'euler'"),
        ({"steps": 4}, "steps", "unknown_parameter", "Unknown parameter: 'steps'."),
        ({"image": "http://127.0.0.1/"}, "image", "unknown_parameter", "Unknown parameter"),
        ({"input_fidelity": "high"}, "input_fidelity", "unknown_parameter", "Unknown parameter"),
        ({"user": "u" * 1000}, "user", "string_above_max_length", "at most 256"),
    ],
)
def test_fields(server: Served, fields: dict[str, Any], param: str, code: str | None, words: str) -> None:
    assert words in error(generate(server, **fields), 400, param, code)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "no JSON object"),
        (b"null", "no JSON object"),
        (b'"a"', "no JSON object"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "nested more than 100 deep; send"),
        (b'{"seed": ' + b"7" * 10_000 + b"}", "a number of thousands of digits; send"),
        (b'{"prompt": 1e999}', "'prompt'"),
    ],
    ids=range(9),
)
def test_what_is_no_object(server: Served, body: bytes, words: str) -> None:
    with server.client() as client:
        reply = client.post("/v1/images/generations", content=body, headers={"content-type": "application/json"})
    message = error(reply, 400, "prompt" if b"1e999" in body else None)
    assert words in message
    assert not re.search(r"sys\.|recursion|codec", message)


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("generations", "text/plain"),
        ("generations", ""),
        ("generations", "multipart/form-data; boundary=x"),
        ("edits", "application/json"),
        ("edits", "application/x-www-form-urlencoded"),
    ],
)
def test_another_content_type(server: Served, path: str, content_type: str) -> None:
    with server.client() as client:
        reply = client.post(f"/v1/images/{path}", content=b'{"prompt": "a"}', headers={"content-type": content_type})
    assert "expected" in error(reply, 415)


def test_models_paths_and_methods(server: Served) -> None:
    assert "'toy'" in error(generate(server, model="nobody"), 404, "model", "model_not_found")
    assert "'toy'" in error(generate(server, model="\ud800"), 404, "model")
    with server.client() as client:
        error(client.get("/v1/models/../nobody"), 404)
        error(client.get("/v1/models/nobody"), 404, "model", "model_not_found")
        assert "/openapi.json" in error(client.get("/v1/nothing"), 404)
        reply = client.get("/v1/images/generations")
        error(reply, 405)
        assert reply.headers["allow"] == "POST"
        error(client.get("/v1/images/files/..%2f..%2fetc%2fpasswd.png"), 404)


def animated() -> bytes:
    buffer = io.BytesIO()
    first, second = (Image.new("L", (64, 64), level) for level in (0, 255))
    first.save(buffer, "GIF", save_all=True, append_images=[second])
    return buffer.getvalue()


class TestForms:
    @pytest.mark.parametrize(
        ("files", "param", "words"),
        [
            ([("image", ("a.png", b"", "image/png"))], "image", "no picture that can be read"),
            ([("image", ("a.png", b"<svg/>", "image/png"))], "image", "no picture that can be read"),
            ([("image", ("a.png", CAT[1][:200], "image/png"))], "image", "cannot be read to its end"),
            ([("image", ("a.png", png(patches(16, 64)), "image/png"))], "image", "expected at least 32 a side"),
            ([("image", ("a.gif", animated(), "image/gif"))], "image", "a still image; save one frame as PNG"),
            ([("image[]", CAT)] * 11, "image", "more than 10 files"),
            ([("image[]", CAT)] * 12, None, "the form has more than 11 files"),
            ([("image", CAT), ("mask", ("m.png", b"GIF89a", "image/png"))], "mask", "expected PNG"),
            (
                [("image", CAT), ("mask", ("m.png", png(patches(64, 64)), "image/png"))],
                "mask",
                "expected the size of the first",
            ),
            ([("image", CAT), ("mask", ("m.png", png(patches(96, 64, "RGB")), "image/png"))], "mask", "no alpha"),
            ([("image", CAT), ("mask", ("m.png", png(OPAQUE), "image/png"))], "mask", "nothing would be edited"),
            ([("image", CAT), ("mask", CAT), ("mask", CAT)], "mask", "more than 1 file 'mask'"),
            ([("picture", CAT)], "picture", "Unknown parameter"),
            ([("image", CAT), ("prompt", CAT)], "prompt", "a file, expected a text"),
        ],
        ids=lambda value: value if isinstance(value, str) else None,
    )
    def test_files(self, server: Served, files: Any, param: str | None, words: str) -> None:
        assert words in error(edit(server, files), 400, param)

    def test_texts(self, server: Served) -> None:
        error(edit(server, n="two"), 400, "n", "invalid_type")
        error(edit(server, seed="1.5"), 400, "seed", "invalid_type")
        error(edit(server, prompt=["a", "b"]), 400, "prompt")
        error(edit(server, **{"prompt[]": "b"}), 400, "prompt[]", "unknown_parameter")
        assert "a text, expected a file" in error(edit(server, image="http://127.0.0.1/cat.png"), 400, "image")

    @pytest.mark.parametrize(("size", "words"), [("auto", "expected the size of the first"), ("64x96", "auto, or for")])
    def test_a_mask_of_other_proportions(self, server: Served, size: str, words: str) -> None:
        """Of another size than the first image, or of a picture that is."""
        mask = ("m.png", png(patches(64, 96)), "image/png")
        assert words in error(edit(server, [("image", CAT), ("mask", mask)], size=size), 400, "mask", "invalid_value")

    def test_advice_is_in_terms_of_a_request(self, server: Served) -> None:
        """The command's flags are nothing that a client can set."""
        long = ("long.png", png(patches(1900, 32)), "image/png")
        message = error(edit(server, [("image", long)], reference_resolution=64), 400, "image", "invalid_value")
        assert re.search(r"; use 'reference_resolution' \d+$", message)
        for reply in (
            edit(server, [("image", ("a.gif", animated(), "image/gif"))]),
            edit(server, [("image", CAT), ("mask", CAT)], size="32x512"),
            generate(server, num_inference_steps=1, solver="heun"),
        ):
            assert reply.status_code == 400
            assert "--" not in reply.json()["error"]["message"]

    def test_too_little_memory(self, server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        """A smaller request may fit, so it is no fault of the server."""
        monkeypatch.setattr("qwen_image_engine.runtime.conditioning.reachable_memory_bytes", lambda: 1000)
        for reply in (edit(server), generate(server)):
            assert "smaller size" in error(reply, 503, None, "out_of_memory")
            assert int(reply.headers["retry-after"]) > 0

    def test_a_model_that_takes_no_images(self, checkpoint: Path) -> None:
        with served(numpy_pipeline(checkpoint, Journal(), absent=("vision", "prefix_image"))) as server:
            message = error(edit(server), 400, "image", "invalid_value")
        assert message.endswith("the bundle has no vision and no prefix_image; ask for another 'model'")

    def test_too_many_and_too_long_texts(self, server: Served) -> None:
        levels = [("sigmas[]", (None, b"0.5"))] * 2001
        assert "more than 2000 texts" in error(edit(server, levels), 400, None, "invalid_form")
        long = error(edit(server, user="u" * 300_000), 400, None, "invalid_form")
        assert "a text of the form is larger than 262.14 kB" in long

    def test_no_image(self, server: Served) -> None:
        with server.client() as client:
            reply = client.post("/v1/images/edits", files=[("prompt", (None, b"a"))])
        assert "'image'" in error(reply, 400, "image", "missing_required_parameter")

    @pytest.mark.parametrize("body", [b"", b"--x", b"--x\r\n\r\n\r\n--x--", b"nonsense", b"--x\r\n" + b"a" * 100_000])
    def test_what_is_no_form(self, server: Served, body: bytes) -> None:
        headers = {"content-type": "multipart/form-data; boundary=x"}
        with server.client() as client:
            reply = client.post("/v1/images/edits", content=body, headers=headers)
            assert reply.status_code == 400
            message = reply.json()["error"]["message"]
            assert "no form that can be read" in message or message == "Missing required parameter: 'prompt'."
            reply = client.post("/v1/images/edits", content=body, headers={"content-type": "multipart/form-data"})
            assert "no boundary; send multipart/form-data; boundary=" in error(reply, 400, None, "invalid_form")

    def test_bombs(self, server: Served) -> None:
        """Kilobytes that become more than Pillow opens, and more than this server reads."""
        for side in (14_000, 8_200):
            rows = zlib.compressobj()
            data = b"".join([*(rows.compress(b"\0" * (1 + side // 8)) for _ in range(side)), rows.flush()])
            header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
            bomb = b"".join([b"\x89PNG\r\n\x1a\n", header, png_chunk(b"IDAT", data), png_chunk(b"IEND", b"")])
            reply = edit(server, [("image", ("a.png", bomb, "image/png"))])
            assert "more than the" in error(reply, 400, "image")


class TestBounds:
    def test_two_gigabytes_are_refused_at_the_head(self, server: Served) -> None:
        head = b"POST /v1/images/edits HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        with _connected(server) as connection:
            connection.sendall(head + b"Content-Length: 2147483648\r\n\r\n")
            status, document = _reply(connection)
        assert status == 413
        assert "larger than 128.00 MB" in document["error"]["message"]

    def test_a_body_without_a_length(self, pipeline: QwenImage) -> None:
        def chunks() -> Iterator[bytes]:
            for _ in range(40):
                yield b" " * 1000

        headers = {"content-type": "application/json"}
        with served(pipeline, limits=Limits(json_bytes=20_000)) as server, server.client() as client:
            reply = client.post("/v1/images/generations", content=chunks(), headers=headers)
            assert "20.00 kB" in error(reply, 413, None, "body_too_large")

    def test_a_form_without_a_length(self, pipeline: QwenImage) -> None:
        """Its file is larger than what is kept in memory."""

        def chunks() -> Iterator[bytes]:
            yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
            for _ in range(30):
                yield b"a" * (100 << 10)

        headers = {"content-type": "multipart/form-data; boundary=x"}
        with served(pipeline, limits=Limits(form_bytes=2 << 20)) as server, server.client() as client:
            reply = client.post("/v1/images/edits", content=chunks(), headers=headers)
            assert "2.10 MB" in error(reply, 413, None, "body_too_large")

    def test_a_megabyte_of_header(self, server: Served) -> None:
        with _connected(server) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 60_000)
            status, document = _reply(connection)
        assert status == 431
        assert "headers" in document["error"]["message"]

    def test_early_refusals_are_counted_and_have_an_id(self, pipeline: QwenImage) -> None:
        starts = {408: b"GET /health HT", 431: b"GET / HTTP/1.1\r\nX: " + b"a" * 33_000, 400: b"\x16\x03\x01\r\n\r\n"}
        with served(pipeline, limits=Limits(header_s=0.2)) as server:
            for number, (status, start) in enumerate(starts.items()):
                with _connected(server) as connection:
                    connection.sendall(start)
                    head = b"".join(iter(lambda: connection.recv(65536), b""))
                (line,) = server.log("request")[number:]
                assert line["status"] == status
                assert line["client"] == "127.0.0.1"
                assert f"x-request-id: {line['id']}\r\n".encode() in head
                assert server.metric("refusals_total", status=str(status)) == 1

    def test_what_is_not_http(self, server: Served) -> None:
        with _connected(server) as connection:
            connection.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
            assert _reply(connection)[0] == 400

    def test_slow_clients(self, pipeline: QwenImage) -> None:
        with served(pipeline, limits=Limits(header_s=0.3, body_s=0.3)) as server:
            with _connected(server) as silent:
                assert silent.recv(1) == b""
            with _connected(server) as connection:
                connection.sendall(b"GET /health HT")
                assert _reply(connection)[0] == 408
            with _connected(server) as connection:
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                assert _reply(connection, b"}")[0] == 200
                connection.sendall(b"GET /health HT")
                assert _reply(connection)[0] == 408
            with _connected(server) as connection:
                head = b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                connection.sendall(head + b"Content-Length: 100\r\n\r\n{")
                assert _reply(connection)[0] == 408

    def test_a_body_that_drips(self, pipeline: QwenImage) -> None:
        """It has a minute, and no byte a second."""
        head = b"POST /v1/images/%s HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: 9000\r\n\r\n%s"
        part = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n'
        bodies = (b"generations", b"application/json", b"{"), (b"edits", b"multipart/form-data; boundary=x", part)
        limits = Limits(body_s=60, body_grace_s=0.1, body_rate=1000)
        with served(pipeline, limits=limits) as server:
            for number, begun in enumerate(bodies):
                with _connected(server) as connection:
                    connection.sendall(head % begun)
                    while len(server.log("request")) == number:
                        connection.send(b" ")
                        time.sleep(0.01)
                    status, document = _reply(connection)
                assert (status, document["error"]["code"]) == (408, "body_too_slow")
                assert "less than 1.00 kB a second" in document["error"]["message"]

    def test_a_body_that_pauses_within_its_rate(self, pipeline: QwenImage) -> None:
        """Its first half has paid for the seconds until the other comes."""
        body = b" " * 1000 + b'{"n": 0}'
        head = b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        limits = Limits(body_grace_s=0.05, body_rate=50)
        with served(pipeline, limits=limits) as server, _connected(server) as connection:
            connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body[:1000])
            time.sleep(0.2)
            connection.sendall(body[1000:])
            assert _reply(connection)[0] == 400

    @pytest.mark.parametrize("size", [30 << 20, 100_000, 30_000])
    def test_clients_that_take_nothing(self, pipeline: QwenImage, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of a large reply, and of one whose end waits in the server when it closes the connection."""

        def narrow(host: str, port: int) -> socket.socket:
            listener = listen(host, port)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # which its connections inherit
            return listener

        monkeypatch.setattr("tests.support.served.listen", narrow)
        with served(pipeline, limits=Limits(write_s=0.3)) as server:
            token = server.service.links.add(b"x" * size, "png")
            connections = server.server._server.server_state.connections
            with socket.socket() as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                host, _, port = server.url.removeprefix("http://").partition(":")
                connection.connect((host, int(port)))
                head = f"GET /v1/images/files/{token}.png HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
                connection.sendall(head.encode())
                until(lambda: server.log("request"))
                until(lambda: not connections)

    def test_too_many_bodies_at_once(self, pipeline: QwenImage) -> None:
        with served(pipeline, limits=Limits(bodies=1)) as server, _connected(server) as connection:
            head = b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            connection.sendall(head + b"Content-Length: 100\r\nExpect: 100-continue\r\n\r\n")
            assert b"100 Continue" in connection.recv(1000)
            reply = generate(server, **SMALL)
            assert "1 request is being read, which is the most;" in error(reply, 429, None, "too_many_uploads")
            assert reply.headers["retry-after"] == "1"

    def test_bodies_of_one_client_leave_room_for_others(self, pipeline: QwenImage) -> None:
        head = b"POST /v1/images/%s HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: 100\r\n"
        kinds = (b"generations", b"application/json"), (b"edits", b"multipart/form-data; boundary=x")
        with served(pipeline, limits=Limits(bodies=3, client_bodies=2)) as server, ExitStack() as connections:
            for path, kind in kinds:
                connection = connections.enter_context(_connected(server))
                connection.sendall(head % (path, kind) + b"Expect: 100-continue\r\n\r\n")
                assert b"100 Continue" in connection.recv(1000)
            for fields in ({"n": 0}, SMALL):
                message = error(generate(server, **fields), 429, None, "too_many_uploads")
                assert "2 requests are being read from your address" in message
            other = httpx2.HTTPTransport(local_address="127.0.0.2")
            with httpx2.Client(base_url=server.url, transport=other) as client:
                error(client.post("/v1/images/generations", json={"prompt": "a", "n": 0}), 400, "n")
            connections.close()
            until(lambda: generate(server, n=0).status_code == 400)


def test_no_room_for_urls(pipeline: QwenImage, monkeypatch: pytest.MonkeyPatch, journal: Journal) -> None:
    def full(*arguments: Any, **options: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qwen_image_engine.runtime.serve.links.whole_file", full)
    with served(pipeline) as server:
        reply = generate(server, response_format="url", n=3, **SMALL)
        assert "disk is full" in error(reply, 507, "response_format", "storage_full")
        until(lambda: not server.service.worker.busy)
        assert (server.metric("failures_total"), server.metric("cancelled_total")) == (1, 0)
    journal.events.clear()  # this one was drawn


def _connected(server: Served) -> socket.socket:
    host, _, port = server.url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    return connection


def _reply(connection: socket.socket, end: bytes = b"}}") -> tuple[int, Any]:
    """Status and document of a reply to bytes."""
    data = b""
    while not data.endswith(end):
        found = connection.recv(65536)
        if not found:
            break
        data += found
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)
