"""A changed file is taken over while everything runs: only what has changed is touched, or nothing at all."""

import signal
import socket
import threading

import pytest
from support.daemon_host import Crowd, Daemon, Refused, free_port, model, until

A, B = model("a"), model("b")
SERVICE = '[services.{}]\nlisten = "127.0.0.1:{}"\nmodel = "{}"\n{}\n'


def workers(daemon, service="chat"):
    """Of models: a gate that has held clients at the start may be on its way out."""
    return {w["id"]: w["pid"] for w in daemon.call("workers") if w["service"] == service and w["role"] != "gate"}


def chat(daemon, extra=""):
    return SERVICE.format("chat", daemon.port, "a", extra)


def names(daemon):
    return [s["name"] for s in daemon.call("status")["services"]]


def refused(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except ConnectionRefusedError:
        return True
    return False


def test_an_added_service_comes_up_and_a_removed_one_ends_while_the_others_hear_nothing_of_it():
    other = free_port()
    with Daemon([A, B]) as daemon, Crowd(daemon.port) as crowd:
        before = workers(daemon)
        daemon.write([A, B], services=chat(daemon) + SERVICE.format("embed", other, "b", ""))
        answer = daemon.call("reload")
        assert [(c["key"], c["effect"]) for c in answer["changes"]] == [("services.embed", "now")]
        assert daemon.get("/", port=other)[2]["model"] == "b", "its address answers at once, and holds until it serves"
        stream = threading.Thread(target=lambda: streamed.append(daemon.get("/stream?n=60&s=0.05", port=other)))
        streamed = []
        stream.start()
        until(lambda: daemon.service("embed")["streams"], what="the stream")
        daemon.write([A, B], services=chat(daemon))
        daemon.call("reload")
        assert daemon.service("embed")["leaving"] is True
        until(lambda: daemon.get("/", port=other)[0] == 503, what="the first who is turned away")
        status, _, document, headers = daemon.get("/", port=other)
        assert (status, document["error"]["code"]) == (503, "shutting_down")
        assert "retry-after" in headers
        with pytest.raises(Refused, match="being stopped"):
            daemon.call("swap", service="embed", to="a")
        until(lambda: names(daemon) == ["chat"], what="embed gone")
        stream.join(10)
        assert streamed[0][2].endswith(b"data: [DONE]\n\n"), "what was in flight is finished"
        until(lambda: refused(other), what="its address closed")
        assert workers(daemon, "embed") == {}
        assert workers(daemon) == before
        crowd.more(30)
        crowd.check()


def test_a_removed_service_can_be_added_again_once_it_has_ended():
    other = free_port()
    services = SERVICE.format("embed", other, "b", "")
    with Daemon([A, B]) as daemon:
        daemon.write([A, B], services=chat(daemon) + services)
        daemon.call("reload")
        daemon.wait_healthy("embed")
        daemon.swap("a", service="embed")
        stream = threading.Thread(target=lambda: daemon.get("/stream?n=60&s=0.05", port=other))
        stream.start()
        until(lambda: daemon.service("embed")["streams"], what="the stream")
        daemon.write([A, B], services=chat(daemon))
        daemon.call("reload")
        daemon.write([A, B], services=chat(daemon) + services)
        with pytest.raises(Refused, match="embed was removed from the configuration and is being stopped"):
            daemon.call("reload")
        until(lambda: names(daemon) == ["chat"], what="embed gone")
        stream.join(10)
        daemon.call("reload")
        daemon.wait_healthy("embed")
        assert daemon.service("embed")["revision"] == 3, "no number is given twice"


def test_a_file_that_cannot_be_taken_over_changes_nothing_and_every_reason_is_told():
    taken, free = free_port(), free_port()
    with Daemon([A, B]) as daemon, socket.create_server(("127.0.0.1", taken)):
        before = workers(daemon)
        added = SERVICE.format("one", taken, "b", "") + SERVICE.format("two", free, "b", "")
        daemon.write([A, B, model("c")], services=chat(daemon, 'soak = "1s"') + added)
        with pytest.raises(Refused) as caught:
            daemon.call("reload")
        assert caught.value.code == "LISTEN_FAILED"
        assert f"127.0.0.1:{taken}" in caught.value.message
        assert refused(free), "and what could be bound is let go of"
        assert names(daemon) == ["chat"]
        assert [m["name"] for m in daemon.call("models")] == ["a", "b"]
        daemon.write([A, B], services=chat(daemon, 'protocol = "tcp"'))
        with pytest.raises(Refused, match=r"services\.chat\.protocol can only be changed by restarting swapd"):
            daemon.call("reload")
        daemon.write([A, B], services=SERVICE.format("two", daemon.port, "b", ""))
        with pytest.raises(Refused, match=r"services\.two\.listen 127\.0\.0\.1:\d+ is still that of chat"):
            daemon.call("reload")
        assert workers(daemon) == before
        assert daemon.call("history") == []


def test_devices_come_and_go_unless_they_are_in_use():
    host, more = '[devices.host]\nkind = "host"\nmemory = "{}"\n', '[devices.more]\nkind = "host"\nmemory = "300MiB"\n'
    big = model("big", memory="200MiB")
    with Daemon([A, big], devices=host.format("150MiB")) as daemon:
        with pytest.raises(Refused, match="needs 200 MiB"):
            daemon.call("plan", service="chat", to="big")
        daemon.devices = host.format("1GiB")
        daemon.write([A, big])
        daemon.call("reload")
        assert daemon.call("plan", service="chat", to="big")["strategy"] == "dual"
        daemon.devices = host.format("1GiB") + more
        daemon.write([A, big], services=chat(daemon, 'devices = ["more"]'))
        daemon.call("reload")
        assert [d["name"] for d in daemon.call("devices")] == ["host", "more"]
        assert daemon.call("plan", service="chat", to="big")["device"] == "more"
        daemon.devices = more
        daemon.write([A, big], services=chat(daemon, 'devices = ["more"]'))
        with pytest.raises(Refused, match=r"devices\.host is in use by chat"):
            daemon.call("reload")
        assert daemon.swap("big")["phase"] == "Soaking"
        daemon.devices = host.format("1GiB")


def test_changed_settings_of_a_model_that_serves_are_swapped_to_where_that_is_wished():
    wish = 'reload_swaps = "settings"'
    with Daemon([A, B]) as daemon, Crowd(daemon.port) as crowd:
        daemon.write([model("a", THREADS="2"), B])
        assert daemon.call("reload")["swaps"] == []
        assert daemon.service()["swap"] is None
        daemon.write([model("a", THREADS="3"), model("b", THREADS="3")], daemon=wish)
        told = {c["key"]: c["effect"] for c in daemon.call("reload", dry_run=True)["changes"]}
        assert told["models.a.env.THREADS"] == "swap"
        assert told["models.b.env.THREADS"] == "next swap"
        [swap] = daemon.call("reload")["swaps"]
        assert (swap["to"]["model"], swap["asked_reason"]) == ("a", "the configuration changed")
        assert daemon.wait(swap["id"])["phase"] == "Soaking"
        crowd.more(30)
        crowd.check()


@pytest.mark.parametrize("front", ["", 'front = "gate"'])
@pytest.mark.parametrize("how", ["reload", "restart"])
def test_a_changed_address_is_bound_before_the_old_one_is_closed(how, front):
    first, second = free_port(), free_port()
    with Daemon([A, B], services=SERVICE.format("chat", first, "a", front), port=first) as daemon:
        before = workers(daemon)
        with Crowd(first) as crowd:
            one = f'"127.0.0.1:{first}"'
            both = chat(daemon, front).replace(one, f'[{one}, "127.0.0.1:{second}"]')
            daemon.write([A, B], services=both)
            take_over(daemon, how)
            until(lambda: not refused(second), what="the new address")
            assert daemon.get("/", port=second)[2]["model"] == "a"
            crowd.more(20)
        crowd.check()
        daemon.write([A, B], services=SERVICE.format("chat", second, "a", front))
        stream = threading.Thread(target=lambda: streamed.append(daemon.get("/stream?n=40&s=0.02", port=first)))
        streamed = []
        stream.start()
        until(lambda: daemon.service()["streams"], what="the stream")
        take_over(daemon, how)
        until(lambda: refused(first), what="the old address closed")
        assert daemon.get("/", port=second)[2]["model"] == "a"
        stream.join(10)
        assert streamed[0][2].endswith(b"data: [DONE]\n\n"), "what came by it goes on"
        assert workers(daemon) == before


def take_over(daemon, how):
    if how == "reload":
        daemon.call("reload")
    else:
        daemon.stop(signal.SIGKILL)
        daemon.start()


def test_a_service_that_is_gone_from_the_file_at_a_start_is_drained_and_stopped_and_can_come_again():
    other = free_port()
    embed = SERVICE.format("embed", other, "b", "")
    daemon = Daemon([])
    daemon.write([A, B], services=chat(daemon) + embed)
    with daemon:
        daemon.wait_healthy("embed")
        before = workers(daemon)
        stream = threading.Thread(target=lambda: streamed.append(daemon.get("/stream?n=60&s=0.05", port=other)))
        streamed = []
        stream.start()
        until(lambda: daemon.service("embed")["streams"], what="the stream")
        daemon.write([A, B], services=chat(daemon))
        take_over(daemon, "restart")
        stream.join(10)
        assert streamed[0][2].endswith(b"data: [DONE]\n\n"), "what was in flight is finished"
        until(lambda: names(daemon) == ["chat"], what="embed gone")
        until(lambda: refused(other), what="its address closed")
        assert workers(daemon) == before
        daemon.write([A, B], services=chat(daemon) + embed)
        take_over(daemon, "restart")
        daemon.wait_healthy("embed")
        assert daemon.get("/", port=other)[2]["model"] == "b"
