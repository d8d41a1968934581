"""A Type=notify service that drives `swapd.host.service_manager` as the daemon does, for tests under systemd.

It counts its starts in its state directory, serves a listener that it keeps in the descriptor store, holds an
unmarked file there too, and appends what it found to `starts.jsonl`.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import sys
from pathlib import Path

from swapd.host import listeners
from swapd.host.service_manager import ServiceManager


def main() -> None:
    service = ServiceManager()
    found = service.inherited()
    state = Path(os.environ.get("STATE_DIRECTORY", "."))
    listener = found.sockets.get("front-chat")
    if listener is None:
        listener = listeners.bind("127.0.0.1:0")
        service.store_fd("front-chat", listener)
    if "generation" not in found.others:
        memory = os.memfd_create("generation")
        os.write(memory, b"1")
        service.store_fd("generation", memory)
    else:
        memory = found.others["generation"]
    record = {
        "pid": os.getpid(),
        "uid": os.getuid(),
        "sockets": sorted(found.sockets),
        "others": sorted(found.others),
        "memory": os.pread(memory, 10, 0).decode(),
        "port": listener.getsockname()[1],
        "watchdog_interval_s": service.watchdog_interval_s,
        "environ": sorted(name for name in os.environ if name.startswith(("NOTIFY_", "LISTEN_", "WATCHDOG_"))),
        "argv": sys.argv[1:],
    }
    with (state / "starts.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")

    ended: list[int] = []
    wake_read, wake_write = socket.socketpair()
    wake_write.setblocking(False)
    signal.set_wakeup_fd(wake_write.fileno())
    signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
    service.ready("sert modèle a → 127.0.0.1")
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(wake_read, selectors.EVENT_READ)
    while not ended:
        service.watchdog()
        for key, _ in selector.select(service.watchdog_interval_s or 10):
            if key.fileobj is listener:
                client = listener.accept()[0]
                client.sendall(b"%d\n" % os.getpid())
                client.close()
    service.stopping("drains")
    service.close()


if __name__ == "__main__":
    main()
