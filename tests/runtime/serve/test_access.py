"""The clients that may ask: the key, the names of the server, pages of other origins."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.runtime.serve.guard import Access, is_loopback
from qwen_image_engine.runtime.serve.server import check_reach, listen, loopback_names
from tests.support.numpy_engines import Journal, numpy_pipeline
from tests.support.served import SMALL, Served, served


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[Served]:
    with served(numpy_pipeline(checkpoint, Journal()), access=Access("a key", loopback_names("127.0.0.1"))) as found:
        yield found


class TestKey:
    @pytest.mark.parametrize("header", [None, "Bearer", "Bearer wrong", "Basic a key", "Bearer a keys", "Bearer ключ"])
    def test_without_it(self, server: Served, header: str | None) -> None:
        headers = {} if header is None else {"Authorization": header.encode()}
        with server.client() as client:
            for method, path in (("POST", "/v1/images/generations"), ("GET", "/v1/models"), ("GET", "/metrics")):
                reply = client.request(method, path, headers=headers)
                assert reply.status_code == 401
                assert reply.json()["error"]["code"] == "invalid_api_key"
                assert reply.headers["www-authenticate"] == "Bearer"
            for path in ("/health", "/ready", "/openapi.json"):
                assert client.get(path).status_code == 200

    def test_with_it(self, server: Served) -> None:
        with server.client(headers={"Authorization": "Bearer a key"}) as client:
            reply = client.post("/v1/images/generations", json={**SMALL, "response_format": "url"})
            assert reply.status_code == 200
            assert b"qwen_image_pictures_total" in client.get("/metrics").content
        with server.client() as client:
            assert client.get(reply.json()["data"][0]["url"]).status_code == 200
        assert server.openai(key="a key").models.list().data[0].id == "toy"


class TestBrowsers:
    @pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1"])
    def test_pages_of_other_origins(self, server: Served, origin: str) -> None:
        with server.client(headers={"Origin": origin}) as client:
            reply = client.post("/v1/images/generations", json=SMALL)
            assert (reply.status_code, reply.json()["error"]["code"]) == (403, "foreign_origin")
            assert client.options("/v1/images/generations").status_code == 403

    def test_its_own_page(self, server: Served) -> None:
        with server.client(headers={"Origin": server.url, "Authorization": "Bearer a key"}) as client:
            reply = client.post("/v1/images/generations", json=SMALL)
            assert reply.status_code == 200
            assert not any(name.startswith("access-control") for name in reply.headers)

    @pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "", "[::1", "localhost.evil.example"])
    def test_foreign_names(self, server: Served, host: str) -> None:
        with server.client(headers={"Host": host}) as client:
            reply = client.get("/health")
            assert (reply.status_code, reply.json()["error"]["code"]) == (403, "foreign_host")

    @pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:80", "[::1]:8000"])
    def test_own_names(self, server: Served, host: str) -> None:
        with server.client(headers={"Host": host}) as client:
            assert client.get("/health").status_code == 200


def test_reach() -> None:
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        assert is_loopback(host)
        check_reach(host, None, False)
    for host in ("0.0.0.0", "::", "192.168.0.1", "example.org"):
        assert not is_loopback(host)
        with pytest.raises(UsageError, match="--api-key"):
            check_reach(host, None, False)
        check_reach(host, "key", False)
        check_reach(host, None, True)
        assert loopback_names(host) == ()


def test_listening() -> None:
    with listen("127.0.0.1", 0) as first, pytest.raises(QwenImageError, match="choose another --port"):
        listen("127.0.0.1", first.getsockname()[1])
    for host, port in (("256.0.0.1", 0), ("127.0.0.1", 100_000)):
        with pytest.raises(QwenImageError, match="cannot listen"):
            listen(host, port)


def test_no_reply_waits_for_its_head_to_be_acknowledged(server: Served) -> None:
    with server.client(headers={"Host": "localhost"}) as client:
        assert client.get("/health").status_code == 200
        for connection in server.server._server.server_state.connections:
            accepted = connection.transport.get_extra_info("socket")
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
