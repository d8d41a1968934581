"""A gRPC server that knows nothing of swapd: `python grpc_server.py SOCKET NAME`. It sends connections away in good
order once they are a second old, as servers behind a balancer of connections must."""

import signal
import sys
import time
from concurrent import futures

import grpc


def ask(request, context):
    return sys.argv[2].encode() + b" " + request


def count(request, context):
    for number in range(int(request)):
        yield b"%s %d" % (sys.argv[2].encode(), number)
        time.sleep(0.01)


def main():
    options = [("grpc.max_connection_age_ms", 1000), ("grpc.max_connection_age_grace_ms", 10_000)]
    server = grpc.server(futures.ThreadPoolExecutor(8), options=options)
    handlers = {"Ask": grpc.unary_unary_rpc_method_handler(ask), "Count": grpc.unary_stream_rpc_method_handler(count)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Test", handlers),))
    server.add_insecure_port(f"unix:{sys.argv[1]}")
    server.start()
    signal.signal(signal.SIGTERM, lambda *_: server.stop(5))
    server.wait_for_termination()


if __name__ == "__main__":
    main()
