"""Fuzzes a real gate: `python tests/fuzz_relay.py [SECONDS] [SEED]` (make fuzz).

Mutated requests go in, in pieces, from several connections at once, some of which are cut off; the engine behind
answers with mutated answers now and then. All the while the gate lives, no connection outlasts its deadlines, and the
engine sees whole, well-formed requests only. At the end nothing is in flight, and memory and descriptors are what they
were.
"""

from __future__ import annotations

import contextlib
import random
import socket
import sys
import tempfile
import threading
import time

import psutil
from support.front_process import FrontProcess, tcp_listener
from support.http_cases import mutated
from support.raw_upstream import OK, RawUpstream

THREADS = 6
STALL_S = 1.0
DEADLINE_S = 10.0  # the stall, a sweep, lingering, and a slow machine
MAX_GROWTH_BYTES = 20 << 20
ANSWERS = [
    OK,
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx: y\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n" + b"x" * 100_000,
]


class Fuzz:
    def __init__(self, seconds, seed):
        self.until = time.monotonic() + seconds
        self.seed = seed
        self.count = 0
        self.failures = []

    def answer(self, request):
        rng = random.Random(self.count)
        answer = bytearray(rng.choice(ANSWERS))
        if rng.random() < 0.7:
            return bytes(answer) if b"HTTP/1.0" not in answer else lambda sock: sock.sendall(answer) or False
        answer[rng.randrange(len(answer))] = rng.randrange(256)
        return lambda sock: sock.sendall(answer) or False  # what is awaited of it in vain is not the gate's fault

    def one(self, address, data, rng):
        """A connection's life. Raises AssertionError when it outlasts its deadline."""
        with socket.create_connection(address, 5) as sock, contextlib.suppress(ConnectionError):
            at = 0
            while at < len(data):
                size = rng.choice((1, 5, 100, len(data)))
                sock.sendall(data[at : at + size])
                at += size
            if rng.random() < 0.2:
                return  # leaves without a word
            sock.settimeout(DEADLINE_S)
            if rng.random() < 0.95:
                sock.sendall(b"GET /end HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            else:
                sock.sendall(b"GET / HT")
            try:
                while sock.recv(65536):
                    pass
            except TimeoutError:
                self.failures.append(("a connection hangs", data))

    def work(self, address, number):
        rng = random.Random(self.seed * 1000 + number)
        while time.monotonic() < self.until and not self.failures:
            try:
                for data in mutated(50, rng.randrange(1 << 30)):
                    self.one(address, data, rng)
                    self.count += 1
                    if time.monotonic() > self.until:
                        break
            except Exception as error:
                self.failures.append((repr(error), b""))

    def run(self, upstream, gate, address):
        threads = [threading.Thread(target=self.work, args=(address, number)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.2)
            upstream.requests.clear()
            upstream.whole.clear()
            upstream.cut_short.clear()
            if upstream.faults:
                self.failures.append(("the engine got what is no request", upstream.faults[0]))
            if gate.process.poll() is not None:
                self.failures.append(("the gate has ended", gate.process.returncode))


def fuzz(seconds, seed):
    """(connections, failures)"""
    with tempfile.TemporaryDirectory() as folder, tcp_listener() as listener:
        upstream = RawUpstream(f"{folder}/http.sock")
        gate = FrontProcess(kind="gate", stall_s=STALL_S)
        try:
            gate.request("point", epoch=1, routes=[upstream.route()])
            gate.adopt(1, main=listener)
            warm_up = Fuzz(min(3.0, seconds / 3), seed + 1)
            process = psutil.Process(gate.pid)
            descriptors = process.num_fds()
            sizes = []
            for run in (warm_up, main := Fuzz(seconds, seed)):
                upstream.answer = run.answer
                run.run(upstream, gate, listener.getsockname())
                gate.wait_stats(in_flight=0, connections=0, upgraded=0)
                sizes.append(process.memory_info().rss)
            failures = warm_up.failures + main.failures
            if sizes[1] - sizes[0] > MAX_GROWTH_BYTES:
                failures.append(("memory has grown", sizes))
            gate.request("point", epoch=2, hold=True)  # lets go of the engine's pooled connections
            if process.num_fds() > descriptors + 1:
                failures.append(("descriptors are left", process.num_fds() - descriptors))
            return main.count, failures
        finally:
            gate.close()
            upstream.close()


if __name__ == "__main__":
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 20)
    count, failures = fuzz(seconds, seed)
    print(f"seed {seed}: {count} connections in {seconds:g} s, {len(failures)} failures")
    for failure in failures:
        print(*failure)
    sys.exit(bool(failures))
