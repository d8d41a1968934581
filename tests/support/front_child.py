"""A process with a front in it, driven over a SOCK_SEQPACKET control socket: `python front_child.py FD SETTINGS`.

It stands for a worker: the front lives on the main thread's loop, the channel on a thread of its own, which goes past
a loop that is blocked exactly as a worker's does.
"""

from __future__ import annotations

import array
import asyncio
import dataclasses
import hashlib
import json
import os
import resource
import socket
import sys
import threading
import time
from urllib.parse import parse_qsl

import uvloop

from swapd.core.errors import SwapdError
from swapd.front.direct import DirectFront
from swapd.front.gate import GateFront
from swapd.front.relay import relay as relay_module
from swapd.front.relay.access_log import AccessLog
from swapd.front.relay.routing import read_table


def build_app(revision):
    seen = []

    async def body_of(receive):
        data = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return data
            data += message.get("body", b"")
            if not message.get("more_body"):
                return data

    async def reply(send, body, status=200, extra=()):
        headers = [(b"content-length", b"%d" % len(body)), *extra]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def websocket(receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                seen.append(f"ws-{message.get('code')}")
                return
            await send({"type": "websocket.send", "text": f"{revision}:{message.get('text')}"})

    async def stream(send, query):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for number in range(int(query.get("n", "5"))):
            body = b"data: %d %d\n\n" % (revision, number)
            await send({"type": "http.response.body", "body": body, "more_body": True})
            await asyncio.sleep(float(query.get("gap", "0.01")))
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def app(scope, receive, send):
        if scope["type"] == "websocket":
            await websocket(receive, send)
            return
        query = dict(parse_qsl(scope["query_string"].decode()))
        path = scope["path"]
        if path != "/seen":
            seen.append(query.get("id", path))
        if path == "/echo":
            data = await body_of(receive)
            await reply(send, f"{revision} {len(data)} {hashlib.sha256(data).hexdigest()}".encode())
        elif path == "/slow":
            await asyncio.sleep(float(query.get("s", "0.2")))
            await reply(send, b"%d slow" % revision)
        elif path == "/wait-disconnect":
            await body_of(receive)
            message = await receive()
            seen.append(message["type"])
        elif path == "/early":
            await reply(send, b"%d early" % revision)
        elif path == "/big":
            await reply(send, b"x" * int(query["n"]))
        elif path == "/block":
            time.sleep(float(query["s"]))  # noqa: ASYNC251 (a model that blocks its loop)
            await reply(send, b"%d block" % revision)
        elif path == "/stream":
            await stream(send, query)
        elif path == "/seen":
            await reply(send, json.dumps(seen).encode())
        elif path == "/close":
            await reply(send, b"%d close" % revision, extra=[(b"connection", b"close")])
        else:
            await body_of(receive)
            await reply(send, b"%d" % revision)

    return app


class Child:
    def __init__(self, control, settings):
        self.control = control
        self.settings = settings
        self.lock = threading.Lock()
        if "nofile" in settings:
            resource.setrlimit(resource.RLIMIT_NOFILE, (settings["nofile"], settings["nofile"]))

    def main(self):
        asyncio.run(self.run(), loop_factory=uvloop.new_event_loop) if sys.version_info >= (3, 12) else self.run_old()

    def run_old(self):
        loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
        loop.run_until_complete(self.run())

    async def run(self):
        self.loop = asyncio.get_running_loop()
        self.stopped = asyncio.Event()
        settings = self.settings
        relay_module.REQUEST_STALL_S = settings.get("stall_s", relay_module.REQUEST_STALL_S)
        relay_module.ANSWER_STALL_S = settings.get("answer_stall_s", relay_module.ANSWER_STALL_S)
        if settings["kind"] == "gate":
            self.front = GateFront(
                self.loop,
                health_path="/-/swapd/health",
                hold_timeout_s=settings.get("hold_timeout_s", 60.0),
                queue_limit=settings.get("queue_limit", 4096),
                retry_after_s=5,
                keep_alive_s=settings.get("keep_alive_s", 75.0),
                trust_forwarded=settings.get("trust_forwarded", False),
                tcp=settings.get("tcp", False),
            )
        else:
            private = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            private.bind(settings["private"])
            private.listen(128)
            self.front = DirectFront(
                self.loop,
                build_app(settings["revision"]),
                {},
                revision=settings["revision"],
                health_path="/-/swapd/health",
                keep_alive_s=settings.get("keep_alive_s", 75.0),
                retry_after_s=5,
                private_socket=private,
            )
        self.front.on_needs_successor = lambda epoch, count: self.say(
            {"event": "needs_successor", "params": {"epoch": epoch, "count": count}}
        )
        threading.Thread(target=self.channel, daemon=True).start()
        self.say({"event": "up", "params": {}})
        await self.stopped.wait()

    def say(self, body):
        with self.lock:
            self.control.send(json.dumps(body).encode())

    def channel(self):
        while True:
            data, ancillary, _, _ = self.control.recvmsg(65536, socket.CMSG_SPACE(253 * 4), socket.MSG_CMSG_CLOEXEC)
            if not data:
                os._exit(0)
            fds = array.array("i")
            for _, _, content in ancillary:
                fds.frombytes(content)
            request = json.loads(data)
            threading.Thread(target=self.serve, args=(request, list(fds)), daemon=True).start()

    def serve(self, request, fds):
        try:
            files = request["verb"] == "access_log"
            ok = self.do(request["verb"], request["params"], fds if files else [socket.socket(fileno=n) for n in fds])
            self.say({"re": request["id"], "ok": ok})
        except SwapdError as error:
            self.say({"re": request["id"], "error": {"code": error.code, "message": error.message}})
        except Exception as error:
            self.say({"re": request["id"], "error": {"code": "BUG", "message": repr(error)}})

    def on_loop(self, call):
        async def run():
            result = call()
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(run(), self.loop)

    def do(self, verb, params, sockets):
        front = self.front
        if verb == "stats":
            figures = dataclasses.asdict(front.stats())
            if isinstance(front, GateFront):
                figures |= {"shadow": front.shadow_stats(), **front.gate_stats(windows=params.get("windows", False))}
            return figures
        if verb == "access_log":
            access_log = AccessLog(sockets[0], "chat", query=params.get("query", False)) if sockets else None
            self.on_loop(lambda: front.log_to(access_log)).result(10)
            return {}
        if verb == "point":
            return dataclasses.asdict(self.on_loop(lambda: front.point(read_table(params))).result(10))
        if verb == "adopt":
            listeners = dict(zip(params["listeners"], sockets, strict=True))
            return {"started_at": self.on_loop(lambda: front.adopt(params["epoch"], listeners)).result(10)}
        if verb == "receive":
            self.on_loop(lambda: front.receive(params["epoch"], sockets[0])).result(10)
            return {}
        if verb == "hand_over":
            return dataclasses.asdict(self.hand_over(params, sockets[0]))
        if verb == "successor":
            self.on_loop(lambda: front.successor(params["epoch"], sockets[0])).result(10)
            return {}
        if verb == "source_dead":
            return dataclasses.asdict(self.on_loop(lambda: front.source_dead(params["epoch"])).result(10))
        if verb == "target_dead":
            return {"resumed": front.target_dead(params["epoch"])}
        if verb == "abort_hand_over":
            self.on_loop(front.abort_hand_over).result(10)
            return {}
        if verb == "drain":
            rest = [params.get("and_close", False), *([params["upstream"]] if "upstream" in params else [])]
            call = lambda: front.drain(params["deadline_s"], *rest)  # noqa: E731
            return dataclasses.asdict(self.on_loop(call).result(60))
        if verb == "block":
            begun = threading.Event()
            self.loop.call_soon_threadsafe(lambda: (begun.set(), time.sleep(params["seconds"])))
            begun.wait(10)
            return {}
        if verb == "stop":
            self.on_loop(front.close).result(10)
            self.loop.call_soon_threadsafe(self.stopped.set)
            return {}
        raise ValueError(verb)

    def hand_over(self, params, peer):
        front, epoch, deadline_s = self.front, params["epoch"], params["deadline_s"]
        front.quiesce_from_thread(epoch)
        answered = threading.Event()
        self.loop.call_soon_threadsafe(answered.set)
        if answered.wait(0.25):
            return self.on_loop(lambda: front.hand_over(epoch, peer, deadline_s)).result()
        return front.hand_over_blocked(epoch, peer, deadline_s)


if __name__ == "__main__":
    Child(socket.socket(fileno=int(sys.argv[1])), json.loads(sys.argv[2])).main()
