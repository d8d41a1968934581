"""Questions to a Prometheus, and to what is none."""

import asyncio
import json
import socket
import threading

import pytest

from swapd.core.errors import SwapdError
from swapd.host.prometheus import value_of


class Answers:
    """A server that says the same to whoever comes."""

    def __init__(self, said):
        self.said = said
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self):
        threading.Thread(target=self._run, daemon=True).start()
        return self.url

    def _run(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                client.recv(65536)
                client.sendall(self.said)

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def http(document, status="200 OK", length=None):
    body = json.dumps(document).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Length: {length or len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


def vector(*values):
    result = [{"metric": {}, "value": [1.0, value]} for value in values]
    return http({"status": "success", "data": {"resultType": "vector", "result": result}})


def asked(said):
    with Answers(said) as url:
        return asyncio.run(value_of(url, "sum(x)", deadline_s=5.0))


SCALAR = http({"status": "success", "data": {"resultType": "scalar", "result": [1.0, "3"]}})


@pytest.mark.parametrize(
    ("said", "value"), [(vector("0.25"), 0.25), (SCALAR, 3.0), (vector(), None), (vector("NaN"), None)]
)
def test_the_value_of_the_one_series(said, value):
    assert asked(said) == value


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (vector("1", "2"), "the query has 2 answers"),
        (http({"status": "error", "error": "parse error"}, "400 Bad Request"), "refuses the query: parse error"),
        (http({"hello": 1}), "something else than a Prometheus"),
        (http([1]), "something else than a Prometheus"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "does not answer"),
        (http({"status": "success"}, length=5000), "something else than a Prometheus"),
        (http({"status": "error"}, "500 Oops", length=5000), "refuses the query"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "does not answer"),
        (b"", "does not answer"),
    ],
)
def test_whoever_is_no_prometheus_is_told_from_one_that_is(said, text):
    with pytest.raises(SwapdError, match=text) as refused:
        asked(said)
    assert refused.value.code == "NOT_READY"
