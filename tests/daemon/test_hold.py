"""What clients see while they are held, drained or cut: bounded, explicit, and never silent."""

import contextlib
import http.client
import json
import socket
import threading
import time

from support.daemon_host import Daemon, model, until

A = model("a")


def big(**env):
    return model("big", memory="960MiB", **env)


def open_stream(daemon, n, s):
    """A stream whose first event has arrived."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
    connection.request("GET", f"/stream?n={n}&s={s}")
    response = connection.getresponse()
    first = response.readline()
    return connection, response, first


def read_to_the_end(response):
    """What still comes, and whether it ended as it should."""
    data = b""
    try:
        while chunk := response.read1(65536):
            data += chunk
    except (http.client.IncompleteRead, ConnectionError, ValueError) as error:
        return data, type(error).__name__
    return data, None


def test_a_stream_is_finished_by_the_old_model_in_a_dual_swap():
    with Daemon([A, model("b")]) as daemon:
        connection, response, _ = open_stream(daemon, 60, 0.03)
        with contextlib.closing(connection):
            assert daemon.swap("b")["phase"] == "Soaking"
            assert daemon.model() == "b"
            data, error = read_to_the_end(response)
        assert error is None
        assert data.endswith(b"data: [DONE]\n\n")
        assert b"data: a 59" in data


def test_a_stream_within_the_drain_timeout_ends_whole_before_an_in_place_swap():
    with Daemon([A, big()], service='drain_timeout = "20s"') as daemon:
        connection, response, _ = open_stream(daemon, 30, 0.03)
        with contextlib.closing(connection):
            record = daemon.swap("big")
            data, error = read_to_the_end(response)
        assert error is None
        assert data.endswith(b"data: [DONE]\n\n")
        assert record["cut_requests"] == 0


def test_a_swap_that_is_canceled_while_the_old_model_drains_cuts_nothing():
    with Daemon([A, big()], service='drain_timeout = "2s"') as daemon:
        connection, response, _ = open_stream(daemon, 100, 0.03)
        with contextlib.closing(connection):
            record = daemon.call("swap", service="chat", to="big")
            until(lambda: daemon.call("show", id=record["id"])["steps"][-1]["name"] == "drain", what="the drain")
            daemon.call("cancel", service="chat")
            daemon.wait(record["id"], ("Canceled",))
            assert daemon.model() == "a"
            data, error = read_to_the_end(response)
        assert error is None, data[-200:]
        assert data.endswith(b"data: [DONE]\n\n")


def test_a_stream_past_the_drain_timeout_is_cut_with_an_error_and_counted():
    with Daemon([A, big()], service='drain_timeout = "500ms"') as daemon:
        connection, response, _ = open_stream(daemon, 1000, 0.03)
        with contextlib.closing(connection):
            record = daemon.swap("big")
            data, error = read_to_the_end(response)
        assert record["phase"] == "Soaking"
        assert record["cut_requests"] == 1
        assert b"event: error" in data
        assert error is not None, "a cut stream must not look complete"
        assert daemon.call("show", id=record["id"])["cut_requests"] == 1


def test_who_waits_longer_than_the_hold_timeout_gets_a_503_and_the_swap_goes_on():
    with Daemon([A, big(LOAD_S="3")], service='hold_timeout = "1s"') as daemon:
        swap = daemon.call("swap", service="chat", to="big")
        until(lambda: daemon.service()["holding"], what="the hold")
        begun = time.monotonic()
        status, _, document, headers = daemon.get("/", method="POST", body=b"x" * 100_000)
        assert status == 503
        assert time.monotonic() - begun >= 0.9
        assert 0 < int(headers["retry-after"]) <= 60
        assert set(document["error"]) >= {"message", "type", "code"}
        assert daemon.wait(swap["id"])["phase"] == "Soaking"
        assert daemon.model() == "big"


def test_the_health_path_answers_while_clients_are_held():
    with Daemon([A, big(LOAD_S="2")]) as daemon:
        assert daemon.get("/-/swapd/health")[0] == 200
        swap = daemon.call("swap", service="chat", to="big")
        until(lambda: daemon.service()["holding"], what="the hold")
        assert daemon.get("/-/swapd/health", timeout=1)[0] == 200
        daemon.wait(swap["id"])
        assert daemon.get("/-/swapd/health")[0] == 200


def test_clients_that_hang_up_while_held_never_reach_the_model():
    with Daemon([A, big(LOAD_S="2")]) as daemon:
        swap = daemon.call("swap", service="chat", to="big")
        until(lambda: daemon.service()["holding"], what="the hold")
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", daemon.port)) as sock:
                sock.sendall(b"GET /crash HTTP/1.1\r\nhost: x\r\n\r\n")
        waiting = []
        thread = threading.Thread(target=lambda: waiting.append(daemon.get("/")))
        thread.start()
        record = daemon.wait(swap["id"])
        thread.join(30)
        assert waiting[0][0] == 200
        assert daemon.model() == "big", "a request of a client that had gone would have ended the worker"
        assert daemon.call("show", id=record["id"])["phase"] == "Soaking"


def test_malformed_and_oversized_requests_get_an_answer_and_harm_nobody():
    with Daemon([A]) as daemon:
        for data, expected in (
            (b"NOT HTTP AT ALL\r\n\r\n", b" 400 "),
            (b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 200_000 + b"\r\n\r\n", b" 431 "),
            (b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello", b" 400 "),
        ):
            with socket.create_connection(("127.0.0.1", daemon.port), timeout=10) as sock:
                with contextlib.suppress(ConnectionError):
                    sock.sendall(data)
                answer = b""
                with contextlib.suppress(ConnectionError):
                    while chunk := sock.recv(65536):
                        answer += chunk
                assert expected in answer.split(b"\r\n")[0], (data[:40], answer[:100])
        assert daemon.model() == "a"


def test_a_slow_upload_that_is_under_way_is_answered_by_the_old_model():
    with Daemon([A, model("b")]) as daemon:
        with socket.create_connection(("127.0.0.1", daemon.port), timeout=30) as sock:
            sock.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n" + b"x" * 500)
            until(lambda: daemon.call("workers")[0]["in_flight"] == 1, what="the upload seen")
            assert daemon.swap("b")["phase"] == "Soaking"
            sock.sendall(b"x" * 500)
            response = http.client.HTTPResponse(sock)
            response.begin()
            first = json.loads(response.read())
            sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            response = http.client.HTTPResponse(sock)
            response.begin()
            second = json.loads(response.read())
        assert (first["model"], first["got"]) == ("a", 1000)
        assert second["model"] == "b", "the connection followed when its response was complete"
