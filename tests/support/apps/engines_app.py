"""Engines for tests: every shape of hook, and every way to fail."""

import asyncio
import os
import sys
import threading
import time

CALLS = []


async def answer(scope, receive, send):
    """What every engine here serves: the hooks that have run, in order."""
    await receive()
    body = ",".join(CALLS).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


class SyncEngine:
    """Every hook, sync; the app is set by load."""

    app = None

    def stage(self, progress):
        CALLS.append("stage")
        for done in range(101):
            progress(done, 100, "bytes")

    def load(self):
        assert threading.current_thread() is threading.main_thread()
        CALLS.append("load")
        self.app = answer

    def park(self):
        CALLS.append("park")

    def wake(self):
        CALLS.append("wake")

    def unload(self):
        print("unloaded after", ",".join(CALLS), file=sys.stderr, flush=True)


class AsyncEngine:
    """Async hooks, and the engine itself is the app."""

    async def load(self, *, progress):
        await asyncio.sleep(0)
        progress(1, 2, unit="layers")
        progress(2, 2, unit="layers")
        CALLS.append("load")

    async def park(self):
        CALLS.append("park")

    async def wake(self):
        CALLS.append("wake")

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        await answer(scope, receive, send)


class Plain:
    """No hooks at all, only an app."""

    def __init__(self):
        self.app = answer


class Base:
    def park(self):
        CALLS.append("park")


class Inherits(Base):
    app = staticmethod(answer)

    def wake(self):
        CALLS.append("wake")


instance = SyncEngine()
annotated: Base = Inherits()


class Holder:
    app = staticmethod(answer)


class NeedsArguments:
    def __init__(self, path):
        self.path = path


class InitFails:
    def __init__(self):
        raise FileNotFoundError("weights.bin is not there")


class LoadFails:
    def load(self):
        raise ValueError("bad\nweights")


class LoadExits:
    def load(self):
        sys.exit(3)


class OutOfMemory:
    def load(self):
        raise MemoryError


class CudaOutOfMemory:
    def load(self):
        try:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
        except RuntimeError as error:
            raise OSError("could not read the weights") from error


class NoApp:
    def load(self):
        pass


class ParkFails(SyncEngine):
    def park(self):
        raise RuntimeError("the GPU is busy")


class BlocksLoad:
    """A load that never yields, as one that copies weights in C does not."""

    app = staticmethod(answer)

    def load(self):
        until_s = time.monotonic() + 60
        while not os.path.exists(os.environ["RELEASE"]) and time.monotonic() < until_s:
            time.sleep(0.01)


class HangsLoad:
    app = staticmethod(answer)

    async def load(self):
        await asyncio.Event().wait()


class HangsEnd:
    """A thread that never ends, and an unload that fails."""

    app = staticmethod(answer)

    def load(self):
        threading.Thread(target=threading.Event().wait).start()

    def unload(self):
        raise RuntimeError("cannot unload")


class HangsEndForEver:
    app = staticmethod(answer)

    def unload(self):
        print("unload begins", file=sys.stderr, flush=True)
        threading.Event().wait(600)


def create_app():
    return answer


def wsgi_app(environ, start_response):
    return [b""]


number = 7
