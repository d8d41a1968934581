"""The worker's end of a control channel that does as each verb says, rightly or wrongly, for tests.

`python process_channel_server.py PATH [HELLO]`: HELLO is JSON that replaces keys of the answer to hello.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time

from swapd.wire import worker as wire

HELLO = {"protocol": wire.PROTOCOL, "min_protocol": wire.MIN_PROTOCOL, "worker_id": "chat-1", "nonce": "0a"}


def serve(link: socket.socket, hello: dict) -> None:
    held: list[int] = []

    def reply(number: int, **ok) -> None:
        link.send(wire.encode(wire.Reply(number, ok)))

    while True:
        data, fds, _flags, _address = socket.recv_fds(link, wire.MAX_MESSAGE_BYTES, wire.MAX_FDS)
        if not data:
            return
        request = wire.decode(data)
        assert isinstance(request, wire.Request)
        if request.verb == "hello":
            if hello.get("silent"):
                continue
            reply(request.id, **hello, got=dict(request.params))
            for name in hello.get("missed", ()):
                link.send(wire.encode(wire.WorkerEvent(name)))
        elif request.verb == "echo":
            reply(request.id, **request.params)
        elif request.verb == "write":
            for fd in fds:
                os.write(fd, b"through the worker")
            reply(request.id, fds=len(fds))
        elif request.verb == "hold":
            held.append(request.id)
        elif request.verb == "release":  # the latest first
            for number in reversed(held):
                reply(number, released=number)
            held.clear()
            reply(request.id)
        elif request.verb == "fail":
            error = wire.Problem("LOAD_FAILED", "no weights at /srv/a", {"path": "/srv/a"})
            link.send(wire.encode(wire.Reply(request.id, error=error)))
        elif request.verb == "progress":
            for done in range(3):
                link.send(wire.encode(wire.WorkerEvent("progress", {"done": done})))
            reply(request.id)
        elif request.verb == "flood":
            for done in range(request.params["count"]):
                link.send(wire.encode(wire.WorkerEvent("progress", {"done": done})))
            reply(request.id)
        elif request.verb == "garbage":
            link.send(b"\xff\xfe not json")
        elif request.verb == "oversize":
            link.send(b'{"event":"' + b"x" * wire.MAX_MESSAGE_BYTES + b'"}')
        elif request.verb == "request":
            link.send(wire.encode(wire.Request(1, "load")))
        elif request.verb == "wrong_id":
            reply(request.id + 1000)
        elif request.verb == "exit":
            os._exit(0)
        elif request.verb == "reply_and_exit":
            reply(request.id, last=True)
            os._exit(0)
        elif request.verb == "deaf":
            reply(request.id)
            time.sleep(3600)


def main(path: str, hello: dict) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path + ".new")
    listener.listen(8)
    os.rename(path + ".new", path)
    while True:
        link, _ = listener.accept()
        with link:
            serve(link, hello)


if __name__ == "__main__":
    main(sys.argv[1], {**HELLO, **json.loads(sys.argv[2] if len(sys.argv) > 2 else "{}")})
