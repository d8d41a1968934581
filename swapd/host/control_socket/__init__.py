"""The control and events sockets: a ROUTER that takes orders, a PUB that tells what happens.

The sole importer of zmq in the daemon. `server` answers requests, `endpoint` is one bound zmq socket on the loop,
`socket_file` the Unix socket's file and permissions, `memory` what is remembered: events, repeats, users' names.
"""

from __future__ import annotations

from swapd.host.control_socket.endpoint import check_endpoint
from swapd.host.control_socket.server import ControlSocket, Handler, Peer

__all__ = ["ControlSocket", "Handler", "Peer", "check_endpoint"]
